"""Models that GPTQ, AWQ or compressed-tensors quantised beforehand, on a CPU and with no further package.

transformers hands such models to packages that mostly run on GPUs. Here its own loading puts each tensor of the
checkpoint where a layer will be, and that becomes a layer of ours once all are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kani_lite.exceptions import EngineError

from .memory import Trimmer
from .modules import find_module, replace_module
from .prequantized_layouts import AWQ, GPTQ, NAMES, PACKED, make_layer, read_layer
from .quantizer import CpuQuantizer, features

PREQUANTIZED = "kani_prequantized"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
           "I16": torch.int16, "I8": torch.int8}  # fmt: skip


def quantization_of(config: Any) -> dict[str, Any]:
    """What a model's config says of how its weights were quantised; empty if they weren't."""
    found = getattr(config, "quantization_config", None)
    if found is None and hasattr(config, "get_text_config"):
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if found is None:
        return {}
    read: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    return read


@register_quantization_config(PREQUANTIZED)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """`original`: a model's own quantization_config, of a kind that `reads` accepts."""

    def __init__(self, original: dict[str, Any], *, quant_method: str = PREQUANTIZED) -> None:
        self.quant_method = PREQUANTIZED
        self.original = original

    @staticmethod
    def reads(original: dict[str, Any]) -> bool:
        """Whether weights saved like this can be read here; which of them fit a kernel only their shapes say."""
        method = original.get("quant_method")
        if method == GPTQ:
            return _format(original, "gptq") in ("gptq", "gptq_v2") and original.get("bits") in (2, 4, 8)
        if method == AWQ:
            packing = original.get("version") or _format(original, "gemm")
            return str(packing).lower() == "gemm" and original.get("bits", original.get("w_bit")) == 4
        return bool(method == PACKED and _is_weight_only(original))

    @property
    def layout(self) -> str:
        return str(self.original["quant_method"])

    @property
    def v2(self) -> bool:
        return _format(self.original, "gptq") == "gptq_v2"

    @property
    def group_size(self) -> int:
        """0 if it is said nowhere, or differs."""
        groups = self.original.get("config_groups") or {}
        sizes = {(group["weights"].get("group_size") or 0) for group in groups.values()}
        size = self.original.get("group_size", sizes.pop() if len(sizes) == 1 else 0)
        return int(size or 0)


def _format(original: dict[str, Any], default: str) -> str:
    return str(original.get("checkpoint_format") or original.get("format") or default).lower()


def _is_weight_only(original: dict[str, Any]) -> bool:
    """Of compressed-tensors' many schemes: integers packed into words, by groups or rows, and nothing besides."""
    groups = (original.get("config_groups") or {}).values()
    if _format(original, "dense") != "pack-quantized" or not groups or original.get("transform_config"):
        return False
    if (original.get("sparsity_config") or {}).get("format", "dense") != "dense":
        return False
    return all(
        isinstance(group, dict)
        and group.get("format", "pack-quantized") in (None, "pack-quantized")
        and not (group.get("input_activations") or group.get("output_activations"))
        and (group.get("weights") or {}).get("type") == "int"
        and group["weights"].get("num_bits") in (2, 4, 8)
        and group["weights"].get("strategy") in ("group", "channel")
        for group in groups
    )


class PackedWeight(nn.Module):
    """Where a layer's tensors wait until all are read. `tensors`: their shapes and dtypes by name."""

    def __init__(self, module: Any, tensors: dict[str, tuple[list[int], torch.dtype]]) -> None:
        super().__init__()
        self.in_features, self.out_features = features(module)
        self.dtype, self.bias, self.names = module.weight.dtype, module.bias, tuple(tensors)
        for name, (shape, dtype) in tensors.items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    def make_layer(self, config: PackedConfig) -> nn.Module:
        """Raises EngineError if its tensors don't fit each other."""
        tensors = {name: self.get_buffer(name) for name in self.names}
        grouped = read_layer(config.layout, tensors, self.in_features, self.out_features, config.group_size, config.v2)
        return make_layer(grouped, self.bias, self.dtype)


@register_quantizer(PREQUANTIZED)
class PackedQuantizer(CpuQuantizer):
    """For PackedConfig. `notes`: what a user should know of layers that don't run as they were saved."""

    quantization_config: PackedConfig
    requires_calibration = True
    notes: tuple[str, ...] = ()

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        for name, tensors in _packed_tensors(checkpoint_files or (), config.layout).items():
            module = find_module(model, name, lambda found: type(found) in (nn.Linear, Conv1D))
            if module is None:
                raise EngineError(
                    f"The checkpoint has {name!r} in the format {config.layout!r}, and the {model.config.model_type!r} "
                    "of this transformers has no linear layer there (it may hold experts in one): run the model with "
                    "VLLMEngine, or load the unquantised one."
                )
            model.all_tied_weights_keys.pop(f"{module}.weight", None)
            replace_module(model, module, PackedWeight(model.get_submodule(module), tensors))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        trimmer, dense, biggest = Trimmer(), 0, ""
        packed = [(name, module) for name, module in model.named_modules() if isinstance(module, PackedWeight)]
        while packed:
            name, module = packed.pop(0)
            try:
                layer = module.make_layer(self.quantization_config)
            except EngineError as error:
                raise EngineError(f"The layer {name!r} of the checkpoint is damaged: {error}.") from error
            replace_module(model, name, layer)
            trimmer.freed(sum(buffer.nbytes for buffer in module.buffers()))
            if type(layer) is nn.Linear:
                dense, biggest = dense + 1, biggest or name
        if dense:
            self.notes = (
                f"{dense} quantised layers, the first is {biggest!r}, have bits or groups that no kernel for CPUs "
                "takes: they run dequantised, and take the memory of the unquantised model.",
            )
        return model


def _packed_tensors(files: Iterable[str], layout: str) -> dict[str, dict[str, tuple[list[int], torch.dtype]]]:
    """The shapes and dtypes of each quantised layer's tensors, by the layer's name in the checkpoint."""
    found: dict[str, dict[str, tuple[list[int], torch.dtype]]] = {}
    for path in files:
        if not str(path).endswith(".safetensors"):
            raise EngineError(f"{str(path)!r} holds quantised weights as a pickle: save them as safetensors.")
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no dict
                name, _, part = key.rpartition(".")
                if part in NAMES[layout]:
                    piece = file.get_slice(key)
                    found.setdefault(name, {})[part] = (piece.get_shape(), _dtype(key, piece.get_dtype()))
                elif name.endswith(".act") and part == "scales":
                    raise EngineError(f"The checkpoint scales activations ({key!r}), which only a GPU's kernels do.")
    codes = NAMES[layout][0]
    quantized = {name: tensors for name, tensors in found.items() if codes in tensors}
    if not quantized:
        raise EngineError(f"config.json says {layout!r}, but the checkpoint holds no {codes!r}: its files don't match.")
    return quantized


def _dtype(key: str, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise EngineError(f"The checkpoint's {key!r} is in {name}, which no such tensor is: its files are damaged.")
    return _DTYPES[name]
