"""Folders of quantised models as hqq writes them: config.json, and qmodel.pt with what each module holds."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from kani_lite.engines.quantization.int4 import Int4Linear
from kani_lite.exceptions import EngineError

from .int4 import hqq_from_int4
from .layers import HqqLinear
from .weight import HqqWeight

WEIGHTS = "qmodel.pt"

Weights = dict[str, dict[str, Any]]


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """What hqq saved of each module by name.

    qmodel.pt is a pickle: only tensors, numbers, texts and containers are taken from it, and none of its code runs.
    Raises EngineError if it holds anything else.
    """
    try:
        # read and not mapped: what was used could not be given back before all is
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EngineError(
            f"{os.fspath(path)!r} holds more than tensors and numbers, so that loading it would run code: "
            "quantise the model anew, or have its author save it with hqq's save_quantized."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(state, dict) for state in weights.values()):
        raise EngineError(f"{os.fspath(path)!r} isn't what hqq saves: it holds no modules by name.")
    if not any("W_q" in state for state in weights.values()):
        raise EngineError(f"{os.fspath(path)!r} has no quantised layer: load the model with HuggingEngine.")
    return weights


def module_states(model: nn.Module) -> Weights:
    """What hqq saves of a model: quantised layers in their own form, other modules as their state dict. Unlike hqq's
    own, it has parameters of modules that contain others too."""
    states: Weights = {}
    for name, module in model.named_modules():
        if (weight := hqq_weight(module)) is not None:
            states[name.removesuffix(".table")] = weight.state()  # an embedding's, under its own name
        elif next(module.children(), None) is None:
            states[name] = dict(module.state_dict())
        else:
            hidden = module._non_persistent_buffers_set
            own: dict[str, Any] = {key: value for key, value in module._parameters.items() if value is not None}
            states[name] = own | {k: v for k, v in module._buffers.items() if v is not None and k not in hidden}
    return {name: state for name, state in states.items() if state}


def hqq_weight(module: nn.Module) -> HqqWeight | None:
    """A layer's weight in hqq's form; None for one that HQQ didn't quantise."""
    if isinstance(module, HqqLinear):
        return module.hqq
    return hqq_from_int4(module) if isinstance(module, Int4Linear) else None


def put_states(model: Any, states: Mapping[str, Mapping[str, Any]], device: str, dtype: torch.dtype) -> None:
    """Gives the modules that aren't quantised their parameters, in `dtype`, and buffers. Raises EngineError for a shape
    that isn't the model's, and if parameters are missing."""
    modules = dict(model.named_modules())
    for name, state in states.items():
        if (module := modules.get(name)) is None:
            continue
        for key, value in state.items():
            _put(module, f"{name}.{key}".lstrip("."), key, value, device, dtype)
    if isinstance(model.get_output_embeddings(), nn.Linear):  # a quantised one has a weight of its own
        model.tie_weights()
    missing = [name for name, value in model.named_parameters() if value.is_meta]
    if missing:
        raise EngineError(
            f"{WEIGHTS} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}: quantise it anew."
        )
    for module in model.modules():  # those that no file holds, as rotary frequencies, keep their dtype
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to(device)


def _put(module: nn.Module, full: str, key: str, value: torch.Tensor, device: str, dtype: torch.dtype) -> None:
    current = module._parameters.get(key, module._buffers.get(key))
    if current is None:
        return
    if current.shape != value.shape:
        raise EngineError(
            f"{WEIGHTS} has {full!r} as {tuple(value.shape)} and the model as {tuple(current.shape)}: "
            "config.json belongs to another model."
        )
    if key in module._parameters:
        kind = dtype if value.is_floating_point() else value.dtype
        placed = value.detach().to(device, kind, copy=True)
        module._parameters[key] = nn.Parameter(placed, requires_grad=False)
    else:
        module._buffers[key] = value.detach().to(device, copy=True)


def save(folder: str | os.PathLike[str], model: Any, tokenizer: Any) -> None:
    """Writes a folder that hqq's `AutoHQQHFModel.from_quantized` loads too. Files that are there are replaced one by
    one, each when it is complete."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
        where = Path(scratch)
        tokenizer.save_pretrained(where)
        config = model.config.__class__.from_dict(model.config.to_dict())
        config.architectures = [type(model).__name__]
        config.save_pretrained(where)
        if (generation := getattr(model, "generation_config", None)) is not None:
            generation.save_pretrained(where)
        torch.save(module_states(model), where / WEIGHTS)
        for path in sorted(where.iterdir()):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.replace(folder / path.name)


def generation_config(name: str, options: dict[str, Any]) -> Any:
    """The folder's generation config; None if it has none, as folders of hqq."""
    try:
        return transformers.GenerationConfig.from_pretrained(name, **options)
    except OSError:
        return None
