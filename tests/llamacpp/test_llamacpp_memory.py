"""Keys and values: what is known is not computed again, whatever the memory, and replies stay the same."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.exceptions import EngineError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}
TOKEN = 5 * 2 * 256 * 4 / 2**30  # GB of the keys and values of a token, in f32
QUERIES = ["My name is Ben.", "What is my name?", "What can you do?", "Thank you!"]


def get_price(product: str) -> str:
    """Get the price of a product."""
    return f"The price of {product} is 6 euros."


def prompt(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


async def test_a_chat_computes_only_what_is_new(build_later: Callable[..., Any]) -> None:
    warm, cold = await build_later(), await build_later(max_cached_prompts=0)
    chats = [Kani(each, functions=[AIFunction(get_price)], retry_attempts=0) for each in (warm, cold)]
    for query in QUERIES:
        replies = [[m.text async for m in ai.full_round(query, **GREEDY)] for ai in chats]
        assert replies[0] == replies[1]
    messages = [*chats[0].chat_history, ChatMessage.user("And now?")]
    done = [
        await each.predict([m.copy_with() for m in messages], [AIFunction(get_price)], **GREEDY)
        for each in (warm, cold)
    ]
    assert done[0].message.text == done[1].message.text
    assert done[1].cached_tokens == 0
    assert done[0].cached_tokens > 0.8 * done[0].prompt_tokens
    for each in (warm, cold):
        await each.close()


async def test_other_chats_share_their_beginning(build_later: Callable[..., Any]) -> None:
    engine = await build_later()
    system = ChatMessage.system("You are Nano. " + "You answer in a few words. " * 20)
    first = await engine.predict([system, ChatMessage.user("hello")], **GREEDY)
    second = await engine.predict([system, ChatMessage.user("What can you do?")], **GREEDY)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= engine.message_len(system)
    again = await engine.predict([system, ChatMessage.user("hello")], **GREEDY)
    assert again.cached_tokens >= second.cached_tokens
    assert again.message.text == first.message.text
    await engine.close()


async def test_prompts_longer_than_a_batch(build_later: Callable[..., Any], engine: Any) -> None:
    small = await build_later(model_load_kwargs={"n_batch": 16, "n_ubatch": 8, "type_k": "f32", "type_v": "f32"})
    text = prompt("My name is Ben. " * 30 + "What is my name?")
    asked = {**GREEDY, "prompt_logprobs": 1}
    [one], [other] = [(await each.generate(text, **asked)).choices for each in (small, engine)]
    await small.close()
    assert one.text == other.text
    assert [p and p.token for p in one.prompt_logprobs] == [p and p.token for p in other.prompt_logprobs]
    assert len(one.prompt_logprobs) == len(engine.encode(text)) > 100


async def test_requests_wait_where_there_is_no_room_for_all(build_later: Callable[..., Any], engine: Any) -> None:
    """256 cells for eight replies of 80 tokens: some begin later."""
    tight = await build_later(max_context_size=200, kv_cache_memory_gb=256 * TOKEN, max_cached_prompts=2)
    prompts = [prompt(f"I am {name}. " * 6 + "Tell me about me.") for name in "ABCDEFGH"]
    asked = {"temperature": 0.0, "max_tokens": 80, "ignore_eos": True}
    alone = [(await engine.generate(each, **asked)).ids for each in prompts]
    together = [each.ids for each in await tight.generate_batch(prompts, **asked)]
    assert together == alone
    await tight.close()


async def test_a_request_begins_again_where_older_ones_need_its_room(
    build_later: Callable[..., Any], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """768 cells, and two replies that are longer than what was kept for them."""
    tight = await build_later(max_context_size=600, kv_cache_memory_gb=768 * TOKEN, max_cached_prompts=0)
    dropped: list[int] = []
    pool = tight._generator._pool
    drop = pool.drop
    monkeypatch.setattr(pool, "drop", lambda slot: (dropped.append(len(slot.ids)), drop(slot)))
    prompts = [prompt(f"I am {name}. Tell me about me.") for name in "AB"]
    asked = {"temperature": 0.0, "max_tokens": 450, "ignore_eos": True}
    alone = [(await engine.generate(each, **asked)).ids for each in prompts]
    together = [each.ids for each in await tight.generate_batch(prompts, **asked)]
    await tight.close()
    assert together == alone
    assert len(dropped) == 1


LOAD = """
import sys, json, anyio
from kani_lite.engines.llamacpp import LlamaCppEngine

async def main():
    prompts = [f"{number}" + " word" * words for number in range(count)]
    try:
        done = await engine.generate_batch(prompts, temperature=0, max_tokens=20)
        print("said", len(done))
    except Exception as error:
        print(type(error).__name__)
    await engine.close()

options, count, words = json.loads(sys.argv[2])
engine = LlamaCppEngine(model_path=sys.argv[1], **options)
anyio.run(main)
"""


@pytest.mark.parametrize(("options", "count", "words", "says"), [
    ({"max_context_size": 1024, "model_load_kwargs": {"n_batch": 2048}, "kv_cache_memory_gb": 0.005}, 4, 400, "said 4"),
    ({"max_context_size": 200, "kv_cache_memory_gb": 0.001}, 6, 60, "said 6"),
    ({"max_context_size": 30, "max_batch_size": 40, "kv_cache_memory_gb": 0.00015}, 4, 2, "said 4"),
    ({"max_context_size": 1}, 1, 5, "PromptTooLong"),
    ({"kv_cache_memory_gb": 0.00005}, 1, 5, "PromptTooLong"),
    ({"model_load_kwargs": {"n_batch": 10**9}}, 2, 5, "said 2"),
])  # fmt: skip
def test_few_cells_do_not_end_the_process(
    gguf: Callable[..., Path], options: dict[str, Any], count: int, words: int, says: str
) -> None:
    """llama.cpp aborts where a batch has more tokens than there are cells, or fewer cells than sequences."""
    command = [sys.executable, "-c", LOAD, str(gguf()), json.dumps([options, count, words])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, says), done.stderr[-2000:]


async def test_a_reply_ends_where_the_context_does(build_later: Callable[..., Any]) -> None:
    engine = await build_later(max_context_size=64)
    assert engine.max_context_size == 64
    [done] = (await engine.generate(prompt("hello"), temperature=0, ignore_eos=True)).choices
    assert len(engine.encode(prompt("hello"))) + len(done.ids) == 64
    assert done.finish_reason == "length"
    await engine.close()


async def test_an_engine_that_is_dropped_or_closed_is_freed(build_later: Callable[..., Any]) -> None:
    dropped, closed = await build_later(), await build_later()
    models = [weakref.ref(each._generator._context) for each in (dropped, closed)]
    await dropped.predict([ChatMessage.user("hello")], **GREEDY)
    await closed.predict([ChatMessage.user("hello")], **GREEDY)
    await closed.close()
    thread = dropped._worker.thread
    del dropped
    thread.join(30)
    gc.collect()
    assert [model() for model in models] == [None, None]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_context_size": 4096}, "4096 is more than the 2048 tokens"),
        ({"max_context_size": 2048, "kv_cache_memory_gb": 0.001}, "needs 0.0195 GB for its keys and values"),
        ({"kv_cache_memory_gb": 1e-8}, "has no room for a token"),
        ({"max_batch_size": 300}, "at most 256 sequences"),
    ],
)
def test_sizes_that_cannot_be(build: Callable[..., Any], wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        build(**wrong)
