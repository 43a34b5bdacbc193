"""How transformers loads models in these formats.

An unquantised model keeps its own layers until their weights arrive; each weight is quantised when it has been read,
and the layer replaced, so that one weight at a time is in memory as it was saved. For a saved model the layers are
replaced first, and its codes brought into the kernel's layout last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from kani_lite.exceptions import EngineError

from .config import INT4, INT8, Int4Config, Int8Config
from .embedding import Int4Embedding, TiedInt4Embedding
from .int4 import GROUP_SIZES, Int4Linear, Portable
from .int8 import Int8Linear
from .memory import Trimmer
from .modules import replace_module

_SMALLEST = 2**14  # weights; below, the call itself costs more than the reading


class _Plan:
    """Which modules of a model are quantised: `linears` by name, and the embedding's and the output layer's names where
    they are to be. `tied`: they share a weight."""

    def __init__(self, model: Any, config: Any) -> None:
        names = {module: name for name, module in model.named_modules()}
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        head_name, embedding_name = names.get(head), names.get(embedding)
        self.tied = head_name is not None and f"{head_name}.weight" in model.all_tied_weights_keys
        fits = type(embedding) is nn.Embedding and _fitting_group(config, embedding.embedding_dim) is not None
        self.embedding = embedding_name if config.quantize_embeddings and fits else None
        wants_head = config.quantize_lm_head and type(head) is nn.Linear
        if self.tied and not wants_head:
            self.embedding = None  # the output layer needs the weight as it is
        self.linears = [
            name
            for module, name in names.items()
            if (wants_head if module is head else True) and _can_quantize(module, config) and _wanted(name, config)
        ]
        self.head = head_name if head_name in self.linears else None
        if self.embedding is not None and not _wanted(self.embedding, config):
            self.embedding = None

    @property
    def source_of_head(self) -> str | None:
        """The module whose weight in the checkpoint is the output layer's too."""
        return self.head if self.tied else None


class CpuQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is untyped
    """What all formats for CPUs share."""

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Raises EngineError if parts of the model are to be anywhere but on the CPU."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        if elsewhere := [place for place in places if str(place) not in ("None", "cpu", "auto")]:
            raise EngineError(
                f"{type(self.quantization_config).__name__} is for models on a CPU, not on {str(elsewhere[0])!r}: use "
                "transformers.BitsAndBytesConfig there, or device_map='cpu'."
            )

    def update_device_map(self, device_map: Any) -> None:
        """All of it is on the CPU; a map would make saving warn of offloading."""

    @property
    def is_trainable(self) -> bool:
        return False


class _OwnQuantizer(CpuQuantizer):
    requires_calibration = False
    plan: _Plan
    trimmer: Trimmer

    def is_serializable(self) -> bool:
        return True

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        module, _, name = param_name.rpartition(".")
        return name == "weight" and (module in self.plan.linears or module == self.embedding_source(model))

    def embedding_source(self, model: Any) -> str | None:
        """The embedding's name, if its weight is quantised, be it for the output layer alone."""
        if self.plan.tied and self.plan.head is not None:
            embedding = model.get_input_embeddings()
            return next((str(name) for name, module in model.named_modules() if module is embedding), None)
        return self.plan.embedding

    def get_quantize_ops(self) -> _Quantize:
        return _Quantize(self)

    # ==== before and after loading ====

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self.plan, self.trimmer = _Plan(model, self.quantization_config), Trimmer()
        if self.plan.tied and self.plan.head is not None:
            model.all_tied_weights_keys.pop(f"{self.plan.head}.weight")
        if not self.pre_quantized:
            return
        for name in self.plan.linears:
            module = model.get_submodule(name)
            replace_module(model, name, self.empty_linear(module, *features(module)))
        if self.plan.embedding is not None:
            module = model.get_submodule(self.plan.embedding)
            width = module.embedding_dim
            group = _fitting_group(self.quantization_config, width)
            empty = Int4Embedding(module.num_embeddings, width, group or width, module.weight.dtype)
            replace_module(model, self.plan.embedding, self.tied_or(empty, model, empty.dtype))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        trimmer = Trimmer()
        for module in model.modules():
            if isinstance(module, Int4Linear) and not module.is_packed:
                module.pack()
                trimmer.freed(module.num_bytes)
        return model

    def quantize_module(self, model: Any, name: str, weight: torch.Tensor) -> None:
        """Replaces the module of this name by a quantised one with this weight."""
        module = model.get_submodule(name)
        if isinstance(module, Conv1D):
            weight = weight.t().contiguous()
        replace_module(model, name, self.linear(weight, module.bias))

    def quantize_embedding(self, model: Any, name: str, weight: torch.Tensor) -> None:
        if self.plan.tied and self.plan.head is not None:
            self.quantize_module(model, self.plan.head, weight)
        if self.plan.embedding is None:
            return
        if self.plan.tied:
            replace_module(model, name, TiedInt4Embedding(model.get_submodule(self.plan.head), weight.dtype))
        else:
            group = _fitting_group(self.quantization_config, weight.shape[1])
            assert group is not None
            replace_module(model, name, Int4Embedding.from_portable(Portable.solve(weight, group), weight.dtype))

    def tied_or(self, empty: Int4Embedding, model: Any, dtype: torch.dtype) -> nn.Module:
        if not self.plan.tied or self.plan.head is None:
            return empty
        return TiedInt4Embedding(model.get_submodule(self.plan.head), dtype)

    # ==== the two formats ====

    def empty_linear(self, module: Any, in_features: int, out_features: int) -> nn.Module:
        raise NotImplementedError

    def linear(self, weight: torch.Tensor, bias: nn.Parameter | None) -> nn.Module:
        raise NotImplementedError


