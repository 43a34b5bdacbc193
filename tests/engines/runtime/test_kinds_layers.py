"""What a layer of each kind gives back, compared with the plainest one, whatever is done to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kani_lite.engines.runtime.kv import CacheFullError, DynamicKV, GrowingKV, KVLayer, LayeredCache
from kani_lite.engines.runtime.kv_blocks import BlockPools, slab_size
from kani_lite.engines.runtime.kv_quantized import QuantizedKV, dequantize, quantize, row_bytes
from kani_lite.engines.runtime.kv_sliding import SlidingKV

HEADS, KEY_DIM, VALUE_DIM = 2, 6, 4
NEW_LAYER: dict[str, Callable[[], Callable[[int], KVLayer]]] = {
    "bmc": lambda: lambda _: GrowingKV(7, 500),
    "static": lambda: lambda _: GrowingKV(500, 500),
    "paged": lambda: BlockPools(4, 600, together=False),
    "slab": lambda: BlockPools(8, 300, together=True),
}


def rows(count: int, seed: int, dims: tuple[int, int] = (KEY_DIM, VALUE_DIM)) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, HEADS, count, dim, generator=draw) for dim in dims)
    return keys, values


# (what is done, to which sequence, how much)
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "truncate", "fork", "free"]), st.integers(0, 9), st.integers(1, 20)),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("dims", [(KEY_DIM, VALUE_DIM), (4, 4)])
@pytest.mark.parametrize("kind", sorted(NEW_LAYER))
@given(steps=STEPS)
def test_every_kind_holds_what_the_plainest_does(kind: str, dims: tuple[int, int], steps: list[Any]) -> None:
    new_layer = NEW_LAYER[kind]()
    pairs: list[tuple[KVLayer, KVLayer]] = [(new_layer(0), DynamicKV())]
    for seed, (step, which, size) in enumerate(steps):
        one, model = pairs[which % len(pairs)]
        if step == "append" or model.length == 0:
            new = rows(size, seed, dims)
            for found, expected in zip(one.append(*new), model.append(*new), strict=True):
                assert torch.equal(found, expected)
        elif step == "truncate":
            length = max(0, model.length - size)
            one.truncate(length)
            model.truncate(length)
        elif step == "fork":
            length = max(1, model.length - size)
            pairs.append((one.fork(length), model.fork(length)))
        elif len(pairs) > 1:
            pairs.remove((one, model))
            one.free()
    last = rows(1, 999, dims)
    for one, model in pairs:  # none has changed another
        assert one.length == model.length
        assert torch.equal(one.append(*last)[1], model.append(*last)[1])
        one.free()
    assert not isinstance(new_layer, BlockPools) or new_layer.held == 0


def test_a_fork_takes_only_the_block_that_it_changes() -> None:
    pools = BlockPools(4, 20, together=False)
    first = pools(0)
    first.append(*rows(10, 0))
    assert pools.held == 3
    forks = [first.fork(10) for _ in range(3)]
    assert pools.held == 3
    assert sum(one.nbytes for one in [first, *forks]) == pytest.approx(first.nbytes * 4, abs=4)
    whole = first.nbytes * 4
    forks[0].append(*rows(1, 1))
    assert pools.held == 4
    # together they count what they take: 4 blocks, where 3 were one sequence's
    assert sum(one.nbytes for one in [first, *forks]) == pytest.approx(whole * 4 / 3, abs=4)
    for one in [first, *forks]:
        one.free()
    assert pools.held == 0


def test_a_full_pool_says_so_and_takes_nothing() -> None:
    pools = BlockPools(4, 3, together=False)
    cache = LayeredCache(pools)
    cache.layer(0).append(*rows(9, 0))
    cache.layer(1).append(*rows(9, 0))
    cache.commit(9)
    other = pools(0)
    with pytest.raises(CacheFullError, match="1 blocks of 4 tokens are needed and 0 are free"):
        other.append(*rows(1, 1))
    assert other.length == other.nbytes == 0
    cache.layer(0).append(*rows(2, 2))
    with pytest.raises(CacheFullError):
        cache.layer(1).append(*rows(4, 2))
    cache.rollback()
    assert [cache.layer(index).length for index in (0, 1)] == [9, 9]
    cache.free()
    assert pools.held == 0


def test_a_lone_sequence_is_read_without_a_copy() -> None:
    pools = BlockPools(4, 50, together=False)
    layer, beside = pools(0), pools(0)
    for seed in range(20):  # they grow by turns and don't get into each other's way
        keys, _ = layer.append(*rows(3, seed))
        other, _ = beside.append(*rows(3, seed))
    base = keys.untyped_storage().data_ptr()
    assert base == other.untyped_storage().data_ptr() == layer.append(*rows(1, 7))[0].untyped_storage().data_ptr()


def test_the_last_block_given_back_is_the_first_taken() -> None:
    pools = BlockPools(4, 50, together=False)
    layers = [pools(0) for _ in range(3)]
    for layer in layers:
        layer.append(*rows(8, 0))
    before = layers[1].append(*rows(1, 1))[0].data_ptr()
    layers[1].free()
    assert pools(0).append(*rows(1, 1))[0].data_ptr() == before


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12), back=st.integers(0, 64), window=st.integers(1, 40))
def test_a_sliding_window_holds_what_its_queries_see(sizes: list[int], back: int, window: int) -> None:
    one, model = SlidingKV(window, 2000), DynamicKV()
    for seed, size in enumerate(sizes):
        new = rows(size, seed)
        found, expected = one.append(*new), model.append(*new)
        seen = min(model.length, window - 1 + size)
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x[:, :, -seen:], y[:, :, -seen:])
    assert one.length == model.length
    end = max(0, model.length - min(back, sizes[-1] + 63))  # so far it can always go back
    assert one.can_end_at(end)
    fork, model = one.fork(end), model.fork(end)
    one.truncate(end)
    new = rows(2, 99)
    expected = model.append(*new)[0][:, :, -min(end + 2, window + 1) :]
    for layer in (one, fork):
        assert layer.length == end
        assert torch.equal(layer.append(*new)[0][:, :, -expected.shape[2] :], expected)


def test_a_sliding_window_forgets_and_says_so() -> None:
    layer = SlidingKV(8, 2000)
    for seed in range(1000):
        layer.append(*rows(1, seed))
    assert layer.nbytes <= (8 + 3 * 64) * HEADS * (KEY_DIM + VALUE_DIM) * 4
    assert layer.can_end_at(1000)
    assert not layer.can_end_at(100)
    assert not layer.can_end_at(0)


@pytest.mark.parametrize("bits", [8, 4])
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), end=st.integers(1, 200))
def test_quantized_values_do_not_depend_on_how_they_came(bits: Any, sizes: list[int], end: int) -> None:
    total = sum(sizes)
    keys, values = rows(total, 0)
    whole = QuantizedKV(bits, 7, 500).append(keys, values)
    pieces, at = QuantizedKV(bits, 7, 500), 0
    for size in sizes:
        found = pieces.append(keys[:, :, at : at + size], values[:, :, at : at + size])
        at += size
    end = min(end, total)
    fork = pieces.fork(end - 1)
    pieces.truncate(end - 1)
    for layer in (fork, pieces):
        found = layer.append(keys[:, :, end - 1 : end], values[:, :, end - 1 : end])
        for x, y in zip(found, whole, strict=True):
            assert torch.equal(x, y[:, :, :end])


@pytest.mark.parametrize(("bits", "loss"), [(8, 0.007), (4, 0.1)])
def test_what_quantizing_loses(bits: Any, loss: float) -> None:
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize(x, bits)
    back = dequantize(codes, scales, bits, torch.float32)
    assert loss * 0.8 < ((back - x).square().mean() / x.square().mean()).sqrt() < loss
    groups = (x - back).abs().unflatten(-1, (scales.shape[-1], -1))
    assert bool((groups <= scales.unsqueeze(-1) * 0.50001).all())
    assert codes.nbytes + scales.nbytes == 2000 * row_bytes(64, bits)
    zeros = torch.zeros(3, 64)
    assert torch.equal(dequantize(*quantize(zeros, bits), bits, torch.float32), zeros)


@pytest.mark.parametrize(
    ("token_bytes", "context", "expected"), [(1024, 4096, 256), (2048, 4096, 128), (10**6, 4096, 32), (1024, 100, 64)]
)
def test_the_size_of_a_slab(token_bytes: int, context: int, expected: int) -> None:
    assert slab_size(token_bytes, context, cache_bytes=2**20) == expected
    assert slab_size(token_bytes, context) in {256, 128, 64, 32}
