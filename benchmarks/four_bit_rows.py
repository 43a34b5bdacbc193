"""The rows of benchmarks/four_bit.py: each way to hold a model's weights, as a user calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table is made by a process that needs no torch
    from kani_lite.engines import HuggingEngine

PEER = "generate"


@dataclass(frozen=True)
class Job:
    """What one process is to measure. `scratch`: a folder that the processes of one model share. `tokens`: how many of
    the text quality is measured on. `seconds`: about how long one measurement of speed may take."""

    row: str
    model: str
    device: str
    scratch: str
    text: list[str]
    embedded: bool = False
    repeat: int = 3
    seconds: float = 5
    tokens: int = 2048
    dialogues: int = 300


@dataclass(frozen=True)
class Row:
    """`make` builds the engine from the model's folder and the options that all rows share. `elsewhere`: why the row
    can't be had on another device than `device`. `package`: what it needs besides torch and transformers."""

    label: str
    make: Callable[[str, dict[str, Any]], HuggingEngine] | None
    device: str | None = None
    elsewhere: str = ""
    package: str | None = None

    def why_not(self, device: str) -> str | None:
        """Why this row can't be had on this device, as far as it is known beforehand."""
        if self.device is not None and not device.startswith(self.device):
            return self.elsewhere
        if self.package is not None and find_spec(self.package) is None:
            return f"the package {self.package} isn't installed"
        return None


def _hugging(dtype: str = "bfloat16", quantize: Callable[[], Any] | None = None) -> Callable[..., HuggingEngine]:
    def make(model: str, options: dict[str, Any]) -> HuggingEngine:
        from kani_lite.engines import HuggingEngine

        config = None if quantize is None else quantize()
        return HuggingEngine(model, model_load_kwargs={"dtype": dtype}, quantize=config, **options)

    return make


def _bitsandbytes(**settings: Any) -> Callable[..., HuggingEngine]:
    def config() -> Any:
        import torch
        from transformers import BitsAndBytesConfig

        compute = {"bnb_4bit_compute_dtype": torch.bfloat16} if settings.get("load_in_4bit") else {}
        return BitsAndBytesConfig(**settings, **compute)

    return _hugging(quantize=config)


def _int4(**settings: Any) -> Callable[..., HuggingEngine]:
    def config() -> Any:
        from kani_lite.engines.quantization import Int4Config

        return Int4Config(**settings)

    return _hugging(quantize=config)


def _hqq(backend: str = "auto", embeddings: bool = False, **settings: Any) -> Callable[..., HuggingEngine]:
    def make(model: str, options: dict[str, Any]) -> HuggingEngine:
        from kani_lite.engines import HqqEngine

        more: dict[str, Any] = {"quantize_embeddings": True} if embeddings else {}
        return HqqEngine(model, backend=backend, quantization_config=settings, **more, **options)

    return make


_FOR_CPUS = 'its kernel is for CPUs; quantize="{}" is bitsandbytes here'

ROWS = {
    PEER: Row("transformers bf16, `generate`", None),
    "fp32": Row("none, fp32", _hugging("float32")),
    "none": Row("none, bf16", _hugging()),
    "nf4": Row("bitsandbytes nf4", _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), package="bitsandbytes"),
    "nf4-double": Row(
        "bitsandbytes nf4, double",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        package="bitsandbytes",
    ),
    "fp4": Row("bitsandbytes fp4", _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"), package="bitsandbytes"),
    "bnb-int8": Row("bitsandbytes int8", _bitsandbytes(load_in_8bit=True), package="bitsandbytes"),
    "int4": Row('"4bit" (int4)', _hugging(quantize=lambda: "4bit"), "cpu", _FOR_CPUS.format("4bit")),
    "int4-all": Row(
        "int4, embeddings and output layer too", _int4(quantize_embeddings=True), "cpu", _FOR_CPUS.format("4bit")
    ),
    "int8": Row('"8bit" (int8)', _hugging(quantize=lambda: "8bit"), "cpu", _FOR_CPUS.format("8bit")),
    "hqq4": Row("HQQ 4-bit", _hqq(nbits=4), package="hqq"),
    "hqq4-all": Row("HQQ 4-bit, embeddings and output layer too", _hqq(embeddings=True, nbits=4), package="hqq"),
    "hqq3": Row("HQQ 3-bit", _hqq(nbits=3), package="hqq"),
    "hqq2": Row("HQQ 2-bit", _hqq(nbits=2), package="hqq"),
    "hqq2-ls": Row("HQQ 2-bit, least squares", _hqq(nbits=2, least_squares=True), package="hqq"),
    "hqq3-small": Row('HQQ 3-bit, backend="pytorch"', _hqq("pytorch", nbits=3), package="hqq"),
    "hqq2-small": Row('HQQ 2-bit, backend="pytorch"', _hqq("pytorch", nbits=2), package="hqq"),
}
