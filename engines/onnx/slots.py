"""Memory for keys and values: a few sequences that the model has read, kept for prompts that begin in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kani_lite.engines.prefix import TAIL, common_prefix

_SMALLEST = 512  # tokens; smaller slots would be left after a round or two

MakeSlot = Callable[[int], "Slot"]


class Slot:
    """One generator of onnxruntime-genai: a sequence of at most `capacity` tokens. The model has read `ids`.

    Where the model can, its memory is taken at once for all of `capacity`: growing with each token instead copies
    everything at every step.
    """

    def __init__(self, package: Any, model: Any, capacity: int) -> None:
        params = package.GeneratorParams(model)
        params.set_search_options(max_length=capacity)
        self._generator = package.Generator(model, params)
        self.capacity = capacity
        self.ids: list[int] = []

    def append(self, ids: Sequence[int]) -> None:
        """One forward pass. After an exception the slot can't be used any more."""
        self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
        self.ids += ids

    def rewind(self, length: int) -> None:
        """Forgets what follows the first `length` tokens."""
        if length < len(self.ids):
            self._generator.rewind_to(length)
            del self.ids[length:]

    def logits(self) -> NDArray[np.float32]:
        """(vocabulary,): those after the last token."""
        last: NDArray[np.float32] = self._generator.get_logits()[0, -1]
        return last

    def all_logits(self) -> NDArray[np.float32]:
        """(tokens, vocabulary): those after each token of the last `append`; some models keep only the last row."""
        rows: NDArray[np.float32] = np.asarray(self._generator.get_output("logits"), dtype=np.float32)[0]
        return rows


class SlotPool:
    """The slots of one model: those that requests have taken, and idle ones, the least recently used first.

    A prompt takes the idle slot that shares the longest prefix with it, unless more of that would be lost than is
    gained and there is memory for another: the library can't copy keys and values.
    """

    def __init__(self, make: MakeSlot, longest: int, most_tokens: int, most_idle: int) -> None:
        """`longest`: tokens of one sequence; `most_tokens`: of the capacities of all slots together."""
        self._make, self.longest, self._most_tokens, self._most_idle = make, longest, most_tokens, most_idle
        self._idle: list[Slot] = []
        self._taken = 0  # tokens of the slots in use

    def take(self, ids: Sequence[int], wanted: int, reuse: bool = True) -> Slot | None:
        """A slot with room for `wanted` tokens, or at least for one more than `ids`, that holds as many of the first
        of `ids` as are known: never all, since the last one's logits are needed. None if there is no memory now."""
        if reuse and (slot := self._known(ids)) is not None:
            return slot
        capacity = self._rounded(wanted)
        while self._idle and self._tokens() + capacity > self._most_tokens:
            del self._idle[0]
        if self._tokens() + capacity > self._most_tokens:
            return None
        slot = self._make(capacity)
        self._taken += capacity
        return slot

    def _known(self, ids: Sequence[int]) -> Slot | None:
        usable = [slot for slot in self._idle if slot.capacity > len(ids)]
        shared = [min(common_prefix(slot.ids, ids), len(ids) - 1) for slot in usable]
        length = max(shared, default=0)
        if not length:
            return None
        slot = next(slot for slot, same in zip(reversed(usable), reversed(shared), strict=True) if same == length)
        if len(slot.ids) - length > max(TAIL, length) and self._tokens() + _SMALLEST <= self._most_tokens:
            return None
        self._idle.remove(slot)
        try:
            slot.rewind(length)
        except RuntimeError:  # a model with a sliding window or a recurrent state can't go back: it begins anew
            return None
        self._taken += slot.capacity
        return slot

    def _rounded(self, wanted: int) -> int:
        """A power of two, so that a chat moves to a larger slot seldom."""
        return min(max(_SMALLEST, 1 << (wanted - 1).bit_length()), self.longest)

    def _tokens(self) -> int:
        return self._taken + sum(slot.capacity for slot in self._idle)

    def put(self, slot: Slot) -> None:
        """A request has ended: its slot is kept for a later one."""
        self._taken -= slot.capacity
        if slot.ids:
            self._idle.append(slot)
        while len(self._idle) > self._most_idle:
            del self._idle[0]

    def drop(self, slot: Slot) -> None:
        """What is in this slot isn't known any more."""
        self._taken -= slot.capacity
