"""Saving a quantised model as an ordinary folder, and reading one without mapping its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from transformers import modeling_utils

from kani_lite.exceptions import EngineError
from kani_lite.new_files import new_folder


def save_quantized(model: Any, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Writes model and tokenizer into a new folder, which loads as any other; its config.json names the format.

    The folder appears when it is complete. Raises EngineError if the model isn't quantised, its format can't be saved,
    adapters are on it, or the folder is there and not empty.
    """
    target = Path(folder).expanduser()
    quantizer = getattr(model, "hf_quantizer", None)
    if any(getattr(module, "holds_adapters", False) for module in model.modules()):
        raise EngineError("This model has adapters, which its format can't hold: save it from an engine without them.")
    if quantizer is None or not quantizer.is_serializable():
        raise EngineError(
            "This model isn't quantised in a format that can be saved: load it with quantize='4bit', or keep "
            "the folder that it came from."
        )
    with new_folder(target) as unfinished:
        _repair_scales(model)
        model.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
    return target


def _repair_scales(model: Any) -> None:
    """bitsandbytes lays 4-bit weights out for a CPU's kernel when they first run, and back when they are saved; but
    0.50 leaves the scales turned round unless they are quantised too, and the model in memory is wrong then as well."""
    for module in model.modules():
        state: Any = getattr(module._parameters.get("weight"), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False) and not state.original_nested and state.absmax.dim() == 2:
            state.absmax = state.absmax.t().reshape(-1).float()


@contextmanager
def reading_files_piecewise() -> Iterator[None]:
    """While transformers loads a model it maps the files into memory, where all that was read counts until the system
    needs the room: peak memory is then that of the whole model. In here each tensor is read when its turn comes."""

    def safe_open(file: Any, *args: Any, **kwargs: Any) -> Any:
        return safetensors.safe_open(file, *args, **kwargs | {"backend": "pread"})

    modeling_utils.safe_open = safe_open
    try:
        yield
    finally:  # the plain one, and not what was there before: two threads may load at a time
        modeling_utils.safe_open = safetensors.safe_open
