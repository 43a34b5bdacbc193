"""The generator where there is not enough of something: memory, patience, or a result."""

from __future__ import annotations

import random
import threading
from contextlib import aclosing
from typing import Any

import anyio.to_thread
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime import GREEDY, Collected, add, drain, make_generator, run
from transformers import LlamaForCausalLM, TextIteratorStreamer

from kani_lite.engines import NanoEngine, SamplingParams
from kani_lite.exceptions import EngineError

PROMPTS = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=40), min_size=2, max_size=7)


@given(texts=PROMPTS)
@settings(max_examples=25, deadline=None)
def test_a_batch_gives_what_each_gives_alone(llama: LlamaForCausalLM, texts: list[list[int]]) -> None:
    together = make_generator(llama)
    sinks = [add(together, text) for text in texts]
    drain(together)
    assert [sink.done.ids for sink in sinks] == [run(make_generator(llama), text).ids for text in texts]


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_what_never_fits_ends_and_the_other_goes_on(llama: LlamaForCausalLM, order: str) -> None:
    def fail(_module: Any, args: Any) -> None:
        if (args[0] == 250).any():
            raise torch.OutOfMemoryError("full")

    expected = run(make_generator(llama), [4, 5, 6]).ids
    hook = llama.model.embed_tokens.register_forward_pre_hook(fail)
    try:
        generator = make_generator(llama)
        sinks = {name: add(generator, [250, 1, 2] if name == "A" else [4, 5, 6]) for name in order}
        drain(generator, most=200)
    finally:
        hook.remove()
    assert isinstance(sinks["A"].error, EngineError)
    assert sinks["B"].done.ids == expected


def test_prompt_logprobs_of_what_was_put_back(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama, chunk=16)
    add(generator, [1, 2, 3], SamplingParams(temperature=0, max_tokens=40))
    generator.step()
    prompt = list(range(60, 110))
    asked = add(generator, prompt, SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0))
    generator.step()
    assert 0 < generator._scheduler.running[-1].pending < len(prompt), "it is being read"
    assert generator._scheduler.put_back_last()
    drain(generator)
    with torch.no_grad():
        expected = llama(torch.tensor([prompt])).logits[0].log_softmax(-1)
    found = [entry.logprob for entry in asked.done.prompt_logprobs or () if entry is not None]
    assert found == pytest.approx([float(expected[i, t]) for i, t in enumerate(prompt[1:])], abs=1e-3)


@pytest.mark.parametrize(("kind", "rows"), [("bmc", 400), ("dynamic", 400), ("static", 800)])
def test_memory_stays_under_the_bound(llama: LlamaForCausalLM, kind: str, rows: int) -> None:
    token_bytes = make_generator(llama).runner.token_bytes
    generator = make_generator(llama, cache=kind, kv_cache_bytes=rows * token_bytes)
    rng = random.Random(3)
    sinks = [add(generator, [rng.randrange(300) for _ in range(rng.randrange(5, 120))]) for _ in range(14)]
    most = 0
    while generator.busy:
        generator.step()
        held = sum(one.cache.nbytes for one in generator._scheduler.running if one.cache)
        most = max(most, held + generator.cache.nbytes)
    assert all(sink.done.ids for sink in sinks)
    assert most <= rows * token_bytes


class Ends:
    """A streamer that counts its ends."""

    def __init__(self) -> None:
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        return

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_ends_whatever_happens(llama: LlamaForCausalLM) -> None:
    generator = make_generator(llama)
    whole, cancelled, refused, failed = streamers = [Ends() for _ in range(4)]
    add(generator, [1, 2], streamer=whole)
    sink: Collected = add(generator, [3, 4], streamer=cancelled)
    add(generator, [1] * 500, streamer=refused)
    generator.step()
    sink.cancelled = True
    drain(generator)
    add(generator, [5, 6], streamer=failed)
    generator.step()
    generator.fail_all(EngineError("closed"))
    assert [streamer.ends for streamer in streamers] == [1, 1, 1, 1]


async def test_a_reader_of_a_streamer_does_not_wait_for_ever() -> None:
    engine = await anyio.to_thread.run_sync(NanoEngine)
    streamer = TextIteratorStreamer(engine.tokenizer, timeout=30)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.extend(streamer))
    reader.start()
    async with aclosing(engine.generations("hello", streamer=streamer, max_tokens=200, ignore_eos=True)) as stream:
        async for _ in stream:
            break
    await engine.close()
    await anyio.to_thread.run_sync(reader.join, 20)
    assert not reader.is_alive()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_what_generate_gives(llama: LlamaForCausalLM, dtype: torch.dtype) -> None:
    half = LlamaForCausalLM(llama.config).eval()
    half.load_state_dict(llama.state_dict())
    half = half.to(dtype)
    prompt = [3, 9, 27, 81, 243]
    expected = half.generate(
        torch.tensor([prompt]), max_new_tokens=GREEDY.max_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt) :].tolist()
    generator = make_generator(half, pack_weights=False)
    assert run(generator, prompt).ids == expected
