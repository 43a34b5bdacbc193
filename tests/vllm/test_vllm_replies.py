"""What both engines reply: the same as transformers, streamed or not, to one chat or to many."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from kani_lite import ChatMessage, Kani
from kani_lite.engines import Completion
from kani_lite.exceptions import EngineError, PromptTooLong

QUERIES = ["hello", "My name is Ada. What is my name?", "What can you do?", "Thank you, bye!"]


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage.user(text)]


async def streamed(engine: Any, text: str, **kwargs: Any) -> tuple[list[str], Completion]:
    *pieces, last = [item async for item in engine.stream(asked(text), **kwargs)]
    assert isinstance(last, Completion)
    return pieces, last


@pytest.mark.parametrize("query", QUERIES)
async def test_greedy_replies_are_those_of_transformers(engine: Any, reference: Any, query: str) -> None:
    expected = reference.greedy(engine.token_ids(engine.build_prompt(asked(query))), 200)
    completion = await engine.predict(asked(query))
    assert completion.completion_tokens == len(expected)
    assert completion.message.text == reference.tokenizer.decode(expected, skip_special_tokens=True)
    assert completion.finish_reason == "stop"


@pytest.mark.both_loops
@pytest.mark.parametrize("query", QUERIES)
async def test_stream_equals_predict(engine: Any, query: str) -> None:
    whole = await engine.predict(asked(query))
    pieces, last = await streamed(engine, query)
    assert len(pieces) > 3
    assert "".join(pieces) == last.message.text == whole.message.text
    assert (last.prompt_tokens, last.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)


async def test_counting_is_exact_and_prefixes_are_reused(engine: Any) -> None:
    ai = Kani(engine, system_prompt="You are Nano. " * 20)
    await ai.chat_round("hello")
    ai.chat_history.append(ChatMessage.user("What can you do?"))
    prompt = [*ai.always_included_messages, *ai.chat_history]
    counted = engine.prompt_len(prompt)
    completion = await engine.predict(prompt)
    assert completion.prompt_tokens == counted
    assert counted // 2 < completion.cached_tokens < counted
    assert abs(sum(map(engine.message_len, prompt)) - counted) < 10


async def test_the_reply_ends_before_a_stop_text(engine: Any) -> None:
    whole = (await engine.predict(asked("hello"))).message.text
    stop = whole[8:11]
    pieces, last = await streamed(engine, "hello", stop=[stop])
    assert "".join(pieces) == last.message.text == whole[: whole.index(stop)].rstrip()
    assert last.finish_reason == "stop"


async def test_length_ends_the_reply(engine: Any) -> None:
    completion = await engine.predict(asked("hello"), max_tokens=3)
    assert (completion.completion_tokens, completion.finish_reason) == (3, "length")
    forced = await engine.predict(asked("hello"), max_tokens=40, ignore_eos=True)
    assert forced.completion_tokens == 40


async def test_other_end_tokens(engine: Any, reference: Any) -> None:
    ids = engine.token_ids(engine.build_prompt(asked("hello")))
    expected = reference.greedy(ids, 200)
    made = await engine.generate(ids, eos_token_ids=[expected[4]])
    assert made.ids == expected[:5]
    assert made.text == reference.tokenizer.decode(expected[:4])


async def test_logprobs_are_the_models_own(engine: Any, reference: Any) -> None:
    ids = engine.token_ids(engine.build_prompt(asked("hello")))
    # a bias and penalties change the choice, not what is told of the model
    made = await engine.generate(ids, max_tokens=8, logprobs=3, repetition_penalty=1.1, logit_bias={3: 1.0})
    [choice] = made.choices
    rows = reference.logprobs(ids + choice.ids)[len(ids) - 1 : -1]
    assert len(choice.logprobs) == len(choice.ids) == 8
    for row, token, told in zip(rows, choice.ids, choice.logprobs, strict=True):
        assert told.token == token
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-3)
        values, likeliest = row.topk(3)
        assert list(told.top.values()) == pytest.approx(values.tolist(), abs=1e-3)
        assert next(iter(told.top)) == int(likeliest[0])


async def test_logprobs_of_the_prompt(engine: Any, reference: Any) -> None:
    ids = engine.token_ids(engine.build_prompt(asked("hello")))
    [choice] = (await engine.generate(ids, max_tokens=2, prompt_logprobs=1)).choices
    rows = reference.logprobs(ids)
    assert choice.logprobs is None
    assert choice.prompt_logprobs[0] is None
    assert len(choice.prompt_logprobs) == len(ids)
    for row, token, told in zip(rows, ids[1:], choice.prompt_logprobs[1:], strict=False):
        assert told.token == token
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert list(told.top.values()) == pytest.approx([float(row.max())], abs=1e-3)


async def test_logprobs_of_all_tokens(engine: Any) -> None:
    [choice] = (await engine.generate("hello", max_tokens=1, logprobs=1024)).choices
    assert len(choice.logprobs[0].top) == engine.vocabulary_size == 1024


async def test_n_replies_with_seeds(engine: Any) -> None:
    wanted = {"temperature": 1.5, "seed": 5, "n": 3, "max_tokens": 12}
    first = await engine.generate("hello", **wanted)
    again = await engine.generate("hello", **wanted)
    assert [c.ids for c in first.choices] == [c.ids for c in again.choices]
    assert len({c.text for c in first.choices}) > 1
    [second] = (await engine.generate("hello", **(wanted | {"seed": 6, "n": 1}))).choices
    assert second.ids == first.choices[1].ids


async def test_biased_tokens(engine: Any, reference: Any) -> None:
    ids = engine.token_ids(engine.build_prompt(asked("hello")))
    first = reference.greedy(ids, 1)[0]
    [never] = (await engine.generate(ids, max_tokens=5, logit_bias={first: -float("inf")})).choices
    assert first not in never.ids
    [always] = (await engine.generate(ids, max_tokens=5, logit_bias={77: 100.0})).choices
    assert always.ids == [77] * 5


async def test_chats_at_once_get_what_each_gets_alone(engine: Any) -> None:
    alone = [(await engine.predict(asked(query))).message.text for query in QUERIES]
    together: dict[int, str] = {}

    async def one(place: int) -> None:
        together[place] = (await engine.predict(asked(QUERIES[place % len(QUERIES)]))).message.text

    async with anyio.create_task_group() as group:
        for place in range(12):
            group.start_soon(one, place)
    assert [together[place] for place in range(12)] == alone * 3


async def test_text_generation_in_batches_and_streams(engine: Any, reference: Any) -> None:
    expected = reference.tokenizer.decode(reference.greedy(engine.encode("hello"), 6))
    many = await engine.generate_batch(["hello", "hello"], max_tokens=6)
    assert [one.text for one in many] == [expected, expected]
    assert "".join([piece async for piece in engine.generate_stream("hello", max_tokens=6)]) == expected


async def test_an_adapter_is_chosen_by_each_request(engine: Any) -> None:
    plain = (await engine.predict(asked("hello"))).message.text
    odd = (await engine.predict(asked("hello"), adapter="odd", max_tokens=20)).message.text
    assert odd != plain
    assert (await engine.predict(asked("hello"))).message.text == plain
    generated = await engine.generate(engine.build_prompt(asked("hello")), adapter="odd", max_tokens=20)
    assert generated.text.strip().startswith((odd or "").strip()[:10])
    pieces = engine.generate_stream(engine.build_prompt(asked("hello")), adapter="odd", max_tokens=20)
    assert "".join([piece async for piece in pieces]) == generated.text
    with pytest.raises(EngineError, match="There is no adapter 'even': this engine has 'odd'"):
        await engine.predict(asked("hello"), adapter="even")


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"typical_p": 0.5}, EngineError, "no typical_p"),
    ({"streamer": object()}, EngineError, "has no streamer="),
    ({"temperature": 5.0}, EngineError, "temperature must be in"),
    ({"frequency_penalty": 9.0}, EngineError, "frequency_penalty must be in"),
    ({"logit_bias": {5000: 1.0}}, EngineError, "out-of-vocab"),
    ({"no_such_thing": 1}, TypeError, "no_such_thing"),
    ({"tool_choice": "required"}, EngineError, "no functions are on offer"),
]


@pytest.mark.parametrize(("given", "error", "said"), REFUSED, ids=lambda value: str(value)[:40])
async def test_what_cannot_be_done_is_refused_by_name(
    engine: Any, given: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        await engine.predict(asked("hello"), **given)
    with pytest.raises(error, match=said):
        await streamed(engine, "hello", **given)


async def test_a_prompt_that_leaves_no_room_is_refused_before_vllm_sees_it(engine: Any) -> None:
    ids = [30] * 2048
    with pytest.raises(PromptTooLong, match=r"2048 tokens: with one for a reply that is 1 more than .* 2048"):
        await engine.generate(ids)
    [last] = (await engine.generate(ids[:-1])).choices
    assert (len(last.ids), last.finish_reason) in ((1, "length"), (1, "stop"))


def test_an_engine_serves_one_event_loop_after_another(engine: Any) -> None:
    ask = partial(engine.predict, asked("hello"))
    texts = {anyio.run(ask, backend=name).message.text for name in ("asyncio", "trio", "asyncio")}
    assert len(texts) == 1
