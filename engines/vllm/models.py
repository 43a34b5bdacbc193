"""The models that a running server says it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kani_lite.exceptions import EngineError


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has. `context`: tokens, None if it doesn't say; `root`: what it was loaded from; `parent`:
    of an adapter, its model."""

    name: str
    context: int | None
    root: str | None
    parent: str | None


def served_models(body: Any) -> list[ServedModel] | None:
    """The models in the answer of a server's /v1/models, without those that can't be read; None if it is no such
    answer."""
    entries = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(entries, list):
        return None
    found = []
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), str):
            context = entry.get("max_model_len")
            known = isinstance(context, int) and context > 0
            found.append(
                ServedModel(
                    entry["id"], context if known else None, entry.get("root") or None, entry.get("parent") or None
                )
            )
    return found


def chosen_model(models: Sequence[ServedModel], name: str | None, model_id: str, url: str) -> ServedModel:
    """The model of this name; without one, that of `model_id`, or the only one. Raises EngineError if there is no such
    model, or more than one."""
    if name is None:
        own = [model for model in models if model.parent is None]
        alike = [model for model in models if model.name == model_id] or [m for m in own if m.root == model_id]
        if not alike and len(own) != 1:
            raise EngineError(
                f"The server at {url} has {len(own)} models ({_names(models)}) and none is {model_id!r}: say which has "
                "its tokenizer, with served_model=."
            )
        name = (alike or own)[0].name
    for model in models:
        if model.name == name:
            # an adapter says none: it is that of its model
            parent = next((one for one in models if one.name == model.parent), model)
            return ServedModel(name, model.context or parent.context, model.root, model.parent)
    raise EngineError(f"The server at {url} has no model {name!r}: it has {_names(models)}.")


def _names(models: Sequence[ServedModel]) -> str:
    return ", ".join(repr(model.name) for model in models) or "none"
