"""Models that transformers 4 wrote after HQQ had quantised them: safetensors in which each part of a layer is a tensor
of its own (W_q, scale, zero; nbits, group_size, axis and shape as integers; packing as the codes of its characters),
and `quantization_config` of the method "hqq" in config.json. transformers 5 neither writes nor reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from kani_lite.exceptions import EngineError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_METHOD = "hqq"


def is_written_by_transformers(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the model's config says so; False if it has none, which loading explains."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, **options)
    except OSError:
        return False
    how = config.get("quantization_config")
    return isinstance(how, dict) and how.get("quant_method") == _METHOD


def shards(fetch: Callable[[str], Path | None]) -> list[Path]:
    """The files with the weights; `fetch` gives a file of the model by name, or None. Raises EngineError if one is
    missing."""
    names = [_SINGLE]
    if (index := fetch(_INDEX)) is not None:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    found = {name: fetch(name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise EngineError(f"The model's config says that HQQ quantised it, and {missing[0]!r} isn't there: fetch it.")
    return [path for path in found.values() if path is not None]


def read(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """What is saved of each module by name, as hqq's own file has it; a layer's parts may be in several files."""
    states: dict[str, dict[str, Any]] = {}
    for path in paths:
        with safe_open(path, "pt", backend="pread") as file:  # a mapped file would count as memory
            for key in file.keys():  # noqa: SIM118  # it is no dict
                module, _, name = key.rpartition(".")
                states.setdefault(module, {})[name] = file.get_tensor(key)
    return {name: _decoded(state) if "W_q" in state else state for name, state in states.items()}


def _decoded(state: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = {name: state[name] for name in ("W_q", "scale", "zero", "bias") if name in state}
    for name in ("nbits", "group_size", "axis"):
        if name in state:
            decoded[name] = int(state[name])
    if "shape" in state:
        decoded["shape"] = torch.Size(state["shape"].tolist())
    if "packing" in state:
        decoded["packing"] = "".join(map(chr, state["packing"].tolist()))
    return decoded
