"""Linear layers whose weights lie in memory as the CPU's kernels read them.

oneDNN can reorder a weight once for its matrix kernels. torch does so only while it compiles; without that, each call
reads the weight as it was saved, which on one to eight rows takes 1.5 to 2 times as long in bf16 and 2 to 3.5 times in
fp32 (benchmarks/runtime.py). In bf16 the results are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_DTYPES = (torch.float32, torch.bfloat16)
_SMALLEST = 2**14  # weights; below, the call itself costs more than the reading


class PackedLinear(nn.Module):
    """A linear layer for inference; `weight` and the state dict still give the weight as it was, as a copy."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    @property
    def weight(self) -> torch.Tensor:
        return self._packed.to_dense()

    @property
    def packed(self) -> torch.Tensor:
        """The weight as oneDNN's kernels read it."""
        return self._packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def can_pack() -> bool:
    """Whether this torch has oneDNN, and the two operators that its compiler uses."""
    ops: Any = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return bool(torch._C._has_mkldnn) and all(hasattr(ops, name) for name in names)


def pack_linears(model: nn.Module) -> int:
    """Packs the plain linear layers of a model on a CPU, in place, one after the other; returns how many. A weight
    that an embedding shares stays beside its packed copy. Quantised and adapted layers are left as they are."""
    if not can_pack():
        return 0
    packed: dict[nn.Linear, PackedLinear] = {}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and _worth_it(child):
                if child not in packed:
                    packed[child] = PackedLinear(child)
                setattr(parent, name, packed[child])
    return len(packed)


def _worth_it(linear: nn.Linear) -> bool:
    weight = linear.weight
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.numel() >= _SMALLEST
