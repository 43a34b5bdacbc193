"""One reply as it comes from vLLM, up to its Generation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from kani_lite.engines.text_generation import Generation, TokenLogprobs
from kani_lite.exceptions import EngineError

_LEAST = -9999.0  # what the server writes for the logarithm of 0


class Reply:
    """Collects what a request has given so far. vLLM doesn't tell how long a request waits before it runs, so
    `waited_seconds` is 0 and `seconds` the time since the request was sent."""

    def __init__(self) -> None:
        self._sent = time.perf_counter()
        self._first: float | None = None
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.cached_tokens = 0
        self.finish_reason: str | None = None

    def add(self, ids: Iterable[int], text: str, logprobs: list[TokenLogprobs] | None = None) -> str:
        """Takes the next tokens with their text; returns that."""
        before = len(self._ids)
        self._ids += ids
        if self._first is None and len(self._ids) > before:
            self._first = time.perf_counter()
        self._text.append(text)
        if logprobs is not None:
            if self._logprobs is None:
                self._logprobs = []
            self._logprobs += logprobs
        return text

    def generation(self) -> Generation:
        """The whole reply. Raises EngineError if vLLM has ended it for reasons of its own."""
        if self.finish_reason not in ("stop", "length", "repetition"):
            raise EngineError(f"vLLM has ended this reply before its end ({self.finish_reason}); its log may say why.")
        now = time.perf_counter()
        return Generation(
            self._ids,
            "".join(self._text),
            self.cached_tokens,
            "length" if self.finish_reason == "length" else "stop",
            seconds=now - self._sent,
            waited_seconds=0.0,
            first_token_seconds=(now if self._first is None else self._first) - self._sent,
            logprobs=self._logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )


def _token(token: int, logprobs: Mapping[int, float], count: int) -> TokenLogprobs:
    """`logprobs`: of the likeliest tokens and of this one, which `count` doesn't count."""
    likeliest = sorted(logprobs.items(), key=lambda item: -item[1])
    most = len(likeliest) if count < 0 else count
    return TokenLogprobs(token, logprobs[token], dict(likeliest[:most]))


def of_vllm(ids: Iterable[int], found: Iterable[Mapping[int, Any] | None], count: int) -> list[TokenLogprobs | None]:
    """vLLM's own objects for each of these tokens; None for the prompt's first."""
    pairs = zip(ids, found, strict=True)
    return [
        None if each is None else _token(token, {other: one.logprob for other, one in each.items()}, count)
        for token, each in pairs
    ]


def of_server(ids: Iterable[int], found: Mapping[str, Any], count: int) -> list[TokenLogprobs]:
    """The `logprobs` of a completions response for each of these tokens, with names such as "token_id:17"."""
    made = []
    for token, own, top in zip(ids, found["token_logprobs"], found["top_logprobs"], strict=True):
        named = {int(name.removeprefix("token_id:")): _number(value) for name, value in (top or {}).items()}
        made.append(_token(token, {**named, token: _number(own)}, count))
    return made


def of_server_prompt(ids: Iterable[int], found: Iterable[Any], count: int) -> list[TokenLogprobs | None]:
    """The `prompt_logprobs` of a completions response."""
    made: list[TokenLogprobs | None] = []
    for token, each in zip(ids, found, strict=True):
        named = {int(other): _number(one["logprob"]) for other, one in (each or {}).items()}
        made.append(_token(token, named, count) if each else None)
    return made


def _number(value: float) -> float:
    return -float("inf") if value <= _LEAST else value
