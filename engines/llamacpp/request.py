"""How far each request is."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kani_lite.engines.logits import NumpySampler, logprobs_of
from kani_lite.engines.request import Request
from kani_lite.engines.text import Decode, Detokenizer, StopStrings
from kani_lite.engines.text_generation import Generation, TokenLogprobs

from .grammar import CallGuide
from .slots import Slot

Logits = NDArray[np.float32]


class Running:
    """One request on its way: its tokens so far, the slot that has read all but the `pending` ones, and its end."""

    def __init__(
        self, request: Request, decode: Decode, ends: frozenset[int], limit: int, guide: CallGuide | None
    ) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.slot: Slot | None = None
        self._limit = limit
        self._cached: int | None = None
        params = request.params
        self._sampler = NumpySampler(params, request.prompt, request.banned, sorted(ends))
        self._ends, self._guide = ends, guide
        self._detokenizer, self._stops = Detokenizer(decode), StopStrings(params.stop)
        self._said: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]  # nothing predicts the first token
        self._started = self._first = 0.0

    @property
    def known(self) -> int:
        """Tokens that the model has read."""
        return len(self.slot.ids) if self.slot is not None else 0

    @property
    def pending(self) -> list[int]:
        """Tokens that it hasn't read: one while it generates, more while its prompt is read."""
        return self.tokens[self.known :]

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        return self._limit - (len(self.tokens) - len(self.request.prompt))

    @property
    def wants_prompt(self) -> bool:
        """Whether the logits after each token of the prompt are wanted, and not all there."""
        wanted = self.request.params.prompt_logprobs is not None
        return wanted and len(self._prompt_logprobs) < len(self.request.prompt)

    def begin(self, slot: Slot) -> None:
        """Again with another slot, if its cells were needed for an older request."""
        self.slot = slot
        if self._cached is None:
            self._cached, self._started = len(slot.ids), time.perf_counter()

    def note_prompt(self, at: int, count: int, logits: Callable[[int], Logits]) -> None:
        """The model has read `count` tokens from place `at` on; `logits` of each of them by its number."""
        wanted = self.request.params.prompt_logprobs
        assert wanted is not None
        prompt, known = self.request.prompt, self._prompt_logprobs
        for number in range(count):
            place = at + number + 1
            if place == len(known) and place < len(prompt):  # not read before, with another slot
                known.append(logprobs_of(logits(number), prompt[place], wanted))

    def choose(self, logits: Logits) -> str | None:
        """Takes the reply's next token and emits the text that is certain now. Returns why the reply ends here, or
        None."""
        params, request = self.request.params, self.request
        allowed = logits if self._guide is None else self._guide.allowed(logits, self._sampler.takes_the_likeliest)
        token = self._sampler.choose(allowed)
        if self._guide is not None:
            self._guide.note(token)
        if not self._first:
            self._first = time.perf_counter()
            self._stream(request.prompt)
        self.tokens.append(token)
        if params.logprobs is not None:
            self._logprobs.append(logprobs_of(logits, token, params.logprobs))
        self._stream([token])
        if token in self._ends and not params.ignore_eos:
            return "stop"
        text = self._detokenizer.add(token)
        count = len(self.tokens) - len(request.prompt)
        self._say(self._stops.add(text) if count > params.min_tokens else text)
        if self._stops.hit:
            return "stop"
        return None if self.left else "length"

    def finish(self, reason: str) -> None:
        """Emits what was held back, and the Generation."""
        self._say(self._stops.add(self._detokenizer.finish()))
        self._say(self._stops.finish())
        request, wants, now = self.request, self.request.params, time.perf_counter()
        if request.streamer is not None:
            request.streamer.end()
        generation = Generation(
            self.tokens[len(request.prompt) :],
            "".join(self._said),
            self._cached or 0,
            "stop" if self._stops.hit else reason,
            seconds=now - self._started,
            waited_seconds=self._started - request.submitted,
            first_token_seconds=self._first - request.submitted,
            logprobs=self._logprobs if wants.logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs if wants.prompt_logprobs is not None else None,
        )
        request.sink.emit(generation)

    def _stream(self, ids: list[int]) -> None:
        """A streamer of transformers takes arrays as well as tensors."""
        if self.request.streamer is not None:
            self.request.streamer.put(np.array(ids))  # type: ignore[arg-type]  # its protocol names torch's tensors

    def _say(self, text: str) -> None:
        if text:
            self._said.append(text)
            self.request.sink.emit(text)
