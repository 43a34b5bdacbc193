"""Embeddings whose rows are dequantised when they are looked up."""

from __future__ import annotations

import torch
from torch import nn

from kani_lite.engines.quantization.int4 import Int4Linear

from .layers import HqqLinear


class HqqEmbedding(nn.Module):
    """An embedding that reads the rows of a quantised layer, in `dtype`.

    `shared`: the layer is the model's output layer, which this embedding doesn't own and doesn't save.
    """

    table: HqqLinear | None

    def __init__(self, layer: HqqLinear | Int4Linear, dtype: torch.dtype, *, shared: bool) -> None:
        super().__init__()
        self.dtype, self.num_embeddings, self.embedding_dim = dtype, layer.out_features, layer.in_features
        self._shared: tuple[HqqLinear | Int4Linear, ...] = (
            (layer,) if shared else ()
        )  # a tuple, so that it isn't registered as a module of this one
        self.table = None if shared or not isinstance(layer, HqqLinear) else layer
        assert shared or self.table is not None

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim), dequantised."""
        return self._layer.weight.to(self.dtype)

    @property
    def _layer(self) -> HqqLinear | Int4Linear:
        return self._shared[0] if self.table is None else self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape -> (..., embedding_dim)."""
        return self._layer.rows(ids.reshape(-1)).to(self.dtype).view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, shared={self.table is None}"
