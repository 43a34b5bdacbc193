"""One quantised weight in hqq's own form, from which every layer is made and to which it goes back to be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kani_lite.engines.quantization.solver import quantize
from kani_lite.exceptions import EngineError

from .config import HqqConfig
from .package import hqq_module, pack

PACKING = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
SHARED = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}
"""The bits of a code, and the rows of codes that share one unit."""

_ITERATIONS = 20  # as hqq's solver
_NEEDED = ("nbits", "group_size", "shape", "axis", "packing")


@dataclass
class HqqWeight:
    """`packed` is hqq's W_q, `meta` what hqq keeps beside it: scale and zero, or both in 8 bits (scale_q, meta_scale,
    zero_q, meta_zero), and nbits, group_size, axis, shape (out_features, in_features) and packing."""

    packed: torch.Tensor
    meta: dict[str, Any]
    bias: torch.Tensor | None = None

    @classmethod
    def quantized(
        cls, weight: torch.Tensor, bias: torch.Tensor | None, setting: HqqConfig, dtype: torch.dtype
    ) -> HqqWeight:
        """Quantises (out_features, in_features); scales and zeros are rounded to `dtype`, as hqq does."""
        shape = (weight.shape[0], weight.shape[1])
        group = setting.group(shape)
        found = quantize(
            weight,
            setting.nbits,
            group,
            setting.axis,
            iterations=iterations(setting),
            least_squares=setting.least_squares,
        )
        meta = new_meta(setting.nbits, group, torch.Size(shape), setting.axis, dtype)
        meta |= {"quant_scale": setting.quant_scale, "quant_zero": setting.quant_zero}
        columns = (-1, 1) if setting.axis == 1 else (1, -1)
        for name, values, group_size in (("scale", found.scales, 128), ("zero", found.zeros, None)):
            if meta[f"quant_{name}"]:
                meta[f"{name}_q"], meta[f"meta_{name}"] = _eight_bits(values.view(columns), group_size, dtype)
            else:
                meta[name] = values.view(columns).to(dtype)
        codes = found.codes.view((-1, group) if setting.axis == 1 else (group, -1))
        bias = None if bias is None else bias.detach().to(dtype)
        return cls(pack(codes, meta["packing"]), meta, bias)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> HqqWeight:
        """What hqq saved of a layer: flat as it does now, or with a dict `meta` as it did before 0.2."""
        meta = dict(state["meta"]) if "meta" in state else dict(state)
        if missing := [name for name in _NEEDED if name not in meta]:
            raise EngineError(f"A layer saved by hqq lacks {missing[0]!r}: save the model again.")
        kept = {"scale", "zero", "scale_q", "zero_q", "meta_scale", "meta_zero", *_NEEDED}
        meta = {name: value for name, value in meta.items() if name in kept} | {
            "quant_scale": "scale_q" in meta,
            "quant_zero": "zero_q" in meta,
            "view_as_float": False,
        }
        packed = state["W_q"].detach()
        if packed.is_floating_point():  # hqq's view_as_float
            packed = packed.view(_unit(meta["packing"]))
        meta["unpack_view_dtype"] = _unit(meta["packing"])
        # None means one group to a row, or to a column along axis 0
        meta["shape"] = torch.Size(meta["shape"])
        meta["group_size"] = meta["group_size"] or meta["shape"][1 if meta["axis"] == 1 else 0]
        return cls(packed, meta, state.get("bias"))

    def state(self) -> dict[str, Any]:
        """As hqq saves a layer."""
        kept = {name: value for name, value in self.meta.items() if name != "unpack_view_dtype"}
        state = {"W_q": torch.nn.Parameter(self.packed, requires_grad=False), **kept}
        state |= {
            "unpack_view_dtype": _unit(self.meta["packing"]),
            "offload_meta": False,
            "stores_quant_config": True,
            "channel_wise": True,
            "optimize": True,
            "round_zero": self.meta["nbits"] == 4,
        }
        return state if self.bias is None else state | {"bias": self.bias}

    def to(self, device: torch.device | str, dtype: torch.dtype) -> HqqWeight:
        """On this device, with scales and zeros in `dtype`; what is so already is shared."""
        bias = None if self.bias is None else self.bias.detach().to(device, dtype)
        packed = self.packed.to(device).contiguous()
        return HqqWeight(packed, _cast(self.meta, device, dtype) | {"compute_dtype": dtype}, bias)

    def has(self, setting: HqqConfig) -> bool:
        """Whether it was quantised as `setting` says; scales in 8 bits aside."""
        wanted = (setting.nbits, setting.group(self.shape), setting.axis)
        return wanted == (self.meta["nbits"], self.meta["group_size"], self.meta["axis"])

    @property
    def described(self) -> str:
        meta = self.meta
        return f"{meta['nbits']} bits in groups of {meta['group_size']} (axis={meta['axis']})"

    @property
    def shape(self) -> tuple[int, int]:
        out_features, in_features = self.meta["shape"]
        return out_features, in_features

    def part(self, name: str) -> torch.Tensor:
        """The scales or the zeros, dequantised if they are in 8 bits: 1 in place of the group, as in `Codes`."""
        return part(self.meta, name)

    def codes(self) -> torch.Tensor:
        """uint8, (groups, group) along axis 1 or (group, groups) along axis 0."""
        return trimmed(unpacker(self.meta["packing"])(self.packed, dtype=torch.uint8), self.meta)


def iterations(setting: HqqConfig) -> int:
    """Steps of the solver."""
    return _ITERATIONS if setting.optimize else 0


def part(meta: Mapping[str, Any], name: str) -> torch.Tensor:
    if not meta[f"quant_{name}"]:
        values: torch.Tensor = meta[name]
        return values
    inner = meta[f"meta_{name}"]
    codes: torch.Tensor = meta[f"{name}_q"].to(inner["compute_dtype"])
    full: torch.Tensor = (codes - inner["zero"]) * inner["scale"]
    return full.reshape(inner["shape"])


def unpacker(packing: str) -> Any:
    """hqq's function from packed bytes to codes."""
    if packing not in PACKING.values():
        raise EngineError(f"hqq's packing {packing!r} is unknown here: it has {', '.join(PACKING.values())}.")
    return getattr(hqq_module("core.bitpack").BitPack, f"unpack_{packing}")


