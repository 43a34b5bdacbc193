"""The kinds of memory for keys and values, by name, and how much of it there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil
import torch

from kani_lite.exceptions import EngineError

from .kv import DynamicKV, GrowingKV, KVLayer, NewLayer, bmc_step
from .kv_blocks import PAGE, BlockPools, slab_size
from .kv_quantized import Bits, QuantizedKV, row_bytes
from .kv_shapes import LayerShape, layer_shapes
from .kv_sliding import SlidingKV, most_rows

_SHARE = 4  # of the free memory, this part is for keys and values by default


@dataclass(frozen=True)
class CacheKind:
    """`new_layer` makes an empty layer for a place in the model; `rows` says how many tokens' memory a sequence of so
    many tokens takes; `memory` is the bound in bytes for all of them."""

    name: str
    new_layer: NewLayer
    rows: Callable[[int], int]
    memory: int

    @classmethod
    def named(cls, name: str, model: Any, context: int, memory: int | None) -> CacheKind:
        """Raises EngineError for a kind that isn't known or that this model can't have."""
        check_name(name)
        memory = memory if memory is not None else _free_memory(model.device) // _SHARE
        return _KINDS[name](_Wanted(name, model, context, memory))


@dataclass(frozen=True)
class _Wanted:
    """What a kind is made for."""

    name: str
    model: Any
    context: int
    memory: int

    @cached_property
    def layers(self) -> dict[int, LayerShape]:
        cause: Exception | None = None
        try:
            if found := layer_shapes(self.model):
                return found
        except Exception as error:  # models of all makers
            cause = error
        raise EngineError(
            f"cache={self.name!r} keeps what attention is given, and this model's attention can't be replaced "
            f"({cause or 'it has none'}): leave cache= out."
        ) from cause

    @cached_property
    def token_bytes(self) -> int:
        return sum(layer.token_bytes for layer in self.layers.values())

    def made(self, new_layer: NewLayer, rows: Callable[[int], int], memory: int | None = None) -> CacheKind:
        return CacheKind(self.name, new_layer, rows, self.memory if memory is None else memory)


def _up(tokens: int, step: int) -> int:
    return -(-tokens // step) * step


def _dynamic(wanted: _Wanted) -> CacheKind:
    return wanted.made(lambda _: DynamicKV(), lambda tokens: tokens)


def _growing(wanted: _Wanted, step: int) -> CacheKind:
    context = wanted.context
    return wanted.made(lambda _: GrowingKV(step, context), lambda tokens: min(context, _up(tokens, step)))


def _bmc(wanted: _Wanted) -> CacheKind:
    return _growing(wanted, bmc_step(wanted.context))


def _static(wanted: _Wanted) -> CacheKind:
    needed = wanted.context * wanted.token_bytes
    if needed > wanted.memory:
        raise EngineError(
            f"cache='static' sets memory for the whole context aside for each request: {wanted.context} tokens take "
            f"{needed:,} bytes and the bound is {wanted.memory:,}. Give a larger kv_cache_memory_gb, a smaller "
            "max_context_size, or cache='bmc', which grows."
        )
    return _growing(wanted, wanted.context)


def _paged(wanted: _Wanted) -> CacheKind:
    return _blocks(wanted, PAGE, together=False)


def _slab(wanted: _Wanted) -> CacheKind:
    largest = max(layer.token_bytes for layer in wanted.layers.values())
    return _blocks(wanted, slab_size(largest, wanted.context), together=True)


def _blocks(wanted: _Wanted, size: int, together: bool) -> CacheKind:
    block_bytes = size * wanted.token_bytes
    count = wanted.memory // block_bytes
    if count < 2:  # one block would be one request, with no place to copy a shared block to
        raise EngineError(
            f"cache={wanted.name!r} needs at least 2 blocks of {size} tokens, {2 * block_bytes:,} bytes, and the bound "
            f"is {wanted.memory:,}: give a larger kv_cache_memory_gb, or cache='dynamic', which needs no blocks."
        )
    pools = BlockPools(size, count, together)
    return wanted.made(pools, lambda tokens: _up(tokens, size), count * block_bytes)


def _quantized(wanted: _Wanted, bits: Bits = 8) -> CacheKind:
    context, step, whole, small = wanted.context, bmc_step(wanted.context), wanted.token_bytes, 0
    for layer in wanted.layers.values():
        if bits == 4 and (layer.key_dim % 2 or layer.value_dim % 2):
            raise EngineError(
                f"cache={wanted.name!r} puts two numbers into a byte, and this model's heads have {layer.key_dim} "
                f"(keys) and {layer.value_dim} (values), which must be even: give cache='quantized'."
            )
        small += layer.kv_heads * (row_bytes(layer.key_dim, bits) + row_bytes(layer.value_dim, bits))

    def new_layer(_: int) -> KVLayer:
        return QuantizedKV(bits, step, context)

    return wanted.made(new_layer, lambda tokens: _up(min(context, _up(tokens, step)) * small, whole) // whole)


def _quantized_4bit(wanted: _Wanted) -> CacheKind:
    return _quantized(wanted, 4)


def _sliding(wanted: _Wanted) -> CacheKind:
    context, step, whole = wanted.context, bmc_step(wanted.context), wanted.token_bytes
    windows = {place: layer.window for place, layer in wanted.layers.items() if layer.window}
    if not windows:
        raise EngineError(
            "cache='sliding' forgets what is behind a layer's sliding window, and no layer of this model has one "
            "(layer_types and sliding_window in its config): give cache='bmc'."
        )

    def new_layer(place: int) -> KVLayer:
        window = windows.get(place)
        return GrowingKV(step, context) if window is None else SlidingKV(window, context)

    def rows(tokens: int) -> int:
        grown = min(context, _up(tokens, step))
        held = (
            layer.token_bytes * (min(grown, most_rows(layer.window)) if layer.window else grown)
            for layer in wanted.layers.values()
        )
        return _up(sum(held), whole) // whole

    return wanted.made(new_layer, rows)


_KINDS: dict[str, Callable[[_Wanted], CacheKind]] = {
    "bmc": _bmc,
    "dynamic": _dynamic,
    "paged": _paged,
    "quantized": _quantized,
    "quantized-4bit": _quantized_4bit,
    "slab": _slab,
    "sliding": _sliding,
    "static": _static,
}


def check_name(name: str) -> None:
    """Raises EngineError for a kind that isn't known."""
    if name not in _KINDS:
        raise EngineError(f"cache={name!r} is unknown: give one of {', '.join(sorted(_KINDS))}.")


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
