"""Keys and values of layers that see only a window of the last tokens."""

from __future__ import annotations

import torch

from .kv import GrowingKV, KVLayer, Pair


def _slack(window: int) -> int:
    """Rows that are kept beyond the window: so many tokens a sequence can go back at least, and moving rows is rare."""
    return max(64, window // 4)


def most_rows(window: int) -> int:
    """Rows that a long sequence takes at most, but for those of the forward pass at hand."""
    return window + 3 * _slack(window)


class SlidingKV(KVLayer):
    """Keeps the last `window - 1` rows and some more; an append returns these and the new ones.

    A window of w lets a query see its own key and the w - 1 before it, as transformers counts it. Attention needs no
    word about what was forgotten: which of two rows comes first and how far apart they are don't depend on the start.
    """

    def __init__(self, window: int, limit: int) -> None:
        self._window, self._limit = window, limit
        self._slack = _slack(window)
        self._held = GrowingKV(self._slack, limit)
        self._forgotten = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        # before the new rows come, not after: if the forward pass fails, the sequence goes on from here
        most = self._window - 1 + self._slack
        if self._held.length > most + self._slack:
            self._forgotten += self._held.length - most
            self._held = self._held.part(self._held.length - most, self._held.length)
        pair = self._held.append(keys, values)
        self.length = self._forgotten + self._held.length
        return pair

    def truncate(self, length: int) -> None:
        if length < self.length:
            self._held.truncate(length - self._forgotten)
            self.length = length

    def fork(self, length: int) -> KVLayer:
        new = SlidingKV(self._window, self._limit)
        new._held = self._held.part(0, length - self._forgotten)
        new._forgotten, new.length = self._forgotten, length
        return new

    def can_end_at(self, length: int) -> bool:
        return length <= self.length and self._forgotten <= max(0, length - self._window + 1)

    @property
    def nbytes(self) -> int:
        return self._held.nbytes
