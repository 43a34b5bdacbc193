"""Whether a model computes what the fused step computes, read from its modules' own code.

Many families copy Llama's layers to the letter, and many change one line of them. Names tell neither, so the bytecode
of each `forward` is compared with that of the families whose layers the fused step was written after.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from kani_lite.engines.quantization.int4 import Int4Linear
from kani_lite.engines.quantization.int8 import Int8Linear

from .linear import PackedLinear

LINEARS = (nn.Linear, PackedLinear, Int4Linear, Int8Linear)
_ATTENTIONS = (llama.LlamaAttention, mistral.MistralAttention, qwen2.Qwen2Attention, qwen3.Qwen3Attention)
_BY_LENGTH = ("dynamic", "longrope")  # rotary embeddings whose angles aren't a matter of the position alone
_MODELS = (llama.LlamaModel, mistral.MistralModel, qwen2.Qwen2Model)


def is_llama_like(model: Any) -> bool:
    """Whether all modules of a causal language model are such as the fused step replaces, and nothing else is in them:
    no adapters, no hooks, no `forward` of their own."""
    body: Any = getattr(model, "model", None)
    if not (_runs(model, llama.LlamaForCausalLM) and _runs(body, *_MODELS)):
        return False
    if _has_own_forward(model) or any(_hooks(model)) or not _runs(body.rotary_emb, llama.LlamaRotaryEmbedding):
        return False
    if body.rotary_emb.rope_type in _BY_LENGTH:
        return False
    return _runs(body.norm, llama.LlamaRMSNorm) and all(_is_layer(layer) for layer in body.layers)


def _is_layer(layer: Any) -> bool:
    if not _runs(layer, llama.LlamaDecoderLayer):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if not (_runs(attention, *_ATTENTIONS) and _runs(mlp, llama.LlamaMLP)):
        return False
    theirs, ours = _globals_of(attention), _globals_of(llama.LlamaAttention)
    if not all(_same(theirs[name], ours[name]) for name in ("apply_rotary_pos_emb", "rotate_half")):
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if _runs(attention, qwen3.Qwen3Attention):
        norms += [attention.q_norm, attention.k_norm]
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return all(_runs(norm, llama.LlamaRMSNorm) for norm in norms) and all(type(x) in LINEARS for x in linears)


def _runs(module: Any, *kinds: type) -> bool:
    """Whether the module's `forward` is that of one of these classes, copied or inherited."""
    return isinstance(module, nn.Module) and any(_same(type(module).forward, kind.forward) for kind in kinds)  # type: ignore[attr-defined]  # modules all


def _globals_of(module: Any) -> dict[str, Any]:
    function: Any = inspect.unwrap(module.forward)
    return getattr(function, "__func__", function).__globals__  # type: ignore[no-any-return]  # of a function found so


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions, under their decorators, are the same code."""
    codes = [getattr(inspect.unwrap(function), "__code__", None) for function in (one, other)]
    return all(codes) and _essence(codes[0]) == _essence(codes[1])  # type: ignore[arg-type]  # none is None


def _essence(code: CodeType) -> tuple[Any, ...]:
    """What of a function's code decides what it does: not its place in a file, nor its docstring."""
    constants = code.co_consts
    if constants and isinstance(constants[0], str | None):
        constants = constants[1:]
    inner = tuple(_essence(value) if isinstance(value, CodeType) else value for value in constants)
    return code.co_code, code.co_names, code.co_varnames, inner


def _has_own_forward(model: nn.Module) -> bool:
    return any("forward" in vars(module) for module in model.modules())


def _hooks(model: nn.Module) -> Iterator[dict[int, Any]]:
    """Where hooks that a forward pass would run are kept."""
    yield torch_module._global_forward_hooks
    yield torch_module._global_forward_pre_hooks
    for module in model.modules():
        yield module._forward_hooks
        yield module._forward_pre_hooks


class Watch:
    """Notices that a model isn't any more what `is_llama_like` saw: an adapter or a hook may come at any time."""

    def __init__(self, model: nn.Module) -> None:
        self._hooks = list(_hooks(model))
        self._attributes = [vars(module) for module in model.modules()]
        self._children = [module._modules for module in model.modules() if module._modules]
        self._known = [dict(children) for children in self._children]
        layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
        self._weights = [(layer, layer.ready()[0]) for layer in layers]

    def unchanged(self) -> bool:
        """Asked before each pass, so it takes some ten microseconds and not more."""
        if any(self._hooks) or any("forward" in attributes for attributes in self._attributes):
            return False
        return self._children == self._known and all(layer.packed is weight for layer, weight in self._weights)
