"""Keys and values of earlier prompts, so that what two prompts share is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kani_lite.engines.prefix import TAIL, common_prefix

from .kv import SequenceCache


@dataclass(eq=False)
class Entry:
    """`ids` begin with exactly the tokens whose keys and values `cache` holds."""

    ids: list[int]
    cache: SequenceCache


class CacheManager:
    """The prompts used last, each with its keys and values; the least recently used go first.

    The rule: a new prompt takes the entry that shares the longest prefix with it, be it of another chat or of a request
    that is running. If the prompt continues an entry (all but at most 32 tokens of it), the entry becomes its cache; if
    it merely shares a beginning, say a system prompt, it gets a copy of that, and the entry stays. Used by one thread.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._entries: list[Entry] = []  # the most recently used last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.cache.nbytes for entry in self._entries)

    def take(self, prompt: Sequence[int], running: Iterable[Entry] = ()) -> SequenceCache | None:
        """A cache that holds as many of the prompt's first tokens as are known, or None: always fewer than all, since
        the last one's logits are needed. The caller owns it."""
        found, length = self._longest(prompt, [*self._entries, *running])
        if found is None:
            return None
        if found not in self._entries:
            return found.cache.fork(length)
        self._entries.remove(found)
        if found.cache.length - length <= TAIL:
            found.cache.truncate(length)
            return found.cache
        self._entries.append(found)  # it was of use: others go first
        return found.cache.fork(length)

    def _longest(self, prompt: Sequence[int], entries: list[Entry]) -> tuple[Entry | None, int]:
        best, length = None, 0
        for entry in reversed(entries):
            same = min(common_prefix(entry.ids, prompt), len(prompt) - 1, entry.cache.length)
            if same > length and entry.cache.can_end_at(same):
                best, length = entry, same
        return best, length

    def put(self, ids: list[int], cache: SequenceCache) -> None:
        """Keeps a cache for later prompts; the first `cache.length` of `ids` are what it holds."""
        ids = ids[: cache.length]
        if not ids or self._most == 0 or not cache.can_end_at(cache.length):
            return cache.free()
        same = [entry for entry in self._entries if entry.ids == ids]
        self._entries.append(Entry(ids, cache))
        for entry in same:
            self._drop(entry)
        while self._most is not None and len(self._entries) > self._most:
            self._drop(self._entries[0])

    def _drop(self, entry: Entry) -> None:
        self._entries.remove(entry)
        entry.cache.free()

    def drop_oldest(self) -> bool:
        """Gives the memory of the least recently used entry back; False if there is none."""
        if not self._entries:
            return False
        self._drop(self._entries[0])
        return True

    def clear(self) -> None:
        while self.drop_oldest():
            pass
