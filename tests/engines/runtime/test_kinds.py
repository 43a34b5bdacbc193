"""Kinds of memory for keys and values: the same replies with each, and nothing left behind."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from kani_lite.engines.runtime.generator import Generator
from kani_lite.engines.runtime.kinds import CacheKind
from kani_lite.engines.runtime.kv_blocks import BlockPools
from kani_lite.engines.runtime.kv_shapes import layer_shapes
from kani_lite.engines.runtime.runner import PackedRunner
from kani_lite.exceptions import EngineError
from tests.engines.runtime.conftest import MakeLlama
from tests.support.runtime import EDITS, add, check_warm_is_cold, drain, make_generator, run

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3, "eos_token_id": None,
    "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def exact_llama(make_llama: MakeLlama) -> LlamaForCausalLM:
    """In fp64: what differs in the last bit between a long and a short pass in fp32 would now and then be rounded to
    another code."""
    return make_llama().double()


@pytest.fixture(scope="session")
def mild_llama(make_llama: MakeLlama) -> LlamaForCausalLM:
    """Small weights, so that what 4 bits lose is not taken for an error of packed attention."""
    return make_llama(initializer_range=0.02).double()


@pytest.fixture(scope="session")
def mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=16)).eval()


@pytest.fixture(scope="session")
def gemma() -> Gemma3ForCausalLM:
    """Layers with a window and one without."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    values = SMALL | {"num_hidden_layers": 3, "head_dim": 32}
    return Gemma3ForCausalLM(Gemma3TextConfig(**values, sliding_window=20, layer_types=kinds)).eval()


