"""How many tokens a prompt has: asked of the server, counted here, or estimated and corrected by the server's usage."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from kani_lite.exceptions import EngineError

_KNOWN = 16  # prompts whose exact length is remembered
_BYTES = 4  # of UTF-8 a token: what English text has, about; others are learned
_RATIOS = (0.25, 4.0)  # what a usage may correct an estimate by: beyond, it means something else


class PromptKey:
    """A prompt by its parts: equal keys are equal prompts. Its texts are what an estimate counts."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> None:
        self.messages = tuple(_json(message) for message in messages)
        self.tools = _json(tools) if tools else ""


class TokenCounts:
    """Exact lengths of the prompts counted last, and estimates of others.

    An estimate is the known length of the longest prompt that this one begins with, and for the rest the tokens of its
    JSON, times how far such a count was off before. `count`: the tokens of a text; by default one for four bytes.
    """

    def __init__(self, count: Callable[[str], int] | None = None) -> None:
        # the JSON of an old message doesn't change, so its count needn't be made again
        self._count = lru_cache(4096)(count or _by_bytes)
        self._known: OrderedDict[tuple[str, tuple[str, ...]], int] = OrderedDict()
        self._ratio: float | None = None

    @property
    def ratio(self) -> float:
        """Tokens of prompts, as the server counts, for each token of their JSON."""
        return 1.0 if self._ratio is None else self._ratio

    def known(self, prompt: PromptKey) -> int | None:
        """The exact length, if it is remembered."""
        return self._known.get((prompt.tools, prompt.messages))

    def learn(self, prompt: PromptKey, tokens: int) -> None:
        """Notes the exact length of a prompt."""
        key = (prompt.tools, prompt.messages)
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
        for (tools, messages), length in self._known.items():
            size = len(messages)
            if size > begun and tools == prompt.tools and messages == prompt.messages[:size]:
                tokens, begun = length, size
        rest = self._raw("" if begun else prompt.tools, prompt.messages[begun:])
        return tokens + math.ceil(rest * self.ratio)

    def _raw(self, tools: str, messages: Sequence[str]) -> int:
        return sum(map(self._count, messages)) + (self._count(tools) if tools else 0)


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
