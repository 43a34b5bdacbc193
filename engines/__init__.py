"""The engines: where a model runs. Each is imported when it is first asked for, so that this package needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import BaseCompletion, BaseEngine, Completion
    from .huggingface import HuggingEngine
    from .huggingface.llama import LlamaEngine
    from .nano import NanoEngine
    from .sampling import SamplingParams
    from .wrapper import WrapperEngine

_MODULES = {
    "BaseCompletion": "base",
    "BaseEngine": "base",
    "Completion": "base",
    "HuggingEngine": "huggingface",
    "LlamaEngine": "huggingface.llama",
    "NanoEngine": "nano",
    "SamplingParams": "sampling",
    "WrapperEngine": "wrapper",
}

__all__ = [
    "BaseCompletion",
    "BaseEngine",
    "Completion",
    "HuggingEngine",
    "LlamaEngine",
    "NanoEngine",
    "SamplingParams",
    "WrapperEngine",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
