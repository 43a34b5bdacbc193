"""Linear layers as functions of rows, without what a module's call costs, and several of the same input as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from kani_lite.engines.quantization.int4 import KERNEL_ROWS, Int4Linear

from .linear import PackedLinear

Matmul = Callable[[torch.Tensor], torch.Tensor]
"""(rows, in_features), contiguous -> (rows, out_features), a new tensor of the same dtype."""


def matmul(layer: Any) -> Matmul:
    """One layer of decode_structure.LINEARS, whose weight must not be replaced as long as this is used."""
    if type(layer) is Int4Linear:
        return _int4(layer)
    if type(layer) is PackedLinear:
        return _packed(layer)
    if type(layer) is nn.Linear:
        weight, bias = layer.weight, layer.bias
        return lambda x: linear(x, weight, bias)
    function: Matmul = layer.forward
    return function


def joined(layers: Sequence[Any]) -> Matmul:
    """All these layers of the same input: their outputs beside each other, (rows, sum of out_features).

    Int4 weights are joined into one, of which the layers then hold parts (`Int4Linear.join`): one call instead of
    three, and no copy of what it gives.
    """
    if all(type(layer) is Int4Linear for layer in layers) and (whole := Int4Linear.join(layers)) is not None:
        return _int4(whole)
    each = [matmul(layer) for layer in layers]
    return lambda x: torch.cat([run(x) for run in each], -1)


def _int4(layer: Int4Linear) -> Matmul:
    packed, table = layer.ready()
    width, group, bias = layer.in_features, layer.group_size, layer.bias
    weight = packed.view(-1, width // 2)
    kernel: Any = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def run(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = kernel(x, weight, group, table)
        return out if bias is None else out.add_(bias)

    plain = layer.out_features == table.shape[1] and (bias is None or bias.dtype == torch.bfloat16)
    return lambda x: run(x) if plain and len(x) <= KERNEL_ROWS and x.dtype == torch.bfloat16 else layer(x)


def _packed(layer: PackedLinear) -> Matmul:
    kernel: Any = torch.ops.mkldnn._linear_pointwise.default
    weight, bias = layer.packed, layer.bias
    return lambda x: kernel(x, weight, bias, "none", [], "")