@register_quantizer(INT4)
class Int4Quantizer(_OwnQuantizer):
    """For Int4Config."""

    quantization_config: Int4Config

    def empty_linear(self, module: Any, in_features: int, out_features: int) -> nn.Module:
        group = _fitting_group(self.quantization_config, in_features)
        assert group is not None
        return Int4Linear(in_features, out_features, module.bias, group)

    def linear(self, weight: torch.Tensor, bias: nn.Parameter | None) -> nn.Module:
        group = _fitting_group(self.quantization_config, weight.shape[1])
        assert group is not None
        return Int4Linear.from_portable(Portable.solve(weight, group), bias)


@register_quantizer(INT8)
class Int8Quantizer(_OwnQuantizer):
    """For Int8Config."""

    quantization_config: Int8Config

    def empty_linear(self, module: Any, in_features: int, out_features: int) -> nn.Module:
        return Int8Linear(in_features, out_features, module.bias)

    def linear(self, weight: torch.Tensor, bias: nn.Parameter | None) -> nn.Module:
        return Int8Linear.from_weight(weight, bias)


class _Quantize(ConversionOps):  # type: ignore[misc]  # transformers is untyped
    """What transformers runs on each weight that `param_needs_quantization`, just read."""

    def __init__(self, quantizer: _OwnQuantizer) -> None:
        self._quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: set[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        plan, left = self._quantizer.plan, {}
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            name = key.removesuffix(".weight")
            if name in plan.linears:
                self._quantizer.quantize_module(model, name, weight)
            else:
                self._quantizer.quantize_embedding(model, name, weight)
                if plan.embedding is None:
                    left[key] = value
            self._quantizer.trimmer.freed(weight.nbytes)
            if missing_keys is not None:
                missing_keys -= {key} - left.keys()
                missing_keys -= {f"{plan.source_of_head}.weight"}
        return left


def features(module: Any) -> tuple[int, int]:
    """in_features and out_features."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return module.in_features, module.out_features


def _can_quantize(module: nn.Module, config: Any) -> bool:
    """Whether it is a plain linear layer large enough; subclasses may compute something else."""
    if type(module) is not nn.Linear and type(module) is not Conv1D:
        return False
    in_features, out_features = features(module)
    return in_features * out_features >= _SMALLEST and _fitting_group(config, in_features) is not None


def _fitting_group(config: Any, width: int) -> int | None:
    """The largest group, not above what the config says, that fills rows of this width; for int8 the row."""
    if isinstance(config, Int8Config):
        return width
    return next((size for size in reversed(GROUP_SIZES) if size <= config.group_size and width % size == 0), None)


def _wanted(name: str, config: Any) -> bool:
    return bool(should_convert_module(name, config.skip))
