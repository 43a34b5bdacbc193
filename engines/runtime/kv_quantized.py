"""Keys and values in 8 or 4 bits."""

from __future__ import annotations

from typing import Literal

import torch

from .kv import GrowingKV, KVLayer, Pair

_GROUP = 32  # numbers that share a scale in 4 bits
Bits = Literal[8, 4]


class QuantizedKV(KVLayer):
    """Whole numbers with a scale, turned back into the model's type whenever they are read.

    A number is rounded once, when it comes, and even the newest ones are read back rounded: otherwise what a token sees
    would depend on how the sequence was cut into forward passes, and a reused beginning would not equal a computed one.

    Loss: each number is off by at most half a scale. In 8 bits the scale is 1/127 of the largest number of that token
    and head, in 4 bits 1/7 of the largest among 32: for normally distributed rows of 64 numbers 0.6 % and 9 % of their
    size (root mean square).
    """

    def __init__(self, bits: Bits, step: int, limit: int) -> None:
        self._new = bits, step, limit
        self._bits = bits
        self._codes, self._scales = GrowingKV(step, limit), GrowingKV(step, limit)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        key_codes, key_scales = quantize(keys, self._bits)
        value_codes, value_scales = quantize(values, self._bits)
        codes = self._codes.append(key_codes, value_codes)
        scales = self._scales.append(key_scales, value_scales)
        self.length = self._codes.length
        return dequantize(codes[0], scales[0], self._bits, keys.dtype), dequantize(
            codes[1], scales[1], self._bits, values.dtype
        )

    def truncate(self, length: int) -> None:
        # each by itself: a pass that failed may have reached only one
        self._codes.truncate(length)
        self._scales.truncate(length)
        self.length = min(self.length, length)

    def fork(self, length: int) -> KVLayer:
        new = QuantizedKV(*self._new)
        new._codes, new._scales = self._codes.part(0, length), self._scales.part(0, length)
        new.length = length
        return new

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes


def _group(dim: int, bits: Bits) -> int:
    return _GROUP if bits == 4 and dim % _GROUP == 0 else dim


def row_bytes(dim: int, bits: Bits) -> int:
    """Bytes of one token's key or value in one head."""
    return dim * bits // 8 + 4 * (dim // _group(dim, bits))


def quantize(x: torch.Tensor, bits: Bits) -> Pair:
    """The codes of `x` (..., dim) and their scales (..., groups), fp32: code * scale is about x. Codes are (..., dim)
    int8, or (..., dim / 2) uint8 with two in a byte."""
    most = 2 ** (bits - 1) - 1
    groups = x.float().reshape(*x.shape[:-1], -1, _group(x.shape[-1], bits))
    scales = (groups.abs().amax(-1) / most).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (groups / scales.unsqueeze(-1)).round_().clamp_(-most, most).flatten(-2)
    if bits == 8:
        return codes.to(torch.int8), scales
    low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor, bits: Bits, dtype: torch.dtype) -> torch.Tensor:
    """The numbers (..., dim) that codes and scales of `quantize` stand for."""
    if bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1).to(torch.int8) - 8
    # faster than multiplying int8 by fp32, which torch converts piece by piece
    numbers = codes.float().reshape(*scales.shape, -1).mul_(scales.unsqueeze(-1))
    return numbers.flatten(-2).to(dtype)
