"""Llama-like models as llama.cpp has them: the settings, the tensors' names, and the order of their rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kani_lite.exceptions import EngineError

from .weights import StoredTensor

Array = NDArray[np.float32]

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""The classes of transformers that are converted, and llama.cpp's name for each."""

_NO_LENGTH = 10**9  # tokenizers without a length say 1e30, as for HuggingEngine
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new file: its shape, and how to make its values."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], Array]


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that its settings and the order of its rows need."""

    architecture: str
    context: int
    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    head: int


def model_shape(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any] | None = None) -> Shape:
    """Raises EngineError for a model that isn't Llama-like, or whose context length neither config says."""
    names = config.get("architectures") or ["(none)"]
    architecture = ARCHITECTURES.get(names[0])
    if architecture is None:
        raise EngineError(
            f"A {names[0]} can't be converted to GGUF here, only {', '.join(ARCHITECTURES)}: use the converter of "
            "llama.cpp for others."
        )
    for name, wanted in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0), ("quantization_config", None)):
        if config.get(name, wanted) != wanted:
            raise EngineError(f"Its config has {name}={config[name]!r}, which can't be converted to GGUF here.")
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Shape(
        architecture,
        _context_length(config, tokenizer_config or {}),
        width,
        int(config["num_hidden_layers"]),
        int(config["intermediate_size"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or width // heads),
    )


def _context_length(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int:
    given = (config.get("max_position_embeddings"), tokenizer_config.get("model_max_length"))
    length = next((each for each in given if isinstance(each, int) and 0 < each < _NO_LENGTH), None)
    if length is None:
        raise EngineError(
            f"The context length isn't known: the config has max_position_embeddings={given[0]!r}; write into it how "
            "many tokens the model was trained for."
        )
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    # llama.cpp has no window for these; within its length there is none to be had
    return min(length, int(window)) if window and int(window) > 0 else length


def add_settings(writer: Any, config: Mapping[str, Any], shape: Shape, generation: Mapping[str, Any]) -> None:
    """Writes the keys of the architecture and of how its authors sample. Raises EngineError for a kind of rope that
    isn't known here."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    rope = rope_settings(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(_scaling("linear"))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    _add_sampling(writer, generation)


def _scaling(name: str) -> Any:
    from gguf import RopeScalingType

    return RopeScalingType(name)


def _add_sampling(writer: Any, generation: Mapping[str, Any]) -> None:
    sampled = bool(generation.get("do_sample"))
    writer.add_sampling_temp(float(generation.get("temperature") or 1.0) if sampled else 0.0)
    for name, add in (
        ("top_k", writer.add_sampling_top_k),
        ("top_p", writer.add_sampling_top_p),
        ("min_p", writer.add_sampling_min_p),
    ):
        if sampled and generation.get(name) is not None:
            add(generation[name])
    if generation.get("repetition_penalty"):
        writer.add_sampling_penalty_repeat(float(generation["repetition_penalty"]))


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope of a config of transformers 4 or 5, with its type and theta."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.setdefault("rope_type", given.get("type", "default"))
    given.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if kind not in ("default", "linear", "llama3"):
        raise EngineError(f"Its positions are scaled by {kind!r}, which can't be converted to GGUF here.")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise EngineError("It rotates only a part of each head, which can't be converted to GGUF here.")
    return given


def new_tensors(stored: Mapping[str, StoredTensor], config: Mapping[str, Any], shape: Shape) -> Iterator[NewTensor]:
    """All tensors of the new file. Raises EngineError for one that has no place in it, or that is missing."""
    tied = bool(config.get("tie_word_embeddings"))
    made = set()
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        new = _new_name(name)
        made.add(new)
        heads = _rotated_heads(new, shape)
        yield NewTensor(new, tensor.shape, partial(_values, tensor, heads))
    wanted = {"token_embd.weight", "output_norm.weight", *([] if tied else ["output.weight"])}
    parts = [
        part for part in _LAYER.values() if not part.endswith(("q_norm", "k_norm")) or shape.architecture == "qwen3"
    ]
    wanted |= {f"blk.{layer}.{part}.weight" for layer in range(shape.layers) for part in parts}
    if missing := sorted(wanted - made):
        raise EngineError(
            f"The model's files have nothing for {missing[0]!r} ({len(missing)} missing): fetch it again."
        )
    rope = rope_settings(config)
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(rope, shape.head)
        yield NewTensor("rope_freqs.weight", factors.shape, lambda: factors)


def _new_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if module in _TOP:
            return f"{_TOP[module]}.{kind}"
        if (found := _IN_LAYER.fullmatch(module)) and found[2] in _LAYER:
            return f"blk.{found[1]}.{_LAYER[found[2]]}.{kind}"
    raise EngineError(f"The tensor {name!r} is none that such a model has in GGUF: it can't be converted here.")


def _rotated_heads(name: str, shape: Shape) -> int:
    """The heads whose rows llama.cpp's Llama has in another order; 0 where the order is the same."""
    if shape.architecture != "llama":
        return 0
    return {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2], 0)


def _values(tensor: StoredTensor, heads: int) -> Array:
    return _rows_for_llama(tensor.read(), heads) if heads else tensor.read()


def _rows_for_llama(values: Array, heads: int) -> Array:
    """Rows (or biases) of q or k, (heads * head, ...): transformers rotates the halves of a head against each other,
    llama.cpp's Llama neighbours (Su et al. 2021, section 3.2.2), so the two halves are interleaved."""
    rest = values.shape[1:]
    halves = values.reshape(heads, 2, -1, *rest)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def llama3_factors(rope: Mapping[str, Any], head: int) -> Array:
    """(head / 2,): what each frequency is divided by in Llama 3.1 and later."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** -(np.arange(0, head, 2, dtype=np.float64) / head)
    lengths = 2 * math.pi / frequencies
    smooth = np.clip((trained / lengths - low) / (high - low), 0.0, 1.0)
    made: Array = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return made