def trimmed(codes: torch.Tensor, meta: Mapping[str, Any]) -> torch.Tensor:
    """Without the rows that fill up the last int32 of 3 bits."""
    group, shape = meta["group_size"], meta["shape"]
    return codes[: group if meta["axis"] == 0 else shape[0] * shape[1] // group]


def picked(packed: torch.Tensor, where: torch.Tensor, packing: str) -> torch.Tensor:
    """Rows `where` (n,) of the codes, (n, columns) int32, and no others unpacked: row r lies in row r % len(packed) of
    what is packed, the first len(packed) rows in its highest bits."""
    nbits, shared = SHARED[packing]
    shifts = nbits * (shared - 1 - where // len(packed))
    found: torch.Tensor = packed[where % len(packed)].to(torch.int32) >> shifts.unsqueeze(1).to(torch.int32)
    return found.bitwise_and_(2**nbits - 1)


def _unit(packing: str) -> torch.dtype:
    return torch.int32 if packing == "3bit_32" else torch.uint8


def new_meta(nbits: int, group: int | None, shape: torch.Size, axis: int, dtype: torch.dtype) -> dict[str, Any]:
    """What hqq keeps beside the codes, without scales and zeros."""
    packing = PACKING[nbits]
    return {
        "nbits": nbits,
        "group_size": group,
        "shape": shape,
        "axis": axis,
        "packing": packing,
        "unpack_view_dtype": _unit(packing),
        "view_as_float": False,
        "compute_dtype": dtype,
    }


def _eight_bits(values: torch.Tensor, group: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """Scales or zeros in 8 bits as hqq's Quantizer makes them: along axis 0, without a group as a whole."""
    found = quantize(values, 8, group or values.numel(), 0, iterations=0)
    meta = new_meta(8, group, values.shape, 0, dtype)
    shape = () if group is None else (1, -1)
    codes = found.codes.view(values.shape if group is None else (group, -1))
    return codes, meta | {"scale": found.scales.view(shape).to(dtype), "zero": found.zeros.view(shape).to(dtype)}


def _cast(meta: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    cast: dict[str, Any] = {}
    for name, value in meta.items():
        if isinstance(value, torch.Tensor):
            kind = dtype if value.is_floating_point() else value.dtype
            cast[name] = value.detach().to(device, kind).contiguous()
        elif isinstance(value, dict):
            cast[name] = _cast(value, device, dtype) | {"compute_dtype": dtype}
        else:
            cast[name] = value
    return cast
