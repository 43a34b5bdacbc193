"""Every family that we promise, as a tiny random model: many prompts together get what `generate` writes of each."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kani_lite.engines import SamplingParams
from kani_lite.engines.runtime.attention import Part
from kani_lite.engines.runtime.generator import Generator
from kani_lite.engines.runtime.runner import PackedRunner, PlainRunner, Runner
from tests.support.runtime import add, drain, make_generator

NEW = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW)
CHUNK = 16
# longer than what `make_runner` tries out: only these prompts can show that a window is missing
WINDOW = 12
SWITCH = 32  # where longrope changes its angles: some prompts are shorter, some longer, some replies cross it

PACKED = "packed"
# `_supports_attention_backend` is False: the attention is written into the layer, nothing can be put in its place
FIXED = "can't be replaced"
# several sequences in one row are one long sequence to it, and its angles depend on that length
LENGTH = "rotary embedding"
# state-space, convolution and linear attention layers mix neighbours in the row, whoever they belong to
STATES = "other things than keys and values"
# transformers 5.23 passes no `sliding_window` to these models' attention, only a mask that packing can't use
MASK_ONLY = "isn't told its window"
# it has a cache of its own kind: each step runs everything
OWN_STATE = "doesn't go on from transformers' caches"


@dataclass(frozen=True)
class Family:
    """`runs`: PACKED, or why not. `reuses`: whether a later prompt can take over what an earlier one computed."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    runs: str = PACKED
    reuses: bool = True

    def make(self, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)
        sizes = GPTJ_SIZES if self.kind == "gptj" else SIZES
        config = AutoConfig.for_model(self.kind, **(COMMON | sizes | self.config))
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


COMMON = {
    "vocab_size": 300,
    "initializer_range": 0.3,  # spread the logits: ties would make two ways differ by rounding
    "tie_word_embeddings": False,  # tied ones make random models repeat their last token for ever
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPTJ_SIZES = {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 512}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HEADS = {"head_dim": 16}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "factor": 16.0,
    "original_max_position_embeddings": SWITCH,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LATENT = {  # DeepSeek: keys are larger than values, and both come from a small latent
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

FAMILIES = {
    "opt": Family("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "opt-350m": Family(  # the one that normalises after, and has a narrower embedding
        "opt", {"ffn_dim": 96, "word_embed_proj_dim": 32, "initializer_range": 0.1, "do_layer_norm_before": False}
    ),
    "llama-2": Family("llama", {"num_key_value_heads": 4}),
    "llama-3.3": Family("llama", {"rope_parameters": LLAMA3}),
    "gpt-j": Family("gptj", runs=FIXED),
    "phi-2": Family("phi", {"partial_rotary_factor": 0.5}),
    "phi-3": Family("phi3", {"sliding_window": WINDOW}),
    "phi-3-128k": Family("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": SWITCH}, runs=LENGTH),
    "phi-3.5-moe": Family("phimoe", EXPERTS | {"sliding_window": WINDOW}, runs=MASK_ONLY),
    "phi-4": Family("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0}}),
    "phi-4-mini": Family(
        "phi3",
        {"partial_rotary_factor": 1.0, "rope_parameters": LONG, "original_max_position_embeddings": SWITCH},
        runs=LENGTH,
    ),
    "qwen-2": Family("qwen2"),
    "qwen-2.5": Family("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen-3": Family("qwen3", HEADS),
    "qwen-3-moe": Family("qwen3_moe", HEADS | SMALL_EXPERTS),
    "qwen-3-next": Family("qwen3_next", HEADS | SMALL_EXPERTS | LINEAR, runs=FIXED, reuses=False),
    "mistral": Family("mistral", {"sliding_window": WINDOW}),
    "mixtral": Family("mixtral", EXPERTS),
    # transformers writes soft capping and sinks out ("eager"), torch's kernel lacks both: so does packed attention
    "gemma-2": Family("gemma2", HEADS | MIXED | {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 4.0}),
    "gemma-3": Family("gemma3_text", HEADS | MIXED | {"query_pre_attn_scalar": 24}),
    "gpt-oss": Family("gpt_oss", HEADS | MIXED | EXPERTS | {"rope_parameters": YARN}),
    "deepseek-v3": Family(
        "deepseek_v3", LATENT | ROUTED | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}
    ),
    "glm": Family("glm", HEADS | {"partial_rotary_factor": 0.5}),
    "glm-4": Family("glm4", HEADS | {"partial_rotary_factor": 0.5}),
    "glm-4-moe": Family("glm4_moe", HEADS | ROUTED | {"partial_rotary_factor": 0.5}),
    # transformers has its config and runs it as a Llama; the published one has a dynamic rotary embedding
    "internlm-3": Family("internlm3", HEADS),
    "internlm-3-dynamic": Family(
        "internlm3",
        HEADS | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e4, "factor": 6.0}},
    ),
    "mamba": Family("mamba", {"state_size": 8}, runs=FIXED, reuses=False),
    "lfm-2": Family("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, runs=STATES, reuses=False),
    "rwkv": Family("rwkv", {"attention_hidden_size": 64}, runs=OWN_STATE, reuses=False),
}
EACH = pytest.mark.parametrize("name", FAMILIES)


LONE = slice(3, None)  # those of the prompts that share nothing with others


def prompts() -> list[list[int]]:
    """Of all lengths, from one token to three chunks. The first begins like the next two, which start while it is
    still being read, or just after."""
    draw = random.Random(1)
    first, *others = [[draw.randrange(300) for _ in range(length)] for length in (40, 3, 17, 28, 1, 33)]
    return [first, [*first[:38], 7, 8, 9], [*first, 5], *others]


def generated(model: Any, prompt: list[int], new: int = NEW) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0)
    return [int(token) for token in out[0, len(prompt) :]]


