"""Quantising a model while transformers loads it: each weight when it has been read, before the next one is.

One weight at a time is in memory as it was saved, so loading takes hardly more than the quantised model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kani_lite.engines.quantization.int4 import Int4Linear
from kani_lite.engines.quantization.memory import Trimmer
from kani_lite.engines.quantization.modules import replace_module
from kani_lite.exceptions import EngineError

from .config import HqqConfig
from .embedding import HqqEmbedding
from .int4 import quantized_int4
from .layers import HqqLinear
from .plan import Plan
from .weight import HqqWeight

_METHOD = "kani_hqq"
_SOLVING = 2**23  # bytes that the solver and the packing take for a weight and leave as holes


@register_quantization_config(_METHOD)
class WhileLoading(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """Hands the plan through transformers' loading; it is in no config that is saved. `error`: what made a layer's
    quantising fail, which transformers only reports."""

    def __init__(self, plan: Plan) -> None:
        self.quant_method, self.plan = _METHOD, plan
        self.error: EngineError | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> WhileLoading:
        return self  # transformers copies its configs, and the error is looked for here

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _METHOD}


@register_quantizer(_METHOD)
class _Quantizer(HfQuantizer):  # type: ignore[misc]  # transformers is untyped
    requires_calibration = False
    quantization_config: WhileLoading

    @property
    def plan(self) -> Plan:
        return self.quantization_config.plan

    def is_serializable(self) -> bool:
        return False  # HqqEngine writes hqq's own format

    @property
    def is_trainable(self) -> bool:
        return False

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        module, _, name = param_name.rpartition(".")
        return name == "weight" and self.plan.reads(module)

    def get_quantize_ops(self) -> _Quantize:
        return _Quantize(self)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self.trimmer = Trimmer()
        if self.plan.tied and self.plan.head_setting is not None:
            model.all_tied_weights_keys.pop(f"{self.plan.head}.weight")

    def quantize(self, model: Any, name: str, weight: torch.Tensor) -> bool:
        """Puts quantised modules in the place of those that this module's weight is for; whether it is used up."""
        plan = self.plan
        if name in plan.linears:
            self._linear(model, name, weight)
            return True
        if plan.tied and plan.head is not None and plan.head_setting is not None:
            self._linear(model, plan.head, weight)
        if plan.embedding_setting is None:
            return False
        if plan.shares and plan.head is not None:
            layer: Any = model.get_submodule(plan.head)
        else:
            layer = HqqLinear(_solved(weight, None, plan.embedding_setting, plan))
        replace_module(model, name, HqqEmbedding(layer, plan.dtype, shared=plan.shares))
        return True

    def _linear(self, model: Any, name: str, weight: torch.Tensor) -> None:
        module, setting = model.get_submodule(name), self.plan.linears[name]
        if type(module) is not nn.Linear:
            return  # a checkpoint may hold a shared weight twice
        bias = module.bias
        layer: HqqLinear | Int4Linear
        if self.plan.backends[name] == "cpu_int4":
            layer = quantized_int4(weight, bias, setting)
        else:  # a GPU's kernels take it over when its bias is there too
            layer = HqqLinear(_solved(weight, bias, setting, self.plan))
        replace_module(model, name, layer)


class _Quantize(ConversionOps):  # type: ignore[misc]  # transformers is untyped
    """What transformers runs on each weight that `param_needs_quantization`, just read."""

    def __init__(self, quantizer: _Quantizer) -> None:
        self._quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: set[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        quantizer, left = self._quantizer, {}
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            name = key.removesuffix(".weight")
            try:
                used_up = quantizer.quantize(model, name, weight)
            except EngineError as error:
                quantizer.quantization_config.error = error
                raise
            quantizer.trimmer.freed(weight.nbytes + _SOLVING)
            if not used_up:
                left[key] = value
            elif missing_keys is not None:
                missing_keys.discard(key)
            if missing_keys is not None and name == quantizer.plan.embedding and quantizer.plan.tied:
                missing_keys.discard(f"{quantizer.plan.head}.weight")
        return left


def _solved(weight: torch.Tensor, bias: nn.Parameter | None, setting: HqqConfig, plan: Plan) -> HqqWeight:
    return HqqWeight.quantized(weight.detach().to(plan.device), bias, setting, plan.dtype)
