"""The engines: where a model runs. Each is imported when it is first asked for, so that this package needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .base import BaseCompletion, BaseEngine, Completion
    from .hqq import HqqEngine
    from .huggingface import HuggingEngine
    from .huggingface.llama import LlamaEngine
    from .llamacpp import LlamaCppEngine
    from .nano import NanoEngine
    from .onnx import OnnxEngine
    from .openai import OpenAIEngine
    from .pace import GeneratorOutput, KVCacheType, LLMModel, SamplingConfig
    from .registry import engine_from
    from .replay import RecordingEngine, ReplayEngine, StrictEngine, UnexpectedCall
    from .sampling import SamplingParams
    from .vllm import VLLMEngine, VLLMServerEngine
    from .wrapper import WrapperEngine
    from .wrappers import FallbackEngine, LimitEngine, RetryEngine

_MODULES = {
    "BaseCompletion": "base",
    "BaseEngine": "base",
    "Completion": "base",
    "FallbackEngine": "wrappers",
    "GeneratorOutput": "pace",
    "HqqEngine": "hqq",
    "HuggingEngine": "huggingface",
    "KVCacheType": "pace",
    "LLMModel": "pace",
    "LimitEngine": "wrappers",
    "LlamaCppEngine": "llamacpp",
    "LlamaEngine": "huggingface.llama",
    "NanoEngine": "nano",
    "OnnxEngine": "onnx",
    "OpenAIEngine": "openai",
    "RecordingEngine": "replay",
    "ReplayEngine": "replay",
    "RetryEngine": "wrappers",
    "SamplingConfig": "pace",
    "SamplingParams": "sampling",
    "StrictEngine": "replay",
    "UnexpectedCall": "replay",
    "VLLMEngine": "vllm",
    "VLLMServerEngine": "vllm",
    "WrapperEngine": "wrapper",
    "engine_from": "registry",
}

__all__ = [
    "BaseCompletion",
    "BaseEngine",
    "Completion",
    "FallbackEngine",
    "GeneratorOutput",
    "HqqEngine",
    "HuggingEngine",
    "KVCacheType",
    "LLMModel",
    "LimitEngine",
    "LlamaCppEngine",
    "LlamaEngine",
    "NanoEngine",
    "OnnxEngine",
    "OpenAIEngine",
    "RecordingEngine",
    "ReplayEngine",
    "RetryEngine",
    "SamplingConfig",
    "SamplingParams",
    "StrictEngine",
    "UnexpectedCall",
    "VLLMEngine",
    "VLLMServerEngine",
    "WrapperEngine",
    "engine_from",
]


__getattr__ = lazy(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
