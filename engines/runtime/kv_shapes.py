"""What one token's keys and values look like in each layer of a model, found out by running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .attention import Part
from .kv import DynamicKV, Pair
from .runner import PackedRunner


@dataclass(frozen=True)
class LayerShape:
    """`window`: the tokens that a query sees, its own included; None is all."""

    kv_heads: int
    key_dim: int
    value_dim: int
    item_bytes: int
    window: int | None = None

    @property
    def token_bytes(self) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim) * self.item_bytes


def layer_shapes(model: Any) -> dict[int, LayerShape]:
    """Those of the layers that keep keys and values when sequences are packed, by their place in the model. Raises
    whatever a model raises whose attention can't be replaced.

    Names in a config differ from family to family, some layers take another's keys, and DeepSeek's are stored as they
    are used, not compressed: one token, run as all tokens will be, tells what there is.
    """
    seen: dict[int, Pair] = {}

    class Seen(DynamicKV):
        def __init__(self, place: int) -> None:
            self._place = place

        def append(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
            seen[self._place] = keys, values
            return super().append(keys, values)

    runner = PackedRunner(model, Seen)
    runner.forward([Part(runner.new_cache(), [0])])
    return {
        place: LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.element_size(), runner.windows.get(place))
        for place, (keys, values) in seen.items()
    }
