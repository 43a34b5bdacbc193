"""Keys and values of one sequence, kept in one of several ways.

Every way has the same interface, a `KVLayer`: what was appended can be read back whole, cut off at the end, and copied
up to some length. Which one serves best depends on where the model runs; docs/runtime.md compares them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch


class CacheFullError(Exception):
    """There is no memory for more keys and values; never leaves this package."""


Pair = tuple[torch.Tensor, torch.Tensor]


class KVLayer(ABC):
    """The keys and values of one sequence in one layer, each (1, kv_heads, length, head_dim)."""

    length: int = 0

    @abstractmethod
    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Adds (1, kv_heads, new, head_dim) each and returns all that is held: the whole sequence, or in a layer with a
        sliding window at least the rows that the new ones see. Keys and values may differ in head_dim. The result is
        valid until the next call of any method. Raises CacheFullError if a pool has no room left."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forgets what is behind the first `length` tokens."""

    @abstractmethod
    def fork(self, length: int) -> KVLayer:
        """Another layer that begins with the first `length` tokens; neither changes the other."""

    def can_end_at(self, length: int) -> bool:
        """Whether `truncate` and `fork` can make a layer of this length: not if it has forgotten what is needed."""
        return length <= self.length

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that this layer takes. What it shares with others counts in part or in whole, but not less in sum than
        it takes."""

    def free(self) -> None:
        """Nobody will use this layer again: gives back what it holds of a shared pool."""
        return


NewLayer = Callable[[int], KVLayer]  # from the layer's place in the model


class DynamicKV(KVLayer):
    """Exactly what is needed: each append makes new tensors. A fork is a view until something is appended to it."""

    _keys: torch.Tensor
    _values: torch.Tensor

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        if self.length:
            keys, values = torch.cat([self._keys, keys], dim=2), torch.cat([self._values, values], dim=2)
        else:
            keys, values = keys.clone(), values.clone()  # not a view of a whole batch
        self._keys, self._values = keys, values
        self.length = keys.shape[2]
        return keys, values

    def truncate(self, length: int) -> None:
        if length < self.length:
            self._keys, self._values = self._keys[:, :, :length], self._values[:, :, :length]
            self.length = length

    def fork(self, length: int) -> KVLayer:
        new = DynamicKV()
        if length:
            new._keys, new._values = self._keys[:, :, :length], self._values[:, :, :length]
        new.length = length
        return new

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes if self.length else 0


class GrowingKV(KVLayer):
    """Buffers that grow by `step` rows at a time and are written in place.

    With a step of L / sqrt(L) rows for a context of L tokens this is BMC (Ramachandran et al. 2025, arXiv 2511.12031):
    copying, which falls with the step, and unused memory, which rises with it, balance. With a step of L it is a
    static cache, which is never copied.
    """

    def __init__(self, step: int, limit: int) -> None:
        self._step, self._limit = step, limit
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        end = self.length + keys.shape[2]
        if self._keys is None or end > self._keys.shape[2]:
            self._grow(end, keys, values)
        assert self._keys is not None
        assert self._values is not None
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _grow(self, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        rows = -(-end // self._step) * self._step
        rows = max(end, min(rows, self._limit))
        self._keys = self._larger(self._keys, rows, keys)
        self._values = self._larger(self._values, rows, values)

    def _larger(self, old: torch.Tensor | None, rows: int, like: torch.Tensor) -> torch.Tensor:
        new = like.new_empty(1, like.shape[1], rows, like.shape[3])
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)

    def fork(self, length: int) -> KVLayer:
        return self.part(0, length)

    def part(self, start: int, end: int) -> GrowingKV:
        """Another layer that has a copy of these rows."""
        new = GrowingKV(self._step, self._limit)
        if start < end:
            assert self._keys is not None
            assert self._values is not None
            new.append(self._keys[:, :, start:end], self._values[:, :, start:end])
        return new

    @property
    def nbytes(self) -> int:
        return 0 if self._keys is None or self._values is None else self._keys.nbytes + self._values.nbytes


def bmc_step(context: int) -> int:
    """Rows that a BMC cache grows by: the context over the whole part of its square root."""
    return max(1, context // max(1, math.isqrt(context)))


class SequenceCache(ABC):
    """The keys and values of one sequence in all layers. `length` tokens of them are valid: a forward pass that fails
    half way is undone by `rollback`."""

    length: int = 0

    def commit(self, new: int) -> None:
        """Each layer has got `new` more tokens."""
        self.length += new

    def rollback(self) -> None:
        """Forgets what layers got since the last commit."""
        self.truncate(self.length)

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forgets what is behind the first `length` tokens."""

    @abstractmethod
    def can_end_at(self, length: int) -> bool:
        """Whether `truncate` and `fork` can make a cache of this length."""

    @abstractmethod
    def fork(self, length: int) -> SequenceCache:
        """Another cache that begins with the first `length` tokens; neither changes the other."""

    @abstractmethod
    def free(self) -> None:
        """Gives back everything. The cache can't be used afterwards."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of keys and values, those of shared beginnings included (see KVLayer)."""


class LayeredCache(SequenceCache):
    """A KVLayer for each layer of the model."""

    def __init__(self, new_layer: NewLayer) -> None:
        self._new_layer = new_layer
        self._layers: dict[int, KVLayer] = {}

    def layer(self, index: int) -> KVLayer:
        if (found := self._layers.get(index)) is None:
            found = self._layers[index] = self._new_layer(index)
        return found

    def truncate(self, length: int) -> None:
        for layer in self._layers.values():
            layer.truncate(length)
        self.length = length

    def can_end_at(self, length: int) -> bool:
        return length <= self.length and all(layer.can_end_at(length) for layer in self._layers.values())

    def fork(self, length: int) -> SequenceCache:
        new = LayeredCache(self._new_layer)
        new._layers = {index: layer.fork(length) for index, layer in self._layers.items()}
        new.length = length
        return new

    def free(self) -> None:
        for layer in self._layers.values():
            layer.free()
        self._layers.clear()
        self.length = 0

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())
