"""What a loaded model takes: bytes, memory, time. For benchmarks/four_bit.py."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Self

import psutil
import torch
from torch import nn

_SAMPLING = 0.002  # seconds
_MOST, _FEWEST = 64, 4  # tokens that one measurement of speed writes


# ==== bytes ====


def model_bytes(model: Any) -> tuple[int, int]:
    """(bytes of the linear layers without the output layer, bytes of all tensors that the model holds).

    Whatever a quantised layer keeps its weight in counts: buffers, attributes, a packed copy. A storage that several
    share counts once.
    """
    seen: set[Any] = set()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    linears = others = 0
    for module in model.modules():
        size = sum(_size(tensor, seen) for tensor in _tensors(vars(module), set()))
        kind = type(module).__name__.lower()
        if any(module is end for end in ends) or "norm" in kind or "rotary" in kind or "embedding" in kind:
            others += size
        else:
            linears += size
    return linears, linears + others


def _size(tensor: torch.Tensor, seen: set[Any]) -> int:
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]  # oneDNN's own layout has no storage to ask
        key, size = id(tensor), tensor.nbytes
    else:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
    if key in seen:
        return 0
    seen.add(key)
    return size


def _tensors(value: Any, seen: set[int], depth: int = 12) -> Iterator[torch.Tensor]:
    """All tensors that an attribute leads to, but for those of other modules."""
    if id(value) in seen or depth == 0 or isinstance(value, (nn.Module, type, str, int, float)) or callable(value):
        return
    seen.add(id(value))
    parts: Any = ()
    if isinstance(value, torch.Tensor):
        yield value
        parts = (getattr(value, "__dict__", {}),)  # bitsandbytes hangs scales on its parameters
    elif isinstance(value, dict):
        parts = [one for key, one in value.items() if key != "_modules"]
    elif isinstance(value, (list, tuple)):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = (vars(value),)
    for one in parts:
        yield from _tensors(one, seen, depth - 1)


# ==== memory ====


class Memory:
    """What memory takes since this began, in bytes: a GPU's as torch allocates it, or the process's resident set."""

    def __init__(self, device: str) -> None:
        self.device = device
        gc.collect()
        self._process, self._done = psutil.Process(), threading.Event()
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        self._before = self._peak = self._now()

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def _now(self) -> int:
        return int(torch.cuda.memory_allocated(self.device) if self._on_gpu else self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLING):
            self._peak = max(self._peak, self._now())

    def __enter__(self) -> Self:
        if not self._on_gpu:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._peak = max(self._peak, self._now())
        if self._on_gpu:
            self._peak = max(self._peak, int(torch.cuda.max_memory_allocated(self.device)))

    @property
    def peak(self) -> int:
        return self._peak - self._before

    @property
    def used(self) -> int:
        return self._now() - self._before


def free_bytes(device: str) -> int:
    """How much more memory can be had there."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


# ==== time ====


class Peer:
    """transformers' own `generate`, greedy."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def seconds(self, ids: list[int], new: int) -> float:
        """To read `ids` and write exactly so many tokens."""
        begun = time.perf_counter()
        return self._times(ids, new)[-1] - begun

    def per_token(self, ids: list[int], new: int) -> float:
        """The mean seconds of a token after the first."""
        times = self._times(ids, new)
        return (times[-1] - times[0]) / (new - 1)

    def _times(self, ids: list[int], new: int) -> list[float]:
        """When each of the new tokens was there."""
        tensor, clock = torch.tensor([ids], device=self.model.device), _Clock()
        self.model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        return clock.times[1:]  # the first is the prompt's


class _Clock:
    """A streamer that notes the time. It gets tokens on the CPU, so a GPU has written them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


class Ours:
    """One chat on an engine, for code that isn't async."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def seconds(self, ids: list[int], new: int) -> float:
        begun = time.perf_counter()
        self.engine.generate_now(ids, max_tokens=new)
        return time.perf_counter() - begun

    def per_token(self, ids: list[int], new: int) -> float:
        return float(self.engine.generate_now(ids, max_tokens=new).seconds_per_token)


def fitting_tokens(per_token: Callable[[list[int], int], float], ids: list[int], seconds: float) -> int:
    """How many tokens can be written in about `seconds`; the try that finds out warms up too."""
    return max(_FEWEST, min(_MOST, int(seconds / per_token(ids, _FEWEST))))


def speeds(one: Ours | Peer, prompt: list[int], short: list[int], repeat: int, seconds: float) -> dict[str, float]:
    """Medians, in seconds: reading `prompt`, and a token after `short`. Alone in its process: OpenMP slows both of two
    models down that threads of their own run, even if one is idle."""
    count = fitting_tokens(one.per_token, short, seconds)
    times: dict[str, list[float]] = {"prefill": [], "per_token": []}
    for _ in range(repeat):
        times["prefill"].append(one.seconds(prompt, 1))
        times["per_token"].append(one.per_token(short, count))
    return {name: median(values) for name, values in times.items()}
