"""HqqEngine: a HuggingEngine whose linear layers HQQ quantised, now or beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from kani_lite.engines.huggingface import HuggingEngine, loading
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.worker import CLOSED
from kani_lite.exceptions import EngineError

from . import files
from .config import LayerSettings
from .loader import HqqLoader
from .package import hqq_module

_SAVEABLE = {"pytorch", "cpu_int4"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class HqqEngine(HuggingEngine):
    """Runs a model whose linear layers are in 8, 4, 3, 2 or 1 bits; everything else is as in HuggingEngine.

    `model_id`: a model to quantise, or one that hqq quantised before: a folder or hub name with qmodel.pt, or as
    transformers 4 wrote it. `quantize_on_fly` says which is meant; None finds out. Each weight is quantised when it has
    been read, with a progress bar: loading takes hardly more memory than the quantised model.

    `quantization_config`: an HqqConfig, what hqq's BaseQuantizeConfig returns, or a dict of them by names of layers, as
    `{"self_attn": {"nbits": 4}, "mlp": {"nbits": 3}, "q_proj": None}`: part of a name, hqq's own tag
    ("self_attn.q_proj") or a pattern with `*`; the longest decides, and None leaves a layer as it is. By default 4 bits
    in groups of 64. The output layer is quantised only if it is named. `quantize_embeddings=True` quantises it and the
    embedding, as it is named or as the other layers, to no less than 4 bits; where they share one weight they go on
    sharing it. hqq itself doesn't read a folder with such an embedding.

    `backend`: what computes. `bitblas` (4, 2 and 1 bits), `torchao_int4` (4 bits, GPUs from Ampere on), `gemlite` and
    `marlin` need an NVIDIA GPU and mostly a package; `cpu_int4` (up to 4 bits) is torch's int4 kernel for CPUs;
    `pytorch` dequantises for each call, takes everything and is slow. `auto` takes the fastest that works, on a CPU for
    each layer. `backends` says what came of it. With fewer bits than 4, `cpu_int4` takes the memory of 4; give
    `backend="pytorch"` where memory counts more than speed.

    `dtype`: what is computed in; `auto` is what the backend needs. `compile=True` lets torch compile dequantising and
    matmul of `pytorch` into one on a GPU; on a CPU it changes nothing. `model_kwargs`, `default_sampling_params` and
    `chat_template` are Aana's names for `model_load_kwargs`, `sampling` and the template in `chat_template_kwargs`.

    Raises EngineError, before a weight is loaded, for a backend that this machine or the settings can't use, and
    MissingModelDependencies without the package hqq.
    """

    backends: dict[str, str]

    def __init__(
        self,
        model_id: str | PathLike[str],
        max_context_size: int | None = None,
        prompt_pipeline: Callable[..., Any] | None = None,
        *,
        quantize_on_fly: bool | None = None,
        quantization_config: Any = None,
        backend: str = "auto",
        compile: bool = False,  # noqa: A002  # Aana's name
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        model_cls: Any = None,
        model_load_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        quantize_embeddings: bool = False,
        sampling: SamplingParams | None = None,
        default_sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        chat_template: str | PathLike[str] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        hqq_module("core.bitpack")
        settings = None if quantization_config in (None, {}) else LayerSettings.read(quantization_config)
        load = {**(model_kwargs or {}), **(model_load_kwargs or {})}
        _refuse_other_quantisation(load, kwargs)
        device = _device(device, load.pop("device_map", None))
        chosen = _dtype(dtype, load)
        loader = HqqLoader(
            settings,
            quantize_on_fly,
            backend,
            chosen,
            device,
            compile,
            model_cls,
            quantize_embeddings,
            progress=hf_logging.is_progress_bar_enabled(),
        )
        super().__init__(
            model_id,
            max_context_size,
            prompt_pipeline,
            device=device,
            model_cls=loader,
            model_load_kwargs=load,
            sampling=_sampling(default_sampling_params).merged(sampling),
            chat_template=chat_template,
            chat_template_kwargs=dict(chat_template_kwargs or {}),
            **kwargs,
        )
        self.backends = loader.backends

    def save_quantized(self, folder: str | PathLike[str]) -> Path:
        """Writes hqq's format, with tokenizer and configs, so that HqqEngine(folder) loads it in seconds and
        exactly. Blocks while it writes. Raises EngineError after `close`, and for a backend of a GPU, whose kernels
        don't give the weights back."""
        if self.model is None:
            raise EngineError(CLOSED)
        if self.adapters.names:
            raise EngineError("hqq's format can't hold adapters: save the model from an engine without them.")
        if others := sorted(set(self.backends.values()) - _SAVEABLE):
            raise EngineError(
                f"The weights are in the layout of {others[0]!r}, which can't be saved: load the model with "
                "backend='pytorch' and save that."
            )
        files.save(folder, self.model, self.tokenizer)
        return Path(folder)


def _refuse_other_quantisation(load: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    names = [name for name in ("quantization_config", "load_in_4bit", "load_in_8bit") if load.get(name)]
    names += ["quantize"] if kwargs.get("quantize") else []
    if names:
        raise EngineError(
            f"HqqEngine quantises by itself, and {names[0]}= asks for another way: pass HQQ's settings as "
            "quantization_config=, or use HuggingEngine."
        )


def _device(device: str | None, device_map: Any) -> str:
    if device is None and device_map not in (None, "auto"):
        if not isinstance(device_map, str):
            raise EngineError(f"device_map={device_map!r} isn't supported here: give device='cuda:0' or such.")
        device = device_map
    return str(device or loading.default_device())


def _dtype(dtype: Any, load: dict[str, Any]) -> torch.dtype | None:
    """None for auto. Aana's Dtype is an enum, and transformers has two names for the argument."""
    named = [load.pop(name) for name in ("dtype", "torch_dtype") if name in load]
    for one in (dtype, *named):
        value = getattr(one, "value", one)
        if isinstance(value, torch.dtype) and value in _DTYPES.values():
            return value
        if value not in ("auto", None):
            if str(value) not in _DTYPES:
                raise EngineError(f"dtype={value!r} can't be computed in: give 'auto' or one of {', '.join(_DTYPES)}.")
            return _DTYPES[str(value)]
    return None


def _sampling(given: Any) -> SamplingParams:
    if given is None or isinstance(given, SamplingParams):
        return given or SamplingParams()
    values = given.model_dump(exclude_unset=True) if hasattr(given, "model_dump") else dict(given)
    return SamplingParams.from_kwargs(**values)
