"""How far each request is."""

from __future__ import annotations

import time

import torch

from kani_lite.engines.request import Request
from kani_lite.engines.text import Decode, Detokenizer, StopStrings
from kani_lite.engines.text_generation import Generation, TokenLogprobs

from .kv import SequenceCache
from .sampler import Sampler, logprobs_of


class Running:
    """One request on its way: its tokens so far, the cache that holds all but the `pending` ones, and its end."""

    def __init__(
        self, request: Request, decode: Decode, ends: frozenset[int], limit: int, device: torch.device | str
    ) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.cache: SequenceCache | None = None
        self.cached_tokens = 0
        params = request.params
        self.sampler = Sampler(params, request.prompt, sorted(ends), request.banned, torch.device(device))
        self._ends, self._limit = ends, limit
        self._detokenizer, self._stops = Detokenizer(decode), StopStrings(params.stop)
        self._said: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]  # nothing predicts the first token
        self._started = self._first = 0.0

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def pending(self) -> int:
        """Tokens whose keys and values aren't known yet: one while it generates, more while its prompt is read."""
        return len(self.tokens) - (self.cache.length if self.cache is not None else 0)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.params.prompt_logprobs is not None and len(self._prompt_logprobs) < len(self.request.prompt)

    def begin(self, cache: SequenceCache) -> None:
        self.cache = cache
        if self.wants_prompt_logprobs:
            del self._prompt_logprobs[1:]  # it was put back half way, and its prompt is read anew
        if not self._started:
            self.cached_tokens = cache.length
            self._started = time.perf_counter()

    def note_prompt(self, logits: torch.Tensor) -> None:
        """`logits`: (rows, vocabulary), each row after one token of the prompt, in order."""
        count = self.request.params.prompt_logprobs
        assert count is not None
        following = self.request.prompt[len(self._prompt_logprobs) :][: len(logits)]
        self._prompt_logprobs += [logprobs_of(row, token, count) for row, token in zip(logits, following, strict=False)]

    def add(self, token: int, logits: torch.Tensor) -> str | None:
        """The model's next token, chosen from `logits` (vocabulary,). Emits the text that is certain now; returns why
        the reply ends here, or None."""
        params, request = self.request.params, self.request
        if not self._first:
            self._first = time.perf_counter()
            if request.streamer is not None:  # not before: what it raises is this request's own
                request.streamer.put(torch.tensor(request.prompt))
        self.tokens.append(token)
        if params.logprobs is not None:
            self._logprobs.append(logprobs_of(logits, token, params.logprobs))
        if request.streamer is not None:
            request.streamer.put(torch.tensor([token]))
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
        request, now = self.request, time.perf_counter()
        if request.streamer is not None:
            request.streamer.end()
        wants = request.params
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

    def _say(self, text: str) -> None:
        if text:
            self._said.append(text)
            self.request.sink.emit(text)