@pytest.fixture(scope="session")
def deepseek() -> DeepseekV3ForCausalLM:
    """Keys of 24 numbers, values of 16."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **SMALL, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=32,
        first_k_dense_replace=1,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config).eval()


def texts(number: int, seed: int, longest: int = 60) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(300) for _ in range(draw.randint(1, longest))] for _ in range(number)]


def held(generator: Generator) -> int:
    """Blocks that somebody holds when all is over."""
    assert isinstance(generator.runner, PackedRunner)
    generator.cache.clear()
    pools = generator.runner._new_layer
    assert isinstance(pools, BlockPools)
    assert pools.pools
    return pools.held


# (the model's fixture, the kind, the kind to compare with: the same where what is kept is not exact)
CASES = [
    ("llama", "paged", "dynamic"),
    ("llama", "slab", "dynamic"),
    ("exact_llama", "quantized", "quantized"),
    ("mild_llama", "quantized-4bit", "quantized-4bit"),
    ("mistral", "sliding", "dynamic"),
    ("gemma", "sliding", "dynamic"),
    ("deepseek", "paged", "dynamic"),
    ("deepseek", "slab", "dynamic"),
    ("deepseek", "static", "dynamic"),
]


@pytest.mark.parametrize(("model", "cache", "like"), CASES)
def test_together_they_get_what_each_gets_alone(
    model: str, cache: str, like: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(model)
    prompts = texts(7, seed=3, longest=150)
    cold = make_generator(found, cache=like, max_cached_prompts=0)
    expected = [run(cold, text).ids for text in prompts]
    generator = make_generator(found, cache=cache, chunk=16)
    assert isinstance(generator.runner, PackedRunner)
    sinks = []
    for text in prompts:
        sinks.append(add(generator, text))
        generator.step()
    drain(generator)
    assert [sink.done.ids for sink in sinks] == expected
    if cache in {"paged", "slab"}:
        assert held(generator) == 0


@pytest.mark.parametrize(("model", "cache", "like"), CASES[:6])
@settings(max_examples=10)
@given(edits=EDITS, most=st.sampled_from([None, 1, 3]), chunk=st.sampled_from([7, 512]))
def test_warm_is_cold(
    model: str, cache: str, like: str, edits: list[Any], most: int | None, chunk: int, request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(model)
    warm = make_generator(loaded, cache=cache, max_cached_prompts=most, chunk=chunk)
    cold = make_generator(loaded, cache=like, max_cached_prompts=0)
    check_warm_is_cold(warm, cold, list(range(10, 150)), edits)
    if cache in {"paged", "slab"}:
        assert held(warm) == 0


@pytest.mark.parametrize(("cache", "room"), [("paged", 96), ("slab", 6 * 32)])
def test_a_full_pool_makes_requests_wait_and_come_back(llama: LlamaForCausalLM, cache: str, room: int) -> None:
    prompts = texts(8, seed=7, longest=40)
    cold = make_generator(llama, context=60, cache="dynamic", max_cached_prompts=0)
    expected = [run(cold, text).ids for text in prompts]
    token_bytes = cold.runner.token_bytes
    generator = make_generator(llama, context=60, cache=cache, kv_cache_bytes=room * token_bytes)
    sinks = [add(generator, text) for text in prompts]
    drain(generator)
    assert [sink.done.ids for sink in sinks] == expected
    assert held(generator) == 0
    too_long = add(generator, [1] * room)
    with pytest.raises(EngineError, match="kv_cache_memory_gb"):
        _ = too_long.done


def test_a_pool_that_is_full_before_its_time_puts_requests_back(llama: LlamaForCausalLM) -> None:
    """The scheduler counts bytes, the pool whole blocks: here it has half of what the scheduler believes."""
    prompts = texts(8, seed=7, longest=40)
    cold = make_generator(llama, cache="dynamic", max_cached_prompts=0)
    generator = make_generator(llama, cache="paged", kv_cache_bytes=160 * cold.runner.token_bytes)
    assert isinstance(generator.runner, PackedRunner)
    generator.runner._new_layer = BlockPools(16, 5, together=False)
    sinks = [add(generator, text) for text in prompts]
    drain(generator)
    assert [sink.done.ids for sink in sinks] == [run(cold, text).ids for text in prompts]
    assert held(generator) == 0


def test_one_request_may_fill_the_pool(llama: LlamaForCausalLM) -> None:
    token_bytes = make_generator(llama).runner.token_bytes
    generator = make_generator(llama, cache="paged", kv_cache_bytes=99 * token_bytes)
    kept, long = texts(1, seed=1)[0], list(range(85))
    run(generator, kept)  # has to go
    expected = run(make_generator(llama, max_cached_prompts=0), long).ids
    found = run(generator, long)
    assert found.ids == expected[:11]  # 96 tokens are six blocks
    assert found.finish_reason == "length"
    assert held(generator) == 0


def test_a_system_prompt_is_held_once(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama, cache="paged")
    system = list(range(100, 196))
    sinks = [add(generator, [*system, i]) for i in range(5)]
    drain(generator)
    assert [sink.done.cached_tokens for sink in sinks] == [0, 96, 96, 96, 96]
    assert isinstance(generator.runner, PackedRunner)
    pools = generator.runner._new_layer
    assert isinstance(pools, BlockPools)
    assert pools.held == 2 * (6 + 5)  # layers, blocks of the system prompt and of the five ends
    bytes_held = 2 * 11 * 16 * generator.runner.token_bytes / 2
    assert generator.cache.nbytes == pytest.approx(bytes_held, abs=10)


def test_an_error_leaves_no_block_behind(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama, cache="paged")
    sinks = [add(generator, text) for text in texts(4, seed=2)]
    generator.step()
    sinks[1].cancelled = True

    def fail(*_: Any) -> None:
        raise RuntimeError("half way")

    hook = llama.model.layers[1].mlp.register_forward_pre_hook(fail)
    try:
        generator.step()
    finally:
        hook.remove()
    drain(generator)
    assert all(sink.error or sink.cancelled for sink in sinks)
    assert held(generator) == 0


def test_a_window_is_forgotten_and_the_rest_kept(mistral: MistralForCausalLM, gemma: Gemma3ForCausalLM) -> None:
    for model, kept_less in ((mistral, 3), (gemma, 2)):
        sliding, whole = (
            make_generator(model, context=1000, cache=cache, max_batch_size=1) for cache in ("sliding", "dynamic")
        )
        for generator in (sliding, whole):
            run(generator, [i % 300 for i in range(900)])
            run(generator, [i % 300 for i in range(900)] + [1] * 40)
        assert sliding.cache.nbytes * kept_less < whole.cache.nbytes * 1.1


def test_what_a_window_forgot_is_computed_again(mistral: MistralForCausalLM) -> None:
    warm, cold = (
        make_generator(mistral, context=500, cache=cache, max_cached_prompts=most)
        for cache, most in (("sliding", None), ("dynamic", 0))
    )
    ids = [i % 300 for i in range(400)]
    run(warm, ids)
    run(warm, [*ids, *range(20)])
    for changed, cached in (([*ids[:390], 5, 6], 390), ([*ids[:100], 5], 0)):
        found = run(warm, changed)
        assert found.cached_tokens == cached
        assert found.ids == run(cold, changed).ids


def test_the_shapes_are_the_models_own(
    gemma: Gemma3ForCausalLM, deepseek: DeepseekV3ForCausalLM, llama: LlamaForCausalLM
) -> None:
    assert [shape.window for shape in layer_shapes(gemma).values()] == [20, None, 20]
    found = layer_shapes(deepseek)[1]
    assert (found.kv_heads, found.key_dim, found.value_dim) == (2, 24, 16)
    shapes = layer_shapes(llama)
    assert sum(shape.token_bytes for shape in shapes.values()) == make_generator(llama).runner.token_bytes


@pytest.mark.parametrize("cache", ["bmc", "dynamic", "paged", "quantized", "quantized-4bit", "slab", "static"])
def test_rows_are_what_a_sequence_takes(mild_llama: LlamaForCausalLM, cache: str) -> None:
    generator = make_generator(mild_llama, cache=cache)
    kind = CacheKind.named(cache, mild_llama, 200, None)
    for length in (1, 15, 16, 17, 100, 185):
        generator.cache.clear()
        ids = [i % 300 for i in range(length)]
        run(generator, ids)
        tokens = length + 11  # the last one's keys are not computed
        taken = generator.cache.nbytes / generator.runner.token_bytes
        assert taken <= kind.rows(tokens) < taken + 1


def test_rows_of_a_window(gemma: Gemma3ForCausalLM) -> None:
    generator = make_generator(gemma, context=1000, cache="sliding")
    kind = CacheKind.named("sliding", gemma, 1000, None)
    for length in (10, 100, 400, 800):
        generator.cache.clear()
        run(generator, [i % 300 for i in range(length)])
        taken = generator.cache.nbytes / generator.runner.token_bytes
        assert kind.rows(length + 11) >= taken * 0.6  # all but those of the pass at hand, up to 512
    assert kind.rows(900) < 600
    assert kind.rows(1) >= 1


@pytest.mark.parametrize(
    ("cache", "memory", "said"),
    [
        ("paged2", None, "unknown: give one of bmc, dynamic, paged, quantized, quantized-4bit, slab, sliding, static"),
        ("sliding", None, "no layer of this model has one .* give cache='bmc'"),
        (
            "static",
            10_000,
            "200 tokens take .* bytes and the bound is 10,000.* smaller max_context_size, or cache='bmc'",
        ),
        ("slab", 10_000, "at least 2 blocks of 128 tokens, .* bytes, .* 10,000: give a larger kv_cache_memory_gb"),
        ("paged", 10_000, "at least 2 blocks of 16 tokens"),
    ],
)
def test_what_cannot_be_is_refused(llama: LlamaForCausalLM, cache: str, memory: int | None, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        make_generator(llama, cache=cache, kv_cache_bytes=memory)


def test_heads_of_an_odd_size_are_not_put_into_4_bits() -> None:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **SMALL, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=15,
        n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, moe_intermediate_size=32,
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"24 \(keys\) and 15 \(values\), which must be even: give cache='quantized'"):
        make_generator(DeepseekV3ForCausalLM(config).eval(), cache="quantized-4bit")


def test_attention_that_cannot_be_replaced_keeps_its_own_cache() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config).eval()
    with pytest.raises(EngineError, match=r"cache='paged' keeps what attention is given.* leave cache= out"):
        make_generator(model, cache="paged")
