"""Models that vLLM runs, in this process or in a server. vLLM is imported when an engine is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .engine import VLLMEngine
    from .sampling import VLLMSamplingParams
    from .server import VLLMServerEngine

__all__ = ["VLLMEngine", "VLLMSamplingParams", "VLLMServerEngine"]

__getattr__ = lazy(__name__, {"VLLMEngine": "engine", "VLLMSamplingParams": "sampling", "VLLMServerEngine": "server"})


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
