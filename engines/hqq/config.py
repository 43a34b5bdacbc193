"""How each linear layer is quantised: what a user asks for, in hqq's own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kani_lite.exceptions import EngineError

NOT_BY_DEFAULT = ("lm_head",)  # hqq leaves the output layer as it is unless it is named

_HQQ_KEYS = frozenset({"weight_quant_params", "scale_quant_params", "zero_quant_params", "offload_meta"})


class HqqConfig(BaseModel):
    """How one linear layer is quantised; names and defaults are those of hqq's BaseQuantizeConfig."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nbits: Literal[8, 4, 3, 2, 1] = 4
    """Bits of a weight's code."""
    group_size: int | None = Field(default=64, ge=8, multiple_of=8)
    """Weights that share a scale and a zero; None: a whole row (axis 1) or column (axis 0)."""
    axis: Literal[0, 1] = 1
    """1: groups lie within a row, as fast kernels need them. 0: across rows, a little more exact."""
    quant_scale: bool = False
    """Keeps the scales in 8 bits too, in groups of 128."""
    quant_zero: bool = False
    """Keeps the zeros in 8 bits too, with one scale for the layer."""
    optimize: bool = True
    """Searches for the best zeros; False rounds to the nearest."""
    least_squares: bool = False
    """Ends with the scale and zero that fit the codes best, which hqq doesn't: a smaller squared error, though not
    always better answers (docs/benchmarks.md)."""

    @field_validator("nbits", "axis", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def group(self, shape: tuple[int, int]) -> int:
        """The weights of a group in a layer of (out_features, in_features)."""
        return self.group_size or (shape[1] if self.axis == 1 else shape[0])

    @classmethod
    def read(cls, value: Any) -> HqqConfig:
        """A config, the dict of its fields or the dict that hqq's BaseQuantizeConfig returns.

        Raises EngineError that says what is wrong with it.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise EngineError(f"{value!r} is no HQQ setting: give HqqConfig(nbits=4, group_size=64) or such a dict.")
        fields = _from_hqq(value) if "weight_quant_params" in value else dict(value)
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise EngineError(
                f"The HQQ setting {place}={first.get('input')!r} can't be used ({first['msg'].lower()}): fields are "
                f"{', '.join(cls.model_fields)}; nbits is 8, 4, 3, 2 or 1, group_size a multiple of 8 or None."
            ) from error


def _from_hqq(value: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(value) - _HQQ_KEYS):
        raise EngineError(f"hqq's settings have no {unknown[0]!r}: give what hqq's BaseQuantizeConfig returns.")
    fields = dict(value["weight_quant_params"])
    fields.pop("view_as_float", None)  # only how hqq's own training code looks at the bytes
    if not fields.pop("channel_wise", True):
        raise EngineError("channel_wise=False (one scale for a whole weight) isn't supported: leave it out.")
    if fields.pop("round_zero", fields.get("nbits") == 4) != (fields.get("nbits") == 4):
        raise EngineError("round_zero is True for 4 bits and False for others: leave it out.")
    fields["quant_scale"] = value.get("scale_quant_params") is not None
    fields["quant_zero"] = value.get("zero_quant_params") is not None
    return fields


@dataclass(frozen=True)
class LayerSettings:
    """Which layer gets which setting. `by_pattern` maps a part of a layer's name to its setting, or to None for a layer
    that is left as it is; layers that match nothing are left too, as in hqq."""

    by_pattern: Mapping[str, HqqConfig | None]

    @classmethod
    def read(cls, value: Any) -> LayerSettings:
        """One setting for all layers, or a dict of settings by a layer's name. None: 4 bits in groups of 64.

        Raises EngineError that says what is wrong with it.
        """
        if value is None:
            return cls({"": HqqConfig()})
        if not isinstance(value, Mapping) or set(value) & (set(HqqConfig.model_fields) | _HQQ_KEYS):
            return cls({"": HqqConfig.read(value)})
        if not value:
            return cls({"": HqqConfig()})  # Aana's default is an empty dict
        return cls({str(name): None if one is None else HqqConfig.read(one) for name, one in value.items()})

    def of(self, name: str) -> HqqConfig | None:
        """The setting of the layer of this name: the longest pattern that fits it decides."""
        fitting = [pattern for pattern in self.by_pattern if _fits(pattern, name)]
        return self.by_pattern[max(fitting, key=len)] if fitting else None

    def for_embeddings(self, head: str) -> HqqConfig:
        """How the embedding and the output layer of this name are quantised if both are to be: as it is named, or as
        the other layers but to no less than 4 bits. Groups lie within rows, since rows are looked up.

        Raises EngineError if the output layer is to be left out.
        """
        fitting = [pattern for pattern in self.by_pattern if pattern and _fits(pattern, head)]
        named = self.of(head)
        if fitting and named is None:
            raise EngineError(
                f"quantize_embeddings=True quantises the output layer too, and quantization_config leaves {head!r} as "
                "it is: drop one of them."
            )
        setting = named or self.by_pattern.get("") or HqqConfig()
        bits = setting.nbits if named else max(4, setting.nbits)
        return setting.model_copy(update={"nbits": bits, "axis": 1})

    def plan(
        self, shapes: Mapping[str, tuple[int, int]], added: Mapping[str, HqqConfig] | None = None
    ) -> dict[str, HqqConfig]:
        """The layers to quantise, of all linear layers (out_features, in_features) by name; `added` says more of them.

        Raises EngineError for a pattern that fits none, and for a layer that its groups don't divide.
        """
        for pattern in self.by_pattern:
            if not any(_fits(pattern, name) for name in shapes):
                raise EngineError(
                    f"No linear layer is named {pattern!r}: this model's are {', '.join(sorted(_tags(shapes)))}."
                )
        chosen = {name: setting for name in shapes if (setting := self.of(name)) is not None} | dict(added or {})
        if not chosen:
            raise EngineError("No linear layer of this model would be quantised: check quantization_config.")
        for name, setting in chosen.items():
            check_shape(name, setting, shapes[name])
        return chosen


def _fits(pattern: str, name: str) -> bool:
    if pattern == "":
        return name.rpartition(".")[2] not in NOT_BY_DEFAULT
    return f".{pattern}." in f".{name}." or pattern == tag(name) or fnmatchcase(name, pattern)


def tag(name: str) -> str:
    """hqq's name for all layers of a kind: model.layers.31.self_attn.k_proj -> self_attn.k_proj."""
    return ".".join(part for part in name.split(".") if part not in ("model", "layers") and not part.isnumeric())


def _tags(names: Iterable[str]) -> set[str]:
    return {tag(name) for name in names}


def check_shape(name: str, setting: HqqConfig, shape: tuple[int, int]) -> None:
    """Raises EngineError if the groups don't divide a layer of this shape (out_features, in_features)."""
    group, weights = setting.group(shape), shape[0] * shape[1]
    rows = weights // group if setting.axis == 1 else group
    shared = {8: 1, 4: 2, 3: 1, 2: 4, 1: 8}[setting.nbits]  # rows of codes in one byte; 3 bits are padded
    if weights % group or rows % shared or (setting.axis == 1 and shape[1] % group):
        raise EngineError(
            f"The layer {name!r} of {shape[0]} x {shape[1]} can't be quantised to {setting.nbits} bits in groups of "
            f"{group} (axis={setting.axis}): give it another group_size, or None as its setting to leave it out."
        )
    if setting.quant_scale and (weights // group) % 128:
        raise EngineError(
            f"The layer {name!r} has {weights // group} scales, and quant_scale takes multiples of 128: leave it out."
        )
