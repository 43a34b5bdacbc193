"""Which requests run, and how many tokens of each the next forward pass takes."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import torch

from kani_lite.engines.prefix import common_prefix

from .cache import CacheManager, Entry
from .kinds import CacheKind
from .kv import CacheFullError, SequenceCache
from .request import Running
from .runner import PlainCache, Runner

_SHARED = 16  # tokens; to wait for a beginning that another request is reading is worth it from here on


class Scheduler:
    """First come, first served.

    Each pass has one token of every request that is generating, and then as much of the prompts as `chunk` allows, or
    `chunk_beside` while others generate, so that a long prompt doesn't stall them. At most `most` requests run at once;
    more wait, and so does one whose beginning another request is just reading: it will take that over. A request that
    is put back for lack of memory is the first to come again.
    """

    def __init__(
        self, runner: Runner, cache: CacheManager, kind: CacheKind, context: int, most: int, chunk: int
    ) -> None:
        self._runner, self._cache, self._kind = runner, cache, kind
        self._room = kind.memory // runner.token_bytes
        self.longest = bisect_right(range(context + 1), self._room, key=kind.rows) - 1
        """The most tokens that one request alone has memory for, and the context allows."""
        self._most, self._chunk, self._chunk_beside = most, chunk, max(1, chunk // 4)
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []

    def plan(self) -> list[tuple[Running, int]]:
        """(request, tokens) of the next pass; empty if there is nothing to do."""
        while self._over() and (self._cache.drop_oldest() or self.put_back_last()):
            pass
        planned = [(one, 1) for one in self.running if one.pending == 1]
        left = self._chunk_beside if planned else self._chunk
        for one in self.running:
            if one.pending > 1 and left > 0:
                planned.append((one, size := self._share(one, left)))
                left -= size
        while left > 0 and (new := self._next()) is not None:
            planned.append((new, size := self._share(new, left)))
            left -= size
        return planned

    def _share(self, one: Running, left: int) -> int:
        if isinstance(one.cache, PlainCache) and not one.cache.continuable:
            return one.pending  # layers that can't be continued may not take a prompt in pieces either
        return min(one.pending, left)

    def _next(self) -> Running | None:
        """The first one that waits and may begin now, begun. What is kept makes room for it."""
        if len(self.running) >= self._most:
            return None
        for place, one in enumerate(self.waiting):
            if self._shares_with_one_that_reads(one):
                continue
            if self.running and not self._fits(one):
                return None  # nobody overtakes: a large request would wait for ever
            del self.waiting[place]
            one.begin(self._known(one) or self._runner.new_cache())
            self.running.append(one)
            while self._over() and self._cache.drop_oldest():
                pass
            return one
        return None

    def _known(self, one: Running) -> SequenceCache | None:
        """What is known of its prompt, unless there is no memory for a copy of that."""
        if one.wants_prompt_logprobs:
            return None
        try:
            return self._cache.take(one.tokens, [Entry(r.tokens, r.cache) for r in self.running if r.cache])
        except (CacheFullError, MemoryError, torch.OutOfMemoryError):
            return None

    def _shares_with_one_that_reads(self, one: Running) -> bool:
        for other in self.running:
            assert other.cache is not None
            if other.pending > 1 and not one.wants_prompt_logprobs:
                same = min(common_prefix(other.tokens, one.tokens), len(one.tokens) - 1)
                if same - other.cache.length >= _SHARED and other.cache.can_end_at(other.cache.length):
                    return True
        return False

    def _fits(self, one: Running) -> bool:
        return sum(self._kind.rows(len(r.tokens) + 1) for r in [*self.running, one]) <= self._room

    def _over(self) -> bool:
        """Whether what is held, and what the running requests are about to add, is beyond the bound."""
        held = self._cache.nbytes + sum(one.cache.nbytes for one in self.running if one.cache is not None)
        return held + sum(map(self._growth, self.running)) * self._runner.token_bytes > self._kind.memory

    def _growth(self, one: Running) -> int:
        """Rows that a request is about to add: kinds grow in steps."""
        known = len(one.tokens) - one.pending
        return max(one.pending, self._kind.rows(len(one.tokens)) - self._kind.rows(known))

    def put_back_last(self) -> bool:
        """The request that came last waits again, without its cache; False if it is the only one."""
        if len(self.running) < 2:
            return False
        one = self.running.pop()
        assert one.cache is not None
        one.cache.free()
        one.cache = None
        self.waiting.appendleft(one)
        return True

    def remove(self, one: Running) -> None:
        """This request has ended. Its cache is the caller's."""
        if one in self.running:
            self.running.remove(one)
        else:
            self.waiting.remove(one)

    def all(self) -> Sequence[Running]:
        return [*self.running, *self.waiting]
