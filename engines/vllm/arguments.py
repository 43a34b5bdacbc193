"""From the engines' own arguments to vLLM's: for AsyncEngineArgs, and as the words of its server's command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kani_lite.exceptions import EngineError

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for
_MB = 2**20
_NAMED = {"model": "model_id", "hf_token": "token"}  # vLLM's arguments that the files are read with, too
_SHARES = ("gpu_memory_utilization", "kv_cache_memory_bytes")  # the second makes vLLM forget the first


@dataclass(frozen=True)
class Arguments:
    """What decides how vLLM runs a model; `more` has its engine arguments that have no name here. Raises EngineError if
    one of them says otherwise than its name here.

    `gpu_memory_reserved`: MB (2**20 bytes) of each GPU for weights, activations and keys and values; on a CPU, of the
    machine's memory. `adapters`: LoRA adapters, the folder of each by its name.
    """

    model: str
    dtype: str = "auto"
    quantization: str | None = None
    gpu_memory_reserved: float | None = None
    max_model_len: int | None = None
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    trust_remote_code: bool = False
    token: str | bool | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if name in self.more and self.more[name] != value:
                raise EngineError(
                    f"engine_args has {name}={self.more[name]!r} where {value!r} is given by name: give one of them."
                )
        repeated = [name for name in _SHARES if name in self.more]
        if self.gpu_memory_reserved is not None and repeated:
            raise EngineError(
                f"gpu_memory_reserved={self.gpu_memory_reserved} and {repeated[0]}={self.more[repeated[0]]!r} in "
                "engine_args say the same in two ways: give one of them."
            )

    def given(self) -> dict[str, Any]:
        """What isn't left as it is by default, by vLLM's names; but the share of the memory."""
        values: dict[str, Any] = {
            "dtype": None if self.dtype == "auto" else self.dtype,
            "quantization": self.quantization,
            "max_model_len": self.max_model_len,
            "enforce_eager": self.enforce_eager or None,
            "tensor_parallel_size": self.tensor_parallel_size if self.tensor_parallel_size > 1 else None,
            "pipeline_parallel_size": self.pipeline_parallel_size if self.pipeline_parallel_size > 1 else None,
            "trust_remote_code": self.trust_remote_code or None,
            "hf_token": self.token,
            "enable_lora": True if self.adapters else None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def for_vllm(self, device_bytes: Callable[[], int]) -> dict[str, Any]:
        """vLLM's engine arguments. `device_bytes`: finds the memory that there is. Raises EngineError."""
        share = {}
        if self.gpu_memory_reserved is not None:
            share["gpu_memory_utilization"] = memory_fraction(self.gpu_memory_reserved, device_bytes())
        ours = {"model": self.model, "dtype": "auto"} | self.given() | share
        # without a limit; this and the room for adapters may be set otherwise
        return ours | {"max_logprobs": -1} | _lora(self.adapters) | dict(self.more)


def merged(engine_args: Mapping[str, Any] | None, load_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """vLLM's own arguments under their two names. Raises EngineError where they differ, and for those that have a name
    here which more than vLLM needs."""
    ours, theirs = (
        {name.replace("-", "_"): value for name, value in (given or {}).items()} for given in (engine_args, load_kwargs)
    )
    for name, here in _NAMED.items():
        if name in ours or name in theirs:
            raise EngineError(f"engine_args has {name!r}: give it as {here}=, which the tokenizer is read with, too.")
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise EngineError(
                f"engine_args has {name}={ours[name]!r} and model_load_kwargs {theirs[name]!r}: they mean the same, "
                "give one."
            )
    return theirs | ours


def context_asked_for(max_context_size: int | None, max_model_len: int | None) -> int | None:
    """The context's length under its two names. Raises EngineError where they differ or leave no room."""
    if max_context_size is not None and max_model_len is not None and max_context_size != max_model_len:
        raise EngineError(
            f"max_context_size={max_context_size} and max_model_len={max_model_len} mean the same: give one of them."
        )
    asked = max_context_size if max_context_size is not None else max_model_len
    if asked is not None and asked < 1:
        raise EngineError(f"A context of {asked} tokens leaves no room: give a positive number.")
    return asked


def memory_fraction(reserved: float, total_bytes: int) -> float:
    """`reserved` MB as the fraction of the memory that vLLM takes. Raises EngineError for more than there is."""
    total = total_bytes / _MB
    if not 0 < reserved <= total:  # not `> total`: it may be NaN
        raise EngineError(f"gpu_memory_reserved={reserved} MB isn't possible: there are {total:.0f} MB.")
    return reserved / total


def check_parallel(tensor_parallel_size: int, pipeline_parallel_size: int) -> None:
    """Raises EngineError for sizes below 1."""
    sizes = {"tensor_parallel_size": tensor_parallel_size, "pipeline_parallel_size": pipeline_parallel_size}
    for name, size in sizes.items():
        if size < 1:
            raise EngineError(f"{name}={size} is too small: 1 is one GPU.")


def adapter_folders(adapters: Mapping[str, str | PathLike[str]] | None) -> dict[str, str]:
    """The folder of each LoRA adapter, as text. Raises EngineError for one that holds none."""
    folders = {name: fspath(folder) for name, folder in (adapters or {}).items()}
    for name, folder in folders.items():
        if not name:
            raise EngineError(f"The adapter in {folder!r} has an empty name.")
        _rank(name, folder)
    return folders


def _lora(adapters: Mapping[str, str]) -> dict[str, Any]:
    if not adapters:
        return {}
    largest = max(_rank(name, folder) for name, folder in adapters.items())
    rank = next((rank for rank in _RANKS if rank >= largest), None)
    if rank is None:
        raise EngineError(f"The adapters have a rank of up to {largest}: vLLM runs at most {_RANKS[-1]}.")
    return {"max_loras": len(adapters), "max_lora_rank": rank}


def _rank(name: str, folder: str) -> int:
    path = Path(folder) / "adapter_config.json"
    try:
        rank = json.loads(path.read_text("utf-8"))["r"]
    except FileNotFoundError:
        raise EngineError(
            f"The adapter {name!r} has no {str(path)!r}: give the folder that a LoRA adapter was saved to."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{str(path)!r} can't be read ({error!r}): save the adapter {name!r} again.") from error
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise EngineError(f"{str(path)!r} has the rank {rank!r}: a LoRA adapter's is a positive number.")
    return rank


def option_names(words: Sequence[str]) -> set[str]:
    """The options among the words of a command, as vLLM's names of arguments; `--no-x` is one of `x`."""
    options = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    return {name.removeprefix("no_") for name in options}


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments as the words of a command: `True` is a flag and `False` its opposite, dicts are JSON."""
    words: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, Mapping):
            words += [f"--{option}", json.dumps(dict(value))]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{option}", *map(str, value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise EngineError(f"{name}={value} can't be given to vLLM's server.")
        else:
            words += [f"--{option}", str(value)]
    return words
