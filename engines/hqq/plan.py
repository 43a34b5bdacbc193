"""Which modules of a model are quantised, how, and what will compute with them: known before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kani_lite.exceptions import EngineError

from .backends import Layer, choose
from .config import HqqConfig, LayerSettings, check_shape


@dataclass(frozen=True)
class Plan:
    """`linears`: the settings of linear layers by name, the output layer's among them if it is quantised.

    `head`, `embedding`: the names of the output layer and the embedding; `tied`: they share a weight.
    `embedding_setting`: None if the embedding stays as it is.
    """

    linears: dict[str, HqqConfig]
    backends: dict[str, str]
    dtype: torch.dtype
    device: str
    head: str | None
    embedding: str | None
    tied: bool
    embedding_setting: HqqConfig | None

    @classmethod
    def make(
        cls,
        skeleton: Any,
        settings: LayerSettings,
        backend: str,
        dtype: torch.dtype | None,
        device: str,
        quantize_embeddings: bool,
    ) -> Plan:
        """For a model without its weights; `settings`, `backend` and `dtype` (None: what the backend needs) as asked.

        Raises EngineError for layers that can't be quantised or computed so.
        """
        shapes = {name: (one.out_features, one.in_features) for name, one in linear_layers(skeleton).items()}
        head, embedding = ends(skeleton)
        of_embedding = None
        if quantize_embeddings:
            rows = _embedding_shape(skeleton, head if head in shapes else None)
            of_embedding = settings.for_embeddings(str(head))
            check_shape(str(embedding), of_embedding, rows)
        linears = settings.plan(shapes, {} if of_embedding is None else {str(head): of_embedding})
        layers = [
            Layer(name, shapes[name], one.nbits, one.group(shapes[name]), one.axis) for name, one in linears.items()
        ]
        backends, computed = choose(backend, layers, device, dtype)
        return cls(linears, backends, computed, device, head, embedding, is_tied(skeleton, head), of_embedding)

    @property
    def head_setting(self) -> HqqConfig | None:
        return None if self.head is None else self.linears.get(self.head)

    @property
    def shares(self) -> bool:
        """Whether the embedding reads the rows of the quantised output layer."""
        return self.tied and self.embedding_setting is not None and self.embedding_setting == self.head_setting

    def reads(self, name: str) -> bool:
        """Whether the weight of this module in the checkpoint is quantised, for itself or for the output layer."""
        wanted = self.embedding_setting is not None or (self.tied and self.head_setting is not None)
        return name in self.linears or (wanted and name == self.embedding)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The plain linear layers by name; subclasses may compute something else."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def ends(model: Any) -> tuple[str | None, str | None]:
    """The names of the output layer and the embedding."""
    names = {module: name for name, module in model.named_modules()}
    return names.get(model.get_output_embeddings()), names.get(model.get_input_embeddings())


def is_tied(model: Any, head: str | None) -> bool:
    """Whether the output layer of this name shares the embedding's weight."""
    return head is not None and f"{head}.weight" in model.all_tied_weights_keys


def _embedding_shape(model: Any, head: str | None) -> tuple[int, int]:
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or head is None:
        raise EngineError(
            f"The embedding of a {type(model).__name__} can't be quantised (it or the output layer is no plain one): "
            "leave quantize_embeddings out."
        )
    return embedding.num_embeddings, embedding.embedding_dim
