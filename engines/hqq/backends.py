"""What computes with the quantised weights: which can do it here, and how each takes a weight over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from kani_lite.exceptions import EngineError

from .int4 import int4_from_hqq, kernel_group
from .layers import HqqLinear
from .package import hqq_module
from .weight import HqqWeight

BackendName = Literal["bitblas", "torchao_int4", "gemlite", "marlin", "cpu_int4", "pytorch"]

_KERNEL_GROUPS = frozenset({32, 64, 128, 256})


@dataclass(frozen=True)
class _Kernel:
    """What a backend takes. `groups`: sizes of groups, None for any; `whole_rows`: a group is a row and no less."""

    nbits: frozenset[int]
    dtypes: tuple[torch.dtype, ...]
    axes: frozenset[int] = frozenset({1})
    groups: frozenset[int] | None = None
    whole_rows: bool = False
    cuda: bool = True
    package: str | None = None
    capability: tuple[int, int] = (0, 0)


_ANY = (torch.bfloat16, torch.float16, torch.float32)

# what hqq's own conversions check (hqq/backends), which leave a layer they can't convert as it is and only print
KERNELS: Mapping[str, _Kernel] = {
    "bitblas": _Kernel(frozenset({4, 2, 1}), (torch.float16,), groups=_KERNEL_GROUPS, package="bitblas"),
    "torchao_int4": _Kernel(frozenset({4}), (torch.bfloat16,), groups=_KERNEL_GROUPS, capability=(8, 0)),
    "gemlite": _Kernel(frozenset({8, 4, 2, 1}), (torch.float16, torch.bfloat16), package="gemlite"),
    "marlin": _Kernel(frozenset({4}), (torch.float16,), whole_rows=True, package="marlin"),
    "cpu_int4": _Kernel(frozenset({4, 3, 2, 1}), (torch.bfloat16,), cuda=False),
    "pytorch": _Kernel(frozenset({8, 6, 5, 4, 3, 2, 1}), _ANY, axes=frozenset({0, 1}), cuda=False),
}
_BEST_ON_CUDA = ("torchao_int4", "gemlite", "bitblas")


@dataclass(frozen=True)
class Layer:
    """What a backend has to know of a layer before its weight is there. `shape`: (out_features, in_features)."""

    name: str
    shape: tuple[int, int]
    nbits: float
    group: int
    axis: int


def choose(
    backend: str, layers: list[Layer], device: str, dtype: torch.dtype | None
) -> tuple[dict[str, str], torch.dtype]:
    """A backend for each layer by name, and the dtype that they compute in.

    `backend="auto"`: on a CPU the int4 kernel for each layer that it takes; on CUDA the first kernel that takes all;
    dequantising otherwise. Raises EngineError for one that can't be used, with the reason and the one to use instead.
    """
    backend = str(getattr(backend, "value", backend)).lower()  # Aana's HqqBackend is an enum
    if backend == "auto":
        chosen = _best(layers, device, dtype)
    elif backend not in KERNELS:
        raise EngineError(f"backend={backend!r} is unknown: give 'auto' or one of {', '.join(map(repr, KERNELS))}.")
    elif reason := _machine_refuses(backend, device, dtype) or _some_layer_refused(backend, layers):
        better = " and ".join(map(repr, sorted(set(_best(layers, device, dtype).values()))))
        best = f"backend={better}" if " and " not in better else f"backend='auto' (here {better})"
        raise EngineError(f"backend={backend!r} can't be used: {reason}. Use {best}.")
    else:
        chosen = {layer.name: backend for layer in layers}
    # the kernels that are chosen together share their dtypes
    return chosen, dtype or _default_dtype(next(iter(chosen.values())), device)


def _default_dtype(backend: str, device: str) -> torch.dtype:
    if backend == "pytorch" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        return torch.float16
    return KERNELS[backend].dtypes[0]


def _best(layers: list[Layer], device: str, dtype: torch.dtype | None) -> dict[str, str]:
    if device.startswith("cuda"):
        for name in _BEST_ON_CUDA:
            if not (_machine_refuses(name, device, dtype) or _some_layer_refused(name, layers)):
                return {layer.name: name for layer in layers}
    fast = device == "cpu" and not _machine_refuses("cpu_int4", device, dtype)
    return {layer.name: "cpu_int4" if fast and not _layer_refused("cpu_int4", layer) else "pytorch" for layer in layers}


def _machine_refuses(backend: str, device: str, dtype: torch.dtype | None) -> str | None:
    kernel = KERNELS[backend]
    if kernel.cuda and not device.startswith("cuda"):
        return f"it needs an NVIDIA GPU, and this model goes to {device!r}"
    if backend == "cpu_int4" and device != "cpu":
        return f"it runs on a CPU, and this model goes to {device!r}"
    if kernel.package and find_spec(kernel.package) is None:
        return f"the package {kernel.package!r} isn't installed (pip install {kernel.package})"
    if kernel.cuda and torch.cuda.get_device_capability(device) < kernel.capability:
        return f"it needs a GPU of compute capability {kernel.capability[0]}.{kernel.capability[1]} (Ampere) or newer"
    if dtype is not None and dtype not in kernel.dtypes:
        return f"it computes in {' or '.join(_short(one) for one in kernel.dtypes)}, not in {_short(dtype)}"
    return None


def _some_layer_refused(backend: str, layers: list[Layer]) -> str | None:
    for layer in layers:
        if reason := _layer_refused(backend, layer):
            return f"{reason} ({layer.name})"
    return None


def _layer_refused(backend: str, layer: Layer) -> str | None:
    kernel, width = KERNELS[backend], layer.shape[1]
    if layer.nbits not in kernel.nbits and backend != "pytorch":
        return f"it takes nbits {' or '.join(map(str, sorted(kernel.nbits)))}, not {layer.nbits}"
    if layer.axis not in kernel.axes:
        return f"it needs axis=1, not axis={layer.axis}"
    if kernel.whole_rows and layer.group != width:
        return f"it needs group_size=None, not {layer.group}"
    if kernel.groups is not None and layer.group not in kernel.groups:
        return f"it takes a group_size of {', '.join(map(str, sorted(kernel.groups)))}, not {layer.group}"
    if backend == "cpu_int4" and kernel_group(layer.group) is None:
        return f"it takes a group_size that is a multiple of 32, not {layer.group}"
    if backend != "pytorch" and width % layer.group:
        return f"groups of {layer.group} don't fill a row of {width} weights"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_hqqs_own(backend: str) -> bool:
    """Whether hqq makes the layer, for a GPU and with its bias."""
    return KERNELS[backend].cuda


def make_layer(backend: str, weight: HqqWeight, device: str) -> nn.Module:
    """The layer that computes with this weight, whose scales and zeros have the dtype that it computes in."""
    if backend == "pytorch":
        return HqqLinear(weight)
    if backend == "cpu_int4":
        return int4_from_hqq(weight)
    return _hqqs_own(backend, weight, device)


def _hqqs_own(backend: str, weight: HqqWeight, device: str) -> nn.Module:
    linear = hqq_module("core.quantize").HQQLinear
    layer: Any = linear(None, None, compute_dtype=weight.meta["compute_dtype"], device=device)
    meta = weight.meta | {"quant_scale": False, "quant_zero": False}
    meta |= {name: weight.part(name) for name in ("scale", "zero")}  # the kernels know no scales in 8 bits
    layer.load_state_dict(HqqWeight(weight.packed, meta, weight.bias).state())
    module, function = {
        "bitblas": ("backends.bitblas", "patch_hqq_to_bitblas"),
        "torchao_int4": ("backends.torchao", "patch_hqq_to_aoint4"),
        "gemlite": ("backends.gemlite", "patch_hqq_to_gemlite"),
        "marlin": ("backends.marlin", "patch_hqq_to_marlin"),
    }[backend]
    if backend == "marlin":
        layer.meta["group_size"] = None  # how hqq's conversion says a whole row
    converted: nn.Module = getattr(hqq_module(module), function)(layer, None)
    if converted is layer:
        raise EngineError(f"hqq could not take a layer to backend={backend!r}: use backend='pytorch'.")
    return converted
