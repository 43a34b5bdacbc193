"""The engines: where a model runs. Each is imported when it is first asked for, so that this package needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .base import BaseCompletion, BaseEngine, Completion
    from .hqq import HqqEngine
    from .huggingface import HuggingEngine
    from .huggingface.llama import LlamaEngine
    from .nano import NanoEngine
    from .pace import GeneratorOutput, KVCacheType, LLMModel, SamplingConfig
    from .replay import RecordingEngine, ReplayEngine, StrictEngine, UnexpectedCall
    from .sampling import SamplingParams
    from .wrapper import WrapperEngine

_MODULES = {
    "BaseCompletion": "base",
    "BaseEngine": "base",
    "Completion": "base",
    "GeneratorOutput": "pace",
    "HqqEngine": "hqq",
    "HuggingEngine": "huggingface",
    "KVCacheType": "pace",
    "LLMModel": "pace",
    "LlamaEngine": "huggingface.llama",
    "NanoEngine": "nano",
    "RecordingEngine": "replay",
    "ReplayEngine": "replay",
    "SamplingConfig": "pace",
    "SamplingParams": "sampling",
    "StrictEngine": "replay",
    "UnexpectedCall": "replay",
    "WrapperEngine": "wrapper",
}

__all__ = [
    "BaseCompletion",
    "BaseEngine",
    "Completion",
    "GeneratorOutput",
    "HqqEngine",
    "HuggingEngine",
    "KVCacheType",
    "LLMModel",
    "LlamaEngine",
    "NanoEngine",
    "RecordingEngine",
    "ReplayEngine",
    "SamplingConfig",
    "SamplingParams",
    "StrictEngine",
    "UnexpectedCall",
    "WrapperEngine",
]


__getattr__ = lazy(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
