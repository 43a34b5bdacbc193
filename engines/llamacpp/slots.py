"""Sequences that the model has read: those that requests are at, and a few kept for prompts that begin the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kani_lite.engines.prefix import TAIL, common_prefix


class Cells(Protocol):
    """The memory for keys and values (see library.Context)."""

    def forget(self, sequence: int, start: int) -> bool: ...

    def share(self, source: int, target: int, length: int) -> None: ...


@dataclass(eq=False)
class Slot:
    """A sequence of llama.cpp by its number; it has cells for `ids`, `shared` of which came from another slot. While a
    request has it, room is kept for `wanted` tokens."""

    sequence: int
    ids: list[int] = field(default_factory=list)
    shared: int = 0
    wanted: int = 0


class SlotPool:
    """The slots of one model. A cell can belong to several sequences, so what a prompt shares with another one, idle
    or running, costs neither time nor memory."""

    def __init__(self, cells: Cells, count: int, room: int, most_idle: int, divisible: bool) -> None:
        """`count`: sequences; `room`: cells of all together; `divisible`: whether the model's memory can forget a
        part of a sequence."""
        self._cells, self._room, self._most_idle, self._divisible = cells, room, most_idle, divisible
        self._unused = list(range(count))
        self._taken: list[Slot] = []
        self._idle: list[Slot] = []  # the least recently used first

    def take(self, ids: Sequence[int], wanted: int, reuse: bool = True) -> Slot | None:
        """A slot that holds as many of the first of `ids` as are known: never all, since the last one's logits are
        needed. None if there is no room now for `wanted` tokens; the first request always gets one."""
        best, length = self._longest(ids) if reuse else (None, 0)
        while self._used() + wanted - length > self._room or not self._unused:
            if (old := next((slot for slot in self._idle if slot is not best), None)) is not None:
                self._drop(old)
            elif not self._taken or (best in self._idle and not self._unused):
                break
            else:
                return None
        slot = self._from(best, length) if best is not None else self._fresh()
        slot.wanted = wanted
        self._taken.append(slot)
        return slot

    def _longest(self, ids: Sequence[int]) -> tuple[Slot | None, int]:
        """(the slot that shares most with these ids, how much). The most recently used one, if several do."""
        best, most = None, 0
        for slot in [*self._taken, *self._idle]:
            shared = min(common_prefix(slot.ids, ids), len(ids) - 1)
            if not self._divisible and (shared < len(slot.ids) or slot in self._taken):
                continue
            if shared and shared >= most:
                best, most = slot, shared
        return best, most

    def _from(self, best: Slot, length: int) -> Slot:
        """The best slot itself, if little of it would be lost; or another one that shares its cells."""
        if best in self._idle and (len(best.ids) - length <= TAIL or not self._unused):
            self._idle.remove(best)
            if length < len(best.ids):
                self._cells.forget(best.sequence, length)
                del best.ids[length:]
                best.shared = min(best.shared, length)
            return best
        slot = self._fresh()
        self._cells.share(best.sequence, slot.sequence, length)
        slot.ids, slot.shared = list(best.ids[:length]), length
        return slot

    def _fresh(self) -> Slot:
        if not self._unused:  # as many can run at once as there are sequences, so an idle one has it
            self._drop(self._idle[0])
        return Slot(self._unused.pop())

    def _used(self) -> int:
        """Cells in use or promised, about: those that were shared by a slot that is gone count for nobody."""
        return sum(max(len(slot.ids), slot.wanted) - slot.shared for slot in [*self._taken, *self._idle])

    def put(self, slot: Slot) -> None:
        """A request has ended: its slot is kept for a later one."""
        self._release(slot)
        if not slot.ids:
            self._drop(slot)
        while len(self._idle) > self._most_idle:
            self._drop(self._idle[0])

    def drop(self, slot: Slot) -> None:
        """What is in this slot isn't known any more, or its cells are needed."""
        self._release(slot)
        self._drop(slot)

    def _release(self, slot: Slot) -> None:
        self._taken.remove(slot)
        self._idle.append(slot)
        slot.wanted = 0

    def make_room(self) -> bool:
        """Forgets the idle slot used least recently; False if there is none."""
        if self._idle:
            self._drop(self._idle[0])
            return True
        return False

    def _drop(self, slot: Slot) -> None:
        self._idle.remove(slot)
        self._cells.forget(slot.sequence, 0)
        self._unused.append(slot.sequence)
