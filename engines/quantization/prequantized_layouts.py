"""The weights of GPTQ, AWQ and compressed-tensors checkpoints, and the layers for CPUs that they become.

Each keeps a weight as integer codes in 32-bit words, with a scale and a zero point for a group of columns of a row:
weight = (code - zero) * scale. They differ in how the codes lie in the words. All are read into `Grouped`, with codes
and zeros from 0; sources: the packing of AutoGPTQ and GPTQModel (their formats "gptq" and "gptq_v2"), AutoAWQ's "GEMM",
and compressed-tensors' "pack-quantized".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from kani_lite.exceptions import EngineError

from .int4 import GROUP_SIZES, Int4Linear
from .int8 import Int8Linear

Tensors = Mapping[str, torch.Tensor]

GPTQ, AWQ, PACKED = "gptq", "awq", "compressed-tensors"
# what a layer's tensors are called, the codes first
NAMES = {
    GPTQ: ("qweight", "scales", "qzeros", "g_idx"),
    AWQ: ("qweight", "scales", "qzeros"),
    PACKED: ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
}
_OPTIONAL = ("g_idx", "weight_zero_point", "weight_g_idx", "weight_shape")
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the codes of eight neighbours lie in a word, from its low end
_TILE = 2**22  # weights dequantised at a time


class Grouped(NamedTuple):
    """A weight (out, in): (codes - zeros) * scales.

    `codes`: (out, in) uint8. `scales`, `zeros`: (out, groups), float32. `groups`: (in,), the group of each column.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    groups: torch.Tensor
    bits: int

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """(out, in)."""
        step = max(1, _TILE // self.codes.shape[1])
        parts = zip(*(torch.split(part, step) for part in (self.codes, self.scales, self.zeros)), strict=True)
        return torch.cat(
            [((codes - zeros[:, self.groups]) * scales[:, self.groups]).to(dtype) for codes, scales, zeros in parts]
        )


class PermutedLinear(nn.Module):
    """An Int4Linear whose columns were sorted by their groups, as GPTQ with activation order leaves them in any."""

    order: torch.Tensor  # (in_features,): the column that comes first, second, ...

    def __init__(self, linear: Int4Linear, order: torch.Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features, self.linear = linear.in_features, linear.out_features, linear
        self.register_buffer("order", order)

    @property
    def bias(self) -> nn.Parameter | None:
        return self.linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features), dequantised to bf16."""
        return self.linear.weight[:, self.order.argsort()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in x's dtype."""
        out: torch.Tensor = self.linear(x.index_select(-1, self.order))
        return out


# ==== from a checkpoint's tensors ====


def read_layer(
    layout: str, tensors: Tensors, in_features: int, out_features: int, group_size: int, v2: bool
) -> Grouped:
    """`tensors`: of one layer by NAMES[layout]. `group_size`: what config.json says, needed only where groups don't
    fill the rows; 0 if it says none. `v2`: of GPTQ's two ways to write zero points the plain one.

    Raises EngineError if tensors are missing, or their shapes aren't those of such a layer in 2, 4 or 8 bits.
    """
    missing = [name for name in NAMES[layout] if name not in tensors and name not in _OPTIONAL]
    if missing:
        raise EngineError(f"it has {NAMES[layout][0]!r} without {missing[0]!r}")
    if layout == PACKED:
        grouped = _read_packed(tensors, in_features)
    elif layout == AWQ:
        grouped = _read_awq(tensors)
    else:
        grouped = _read_gptq(tensors, in_features, v2)
    count = grouped.scales.shape[-1]
    if grouped.codes.shape != (out_features, in_features) or grouped.scales.shape != (out_features, count):
        raise EngineError(f"its codes are {tuple(grouped.codes.shape)}, not {(out_features, in_features)}")
    if grouped.zeros.shape != grouped.scales.shape:
        raise EngineError(f"it has scales of {tuple(grouped.scales.shape)}, zeros of {tuple(grouped.zeros.shape)}")
    given = tensors.get("g_idx", tensors.get("weight_g_idx"))
    return grouped._replace(groups=_groups(given, in_features, count, group_size))


def _groups(given: torch.Tensor | None, in_features: int, count: int, group_size: int) -> torch.Tensor:
    if given is None or given.numel() == 0 or bool((given < 0).all()):
        size = in_features // count if in_features % count == 0 else group_size
        groups = torch.arange(in_features) // max(1, size)
    else:
        groups = given.long()
    if len(groups) != in_features or not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise EngineError(f"its {count} groups don't fit {in_features} columns")
    return groups


def _read_gptq(tensors: Tensors, in_features: int, v2: bool) -> Grouped:
    """`qweight` (in * bits / 32, out), words down the columns; `qzeros` (groups, out * bits / 32), in the first format
    one less than they are; `scales` (groups, out)."""
    qweight, qzeros = tensors["qweight"], tensors["qzeros"]
    bits = _bits(qweight.shape[0], in_features)
    if not v2:  # in whole words: a zero of 0 was written by borrowing from the next
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    codes = unpack(qweight.t(), bits)
    zeros = unpack(qzeros, bits).t()
    return Grouped(codes, tensors["scales"].t().float(), zeros.float(), _NO_GROUPS, bits)


def _read_awq(tensors: Tensors) -> Grouped:
    """`qweight` (in, out / 8) and `qzeros` (groups, out / 8), eight neighbours of a row to a word, shuffled; `scales`
    (groups, out)."""

    def unshuffled(words: torch.Tensor) -> torch.Tensor:
        codes = unpack(words, 4)
        return codes.view(*codes.shape[:-1], -1, 8)[..., list(_AWQ_ORDER)].flatten(-2).t()

    zeros = unshuffled(tensors["qzeros"]).float()
    return Grouped(unshuffled(tensors["qweight"]), tensors["scales"].t().float(), zeros, _NO_GROUPS, 4)


def _read_packed(tensors: Tensors, in_features: int) -> Grouped:
    """`weight_packed` (out, in * bits / 32), signed codes with 2 ** (bits - 1) added; `weight_scale` (out, groups);
    `weight_zero_point`, none if it is 0 everywhere, (out * bits / 32, groups) in the same way down the columns, or
    (out, groups) as signed numbers."""
    packed, scales = tensors["weight_packed"], tensors["weight_scale"].float()
    bits = _bits(packed.shape[1], in_features)
    point, half = tensors.get("weight_zero_point"), 2 ** (bits - 1)
    if point is None:
        zeros = torch.full_like(scales, half)
    elif point.dtype == torch.int32:
        zeros = unpack(point.t(), bits).t()[: len(scales)].float()
    else:
        zeros = point.float() + half
    return Grouped(unpack(packed, bits)[:, :in_features], scales, zeros, _NO_GROUPS, bits)


_NO_GROUPS = torch.empty(0, dtype=torch.long)


def _bits(words: int, count: int) -> int:
    """How many bits each of `count` codes takes, that fill so many words."""
    found = [bits for bits in (2, 4, 8) if -(-count * bits // 32) == words]
    if len(found) != 1:
        raise EngineError(f"it has {count} codes in {words} words, which isn't 2, 4 or 8 bits for each")
    return found[0]


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., n) int32 -> (..., n * 32 / bits) uint8, the low end of a word first."""
    parts = words.contiguous().view(torch.uint8)  # little-endian, as all that torch runs on
    if bits == 8:
        return parts
    mask = 2**bits - 1
    return torch.stack([(parts >> shift) & mask for shift in range(0, 8, bits)], -1).flatten(-2)


# ==== to a layer ====


def make_layer(
    grouped: Grouped, bias: nn.Parameter | None, dtype: torch.dtype
) -> Int4Linear | Int8Linear | PermutedLinear | nn.Linear:
    """On torch's int4 kernel if the groups fit it; with one group to a row of symmetric 8-bit codes on the int8 one;
    otherwise dequantised to `dtype`. Scales and offsets are rounded to bf16 for the kernels."""
    if grouped.bits <= 4:
        order = _order(grouped.groups)
        groups = grouped.groups if order is None else grouped.groups[order]
        if (size := _kernel_group(groups)) is not None:
            codes = grouped.codes if order is None else grouped.codes[:, order]
            of_blocks = groups[::size]
            scales, zeros = grouped.scales[:, of_blocks], grouped.zeros[:, of_blocks]
            linear = Int4Linear.from_codes(codes, scales, zeros, bias, size)
            return linear if order is None else PermutedLinear(linear, order)
    elif grouped.scales.shape[1] == 1 and bool((grouped.zeros == 128).all()):
        with torch.device("meta"):
            layer = Int8Linear(grouped.codes.shape[1], len(grouped.codes), bias)
        layer.codes = (grouped.codes.short() - 128).to(torch.int8)
        layer.scales = grouped.scales[:, 0].to(torch.bfloat16)
        return layer
    with torch.device("meta"):
        plain = nn.Linear(grouped.codes.shape[1], len(grouped.codes), bias is not None)
    plain.weight = nn.Parameter(grouped.dequantized(dtype), requires_grad=False)
    if bias is not None:
        plain.bias = bias
    return plain


def _order(groups: torch.Tensor) -> torch.Tensor | None:
    """Which brings columns of one group together; None if they are."""
    order = groups.argsort(stable=True)
    return None if bool((groups.diff() >= 0).all()) else order


def _kernel_group(groups: torch.Tensor) -> int | None:
    """The kernel's largest groups of which each lies within one of these."""
    for size in reversed(GROUP_SIZES):
        if len(groups) % size == 0 and bool((groups.view(-1, size) == groups[::size, None]).all()):
            return size
    return None
