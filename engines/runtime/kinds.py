"""The kinds of memory for keys and values, by name, and how much of it there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from kani_lite.exceptions import EngineError

from .kv import DynamicKV, GrowingKV, KVLayer, bmc_step

_SHARE = 4  # of the free memory, this part is for keys and values by default


@dataclass(frozen=True)
class CacheKind:
    """`new_layer` makes an empty layer for a place in the model; `rows` says how many tokens' memory a sequence of so
    many tokens takes; `memory` is the bound in bytes for all of them."""

    name: str
    new_layer: Callable[[int], KVLayer]
    rows: Callable[[int], int]
    memory: int

    @classmethod
    def named(cls, name: str, model: Any, context: int, memory: int | None) -> CacheKind:
        """Raises EngineError for a kind that isn't known or that this model can't have."""
        if name not in _KINDS:
            raise EngineError(f"cache={name!r} is unknown: give one of {', '.join(sorted(_KINDS))}.")
        memory = memory if memory is not None else _free_memory(model.device) // _SHARE
        new_layer, rows = _KINDS[name](model, context, memory)
        return cls(name, new_layer, rows, memory)


Made = tuple[Callable[[int], KVLayer], Callable[[int], int]]


def _dynamic(model: Any, context: int, memory: int) -> Made:
    return lambda _: DynamicKV(), lambda tokens: tokens


def _growing(step: int, context: int) -> Made:
    return lambda _: GrowingKV(step, context), lambda tokens: min(context, -(-tokens // step) * step)


def _bmc(model: Any, context: int, memory: int) -> Made:
    return _growing(bmc_step(context), context)


def _static(model: Any, context: int, memory: int) -> Made:
    return _growing(context, context)


_KINDS: dict[str, Callable[[Any, int, int], Made]] = {"bmc": _bmc, "dynamic": _dynamic, "static": _static}


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
