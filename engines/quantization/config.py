"""What is quantised and how, as it is written into a folder's config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from kani_lite.exceptions import EngineError

from .int4 import GROUP_SIZES

INT4, INT8 = "kani_int4", "kani_int8"
_VERSION = 1


@register_quantization_config(INT4)
class Int4Config(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """Linear layers in group-wise int4 with HQQ's solver, on a CPU: `from_pretrained(..., quantization_config=...)`
    quantises each weight as it is read.

    `group_size`: 32, 64, 128 or 256 weights share a scale; a layer whose rows they don't fill takes the largest smaller
    size that does, and stays as it is if there is none, as do those of under 2**14 weights. `quantize_lm_head`: the
    output layer too; None is as `quantize_embeddings` says, which is the embedding's rows. Where both share one weight
    they go on sharing it if both are quantised; a quantised output layer beside an embedding that isn't is a copy.
    `skip`: names of modules to leave alone, or regular expressions, as for transformers' other methods.

    Raises EngineError for values that are none of these.
    """

    def __init__(
        self,
        group_size: int = 64,
        quantize_embeddings: bool = False,
        quantize_lm_head: bool | None = None,
        skip: Sequence[str] = (),
        *,
        version: int = _VERSION,
        quant_method: str = INT4,
    ) -> None:
        _check_version(version, quant_method)
        if group_size not in GROUP_SIZES:
            raise EngineError(f"group_size={group_size!r} is none that the int4 kernel has: give one of {GROUP_SIZES}.")
        self.quant_method, self.version = INT4, version
        self.group_size = group_size
        self.quantize_embeddings = quantize_embeddings
        self.quantize_lm_head = quantize_embeddings if quantize_lm_head is None else quantize_lm_head
        self.skip = _names(skip)


@register_quantization_config(INT8)
class Int8Config(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """Linear layers in int8 with a scale to a row, on a CPU; `quantize_lm_head` and `skip` as in Int4Config."""

    def __init__(
        self,
        quantize_lm_head: bool = False,
        skip: Sequence[str] = (),
        *,
        version: int = _VERSION,
        quant_method: str = INT8,
    ) -> None:
        _check_version(version, quant_method)
        self.quant_method, self.version = INT8, version
        self.quantize_lm_head = quantize_lm_head
        self.skip = _names(skip)

    @property
    def quantize_embeddings(self) -> bool:
        return False


def _names(skip: Sequence[str]) -> list[str]:
    if isinstance(skip, str):
        raise EngineError(f"skip={skip!r} is one text: give a list of names of modules.")
    return list(skip)


def _check_version(version: Any, method: str) -> None:
    if version != _VERSION:
        raise EngineError(
            f"The folder's weights are in version {version!r} of the format {method!r}, and this kani_lite reads "
            f"version {_VERSION}: use the kani_lite that wrote it, or quantise the original model again."
        )
