"""The layers of a model by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def find_module(model: Any, name: str, fits: Callable[[nn.Module], bool]) -> str | None:
    """The name in the model of the layer that a file calls `name`, be it with the base model's prefix or without; None
    if there is none that fits."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        try:
            module = model.get_submodule(candidate)
        except AttributeError:
            continue
        if fits(module):
            return candidate
    return None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a layer in the place of another, while transformers loads the model."""
    module._is_hf_initialized = True  # type: ignore[assignment]  # so that transformers doesn't draw new weights
    model.set_submodule(name, module.eval())
