"""Linear layers in int8 with one scale to a row, on torch's int8 kernel for CPUs.

The kernel reads rows in steps of up to 32 weights without looking where they end: others' rows must not reach it.
"""

from __future__ import annotations

import torch
from torch import nn

from kani_lite.exceptions import EngineError

_STEP = 32
KERNEL_ROWS = 4  # measured; above, converting the weight and a plain bf16 matmul are faster
_TILE = 2**20  # weights converted at a time


class Int8Linear(nn.Module):
    """A linear layer for inference whose weight is `codes` (out_features, in_features) int8 times `scales`
    (out_features,) bf16. It computes in bf16, whatever comes in."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(out_features, dtype=torch.bfloat16))

    @classmethod
    def from_weight(cls, weight: torch.Tensor, bias: nn.Parameter | None = None) -> Int8Linear:
        """Rounds a weight (out, in) to nearest. Raises EngineError for weights that aren't finite."""
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], bias)
        largest = weight.detach().abs().amax(1).float()
        if not bool(largest.isfinite().all()):
            raise EngineError("A weight holds numbers that aren't finite: the model's files are damaged.")
        layer.scales = (largest / 127).clamp(min=1e-12).to(torch.bfloat16)
        layer.codes = torch.cat(
            [
                (rows.float() / scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
                for rows, scales in zip(
                    torch.split(weight.detach(), 1024), torch.split(layer.scales, 1024), strict=True
                )
            ]
        )
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features) in bf16."""
        return self.codes.to(torch.bfloat16) * self.scales[:, None]

    @property
    def num_bytes(self) -> int:
        """What the weight takes in memory."""
        return self.codes.nbytes + self.scales.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in x's dtype."""
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if not len(rows):
            return x.new_empty(*x.shape[:-1], self.out_features)
        scales = self.scales.to(torch.bfloat16)
        if len(rows) <= KERNEL_ROWS and self.in_features % _STEP == 0:
            out: torch.Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.codes, scales)
        else:
            tiles = torch.split(self.codes, max(1, _TILE // self.in_features))
            out = torch.cat([rows @ tile.to(torch.bfloat16).t() for tile in tiles], 1).mul_(scales)
        out = out.to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
