"""How many tokens a prompt has: asked of the server, counted here, or estimated and corrected by the server's usage."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import EngineError, MissingModelDependencies

from .wire import whole

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction
    from kani_lite.messages import ChatMessage

_KNOWN = 16  # prompts whose exact length is remembered
_BYTES = 4  # of UTF-8 a token: what English text has, about; others are learned
_SHAPING = ("extra_body", "reasoning_effort", "response_format", "verbosity")
_OF_TEMPLATES = ("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_RATIOS = (0.25, 4.0)  # what a usage may correct an estimate by: beyond, it means something else


class PromptKey:
    """A prompt by its parts: equal keys are equal prompts. Its texts are what an estimate counts.

    `shape`: fields of one call that may change how the server writes it."""

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        shape: Mapping[str, Any] | None = None,
    ) -> None:
        self.messages = tuple(_json(message) for message in messages)
        self.tools = _json(tools) if tools else ""
        self.around = (self.tools, _json(shape) if shape else "")


def shape_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a call by which a server may write another prompt for the same messages."""
    return {name: call[name] for name in _SHAPING if call.get(name)}


def template_fields(*calls: Mapping[str, Any]) -> dict[str, Any]:
    """What of `extra_body` vLLM's tokenize route knows; the last that has a field counts."""
    extra = {name: value for call in calls for name, value in (call.get("extra_body") or {}).items()}
    return {name: extra[name] for name in _OF_TEMPLATES if name in extra}


class LocalPrompts:
    """Prompts written here, by a tokenizer of transformers that has the server's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pipelines = {_json({}): self._pipeline({})}  # now, so that what is missing is told now

    def count(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None, fields: Mapping[str, Any]
    ) -> int:
        """The tokens of a prompt. `fields`: its `template_fields`. Raises PromptError where the template refuses it."""
        key = _json(fields)
        if key not in self._pipelines:
            if len(self._pipelines) >= _KNOWN:
                self._pipelines.clear()
            self._pipelines[key] = self._pipeline(fields)
        text = whole(self._pipelines[key](messages, functions))
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _pipeline(self, fields: Mapping[str, Any]) -> Callable[..., str]:
        from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline

        given = fields.get("chat_template_kwargs") or {}
        return ChatTemplatePromptPipeline(self._tokenizer, chat_template=fields.get("chat_template"), **given)


class TokenCounts:
    """Exact lengths of the prompts counted last, and estimates of others.

    An estimate is the known length of the longest prompt that this one begins with, and for the rest the tokens of its
    JSON, times how far such a count was off before. `count`: the tokens of a text; by default one for four bytes.
    """

    def __init__(self, count: Callable[[str], int] | None = None) -> None:
        # the JSON of an old message doesn't change, so its count needn't be made again
        self._count = lru_cache(4096)(count or _by_bytes)
        self._known: OrderedDict[tuple[tuple[str, str], tuple[str, ...]], int] = OrderedDict()
        self._ratio: float | None = None

    @property
    def ratio(self) -> float:
        """Tokens of prompts, as the server counts, for each token of their JSON."""
        return 1.0 if self._ratio is None else self._ratio

    def known(self, prompt: PromptKey) -> int | None:
        """The exact length, if it is remembered."""
        return self._known.get((prompt.around, prompt.messages))

    def learn(self, prompt: PromptKey, tokens: int) -> None:
        """Notes the exact length of a prompt."""
        key = (prompt.around, prompt.messages)
        self._known[key] = tokens
        self._known.move_to_end(key)
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        low, high = _RATIOS
        found = min(max(tokens / max(1, self._raw(prompt.tools, prompt.messages)), low), high)
        self._ratio = found if self._ratio is None else (self._ratio + found) / 2

    def message(self, message: Mapping[str, Any]) -> int:
        """About how many tokens a message adds to a prompt."""
        return math.ceil(self._count(_json(message)) * self.ratio)

    def estimate(self, prompt: PromptKey) -> int:
        """About how many tokens a prompt has."""
        tokens, begun = 0, 0
        for (around, messages), length in self._known.items():
            size = len(messages)
            if size > begun and around == prompt.around and messages == prompt.messages[:size]:
                tokens, begun = length, size
        rest = self._raw("" if begun else prompt.tools, prompt.messages[begun:])
        return tokens + math.ceil(rest * self.ratio)

    def _raw(self, tools: str, messages: Sequence[str]) -> int:
        return sum(map(self._count, messages)) + (self._count(tools) if tools else 0)


def load_tokenizer(name: str) -> Any:
    """A tokenizer of transformers, from a folder or the hub. Raises EngineError if there is none."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingModelDependencies(
            f"tokenizer={name!r} needs transformers, which isn't installed: pip install 'kani-lite[huggingface]'"
        ) from error
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise EngineError(f"There is no tokenizer in {name!r}, here or on the hub: {error}") from error


def text_counter(tokenizer: Any) -> Callable[[str], int]:
    """The tokens of a text by a tokenizer of transformers, tokenizers or tiktoken. Raises EngineError for another."""
    # tiktoken's encode refuses texts that hold a special token's name
    encode = getattr(tokenizer, "encode_ordinary", None) or getattr(tokenizer, "encode", None)
    if not callable(encode):
        raise EngineError(
            f"tokenizer={type(tokenizer).__name__} has no method `encode`: give a tokenizer of transformers, "
            "tokenizers or tiktoken, or leave it out."
        )

    def count(text: str) -> int:
        ids = encode(text)
        return len(getattr(ids, "ids", ids))

    return count


def _by_bytes(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
