"""Servers that misbehave: what is tried again, and what is said where that doesn't help."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import anyio
import pytest
from openai_server import Script, Step, answer, cut, event, events, hangs, reset, says, serving, status, streamed

from kani_lite import ChatMessage, Kani
from kani_lite.engines.openai import OpenAIEngine, ServerError
from kani_lite.engines.openai.errors import retry_after
from kani_lite.engines.wrappers import Backoff
from kani_lite.exceptions import EngineError, PromptTooLong

pytestmark = pytest.mark.anyio

HI = [ChatMessage.user("Hi")]
HELLO = event({"content": "Hello"})
TGI = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {limit}. "
    "Given: {tokens} `inputs` tokens and {more} `max_new_tokens`"
)


def not_json(exchange: Any, _: Any) -> None:
    exchange.send_bytes(b'{"choices": [{"mess')


def a_page(exchange: Any, _: Any) -> None:
    exchange.send_bytes(b"<html>Welcome</html>", kind="text/html")


def no_choices(exchange: Any, _: Any) -> None:
    exchange.send_json({"id": "c1", "choices": []})


async def said(engine: Any, stream: bool) -> str:
    """The reply, by one of the two ways."""
    if not stream:
        return (await engine.predict(HI)).message.text or ""
    return "".join([item async for item in engine.stream(HI) if isinstance(item, str)])


async def heard_until_error(engine: Any) -> tuple[list[Any], ServerError | None]:
    """What a stream yields, and the error that ends it."""
    heard: list[Any] = []
    try:
        async for item in engine.stream(HI):
            heard.append(item)  # noqa: PERF401  # what came before the error counts
    except ServerError as error:
        return heard, error
    return heard, None


BEFORE_OUTPUT: dict[str, Step] = {
    "429": status(429, "Slow down"),
    "500": status(500, "Oops"),
    "503": status(503, "Loading"),
    "reset": reset,
}
NO_ANSWER: dict[str, Step] = {"broken JSON": not_json, "a page": a_page, "no choices": no_choices}
NO_STREAM: dict[str, Step] = {
    "cut before the first event": cut([]),
    "cut within the first event": cut([HELLO[:20]]),
    "ended within the first event": cut([HELLO[:20]], clean=True),
    "ended before any text": cut([event({"role": "assistant"})], clean=True),
    "broken JSON": streamed([b"data: {oops}\n\n"]),
    "an error in place of text": streamed([b'data: {"error": {"message": "out of memory", "code": 500}}\n\n']),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", BEFORE_OUTPUT.values(), ids=BEFORE_OUTPUT.keys())
async def test_what_may_help_is_tried_again(serve: Any, failure: Step, stream: bool) -> None:
    script, engine = await serve(failure, failure, says("There ", "we are"), retry=2)
    assert await said(engine, stream) == "There we are"
    assert len(script.chats) == 3
    assert script.chats[0].body == script.chats[2].body


@pytest.mark.parametrize("failure", NO_ANSWER.values(), ids=NO_ANSWER.keys())
async def test_answers_that_are_none_are_tried_again(serve: Any, failure: Step) -> None:
    script, engine = await serve(failure, says("ok"))
    assert await said(engine, False) == "ok"
    script.steps = [failure] * 2
    engine._connection.retry = 1
    with pytest.raises(ServerError, match="The server at http"):
        await engine.predict(HI)
    assert len(script.chats) == 4


@pytest.mark.parametrize("failure", NO_STREAM.values(), ids=NO_STREAM.keys())
async def test_streams_that_end_before_any_output_are_tried_again(serve: Any, failure: Step) -> None:
    script, engine = await serve(failure, says("ok"))
    assert await said(engine, True) == "ok"
    assert len(script.chats) == 2


AFTER_OUTPUT: dict[str, Step] = {
    "cut": cut([HELLO]),
    "cut within a delta": cut([HELLO, event({"content": " there"})[:-25]]),
    "ended too early": cut([HELLO], clean=True),
    "broken JSON": streamed([HELLO, b"data: {oops}\n\n"]),
    "an error": streamed([HELLO, b'data: {"error": {"message": "engine died"}}\n\n']),
}


@pytest.mark.parametrize("failure", AFTER_OUTPUT.values(), ids=AFTER_OUTPUT.keys())
async def test_nothing_is_repeated_after_output(serve: Any, failure: Step) -> None:
    script, engine = await serve(failure, says("never"))
    heard, error = await heard_until_error(engine)
    assert heard == ["Hello"]
    assert isinstance(error, ServerError)
    assert len(script.chats) == 1


async def test_a_chat_survives_a_cut_round(serve: Any) -> None:
    _, engine = await serve(cut([HELLO]), says("Fine"))
    ai = Kani(engine)
    with pytest.raises(ServerError):
        await ai.chat_round_stream("How are you?")
    assert (await ai.chat_round("Again?")).text == "Fine"


async def test_a_server_may_go_away_when_all_is_said(serve: Any) -> None:
    _, engine = await serve(cut(events([{"content": "Hello"}])[:-1]))
    assert await said(engine, True) == "Hello"


async def test_a_server_that_ignores_stream(serve: Any) -> None:
    _, engine = await serve(answer({"content": "All at once"}))
    assert await said(engine, True) == "All at once"


async def test_slow_bytes_arrive_whole(serve: Any) -> None:
    data = b"".join(events([{"content": "größer"}, {"content": " 😀"}]))
    pieces = [data[i : i + 7] for i in range(0, len(data), 7)]  # events, JSON and UTF-8 are cut anywhere
    _, engine = await serve(streamed(pieces, 0.002))
    assert await said(engine, True) == "größer 😀"


# ==== waiting ====


async def test_the_server_says_how_long_to_wait(serve: Any) -> None:
    script, engine = await serve(status(429, "Slow down", {"retry-after": "0.3"}), says("ok"))
    assert await said(engine, False) == "ok"
    first, second = script.chats
    assert second.at - first.at >= 0.3


async def test_too_long_a_wait_is_an_error_at_once(serve: Any) -> None:
    script, engine = await serve(status(429, "Tomorrow", {"retry-after": "86400"}), backoff=Backoff(0.0, longest=60))
    with pytest.raises(ServerError, match="asks to wait 86400 s") as found:
        await engine.predict(HI)
    assert (found.value.status, found.value.retry_after, found.value.temporary) == (429, 86400, True)
    assert len(script.chats) == 1


def test_retry_after_in_its_forms() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "7", "retry-after-ms": "250"}) == 0.25
    in_a_minute = retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


async def test_waits_grow_and_are_counted(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    script, engine = await serve(*[status(500, "Oops")] * 4, retry=3, backoff=Backoff(1, 2, 3, jitter=0))
    monkeypatch.setattr("kani_lite.engines.openai.connection.anyio.sleep", sleep)
    with pytest.raises(ServerError, match=r"can't answer now \(500: Oops\)"):
        await engine.predict(HI)
    assert waits == [1, 2, 3]
    assert len(script.chats) == 4


async def test_silence_ends_with_the_timeout(serve: Any) -> None:
    _, engine = await serve(hangs(), hangs([HELLO]), timeout=0.4, retry=0)
    with pytest.raises(ServerError, match="longer timeout"):
        await engine.predict(HI)
    heard, error = await heard_until_error(engine)
    assert heard == ["Hello"]
    assert "longer timeout" in str(error)


async def test_cancelling_ends_a_wait(serve: Any) -> None:
    script, engine = await serve(status(429, "Slow down", {"retry-after": "60"}))
    with anyio.move_on_after(0.3) as scope:
        await engine.predict(HI)
    assert scope.cancelled_caught
    assert len(script.chats) == 1


# ==== what no repetition helps against ====


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("step", "text"),
    [
        (status(401, "Bad key"), r"refuses the key \(401: Bad key\): pass api_key="),
        (status(404, "No such model"), "has no model 'm'.*check model= and api_base="),
        (status(400, "Unknown field"), r"refuses the request \(400\): Unknown field"),
        (status(400, "'max_tokens' is too large: maximum context length is 9"), "refuses the request"),
        (status(429, "Pay first", code="insufficient_quota"), "refuses the request"),
        (status(400, "Unknown parameter: 'context window policy'"), "refuses the request"),
        (status(400, "Unknown parameter: 'max_model_len'", code="unknown_parameter"), "refuses the request"),
        (status(422, TGI.format(limit=4096, tokens=10, more=5000)), "refuses the request"),
    ],
)
async def test_a_refusal_says_what_to_do(serve: Any, step: Step, text: str, stream: bool) -> None:
    script, engine = await serve(step)
    with pytest.raises(ServerError, match=text):
        await said(engine, stream)
    assert len(script.chats) == 1


@pytest.mark.parametrize(
    "step",
    [
        status(400, "Too many tokens: 9000", code="context_length_exceeded"),
        status(400, "This model's maximum context length is 512 tokens. However, you requested 700 tokens"),
        status(400, "the request exceeds the available context size", type="exceed_context_size_error"),
        status(400, "Too much", code=400, type="exceed_context_size_error"),
        status(400, "The input (5000 tokens) is longer than the model's context length (1000 tokens)."),
        status(400, "Prompt contains 50 tokens and 0 draft tokens, too large for model with 32 maximum context length"),
        status(400, "prompt is too long: 200 tokens > 100 maximum"),
        status(400, "The model is loaded with context length of only 1000 tokens"),
        status(400, "The decoder prompt (length 700) is longer than the maximum model length of 512."),
        status(400, "This model's maximum prompt length is 512 but the request contains 700 tokens."),
        status(400, "The input token count (700) exceeds the maximum number of tokens allowed (512)."),
        status(422, TGI.format(limit=4096, tokens=5000, more=20)),
        status(422, "`inputs` must have less than 1024 tokens. Given: 2000"),
        streamed([b'data: {"error": {"message": "maximum context length is 512", "code": 400}}\n\n']),
        streamed([b'data: {"error": {"message": "Too many", "code": "context_length_exceeded"}}\n\n']),
        streamed([b'data: {"error": {"message": "prompt is too long", "type": "BadRequestError"}}\n\n']),
    ],
)
async def test_a_prompt_too_long_for_the_server(serve: Any, step: Step) -> None:
    _, engine = await serve(step)
    messages = [ChatMessage.system("Be brief."), ChatMessage.user("long " * 50), ChatMessage.user("Hi")]
    with pytest.raises(PromptTooLong, match=r"The longest of 3 messages is number 2 \(user, 2"):
        async for _ in engine.stream(messages):
            pass


async def test_nobody_at_the_address(serve: Any) -> None:
    _, engine = await serve(api_base="http://127.0.0.1:9/v1", retry=1)
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1 can't be reached.*check that it runs") as found:
        await engine.predict(HI)
    assert found.value.status is None
    assert isinstance(found.value, EngineError)


def test_event_loops_in_turn() -> None:
    """Connections belong to a loop; an engine doesn't."""
    with serving(Script([says("one"), says("two"), says("three")])) as script:
        engine = OpenAIEngine(model="m", max_context_size=100, api_base=script.url, retry=0)
        loops = ("asyncio", "trio", "asyncio")
        found = [anyio.run(said, engine, i == 1, backend=loop) for i, loop in enumerate(loops)]
        anyio.run(engine.close)
    assert found == ["one", "two", "three"]
