"""What llama.cpp can be told about loading and running a model, by the names of its C structures."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kani_lite.exceptions import EngineError

from .library import Model, library

TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
"""The kinds of numbers that keys and values can be, and ggml's number of each."""

_BYTES = {0: 4.0, 1: 2.0, 2: 18 / 32, 3: 20 / 32, 6: 22 / 32, 7: 24 / 32, 8: 34 / 32, 20: 18 / 32, 30: 2.0}
_OURS = {
    "n_ctx",
    "n_seq_max",
    "kv_unified",
    "embeddings",
    "attention_type",  # one that isn't causal is for embeddings
    "vocab_only",
    "no_alloc",
    "n_outputs_max",
    "ctx_type",
}
# what the names of their values begin with: llama.cpp ends the process at a number that it doesn't know
_CHOICES = {
    "load_mode": "LLAMA_LOAD_MODE_",
    "lazy_mode": "LLAMA_LAZY_MODE_",
    "split_mode": "LLAMA_SPLIT_MODE_",
    "rope_scaling_type": "LLAMA_ROPE_SCALING_TYPE_",
    "pooling_type": "LLAMA_POOLING_TYPE_",
    "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_",
}
_MOST_THREADS = 512  # of ggml
_PLAIN = (ctypes.c_bool, ctypes.c_int, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float)
_CHUNK = 256  # tokens of prompts in one forward pass, which a cancelled request waits for


@dataclass
class LoadOptions:
    """`model` and `context`: fields of llama_model_params and llama_context_params; `adapters`: the scale of each file
    of a LoRA adapter; `tensor_split`: the share of each GPU."""

    model: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    tensor_split: list[float] = field(default_factory=list)


