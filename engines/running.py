"""How far a request is, on every engine that runs requests token by token."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

from .request import Request
from .text import Decode, Detokenizer, StopStrings
from .text_generation import Generation, TokenLogprobs


class RunningRequest(ABC):
    """One request on its way: its tokens so far, the text that is certain, and its end. A subclass knows what the model
    has read of it, and the library that its logits come from."""

    def __init__(self, request: Request, decode: Decode, ends: frozenset[int], limit: int) -> None:
        """`limit`: the most tokens of the reply."""
        self.request = request
        self.tokens = list(request.prompt)
        self.cached_tokens = 0
        self._ends, self._limit = ends, limit
        self._detokenizer, self._stops = Detokenizer(decode), StopStrings(request.params.stop)
        self._said: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]  # nothing predicts the first token
        self._started = self._first = 0.0

    @abstractmethod
    def _for_streamer(self, ids: list[int]) -> Any:
        """(tokens,): ids as a streamer gets them."""

    @abstractmethod
    def _logprobs_of(self, logits: Any, token: int, count: int) -> TokenLogprobs:
        """The log probability of a token by `logits` (vocabulary,), and those of the `count` likeliest."""

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        return self._limit - (len(self.tokens) - len(self.request.prompt))

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the logits after each token of the prompt are wanted, and not all there."""
        return self.request.params.prompt_logprobs is not None and len(self._prompt_logprobs) < len(self.request.prompt)

    def note_begin(self, cached_tokens: int) -> None:
        """It runs now, or again after it was put back: the first time counts."""
        if not self._started:
            self.cached_tokens = cached_tokens
            self._started = time.perf_counter()

    def add(self, token: int, logits: Any) -> str | None:
        """The model's next token, chosen from `logits` (vocabulary,). Emits the text that is certain now; returns why
        the reply ends here, or None."""
        params, request = self.request.params, self.request
        if not self._first:
            self._first = time.perf_counter()
            self._stream(request.prompt)  # not before: what a streamer raises is this request's own
        self.tokens.append(token)
        if params.logprobs is not None:
            self._logprobs.append(self._logprobs_of(logits, token, params.logprobs))
        self._stream([token])
        if token in self._ends and not params.ignore_eos:
            return "stop"
        text = self._detokenizer.add(token)
        count = len(self.tokens) - len(request.prompt)
        self._say(self._stops.add(text) if count > params.min_tokens else text)
        if self._stops.hit:
            return "stop"
        return "length" if count >= self._limit else None

    def finish(self, reason: str) -> None:
        """Emits what was held back, and the Generation."""
        self._say(self._stops.add(self._detokenizer.finish()))
        self._say(self._stops.finish())
        request, wants, now = self.request, self.request.params, time.perf_counter()
        if request.streamer is not None:
            request.streamer.end()
        request.sink.emit(
            Generation(
                self.generated,
                "".join(self._said),
                self.cached_tokens,
                "stop" if self._stops.hit else reason,
                seconds=now - self._started,
                waited_seconds=self._started - request.submitted,
                first_token_seconds=self._first - request.submitted,
                logprobs=self._logprobs if wants.logprobs is not None else None,
                prompt_logprobs=self._prompt_logprobs if wants.prompt_logprobs is not None else None,
            )
        )

    def _stream(self, ids: list[int]) -> None:
        if self.request.streamer is not None:
            self.request.streamer.put(self._for_streamer(ids))

    def _say(self, text: str) -> None:
        if text:
            self._said.append(text)
            self.request.sink.emit(text)
