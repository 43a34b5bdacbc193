"""HQQ's codes of at most 4 bits along axis 1 on torch's int4 kernel for CPUs: from a weight or a file, and back.

The layer is the same `Int4Linear` that `quantize="4bit"` gives, so that all that is made for it works here too. Its
kernel knows scales and offsets (8 - zero) * scale; the zeros are found again when the layer is saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kani_lite.engines.quantization.int4 import GROUP_SIZES, Int4Linear, Portable, pair, unpair
from kani_lite.engines.quantization.solver import quantize

from .config import HqqConfig
from .package import pack
from .weight import HqqWeight, iterations, new_meta

_TILE = 2**19  # weights solved at a time: the temporaries are small beside a layer


@dataclass(frozen=True)
class Form:
    """What HQQ's file says of a layer and the kernel's layout doesn't. `group`: weights that share a scale there."""

    nbits: int
    group: int


def quantized_int4(weight: torch.Tensor, bias: nn.Parameter | None, setting: HqqConfig) -> Int4Linear:
    """The layer for a weight (out_features, in_features) of any float dtype.

    Scales and zeros are rounded to bf16, as they are in a file. Their 8-bit forms would save nothing here and are left
    out.
    """
    shape = (weight.shape[0], weight.shape[1])
    group = setting.group(shape)
    found = Portable.empty(*shape, _size(group))
    step = max(1, _TILE // shape[1])
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        codes, *parts = quantize(
            weight[rows],
            setting.nbits,
            group,
            iterations=iterations(setting),
            least_squares=setting.least_squares,
        )
        scales, zeros = (_spread(one.to(torch.bfloat16), group) for one in parts)
        found.codes[rows], found.scales[rows], found.offsets[rows] = pair(codes), scales, offsets(scales, zeros)
    return _with_form(Int4Linear.from_portable(found, bias), Form(setting.nbits, group))


def int4_from_hqq(weight: HqqWeight) -> Int4Linear:
    """The layer for what a file holds; its scales and zeros are in bf16."""
    (out_features, in_features), group = weight.shape, weight.meta["group_size"]
    scales, zeros = (_spread(weight.part(name).reshape(out_features, -1), group) for name in ("scale", "zero"))
    codes = pair(weight.codes().reshape(out_features, in_features))
    bias = None if weight.bias is None else nn.Parameter(weight.bias.detach(), requires_grad=False)
    layer = Int4Linear.from_portable(Portable(codes, scales.contiguous(), offsets(scales, zeros)), bias)
    return _with_form(layer, Form(weight.meta["nbits"], group))


def hqq_from_int4(layer: Int4Linear) -> HqqWeight | None:
    """The weight in HQQ's form; None if it didn't come from there.

    The codes and scales are the ones it came with. Of the zeros that give the layer's offsets it has the nearest to
    them in bf16, so that it comes back from a file as it was, to the bit.
    """
    form = layer.__dict__.get("hqq_form")
    if form is None:
        return None
    codes, scales, moved = layer.portable()
    step = form.group // layer.group_size
    scales, moved = scales[:, ::step], moved[:, ::step]
    shape = torch.Size((layer.out_features, layer.in_features))
    meta = new_meta(form.nbits, form.group, shape, 1, torch.bfloat16) | {
        "quant_scale": False,
        "quant_zero": False,
        "scale": scales.reshape(-1, 1).contiguous(),
        "zero": zeros_for(scales, moved).reshape(-1, 1),
    }
    bias = None if layer.bias is None else layer.bias.detach()
    return HqqWeight(pack(unpair(codes).view(-1, form.group), meta["packing"]), meta, bias)


def offsets(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """(8 - zero) * scale, rounded once to bf16."""
    return ((8 - zeros.float()) * scales.float()).to(torch.bfloat16)


def zeros_for(scales: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Zeros in bf16 whose `offsets` with these scales are `moved`, if there are any.

    Where bf16 is coarse, several zeros or only one of two neighbours give an offset: the nearest is tried, then those
    beside it.
    """
    nearest = (8 - moved.float() / scales.float()).to(torch.bfloat16)
    zeros = nearest
    for end in (torch.inf, -torch.inf):
        beside = torch.nextafter(nearest, torch.full_like(nearest, end))
        zeros = torch.where(offsets(scales, zeros) == moved, zeros, beside)
    return torch.where(offsets(scales, zeros) == moved, zeros, nearest)


def kernel_group(group: int) -> int | None:
    """The largest group of the int4 kernel that fills one of HQQ's; None if none does."""
    return next((size for size in sorted(GROUP_SIZES, reverse=True) if group % size == 0), None)


def _size(group: int) -> int:
    size = kernel_group(group)
    assert size is not None  # the backend was checked
    return size


def _spread(values: torch.Tensor, group: int) -> torch.Tensor:
    """(out_features, groups) -> (out_features, groups of the kernel)."""
    return values.repeat_interleave(group // _size(group), 1)


def _with_form(layer: Int4Linear, form: Form) -> Int4Linear:
    # an attribute and not a subclass: what looks for Int4Linear must find it
    layer.hqq_form = form  # type: ignore[assignment]  # torch declares attributes as tensors and modules
    return layer
