"""The rows of benchmarks/engines.py: each engine on the embedded model, as a user builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

MODEL = str(Path(__file__).resolve().parents[1] / "engines" / "nano" / "weights")
PEER = "generate"
CHATS = 8  # at the same time
SERVER_TOOLS = {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}


@dataclass(frozen=True)
class Job:
    """What one process is to measure. `model`: the file or folder that was converted for it, or the embedded model's
    folder. `tokens`: of a reply whose speed is measured. `repeat`: samples of each figure."""

    row: str
    model: str
    tokens: int
    repeat: int


@dataclass(frozen=True)
class Row:
    """`make` builds the engine from the model's place, and returns it with what else has to be closed after it.
    `room`: whose interpreter runs it. `packages`: what has to be installed there. `imports`: what a program that uses
    it imports. `convert`: arguments of `kani-lite convert` that make its model."""

    label: str
    packages: tuple[str, ...]
    imports: str
    make: Callable[[str], tuple[Any, ...]] | None = None
    room: str = "main"
    convert: tuple[str, ...] | None = None


def _hugging(model: str, **options: Any) -> tuple[Any, ...]:
    from kani_lite.engines import HuggingEngine

    load = {"dtype": "float32"}
    return (HuggingEngine(model, device="cpu", model_load_kwargs=load, temperature=0, **options),)


def _nano(_: str) -> tuple[Any, ...]:
    from kani_lite.engines import NanoEngine

    return (NanoEngine(device="cpu", temperature=0),)


def _hqq(model: str) -> tuple[Any, ...]:
    from kani_lite.engines import HqqEngine

    return (HqqEngine(model, device="cpu", quantization_config={"nbits": 4}, temperature=0),)


def _onnx(model: str) -> tuple[Any, ...]:
    from kani_lite.engines import OnnxEngine

    return (OnnxEngine(model, temperature=0),)


def _llamacpp(model: str) -> tuple[Any, ...]:
    from kani_lite.engines import LlamaCppEngine

    return (LlamaCppEngine(model_path=model, temperature=0),)


def _vllm(model: str) -> tuple[Any, ...]:
    from kani_lite.engines import VLLMEngine

    return (VLLMEngine(model, dtype="float32", enforce_eager=True, temperature=0),)


def _server(model: str, **options: Any) -> tuple[Any, ...]:
    from kani_lite.engines import VLLMServerEngine

    return (VLLMServerEngine(model, dtype="float32", enforce_eager=True, temperature=0, **options),)


def _openai(model: str) -> tuple[Any, ...]:
    """On a vLLM server of its own, that writes the prompts and reads the calls."""
    from kani_lite.engines import OpenAIEngine

    (server,) = _server(model, vllm_args=SERVER_TOOLS)
    address = f"{server.address}/v1"
    return OpenAIEngine(api_base=address, api_key=server.api_key, temperature=0), server


_TORCH, _VLLM = ("torch", "transformers"), ("vllm", "transformers", "httpx2")
_LLAMA = ("llama_cpp", "gguf", "tokenizers")


def _llama_row(kind: str) -> Row:
    imports = "from kani_lite.engines import LlamaCppEngine"
    return Row(f"LlamaCppEngine, {kind}", _LLAMA, imports, _llamacpp, "llamacpp", ("gguf", "--type", kind))


def _onnx_row(precision: str) -> Row:
    imports = "from kani_lite.engines import OnnxEngine"
    packages = ("onnxruntime_genai", "onnx_ir", *_TORCH)  # the latter two to convert the model
    return Row(f"OnnxEngine, {precision}", packages, imports, _onnx, convert=("onnx", f"--{precision}"))


def _hugging_row(label: str, **options: Any) -> Row:
    make = partial(_hugging, **options)
    return Row(f"HuggingEngine, {label}", _TORCH, "from kani_lite.engines import HuggingEngine", make)


ROWS = {
    PEER: Row(
        "transformers fp32, `generate`",
        _TORCH,
        "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer",
    ),
    "nano": Row("NanoEngine", _TORCH, "from kani_lite.engines import NanoEngine", _nano),
    "hugging": _hugging_row("fp32"),
    "hugging-4bit": _hugging_row('quantize="4bit"', quantize="4bit"),
    "hugging-8bit": _hugging_row('quantize="8bit"', quantize="8bit"),
    "hqq": Row("HqqEngine, 4 bits", (*_TORCH, "hqq"), "from kani_lite.engines import HqqEngine", _hqq),
    "onnx-fp32": _onnx_row("fp32"),
    "onnx-int4": _onnx_row("int4"),
    "llamacpp-f32": _llama_row("f32"),
    "llamacpp-f16": _llama_row("f16"),
    "llamacpp-q8_0": _llama_row("q8_0"),
    "vllm": Row("VLLMEngine, fp32", _VLLM, "from kani_lite.engines import VLLMEngine", _vllm, "vllm"),
    "vllm-server": Row(
        "VLLMServerEngine, fp32", _VLLM, "from kani_lite.engines import VLLMServerEngine", _server, "vllm"
    ),
    "openai": Row(
        "OpenAIEngine on vLLM's server, fp32",
        (*_VLLM, "openai"),
        "from kani_lite.engines import OpenAIEngine",
        _openai,
        "vllm",
    ),
}
