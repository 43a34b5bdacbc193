"""The loop over requests: together they get what each gets alone, whatever becomes of the others."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from kani_lite.engines import SamplingParams
from kani_lite.engines.runtime.generator import RuntimeOptions
from kani_lite.engines.runtime.runner import PackedRunner, PlainRunner
from kani_lite.exceptions import EngineError
from tests.support.runtime import EDITS, GREEDY, add, check_warm_is_cold, drain, make_generator, run


def prompts(number: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(300) for _ in range(draw.randint(1, longest))] for _ in range(number)]


def alone(model: Any, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return run(make_generator(model, max_cached_prompts=0), prompt, params).ids


def test_the_reply_is_what_transformers_generates(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama)
    assert isinstance(generator.runner, PackedRunner)
    for prompt in prompts(4):
        ids = torch.tensor([prompt])
        expected = llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert run(generator, prompt).ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("cache", ["bmc", "dynamic", "static"])
def test_together_they_get_what_each_gets_alone(llama: LlamaForCausalLM, cache: str) -> None:
    texts = prompts(9, seed=3)
    expected = [alone(llama, text) for text in texts]
    generator = make_generator(llama, cache=cache, chunk=16)
    sinks = []
    for text in texts:  # they join one after the other
        sinks.append(add(generator, text))
        generator.step()
    drain(generator)
    assert [sink.done.ids for sink in sinks] == expected
    assert all("".join(s for s in sink.items[:-1]) == sink.done.text for sink in sinks)


def test_a_seed_decides_whatever_runs_beside_it(llama: LlamaForCausalLM) -> None:
    sampled = SamplingParams(temperature=1.0, seed=5, max_tokens=20, top_p=0.9)
    text = prompts(1)[0]
    expected = alone(llama, text, sampled)
    generator = make_generator(llama)
    others = [add(generator, other, SamplingParams(temperature=1.3, max_tokens=30)) for other in prompts(5, seed=9)]
    generator.step()
    sink = add(generator, text, sampled)
    drain(generator)
    assert sink.done.ids == expected
    assert all(len(other.done.ids) == 30 for other in others)


@settings(max_examples=25)
@given(edits=EDITS, cache=st.sampled_from(["bmc", "dynamic", "static"]), most=st.sampled_from([None, 1, 3]))
def test_warm_is_cold(llama: LlamaForCausalLM, edits: list[Any], cache: str, most: int | None) -> None:
    warm, cold = (
        make_generator(llama, cache=cache, max_cached_prompts=most),
        make_generator(llama, max_cached_prompts=0),
    )
    check_warm_is_cold(warm, cold, list(range(10, 60)), edits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_is_reused_as_far_as_it_can_be(attention: str) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.3, attn_implementation=attention,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    warm, cold = make_generator(model), make_generator(model, max_cached_prompts=0)
    assert isinstance(warm.runner, PackedRunner if attention == "sdpa" else PlainRunner)
    prompt = list(range(3, 40))
    first = run(warm, prompt)
    longer = [*prompt, *first.ids, 50, 51, 52]
    second = run(warm, longer)
    assert second.cached_tokens == len(prompt) + len(first.ids) - 1
    assert second.ids == run(cold, longer).ids
    changed = [*prompt[:20], 99, 98]
    third = run(warm, changed)
    # transformers' own cache forgets what is behind the window, ours only doesn't look at it
    assert third.cached_tokens == (20 if attention == "sdpa" else 0)
    assert third.ids == run(cold, changed).ids


def test_what_runs_now_is_shared_too(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama, chunk=20)
    system = list(range(100, 160))
    sinks = [add(generator, [*system, i]) for i in range(5)]
    drain(generator)
    assert [sink.done.cached_tokens for sink in sinks] == [0, 60, 60, 60, 60]
    assert [sink.done.ids for sink in sinks] == [alone(llama, [*system, i]) for i in range(5)]


def test_a_long_prompt_does_not_hold_the_others_up(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama, context=500, chunk=40)
    talking = add(generator, [1, 2, 3], SamplingParams(temperature=0, max_tokens=40))
    generator.step()
    add(generator, [5] * 400)
    for _ in range(20):
        before = len(talking.items)
        generator.step()
        assert len(talking.items) == before + 1


def test_an_error_ends_only_its_own_request(llama: LlamaForCausalLM) -> None:
    texts = prompts(6, seed=4)
    texts[3] = [1, 250, 2]
    expected = [alone(llama, text) for text in texts]

    def fail(_module: Any, args: Any) -> None:
        if 250 in args[0]:
            raise RuntimeError("this token breaks the model")

    hook = llama.model.embed_tokens.register_forward_pre_hook(fail)
    try:
        generator = make_generator(llama)
        sinks = [add(generator, text) for text in texts]
        drain(generator)
    finally:
        hook.remove()
    assert isinstance(sinks[3].error, RuntimeError)
    assert [s.done.ids for i, s in enumerate(sinks) if i != 3] == [e for i, e in enumerate(expected) if i != 3]


def test_out_of_memory_runs_in_smaller_pieces(llama: LlamaForCausalLM) -> None:
    texts = prompts(6, seed=5, longest=10)
    expected = [alone(llama, text) for text in texts]

    def fail(_module: Any, args: Any) -> None:
        if args[0].numel() > 8:
            raise torch.OutOfMemoryError("the accelerator is full")

    generator, reads_more = make_generator(llama, chunk=8), make_generator(llama, chunk=16)
    hook = llama.model.embed_tokens.register_forward_pre_hook(fail)
    try:
        sinks = [add(generator, text) for text in texts]
        drain(generator)
        assert [sink.done.ids for sink in sinks] == expected
        alone_too_much = add(reads_more, [3] * 20)
        drain(reads_more)
    finally:
        hook.remove()
    assert isinstance(alone_too_much.error, EngineError)
    assert "memory" in str(alone_too_much.error)


def test_a_cancelled_request_leaves_the_others_alone(llama: LlamaForCausalLM) -> None:
    texts = prompts(4, seed=6)
    expected = [alone(llama, text) for text in texts]
    generator = make_generator(llama)
    sinks = [add(generator, text) for text in texts]
    for _ in range(3):
        generator.step()
    sinks[1].cancelled = True
    drain(generator)
    assert [s.done.ids for i, s in enumerate(sinks) if i != 1] == [e for i, e in enumerate(expected) if i != 1]
    assert run(generator, texts[1]).ids == expected[1]


def test_too_little_memory_makes_requests_wait_and_come_back(llama: LlamaForCausalLM) -> None:
    texts = prompts(8, seed=7, longest=40)
    expected = [alone(llama, text) for text in texts]
    token_bytes = make_generator(llama).runner.token_bytes
    generator = make_generator(llama, cache="dynamic", kv_cache_bytes=90 * token_bytes)
    sinks = [add(generator, text) for text in texts]
    most = 0
    while generator.busy:
        generator.step()
        held = sum(one.cache.nbytes for one in generator._scheduler.running if one.cache)
        most = max(most, held + generator.cache.nbytes)
    assert [sink.done.ids for sink in sinks] == expected
    assert most <= 90 * token_bytes
    too_long = add(generator, [1] * 95)
    with pytest.raises(EngineError, match=r"95 tokens needs .* room for 90 .*kv_cache_memory_gb"):
        _ = too_long.done


def test_kept_prompts_stay_under_the_bound(llama: LlamaForCausalLM) -> None:
    token_bytes = make_generator(llama).runner.token_bytes
    generator = make_generator(llama, cache="dynamic", kv_cache_bytes=150 * token_bytes)
    for text in prompts(12, seed=8):
        run(generator, text)
        generator.step()
        assert generator.cache.nbytes <= 150 * token_bytes
    assert len(generator.cache) > 1


def test_the_pass_is_given_up_half_way_when_nobody_waits(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama)
    sink = add(generator, [1, 2, 3])
    seen = []

    def cancel(*_: Any) -> None:
        sink.cancelled = True

    first = llama.model.layers[0].mlp.register_forward_pre_hook(cancel)
    second = llama.model.layers[1].mlp.register_forward_pre_hook(lambda *_: seen.append(1))
    generator.step()
    drain(generator)
    first.remove()
    second.remove()
    assert not seen
    assert not sink.items
    assert run(generator, [1, 2, 3]).ids == alone(llama, [1, 2, 3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cache": "pagd"}, "cache='pagd' is unknown: give one of bmc, .*paged"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes=0 is too small"),
        ({"max_batch_size": 0}, "max_batch_size=0 .* at least 1"),
        ({"max_cached_prompts": -1}, "max_cached_prompts=-1"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_model_is_loaded(options: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        RuntimeOptions(**options)