def read_options(given: Mapping[str, Any], threads: int | None) -> LoadOptions:
    """Reads `model_load_kwargs`, in the names of llama.cpp or those of llama_cpp.Llama. Raises EngineError for a name
    that is unknown or that the engine sets itself, and for a value that its field can't have."""
    package, _ = library()
    fields = {
        "model": dict(package.llama_model_params._fields_),
        "context": dict(package.llama_context_params._fields_),
    }
    read = LoadOptions()
    for name, value in _translated(dict(given), package, read).items():
        where = next((part for part, known in fields.items() if known.get(name) in _PLAIN), None)
        if where is None or name in _OURS:
            hint = "the engine sets it itself: see its own parameters" if name in _OURS else "llama.cpp has none"
            raise EngineError(f"model_load_kwargs has {name!r}, and {hint}; leave it out.")
        _check(name, value, fields[where][name], package)
        getattr(read, where)[name] = value
    cores = threads or default_threads()
    read.context = {"n_threads": cores, "n_threads_batch": cores, "n_batch": _CHUNK} | read.context
    if (most := max(read.context["n_threads"], read.context["n_threads_batch"])) > _MOST_THREADS:
        raise EngineError(f"threads={most} are more than the {_MOST_THREADS} that llama.cpp can have: give less.")
    read.context.setdefault("n_ubatch", read.context["n_batch"])
    kinds = {read.context.get(kind, TYPES["f16"]) for kind in ("type_k", "type_v")}
    if TYPES["f32"] in kinds and kinds <= {TYPES[kind] for kind in ("f32", "f16", "bf16")}:
        # its kernel for float32 is several times slower than plain attention (measured on a CPU); others need it
        read.context.setdefault("flash_attn_type", package.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    return read


def _check(name: str, value: Any, kind: Any, package: Any) -> None:
    """Raises EngineError for a value that its field can't hold, or that llama.cpp doesn't know."""
    given = f"model_load_kwargs[{name!r}]={value!r}"
    try:
        held = kind(value).value
    except (TypeError, OverflowError) as error:
        raise EngineError(f"{given} is no good: {error}.") from error
    if kind is not ctypes.c_float and held != value:
        raise EngineError(f"{given} is no good: its field can't hold that, it would be {held!r}; give another.")
    known = _choices(name, package)
    if known and value not in known.values():
        there = ", ".join(f"{number} ({each})" for each, number in known.items())
        raise EngineError(f"{given} is no number that is known for it: give one of {there}.")


def _choices(name: str, package: Any) -> Mapping[str, int]:
    """The numbers that this field can be, by their names; empty if it can be any."""
    if name in ("type_k", "type_v"):
        return TYPES
    begin = _CHOICES.get(name)
    if begin is None:
        return {}
    found = {each.removeprefix(begin): number for each, number in vars(package).items() if each.startswith(begin)}
    found.pop("MAX_VALUE", None)  # another name of the last one
    return found


def _translated(given: dict[str, Any], package: Any, read: LoadOptions) -> dict[str, Any]:
    """The same with the names that llama_cpp.Llama has for some fields."""
    mapped, locked = given.pop("use_mmap", None), given.pop("use_mlock", None)
    if mapped is not None or locked is not None:
        mode = {(True, True): "MMAP_MLOCK", (False, True): "MLOCK", (True, False): "MMAP", (False, False): "NONE"}
        chosen = mode[mapped is None or bool(mapped), bool(locked)]
        given.setdefault("load_mode", getattr(package, f"LLAMA_LOAD_MODE_{chosen}"))
    if (flash := given.pop("flash_attn", None)) is not None:
        given.setdefault("flash_attn_type", int(bool(flash)))
    for name in ("type_k", "type_v"):
        if isinstance(kind := given.get(name), str):
            if kind not in TYPES:
                raise EngineError(f"model_load_kwargs[{name!r}]={kind!r} is no kind of number: {', '.join(TYPES)}.")
            given[name] = TYPES[kind]
    path, scale = given.pop("lora_path", None), given.pop("lora_scale", None)
    if path is not None:
        if not os.path.isfile(path):
            raise EngineError(f"There is no LoRA adapter {os.fspath(path)!r}: give a GGUF file.")
        read.adapters[os.fspath(path)] = _number("lora_scale", 1.0 if scale is None else scale)
    elif scale is not None:
        raise EngineError(f"model_load_kwargs has lora_scale={scale!r} and no lora_path: give the adapter's file too.")
    read.tensor_split = [_number("tensor_split", share) for share in given.pop("tensor_split", None) or ()]
    return given


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise EngineError(f"model_load_kwargs has {value!r} for {name!r}: give a number.") from error


def default_threads() -> int:
    """Half of the cores that this process may use: their second halves are no cores of their own, and threads that
    wait for one that has no core stop all others."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    return max(1, cores // 2)


def model_params(options: LoadOptions) -> Any:
    """The structure for loading a model."""
    package, _ = library()
    params = package.llama_model_default_params()
    for name, value in options.model.items():
        setattr(params, name, value)
    if options.tensor_split:
        most = int(package.llama_max_devices())
        if len(options.tensor_split) > most:
            raise EngineError(f"tensor_split has {len(options.tensor_split)} shares, and there are {most} devices.")
        params.tensor_split = (ctypes.c_float * most)(*options.tensor_split)
    return params


def context_params(options: LoadOptions, cells: int, sequences: int) -> Any:
    """The structure for a context of so many cells, which all sequences share."""
    package, _ = library()
    most = int(package.llama_max_parallel_sequences())
    if sequences > most:
        raise EngineError(
            f"max_batch_size and max_cached_prompts are {sequences} together, and llama.cpp has at most {most} "
            "sequences: give less."
        )
    params = package.llama_context_default_params()
    for name, value in options.context.items():
        setattr(params, name, value)
    # fewer cells than sequences end the process; they are no more memory, since llama.cpp rounds cells up to 256
    params.n_ctx, params.n_seq_max, params.kv_unified = max(cells, sequences), sequences, True
    params.n_batch = max(params.n_batch, sequences)
    params.n_ubatch = max(params.n_ubatch, sequences)
    return params


def bytes_per_token(model: Model, options: LoadOptions) -> int:
    """Of the keys and values of one token in all layers."""
    lib, pointer = model.lib, model.pointer
    heads, width = int(lib.llama_model_n_head(pointer)), int(lib.llama_model_n_embd(pointer))
    name = model.metadata.get("general.architecture", "")
    head = width // max(1, heads)
    key = int(model.metadata.get(f"{name}.attention.key_length", head))
    value = int(model.metadata.get(f"{name}.attention.value_length", head))
    sizes = [_BYTES.get(options.context.get(kind, 1), 2.0) for kind in ("type_k", "type_v")]
    layer = int(lib.llama_model_n_head_kv(pointer)) * (key * sizes[0] + value * sizes[1])
    return max(1, int(lib.llama_model_n_layer(pointer) * layer))


def is_divisible(model: Model, options: LoadOptions) -> bool:
    """Whether the model's memory can forget a part of a sequence: not where it is a state, or a window that moved."""
    lib, pointer = model.lib, model.pointer
    if lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer):
        return False
    full = options.context.get("swa_full", lib.llama_context_default_params().swa_full)
    return bool(full) or not lib.llama_model_n_swa(pointer)
