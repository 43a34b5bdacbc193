"""What a server says of itself: its models, how long their context is, and how it counts tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from kani_lite.exceptions import EngineError

DEFAULT_MODEL = "gpt-4.1-nano"
PLACEHOLDER_KEY = "none"  # the openai package insists on a key, and servers on one's own machine mostly want none

# tokens of OpenAI's own models, whose API doesn't tell; the longest prefix counts
_CONTEXTS = {
    "gpt-3.5-turbo": 16_385,
    "gpt-4": 8_192,
    "gpt-4-turbo": 128_000,
    "gpt-4o": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-5": 400_000,
    "o1": 200_000,
    "o3": 200_000,
    "o4-mini": 200_000,
}
# vLLM and SGLang; several hosted services
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has. `context`: tokens, None if it doesn't say; `parent`: of an adapter, its model."""

    name: str
    context: int | None
    vllm: bool
    parent: str | None


def served_models(body: Any) -> list[ServedModel]:
    """The models in the answer of a server's /models; what can't be read is left out."""
    entries = body.get("data") if isinstance(body, Mapping) else None
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
            continue
        sizes = [entry[key] for key in _CONTEXT_KEYS if isinstance(entry.get(key), int) and entry[key] > 0]
        parent = entry.get("parent")
        vllm = entry.get("owned_by") == "vllm"
        found.append(ServedModel(entry["id"], sizes[0] if sizes else None, vllm, parent if parent else None))
    return found


def chosen_model(models: Sequence[ServedModel], name: str | None, url: str) -> ServedModel:
    """The model of this name, or the only one. Raises EngineError if there is no such model, or more than one."""
    names = [model.name for model in models]
    if name is None:
        own = [model for model in models if model.parent is None]
        if len(own) == 1:
            return own[0]
        raise EngineError(f"The server at {url} has {len(own)} models ({_some(names)}): pass model=.")
    for model in models:
        if model.name == name:
            parent = next((m for m in models if m.name == model.parent), model)
            return ServedModel(name, model.context or parent.context, model.vllm, model.parent)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {_some(names)}."
    raise EngineError(f"The server at {url} doesn't list the model {name!r}: {hint}")


def _some(names: Sequence[str]) -> str:
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) or "none"


def known_context(model: str) -> int | None:
    """The tokens of one of OpenAI's own models."""
    found = [prefix for prefix in _CONTEXTS if model == prefix or model.startswith((prefix + "-", prefix + "."))]
    return _CONTEXTS[max(found, key=len)] if found else None


def context_unknown(model: str, url: str) -> EngineError:
    """The error for a context whose length nobody says."""
    return EngineError(f"The server at {url} doesn't say how long the context of {model!r} is: pass max_context_size=.")


def client_options(
    api_key: str | None, api_base: str | None, organization: str | None, headers: Mapping[str, str] | None
) -> dict[str, Any]:
    """What the openai package's clients take. Raises EngineError without a key for OpenAI itself, and for an api_base
    that is no URL."""
    base = api_base or os.environ.get("OPENAI_BASE_URL") or None
    if base is not None and (urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).netloc):
        raise EngineError(f"api_base={base!r} is no address: give one such as 'http://localhost:8000/v1'.")
    key = api_key or os.environ.get("OPENAI_API_KEY") or None
    if key is None and base is None:
        raise EngineError(
            "OpenAI needs a key: pass api_key= or set OPENAI_API_KEY, or name your own server: api_base=."
        )
    options: dict[str, Any] = {"api_key": key or PLACEHOLDER_KEY, "base_url": base}
    return options | {"organization": organization, "default_headers": dict(headers) if headers else None}


def tokenize_url(base_url: str) -> str:
    """Where vLLM counts tokens: beside its /v1."""
    return base_url.rstrip("/").removesuffix("/v1") + "/tokenize"


def token_count(answer: Any) -> int | None:
    """The count in an answer of vLLM's tokenize route; None if it is another server's, or says something else."""
    count = answer.get("count") if isinstance(answer, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None
