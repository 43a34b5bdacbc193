"""Linear layers in group-wise int4, on torch's packed int4 kernel for CPUs.

The kernel takes bf16 and each weight as (code - 8) * scale + offset, with a scale and an offset per group of a row. It
dequantises again for every few rows of its input, so that above `KERNEL_ROWS` rows dequantising once, tile by tile, and
a plain bf16 matmul is faster. Its other dtypes are a reference that is 100 times slower: whatever comes in is cast.

How codes lie in memory is the kernel's affair and differs between CPUs (64 rows to a block with AVX-512, 32 with AVX2),
so a state dict holds them plainly: two codes to a byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from kani_lite.exceptions import EngineError

from .solver import quantize

GROUP_SIZES = (32, 64, 128, 256)
KERNEL_ROWS = 96  # measured: 96 to 128 rows, by the layer's shape
_BLOCK = 64  # output features that fill a block of the kernel on any CPU; others are padded to it
_TILE = 2**19  # weights dequantised at a time: few enough to stay in the cache until the matmul has read them


class Portable(NamedTuple):
    """An int4 weight (out, in) as it is saved: (code - 8) * scale + offset.

    `codes`: (out, in / 2) uint8, of which the low half of a byte comes first. `scales`, `offsets`: (out,
    in / group_size) bf16.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def empty(cls, out_features: int, in_features: int, group_size: int) -> Portable:
        """Raises EngineError if group_size is none of GROUP_SIZES or doesn't divide in_features."""
        check_shape(in_features, group_size)
        codes = torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        groups = (out_features, in_features // group_size)
        return cls(codes, *(torch.empty(groups, dtype=torch.bfloat16) for _ in range(2)))

    @classmethod
    def solve(cls, weight: torch.Tensor, group_size: int) -> Portable:
        """By HQQ's solver, for a weight of any float dtype. Raises EngineError as `empty` and the solver do."""
        found = cls.empty(weight.shape[0], weight.shape[1], group_size)
        step = max(1, _TILE // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            codes, scales, zeros = quantize(weight[rows], 4, group_size, least_squares=True)
            found.codes[rows], found.scales[rows], found.offsets[rows] = pair(codes), scales, (8 - zeros) * scales
        return found


class Int4Linear(nn.Module):
    """A linear layer for inference whose weight is in int4, at 4 + 32 / group_size bits each.

    A new layer is empty, with the buffers of Portable. `pack` brings them into the kernel's layout; the state dict is
    the same before and after. The bias has the dtype it was given.

    Raises EngineError if group_size is none of GROUP_SIZES or doesn't divide in_features.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor
    _packed: torch.Tensor | None  # (blocks, in, half a block) uint8
    _table: torch.Tensor | None  # (in / group_size, padded out, scale and offset) bf16
    _whole: tuple[Int4Linear] | None  # what it was joined into: in a tuple, so that it isn't registered as a module

    def __init__(
        self, in_features: int, out_features: int, bias: nn.Parameter | None = None, group_size: int = 64
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.bias = bias
        self._packed = self._table = self._whole = None
        for name, empty in Portable.empty(out_features, in_features, group_size)._asdict().items():
            self.register_buffer(name, empty)

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        bias: torch.Tensor | None = None,
        group_size: int = 64,
    ) -> Self:
        """The layer, packed, for weights (code - zero) * scale as HQQ writes them.

        `codes`: (out, in), integers from 0 to 15. `scales`, `zeros`: (out, in / group_size), any float dtype; they are
        rounded to bf16, zeros as offsets (8 - zero) * scale. Raises EngineError if the shapes don't fit each other.
        """
        out_features, in_features = codes.shape
        check_shape(in_features, group_size)
        expected = (out_features, in_features // group_size)
        if tuple(scales.shape) != expected or tuple(zeros.shape) != expected:
            raise EngineError(
                f"Codes of {tuple(codes.shape)} in groups of {group_size} need scales and zeros of {expected}, "
                f"not {tuple(scales.shape)} and {tuple(zeros.shape)}."
            )
        offsets = ((8 - zeros.float()) * scales.float()).to(torch.bfloat16)
        found = Portable(pair(codes.to(torch.uint8)), scales.to(torch.bfloat16), offsets)
        return cls.from_portable(found, None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @classmethod
    def from_portable(cls, weight: Portable, bias: nn.Parameter | None = None) -> Self:
        """The layer, packed."""
        out_features, in_features = len(weight.codes), weight.codes.shape[1] * 2
        with torch.device("meta"):
            layer = cls(in_features, out_features, bias, in_features // weight.scales.shape[1])
        layer.codes, layer.scales, layer.offsets = weight
        return layer.pack()

    # ==== layouts ====

    @property
    def is_packed(self) -> bool:
        return self._packed is not None

    def pack(self) -> Self:
        """Into the kernel's layout, in place; returns the layer. It must be on a CPU."""
        if self.is_packed:
            return self
        if self.codes.device.type != "cpu":
            raise EngineError(f"Int4Linear runs on a CPU, not on {self.codes.device.type!r}.")
        table = torch.stack([self.scales.t(), self.offsets.t()], -1).to(torch.bfloat16)
        missing = -self.out_features % _BLOCK
        self._table = nn.functional.pad(table, (0, 0, 0, missing)).contiguous()
        self._packed = _packed(self.codes, missing)
        for name in Portable._fields:
            delattr(self, name)
        return self

    @property
    def packed(self) -> torch.Tensor | None:
        """The codes in the kernel's layout; another tensor whenever the weight has changed."""
        return self._packed

    @staticmethod
    def join(layers: Sequence[Int4Linear]) -> Int4Linear | None:
        """One layer that gives the outputs of all these, of the same input, one after another. Their weights move into
        it: from now on each holds a part of its memory. None if they don't fit: groups or inputs differ, or a layer
        other than the last doesn't fill the kernel's blocks."""
        if len({(layer.in_features, layer.group_size) for layer in layers}) != 1:
            return None
        biases = [layer.bias for layer in layers]
        if any(layer.out_features % _BLOCK for layer in layers[:-1]) or len({bias is None for bias in biases}) != 1:
            return None
        parts = [layer.ready() for layer in layers]
        known, out_features = layers[0]._whole, sum(layer.out_features for layer in layers)
        shared = known is not None and all(layer._whole is known for layer in layers)
        if known is not None and shared and known[0].out_features == out_features:
            return known[0]  # several runtimes may use one model
        with torch.device("meta"):
            whole = Int4Linear(layers[0].in_features, out_features, None, layers[0].group_size)
        for name in Portable._fields:
            delattr(whole, name)
        whole._packed, whole._table = torch.cat([p for p, _ in parts]), torch.cat([table for _, table in parts], 1)
        if biases[0] is not None:
            whole.bias = nn.Parameter(torch.cat([b.detach() for b in biases if b is not None]), requires_grad=False)
        blocks = torch.split(whole._packed, [len(p) for p, _ in parts])
        tables = torch.split(whole._table, [table.shape[1] for _, table in parts], 1)
        known = (whole,)
        for layer, block, table in zip(layers, blocks, tables, strict=True):
            layer._packed, layer._table, layer._whole = block, table, known
        return whole

    def unpack(self) -> Self:
        """Back into the portable form, in place; returns the layer."""
        if self.is_packed:
            for name, value in self.portable()._asdict().items():
                self.register_buffer(name, value)
            self._packed = self._table = self._whole = None
        return self

    def portable(self) -> Portable:
        """The weight as it is saved; a copy if the layer is packed."""
        if self._packed is None or self._table is None:
            return Portable(self.codes, self.scales, self.offsets)
        table = self._table[:, : self.out_features].transpose(0, 1)
        step = max(1, _TILE // (self.in_features * _BLOCK))
        codes = [pair(_unpacked(blocks)) for blocks in torch.split(self._packed, step)]
        return Portable(torch.cat(codes)[: self.out_features], table[..., 0].contiguous(), table[..., 1].contiguous())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.portable()._asdict().items():
            destination[prefix + name] = value

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        was_packed = self.is_packed
        self.unpack()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if was_packed:
            self.pack()

    @property
    def num_bytes(self) -> int:
        """What the weight takes in memory."""
        return sum(part.nbytes for part in self.ready())

    # ==== running ====

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features), dequantised to bf16."""
        return torch.cat([tile.clone() for tile in self._tiles()])[: self.out_features]

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The weight's rows at `indices` (n,), dequantised to bf16: (n, in_features)."""
        packed, table = self.ready()
        block, order = _layout()
        place = indices % block if order is None else order[indices % block]
        halves = packed.view(-1, self.in_features, block // 2)[indices // block, :, place % (block // 2)]
        codes = torch.where((place >= block // 2)[:, None], halves >> 4, halves & 15)
        scales, offsets = table[:, indices].permute(2, 1, 0).unsqueeze(-1)
        return dequantized(codes, scales, offsets)

    def _tiles(self) -> Iterator[torch.Tensor]:
        """The padded weight in bf16, some rows at a time; each overwrites the one before."""
        packed, table = self.ready()
        step = max(1, _TILE // (self.in_features * _BLOCK))
        buffer = torch.empty(step * _BLOCK, self.in_features, dtype=torch.bfloat16)
        start = 0
        for blocks in torch.split(packed, step):
            tile = buffer[: len(blocks) * _BLOCK]
            scales, offsets = table[:, start : start + len(tile)].permute(2, 1, 0).unsqueeze(-1).contiguous()
            _unpacked(blocks, out=tile)
            tile.view(len(tile), -1, self.group_size).sub_(8).mul_(scales).add_(offsets)
            yield tile
            start += len(tile)

    def ready(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight as the kernel reads it, packed now if it wasn't: codes (blocks, in, half a block) uint8, scales
        and offsets (in / group_size, padded out, 2) bf16. The latter isn't contiguous in a part of a joined layer."""
        if self._packed is None or self._table is None:
            self.pack()
        assert self._packed is not None
        assert self._table is not None
        return self._packed, self._table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in x's dtype."""
        packed, table = self.ready()
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if not len(rows):
            return x.new_empty(*x.shape[:-1], self.out_features)
        if len(rows) <= KERNEL_ROWS:
            packed, table = packed.view(-1, self.in_features // 2), table.contiguous()
            out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, self.group_size, table)
        else:
            out = rows.new_empty(len(rows), table.shape[1])
            start = 0
            for tile in self._tiles():
                out[:, start : start + len(tile)] = rows @ tile.t()
                start += len(tile)
        out = out[:, : self.out_features].to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, group_size={self.group_size}"


def check_shape(in_features: int, group_size: int) -> None:
    """Raises EngineError if the kernel has no such groups or they don't fill a row."""
    if group_size not in GROUP_SIZES:
        raise EngineError(f"group_size={group_size} is none that the int4 kernel has: give one of {GROUP_SIZES}.")
    if in_features % group_size:
        raise EngineError(f"Groups of {group_size} don't fill a row of {in_features} weights: give another group_size.")


def pair(codes: torch.Tensor) -> torch.Tensor:
    """(..., n) uint8 codes under 16 -> (..., n / 2), two to a byte, the first in its low half."""
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def unpair(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `pair`."""
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)


def dequantized(codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(n, in) codes, and scales and offsets of (n, groups, 1) -> (n, in) bf16."""
    grouped = codes.to(torch.bfloat16).view(*scales.shape[:2], codes.shape[1] // scales.shape[1])
    return grouped.sub_(8).mul_(scales).add_(offsets).view(codes.shape)


def _packed(codes: torch.Tensor, missing: int) -> torch.Tensor:
    """(out, in / 2) pairs -> (blocks, in, 32) as the kernel reads them, with `missing` rows added. By pieces, since the
    kernel's own function takes codes as int32."""
    width = codes.shape[1] * 2
    out = torch.empty((len(codes) + missing) // _BLOCK, width, _BLOCK // 2, dtype=torch.uint8)
    step = max(1, _TILE // (width * _BLOCK))
    for piece, rows in zip(torch.split(out, step), torch.split(codes, step * _BLOCK), strict=True):
        wide = torch.zeros(len(piece) * _BLOCK, width, dtype=torch.int32)
        wide[: len(rows)] = unpair(rows)
        piece.copy_(torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1).view(piece.shape))
    return out


def _unpacked(blocks: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """(blocks, in, 32) of the kernel's bytes -> (blocks * 64, in) codes, in `out` if it is given."""
    block, order = _layout()
    width = blocks.shape[1]
    halves = blocks.reshape(-1, width, block // 2).transpose(1, 2).contiguous()
    if out is None:
        out = torch.empty(len(blocks) * _BLOCK, width, dtype=torch.uint8)
    codes = out.view(len(halves), 2, block // 2, width)
    codes[:, 0], codes[:, 1] = halves & 15, halves >> 4
    if order is not None:
        out.copy_(out.view(len(halves), block, width)[:, order].view(out.shape))
    return out


@cache
def _layout() -> tuple[int, torch.Tensor | None]:
    """How this CPU's kernel lays codes out: rows in a block, and where each of its rows is among the low halves
    followed by the high ones; None if they are in order. Found by packing row numbers, checked on random codes."""
    low, high = (
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(digit[:, None].repeat(1, 32).int(), 1).view(-1)
        for digit in (torch.arange(_BLOCK) % 16, torch.arange(_BLOCK) // 16)
    )
    for block in (64, 32, 16):
        first, second = low[: block // 2], high[: block // 2]
        rows = torch.cat([(second & 15) * 16 + (first & 15), (second >> 4) * 16 + (first >> 4)]).long()
        if rows.sort().values.equal(torch.arange(block)):
            order = rows.argsort()
            return block, None if order.equal(torch.arange(block)) else order
    raise EngineError(f"torch {torch.__version__} packs int4 weights in an unknown way on this CPU: use bitsandbytes.")
