"""Replies of llama.cpp are those of the same model in transformers, however they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.engines import Completion
from kani_lite.exceptions import EngineError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60}


def get_price(product: str) -> str:
    """Get the price of a product."""
    return f"The price of {product} is 6 euros."


PRICE = AIFunction(get_price)
QUERIES = [
    "Hi, who are you?",
    "hello",
    "My name is Ben. What is my name?",
    "What can you do?",
    "get the price of honey",
    "What is the price of tea?",
    "Thank you!",
    "How old are you?",
    "Are you a person?",
    "I live in Oslo. Where do I live?",
    "Grüße aus 東京 🙂",
    "tell me a joke",
]


def chat(text: str) -> list[ChatMessage]:
    return [ChatMessage.user(text)]


def prompt(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("functions", [None, [PRICE]], ids=["plain", "functions"])
async def test_greedy_replies_are_those_of_transformers(engine: Any, nano: Any, query: str, functions: Any) -> None:
    ours: Completion = await engine.predict(chat(query), functions, **GREEDY)
    theirs: Completion = await nano.predict(chat(query), functions, **GREEDY)
    assert ours.message.text == theirs.message.text
    calls = [[call.function for call in done.message.tool_calls or ()] for done in (ours, theirs)]
    assert calls[0] == calls[1]
    assert (ours.prompt_tokens, ours.completion_tokens) == (theirs.prompt_tokens, theirs.completion_tokens)
    assert ours.finish_reason == theirs.finish_reason


async def test_and_so_they_are_with_the_options_left_alone(build_later: Callable[..., Any], nano: Any) -> None:
    engine = await build_later(model_load_kwargs={})  # keys and values in 16 bits, flash attention
    prompts = [prompt(query) for query in QUERIES]
    ours = [each.text for each in await engine.generate_batch(prompts, **GREEDY)]
    await engine.close()
    assert ours == [each.text for each in await nano.generate_batch(prompts, **GREEDY)]


async def test_logprobs_are_those_of_transformers(engine: Any, nano: Any) -> None:
    asked = {**GREEDY, "max_tokens": 8, "logprobs": 3, "prompt_logprobs": 2}
    [ours], [theirs] = [(await each.generate(prompt("hello"), **asked)).choices for each in (engine, nano)]
    assert ours.cached_tokens == 0
    assert ours.prompt_logprobs is not None
    assert ours.prompt_logprobs[0] is None
    pairs = [*zip(ours.logprobs, theirs.logprobs, strict=True)]
    pairs += [*zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True)]
    for one, other in pairs:
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
        assert list(one.top) == list(other.top)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
async def test_smaller_weights_answer_sensibly(build_later: Callable[..., Any], kind: str) -> None:
    small = await build_later(kind, model_load_kwargs={})
    done = await small.predict(chat("Hi, who are you?"), **GREEDY)
    called = await small.predict(chat("get the price of honey"), [PRICE], **GREEDY)
    await small.close()
    assert done.message.text.startswith("I am")
    [call] = called.message.tool_calls
    assert call.function.name == "get_price"
    assert PRICE.parse_arguments(call.function.arguments) == {"product": "honey"}


async def test_a_round_with_a_call_runs_to_its_last_word(engine: Any) -> None:
    ai = Kani(engine, functions=[PRICE])
    messages = [message async for message in ai.full_round("get the price of honey", **GREEDY)]
    assert [message.role.value for message in messages] == ["assistant", "function", "assistant"]
    assert messages[1].text == "The price of honey is 6 euros."
    assert "6 euros" in messages[2].text


async def test_a_stream_gives_the_same_in_pieces(engine: Any) -> None:
    items = [item async for item in engine.stream(chat("Hi, who are you?"), **GREEDY)]
    assert "".join(items[:-1]) == items[-1].message.text
    assert len(items) > 5


async def test_a_batch_gives_what_each_prompt_gives_alone(engine: Any) -> None:
    prompts = [prompt(query) for query in QUERIES]
    alone = [(await engine.generate(each, **GREEDY)).text for each in prompts]
    together = [each.text for each in await engine.generate_batch(prompts, **GREEDY)]
    assert together == alone


async def test_a_seed_repeats_beside_others(engine: Any) -> None:
    asked = {"temperature": 3.0, "max_tokens": 30}
    first = (await engine.generate(prompt("hello"), seed=5, **asked)).text
    assert len({first, *[(await engine.generate(prompt("hello"), seed=n, **asked)).text for n in range(4)]}) > 2
    again, *_ = await engine.generate_batch([prompt("hello"), prompt("tell me a joke")], seed=5, **asked)
    assert again.text == first


async def test_stops_end_a_reply_and_are_not_in_it(engine: Any) -> None:
    whole = (await engine.generate(prompt("Hi, who are you?"), **GREEDY)).text
    done = (await engine.generate(prompt("Hi, who are you?"), stop=["small", "zebra"], **GREEDY)).choices[0]
    assert done.text == whole[: whole.index("small")]
    assert done.finish_reason == "stop"


async def test_limits_bans_and_ends(engine: Any) -> None:
    [short] = (await engine.generate(prompt("hello"), temperature=0, max_tokens=3)).choices
    assert (len(short.ids), short.finish_reason) == (3, "length")
    [long] = (await engine.generate(prompt("hello"), temperature=0, min_tokens=40, max_tokens=50)).choices
    assert 2 not in long.ids[:40]
    [on] = (await engine.generate(prompt("hello"), temperature=0, ignore_eos=True, max_tokens=50)).choices
    assert (len(on.ids), on.finish_reason) == (50, "length")
    first = short.ids[0]
    [other] = (await engine.generate(prompt("hello"), temperature=0, max_tokens=3, logit_bias={first: -1e9})).choices
    assert first not in other.ids
    [ended] = (await engine.generate(prompt("hello"), temperature=0, eos_token_ids=[short.ids[1]])).choices
    assert ended.ids == short.ids[:2]
    refused = await engine.predict(chat("get the price of honey"), [PRICE], tool_choice="none", **GREEDY)
    assert not refused.message.tool_calls


async def test_a_streamer_gets_the_prompt_and_each_token(engine: Any) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.got: list[list[int]] = []
            self.ended = 0

        def put(self, value: Any) -> None:
            assert isinstance(value, np.ndarray)
            self.got.append(value.tolist())

        def end(self) -> None:
            self.ended += 1

    streamer = Streamer()
    done = await engine.generate(prompt("hello"), streamer=streamer, **GREEDY)
    assert streamer.got == [engine.encode(prompt("hello")), *([token] for token in done.ids)]
    assert streamer.ended == 1
    left = Streamer()
    async for _ in engine.generations(prompt("hello"), streamer=left, ignore_eos=True, max_tokens=1900):
        break
    await engine.generate(prompt("hello"), **GREEDY)  # the model has seen by now that nobody wants the first
    assert left.ended == 1


async def test_cancelling_frees_the_model(engine: Any) -> None:
    with anyio.CancelScope() as scope:
        async for _ in engine.stream(chat("hello"), max_tokens=1900, ignore_eos=True, temperature=0.0):
            scope.cancel()
    assert scope.cancelled_caught
    with anyio.fail_after(30):  # the other would take longer
        assert (await engine.predict(chat("Hi, who are you?"), **GREEDY)).message.text.startswith("I am")


async def test_an_error_of_one_request_is_its_own(engine: Any) -> None:
    found: dict[str, Any] = {}

    async def good() -> None:
        found["text"] = (await engine.generate(prompt("hello"), **GREEDY)).text

    async def bad() -> None:
        with pytest.raises(EngineError, match="logit_bias is for token 999999"):
            await engine.generate(prompt("hello"), logit_bias={999999: 1.0}, **GREEDY)

    async with anyio.create_task_group() as group:
        group.start_soon(good)
        group.start_soon(bad)
    assert found["text"] == (await engine.generate(prompt("hello"), **GREEDY)).text


def test_a_reply_without_an_event_loop(engine: Any) -> None:
    done = engine.generate_now(prompt("Hi, who are you?"), **GREEDY)
    assert done.text.startswith("I am")
