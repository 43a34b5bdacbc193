"""LlamaCppEngine: GGUF files, run by llama.cpp. The package is imported when an engine is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .engine import LlamaCppEngine

__all__ = ["LlamaCppEngine"]

__getattr__ = lazy(__name__, {"LlamaCppEngine": "engine"})


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
