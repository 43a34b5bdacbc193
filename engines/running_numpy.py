"""The same with logits in numpy, for engines whose libraries read a sequence into a slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .logits import NumpySampler, logprobs_of
from .request import Request
from .running import RunningRequest
from .text import Decode
from .text_generation import TokenLogprobs

Logits = NDArray[np.float32]


class HasIds(Protocol):
    """A sequence in the library's memory, of which the model has read `ids`."""

    ids: list[int]


S = TypeVar("S", bound=HasIds)


class NumpyRunning(RunningRequest, Generic[S]):
    """One request, and the slot that has read all of its tokens but the `pending` ones."""

    def __init__(self, request: Request, decode: Decode, ends: frozenset[int], limit: int) -> None:
        super().__init__(request, decode, ends, limit)
        self.slot: S | None = None
        self._sampler = NumpySampler(request.params, request.prompt, request.banned, sorted(ends))

    def _for_streamer(self, ids: list[int]) -> NDArray[np.int_]:
        return np.array(ids)  # a streamer of transformers takes arrays as well as tensors

    def _logprobs_of(self, logits: Logits, token: int, count: int) -> TokenLogprobs:
        return logprobs_of(logits, token, count)

    @property
    def known(self) -> int:
        """Tokens that the model has read."""
        return len(self.slot.ids) if self.slot is not None else 0

    @property
    def pending(self) -> list[int]:
        """Tokens that it hasn't read: one while it generates, more while its prompt is read."""
        return self.tokens[self.known :]

    def begin(self, slot: S) -> None:
        """Again with another slot, if the first was too small or its memory was needed for an older request."""
        self.slot = slot
        self.note_begin(len(slot.ids))

    def note_prompt(self, at: int, count: int, logits: Callable[[int], Logits]) -> None:
        """The model has read `count` tokens from place `at` on; `logits` of each of them by its number."""
        wanted = self.request.params.prompt_logprobs
        assert wanted is not None
        prompt, known = self.request.prompt, self._prompt_logprobs
        for number in range(count):
            place = at + number + 1
            if place == len(known) and place < len(prompt):  # not read before, with another slot
                known.append(logprobs_of(logits(number), prompt[place], wanted))
