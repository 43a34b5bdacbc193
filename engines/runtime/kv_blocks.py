"""Keys and values in blocks of a pool that all sequences share: `paged` and `slab`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

import torch

from .kv import CacheFullError, KVLayer, Pair

PAGE = 16  # tokens in a block of a paged cache, as in vLLM
_SLABS = (256, 128, 64, 32)
_L2_DEFAULT = 2**20
_GOLDEN = (math.sqrt(5) - 1) / 2


class BlockPool:
    """One layer's `blocks` blocks of `size` tokens, each held by any number of sequences.

    Free blocks are a stack, so taking and giving back take the same time however many there are. A sequence gets the
    block behind its last one if that is free: blocks that lie in a row can be read without copying them. For the same
    reason new sequences begin far apart (the stack's first order is a golden ratio sequence: Knuth, TAOCP 3, 6.4).

    `together` keeps keys and values of a block side by side, (kv_heads, blocks, 2, size, head_dim), as PACE's slab pool
    does; otherwise, and if their widths differ, each has a tensor (kv_heads, blocks, 1, size, head_dim) of its own.
    """

    def __init__(self, size: int, blocks: int, together: bool) -> None:
        self.size, self.blocks = size, blocks
        self.together = together
        self._refs = [0] * blocks
        self._free = dict.fromkeys(reversed(_far_apart(blocks)))  # a stack from which any block can be taken
        self._stores: tuple[_Store, _Store] | None = None
        self.sharing = 0
        """Counts changes to who shares blocks."""

    @property
    def left(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, number: int, after: int | None) -> list[int]:
        """Blocks for a sequence whose last one is `after`. Raises CacheFullError, taking none, if fewer are free."""
        if number > self.left:
            raise CacheFullError(f"{number} blocks of {self.size} tokens are needed and {self.left} are free")
        taken = []
        for _ in range(number):
            following = -1 if after is None else after + 1
            if following in self._free:
                del self._free[following]
                after = following
            else:
                after = self._free.popitem()[0]
            self._refs[after] = 1
            taken.append(after)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more sequence holds these."""
        for block in blocks:
            self._refs[block] += 1
        self.sharing += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """One sequence less holds these. Those that nobody holds are free; the first one is the next to be taken."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block]:
                self.sharing += 1
            else:
                self._free[block] = None

    def is_shared(self, block: int) -> bool:
        return self._refs[block] > 1

    def nbytes(self, blocks: Iterable[int]) -> int:
        """The bytes of these blocks, a shared one's in equal parts for all who hold it."""
        if self._stores is None:
            return 0
        held = sum(1 / self._refs[block] for block in blocks)
        return int(held * sum(store.block_bytes for store in self._stores))

    def stores(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[_Store, _Store]:
        """Where keys and values are; made at the first call, for tensors like these."""
        if self._stores is None:
            self.together &= keys.shape[3] == values.shape[3]
            if self.together:
                both = self._empty(keys, 2)
                self._stores = _Store(both, 0), _Store(both, 1)
            else:
                self._stores = _Store(self._empty(keys, 1), 0), _Store(self._empty(values, 1), 0)
        return self._stores

    def _empty(self, like: torch.Tensor, parts: int) -> torch.Tensor:
        return like.new_empty(like.shape[1], self.blocks, parts, self.size, like.shape[3])


class _Store:
    """The keys (or the values) of a pool: part `part` of `whole` (kv_heads, blocks, parts, size, head_dim)."""

    def __init__(self, whole: torch.Tensor, part: int) -> None:
        self._blocks = whole[:, :, part]
        heads, blocks, self._parts, self._size, dim = whole.shape
        size = self._size
        self._line = whole.view(1, heads, -1, dim)  # one block after the other
        # on a CPU, selecting rows of a matrix runs at the speed of memory; torch takes 100 times as long for the same
        # selection from a view with gaps, and half as long again along the second dimension
        self._rows = whole.view(-1, size * dim)
        self._first = torch.arange(heads, device=whole.device).unsqueeze(1) * (blocks * self._parts) + part
        self.block_bytes = heads * size * dim * whole.element_size()

    def places(self, table: torch.Tensor) -> torch.Tensor:
        """(kv_heads * blocks of the table): the rows of `read` for these blocks."""
        return (self._first + table * self._parts).reshape(-1)

    def write(self, table: Sequence[int], at: int, new: torch.Tensor) -> None:
        """Puts `new` (1, kv_heads, n, head_dim) at the `at`-th token of the sequence and behind it."""
        size, count = self._size, new.shape[2]
        if count == 1:
            self._blocks[:, table[at // size], at % size] = new[0, :, 0]
            return
        where = torch.arange(at, at + count, device=new.device)
        blocks = torch.tensor(table, device=new.device)[where // size]
        self._blocks[:, blocks, where % size] = new[0]

    def append_in_a_row(self, first: int, at: int, new: torch.Tensor) -> torch.Tensor:
        """`write` and `read` for a sequence whose blocks follow each other from `first` on, with no other part between
        them: nothing is copied but `new`."""
        begin = first * self._size
        end = begin + at + new.shape[2]
        self._line[:, :, begin + at : end] = new
        return self._line[:, :, begin:end]

    def copy(self, source: int, target: int) -> None:
        self._blocks[:, target] = self._blocks[:, source]

    def read(self, places: torch.Tensor) -> torch.Tensor:
        """(1, kv_heads, tokens, head_dim), copied."""
        heads, _, _, dim = self._blocks.shape
        return self._rows.index_select(0, places).view(1, heads, -1, dim)


class BlockKV(KVLayer):
    """A sequence's blocks, in order. A fork shares them; whoever writes into a shared one first takes a copy of it."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._table: list[int] = []
        self._places: tuple[torch.Tensor, torch.Tensor] | None = None
        self._in_a_row = False
        self._changed()

    def _changed(self) -> None:
        """What was derived from the table holds no more."""
        table = self._table
        self._places = None
        self._in_a_row = bool(table) and table == list(range(table[0], table[0] + len(table)))
        self._held = (-1, 0)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        stores = self._pool.stores(keys, values)
        start, end = self.length, self.length + keys.shape[2]
        self._reserve(end, stores)
        self.length = end
        if self._in_a_row and not self._pool.together:
            first = self._table[0]
            return stores[0].append_in_a_row(first, start, keys), stores[1].append_in_a_row(first, start, values)
        for store, new in zip(stores, (keys, values), strict=True):
            store.write(self._table, start, new)
        if self._places is None:
            table = torch.tensor(self._table, device=keys.device)
            self._places = stores[0].places(table), stores[1].places(table)
        all_keys, all_values = stores[0].read(self._places[0]), stores[1].read(self._places[1])
        return all_keys[:, :, :end], all_values[:, :, :end]

    def _reserve(self, end: int, stores: tuple[_Store, _Store]) -> None:
        """Takes the blocks for `end` tokens, all or none."""
        pool, table = self._pool, self._table
        new = -(-end // pool.size) - len(table)
        copies = bool(self.length % pool.size) and pool.is_shared(table[-1])
        if not (copies or new > 0):
            return
        taken = pool.take(new + copies, table[-1] if table else None)
        if copies:
            for store in stores:
                store.copy(table[-1], taken[0])
            pool.give_back([table.pop()])
        table += taken
        self._changed()

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)
        kept = -(-self.length // self._pool.size)
        if kept < len(self._table):
            self._pool.give_back(self._table[kept:])
            del self._table[kept:]
            self._changed()

    def fork(self, length: int) -> KVLayer:
        new = BlockKV(self._pool)
        new._table = self._table[: -(-length // self._pool.size)]
        new.length = length
        new._changed()
        self._pool.share(new._table)
        return new

    def free(self) -> None:
        self.truncate(0)

    @property
    def nbytes(self) -> int:
        # asked for at every step, so counted only when it may have changed
        if self._held[0] != self._pool.sharing:
            self._held = self._pool.sharing, self._pool.nbytes(self._table)
        return self._held[1]


class BlockPools:
    """Makes the layers of sequences whose blocks come from one pool for each layer of the model. `blocks` is the size
    of each pool; it takes its memory when the first sequence needs it."""

    def __init__(self, size: int, blocks: int, together: bool) -> None:
        self._new = size, blocks, together
        self.pools: dict[int, BlockPool] = {}

    def __call__(self, index: int) -> KVLayer:
        if index not in self.pools:
            self.pools[index] = BlockPool(*self._new)
        return BlockKV(self.pools[index])

    @property
    def held(self) -> int:
        """Blocks that sequences hold, of all layers together."""
        return sum(pool.blocks - pool.left for pool in self.pools.values())


def slab_size(token_bytes: int, context: int, cache_bytes: int | None = None) -> int:
    """Tokens in a block of a slab pool: the largest of 256, 128, 64 and 32 of which a block, of `token_bytes` a token
    in one layer, fits into a quarter of the processor's L2 cache (PACE's rule) and that is no longer than the context
    (ours: the rest would never be used)."""
    fits = (cache_bytes or _l2_bytes()) // 4 // token_bytes
    return next((size for size in _SLABS if size <= min(fits, context)), _SLABS[-1])


def _l2_bytes() -> int:
    """One core's L2 cache as Linux tells it; elsewhere what most processors have."""
    try:
        return max(os.sysconf("SC_LEVEL2_CACHE_SIZE"), 0) or _L2_DEFAULT
    except (AttributeError, ValueError, OSError):  # Windows, macOS, a system that doesn't know
        return _L2_DEFAULT


def _far_apart(count: int) -> list[int]:
    """0 to count - 1 in such an order that the first few, however many, lie far from each other."""
    step = max(1, round(count * _GOLDEN))
    while math.gcd(step, count) > 1:
        step += 1
    return [i * step % count for i in range(count)]
