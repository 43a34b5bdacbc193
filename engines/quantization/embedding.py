"""Embeddings in group-wise int4: rows are dequantised when they are looked up."""

from __future__ import annotations

import torch
from torch import nn

from .int4 import Int4Linear, Portable, dequantized, unpair


class Int4Embedding(nn.Module):
    """An embedding for inference, with the buffers of Portable. `dtype` is that of what it gives."""

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, group_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype
        for name, empty in Portable.empty(num_embeddings, embedding_dim, group_size)._asdict().items():
            self.register_buffer(name, empty)

    @classmethod
    def from_portable(cls, weight: Portable, dtype: torch.dtype) -> Int4Embedding:
        """From a weight (num_embeddings, embedding_dim)."""
        width = weight.codes.shape[1] * 2
        with torch.device("meta"):
            layer = cls(len(weight.codes), width, width // weight.scales.shape[1], dtype)
        layer.codes, layer.scales, layer.offsets = weight
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim), dequantised."""
        return self.forward(torch.arange(self.num_embeddings, device=self.codes.device))

    @property
    def num_bytes(self) -> int:
        """What the weight takes in memory."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.offsets))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape -> (..., embedding_dim)."""
        flat = ids.reshape(-1)
        scales, offsets = (part[flat].to(torch.bfloat16).unsqueeze(-1) for part in (self.scales, self.offsets))
        rows = dequantized(unpair(self.codes[flat]), scales, offsets)
        return rows.to(self.dtype).view(*ids.shape, self.embedding_dim)


class TiedInt4Embedding(nn.Module):
    """An embedding that reads the rows of a model's output layer, which it doesn't own and doesn't save."""

    def __init__(self, head: Int4Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = head.out_features, head.in_features
        self._head = (head,)  # a tuple, so that it isn't registered as a module of this one

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim), dequantised."""
        return self._head[0].weight.to(self.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape -> (..., embedding_dim)."""
        return self._head[0].rows(ids.reshape(-1)).to(self.dtype).view(*ids.shape, self.embedding_dim)