def together(generator: Generator, texts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The replies, and how many tokens of each prompt were not computed again."""
    sinks = [add(generator, text, GREEDY) for text in texts]
    drain(generator)
    return [sink.done.ids for sink in sinks], [sink.done.cached_tokens for sink in sinks]


def check_runner(runner: Runner, family: Family) -> None:
    if family.runs == PACKED:
        assert type(runner) is PackedRunner, runner.attention
        assert "packed" in runner.attention
    else:
        assert type(runner) is PlainRunner
        assert family.runs in runner.attention


@EACH
def test_a_family_writes_what_transformers_generates(name: str) -> None:
    family = FAMILIES[name]
    model = family.make()
    generator = make_generator(model, chunk=CHUNK)
    check_runner(generator.runner, family)

    texts = prompts()
    expected = [generated(model, text) for text in texts]
    assert len({token for reply in expected for token in reply}) > 15  # not one token again and again
    replies, _ = together(generator, texts)
    assert replies == expected

    # a second round, which continues the first; then one that was edited; each reuses what it can
    later = [[*text, *reply, 9, 8, 7] for text, reply in zip(texts, replies, strict=True)]
    cold = make_generator(model, chunk=CHUNK, max_cached_prompts=0)
    expected, _ = together(cold, later)
    assert expected == [generated(model, text) for text in later]
    replies, cached = together(generator, later)
    assert replies == expected
    assert cached[LONE] == [len(text) + NEW - 1 if family.reuses else 0 for text in texts[LONE]]
    edited = [[*text[: len(text) // 2], 11, 12] for text in later]
    assert together(generator, edited)[0] == [generated(model, text) for text in edited]


@pytest.mark.parametrize("name", ["llama-3.3", "gpt-oss"])
def test_a_family_runs_in_bfloat16(name: str) -> None:
    family = FAMILIES[name]
    model = family.make(torch.bfloat16)
    generator = make_generator(model, chunk=CHUNK)
    check_runner(generator.runner, family)
    texts = prompts()
    parts = [Part(generator.runner.new_cache(), text, len(text)) for text in texts]
    for text, found in zip(texts, generator.runner.forward(parts), strict=True):
        expected = model(torch.tensor([text])).logits[0]
        assert found.dtype == expected.dtype == torch.bfloat16
        assert found.isfinite().all()
        assert (found - expected).float().abs().mean() < 0.02 * expected.float().std()
    replies, _ = together(generator, texts)
    assert [reply[:1] for reply in replies] == [generated(model, text, 1) for text in texts]
