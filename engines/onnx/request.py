"""How far each request is."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from kani_lite.engines.logits import NumpySampler, logprobs_of
from kani_lite.engines.request import Request
from kani_lite.engines.text import Decode, Detokenizer, StopStrings
from kani_lite.engines.text_generation import Generation, TokenLogprobs
from kani_lite.exceptions import EngineError

from .slots import Slot

Logits = NDArray[np.float32]


class Running:
    """One request on its way: its tokens so far, the slot that has read all but the `pending` ones, and its end."""

    def __init__(self, request: Request, decode: Decode, ends: frozenset[int], limit: int) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.limit = limit
        self.slot: Slot | None = None
        self._cached: int | None = None
        params = request.params
        self._sampler = NumpySampler(params, request.prompt, request.banned, sorted(ends))
        self._ends = ends
        self._detokenizer, self._stops = Detokenizer(decode), StopStrings(params.stop)
        self._said: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]  # nothing predicts the first token
        self._started = self._first = 0.0

    @property
    def pending(self) -> list[int]:
        """Tokens that the model hasn't read: one while it generates, more while its prompt is read."""
        return self.tokens[len(self.slot.ids) if self.slot is not None else 0 :]

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        return self.limit - (len(self.tokens) - len(self.request.prompt))

    def begin(self, slot: Slot) -> None:
        """Again with another slot, if the first became too small."""
        self.slot = slot
        if self._cached is None:
            self._cached, self._started = len(slot.ids), time.perf_counter()

    def read(self, count: int) -> None:
        """The model reads the next so many tokens."""
        slot, at = self.slot, len(self.tokens) - len(self.pending)
        assert slot is not None
        part = self.tokens[at : at + count]
        slot.append(part)
        if self.request.params.prompt_logprobs is not None and len(self._prompt_logprobs) < len(self.request.prompt):
            self._note_prompt(slot.all_logits(), at, len(part))

    def _note_prompt(self, rows: Logits, at: int, count: int) -> None:
        """`rows`: (count, vocabulary), those after each token from place `at` on."""
        wanted = self.request.params.prompt_logprobs
        assert wanted is not None
        if len(rows) != count:
            raise EngineError(
                "prompt_logprobs aren't possible with this model: it keeps the logits of the last token only, so leave "
                "them out or convert it again without pruning its output layer."
            )
        prompt, known = self.request.prompt, self._prompt_logprobs
        for row, place in zip(rows, range(at + 1, len(prompt)), strict=False):
            if place == len(known):  # not read before, with a smaller slot
                known.append(logprobs_of(row, prompt[place], wanted))

    def choose(self) -> str | None:
        """Takes the reply's next token and emits the text that is certain now. Returns why the reply ends here, or
        None."""
        assert self.slot is not None
        params, request, logits = self.request.params, self.request, self.slot.logits()
        token = self._sampler.choose(logits)
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
