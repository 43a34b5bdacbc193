"""Models that run one sequence at a time: what fails, forks or outgrows its cache leaves nothing wrong behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from kani_lite.engines.runtime.attention import Part
from kani_lite.engines.runtime.kv import DynamicKV, SequenceCache
from kani_lite.engines.runtime.runner import PackedRunner, PlainRunner, Runner, make_runner
from tests.engines.runtime.test_families import FAMILIES, SWITCH, WINDOW, Family, generated, prompts, together
from tests.support.runtime import make_generator

PAIR = 2 * 2 * 16 * 4  # bytes: keys and values of one token in one layer, 2 heads of 16 floats each


def runner_of(model: Any, context: int | None = None) -> Runner:
    return make_runner(model, lambda _: DynamicKV(), context)


def after(runner: Runner, *pieces: list[int]) -> tuple[SequenceCache, torch.Tensor]:
    """A new cache that holds these tokens, and the logits after the last."""
    cache = runner.new_cache()
    for piece in pieces:
        logits = runner.forward([Part(cache, piece)])[0]
    return cache, logits


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@contextmanager
def failing(model: Any, call: int) -> Iterator[None]:
    """The model's last module raises when it is called for the `call`th time."""
    left = call

    def fail(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError("the accelerator is full")

    hook = model.get_output_embeddings().register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "name", ["llama-3.3", "gpt-j", "phi-3-128k", "phi-3.5-moe", "qwen-3-next", "mamba", "lfm-2", "rwkv"]
)
def test_a_pass_that_fails_leaves_no_trace(name: str) -> None:
    """All layers have got the new tokens by then: those of the first sequence, or of both."""
    model = FAMILIES[name].make()
    runner = runner_of(model)
    texts, new = [list(range(30)), list(range(100, 120))], [[7, 8, 9], [6]]  # phi-3-128k: the first grows long
    caches = [after(runner, text)[0] for text in texts]
    parts = [Part(cache, ids) for cache, ids in zip(caches, new, strict=True)]
    for call in (1, 2) if not runner.batches else (1,):
        with failing(model, call), pytest.raises(torch.OutOfMemoryError):
            runner.forward(parts)
        assert [cache.length for cache in caches] == [30, 20]
    for found, text, ids in zip(runner.forward(parts), texts, new, strict=True):
        same(found[-1:], after(runner, [*text, *ids])[1])


@pytest.mark.parametrize("name", ["gpt-j", "phi-3-128k", "phi-3.5-moe"])
def test_a_fork_and_its_origin_go_their_own_ways(name: str) -> None:
    runner = runner_of(FAMILIES[name].make())
    assert isinstance(runner, PlainRunner)
    text = prompts()[0]
    cache, _ = after(runner, text[:10], text[10:24])  # longer than the window
    assert cache.can_end_at(24)
    fork = cache.fork(24)
    ways = [(cache, text[24:30]), (fork, text[30:40])]
    for one, ids in ways:
        same(runner.forward([Part(one, ids)])[0], after(runner, [*text[:24], *ids])[1])


@pytest.mark.parametrize("ends", [20, SWITCH, SWITCH + 2])
def test_keys_of_a_long_sequence_serve_no_short_one(ends: int) -> None:
    """longrope turns all of a sequence in another way once it is long: what changes sides is run again."""
    runner = runner_of(FAMILIES["phi-3-128k"].make())
    text = [*prompts()[0], 1, 2]
    for length in (ends, len(text)):
        cache, _ = after(runner, text[:25], text[25:])
        cache.truncate(length)
        same(runner.forward([Part(cache, [9])])[0], after(runner, [*text[:length], 9])[1])
        same(runner.forward([Part(cache, [8, 7])])[0], after(runner, [*text[:length], 9, 8, 7])[1])


@pytest.mark.parametrize(("name", "limit"), [("phi-3-128k", SWITCH), ("internlm-3-dynamic", 512)])
def test_angles_that_depend_on_length_matter_only_beyond_it(name: str, limit: int) -> None:
    model = FAMILIES[name].make()
    short, long = runner_of(model, limit), runner_of(model, limit + 1)
    assert isinstance(short, PackedRunner)
    assert isinstance(long, PlainRunner)
    texts = [text[:limit] for text in prompts()]
    parts = [Part(short.new_cache(), text) for text in texts]
    for found, text in zip(short.forward(parts), texts, strict=True):
        same(found, after(long, text)[1])


def test_a_state_that_does_not_grow_takes_no_memory_of_tokens() -> None:
    """Otherwise a state-space model would seem to have no room for a long prompt."""
    assert runner_of(FAMILIES["llama-3.3"].make()).token_bytes == 3 * PAIR
    assert runner_of(FAMILIES["qwen-3-next"].make()).token_bytes == PAIR  # one of its layers has keys and values
    model = FAMILIES["mamba"].make()
    assert runner_of(model).token_bytes == 1
    generator = make_generator(model, context=600, kv_cache_bytes=100_000)
    text = [3] * 300
    assert together(generator, [text])[0] == [generated(model, text)]
    assert runner_of(model).new_cache().nbytes == 0


def test_a_model_that_forgets_is_run_anew() -> None:
    """As models that bring their own code may: their caches aren't transformers'."""
    model = FAMILIES["llama-3.3"].make()

    class Forgetful(LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped
        _supports_attention_backend = False

        def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
            return super().forward(input_ids, use_cache=False)

    forgetful = Forgetful(model.config).eval()
    forgetful.load_state_dict(model.state_dict())
    generator = make_generator(forgetful, chunk=16)
    assert isinstance(generator.runner, PlainRunner)
    assert "doesn't go on" in generator.runner.attention
    assert together(generator, prompts())[0] == [generated(model, text) for text in prompts()]


def test_a_state_inside_the_modules_is_noticed() -> None:
    """All sequences would share it. RecurrentGemma's differs from its own `generate`, so each step is compared with a
    pass over everything."""
    blocks = {"lru_width": 64, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention", "recurrent"]}
    model = Family("recurrent_gemma", blocks).make()
    generator = make_generator(model, chunk=16)
    assert "doesn't go on" in generator.runner.attention
    texts = prompts()
    for text, reply in zip(texts, together(generator, texts)[0], strict=True):
        logits = model(torch.tensor([[*text, *reply[:-1]]]), use_cache=False).logits[0, len(text) - 1 :]
        assert logits.argmax(-1).tolist() == reply
