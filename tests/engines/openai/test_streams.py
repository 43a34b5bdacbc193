"""How a streamed reply is read: where its lines end, and when it is complete."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from openai_server import USAGE, Step, answer, cut, either, event, events, says, streamed

from kani_lite import AIFunction, ChatMessage
from kani_lite.engines.openai import OpenAIEngine, ServerError
from kani_lite.engines.openai.reply import ReplyReader, odd_part
from kani_lite.events import ToolCallDelta, ToolCallStarted

pytestmark = pytest.mark.anyio

HI = [ChatMessage.user("Hi")]
HELLO = event({"content": "Hello"})
DONE = b"data: [DONE]\n\n"


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


async def said(engine: OpenAIEngine, stream: bool = True) -> str:
    """The reply, by one of the two ways."""
    if not stream:
        return (await engine.predict(HI)).message.text or ""
    return "".join([item async for item in engine.stream(HI) if isinstance(item, str)])


def unescaped(text: str) -> bytes:
    """An event as servers write it that escape no more than JSON asks for."""
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


# ==== lines ====


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
async def test_lines_end_where_streams_say_so(serve: Any, end: bytes) -> None:
    """What Unicode calls the end of a line may stand in JSON as it is."""
    text = "a\u2028b\u2029c\x85d\x7fe"
    data = (unescaped(text) + event({}, "stop") + DONE).replace(b"\n", end)
    _, engine = await serve(streamed([data]), streamed([data[i : i + 5] for i in range(0, len(data), 5)]), retry=0)
    assert await said(engine) == text
    assert await said(engine) == text


async def test_controls_that_a_server_escaped_are_text(serve: Any) -> None:
    text = "a\x0bb\x0cc\x1cd\x1de\x1ef\r\ng"
    _, engine = await serve(either(answer({"content": text}), streamed(events([{"content": text}]))), retry=0)
    assert await said(engine) == text


async def test_comments_and_other_fields_are_no_text(serve: Any) -> None:
    data = b": keep-alive\n\nevent: message\nid: 7\nretry: 10\n" + HELLO + b": keep-alive\n\n" + event({}, "stop")
    _, engine = await serve(streamed([data]), retry=0)
    assert await said(engine) == "Hello"


# ==== the end ====


WITH_USAGE = [event({"content": piece}, usage=USAGE) for piece in ("The answer is ", "not ")]
CUT: dict[str, Step] = {
    "usage with each piece": cut(WITH_USAGE),
    "usage with each piece, a proper end of HTTP": cut(WITH_USAGE, clean=True),
    "usage before the reply": cut([event(None, usage=USAGE), HELLO], clean=True),
    "usage and no reply": cut([event(None, usage=USAGE)], clean=True),
}


@pytest.mark.parametrize("step", CUT.values(), ids=CUT.keys())
async def test_usage_alone_is_no_end(serve: Any, step: Step) -> None:
    _, engine = await serve(step, retry=0)
    with pytest.raises(ServerError) as found:
        await said(engine)
    assert found.value.temporary


@pytest.mark.parametrize(
    "step",
    [
        streamed([HELLO, DONE]),
        streamed([HELLO, event({}, "stop")]),
        streamed([HELLO, event(None, usage=USAGE)]),
        cut([HELLO, DONE]),
    ],
    ids=["[DONE]", "finish_reason", "usage of its own", "cut after [DONE]"],
)
async def test_what_ends_a_reply(serve: Any, step: Step) -> None:
    _, engine = await serve(step, retry=0)
    *items, done = [item async for item in engine.stream(HI)]
    assert items == ["Hello"]
    assert (done.message.text, done.finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize("pieces", [[DONE], [event(None), DONE]], ids=["nothing", "no choices"])
async def test_an_end_without_a_reply_is_tried_again(serve: Any, pieces: list[bytes]) -> None:
    script, engine = await serve(streamed(pieces), says("ok"))
    assert await said(engine) == "ok"
    assert len(script.chats) == 2


async def test_a_client_of_ones_own_whose_streams_do_not_end() -> None:
    """Closing the engine's stream waits for nobody."""
    openai, httpx = pytest.importorskip("openai"), pytest.importorskip("httpx2")
    ended = anyio.Event()

    async def words() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield HELLO
                await anyio.sleep(0.01)
        finally:
            ended.set()

    def handler(request: Any) -> Any:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=words())

    http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    async with openai.AsyncOpenAI(api_key="k", base_url="http://nowhere/v1", http_client=http) as client:
        engine = OpenAIEngine(client=client, model="m", max_context_size=100)
        with anyio.fail_after(20):
            async with aclosing(engine.stream(HI)) as stream:
                assert await anext(stream) == "Hello"
            await ended.wait()


# ==== what is no reply ====


def page(exchange: Any, _: Any) -> None:
    exchange.send_bytes(b"<html>\n<p>Welcome</p>\n</html>", kind="text/html")


def untyped(exchange: Any, request: Any) -> None:
    exchange.send_bytes(json.dumps({"choices": [{"message": {"content": "ok"}}]}, indent=1).encode(), kind="text/plain")


def body(**fields: Any) -> Step:
    """A whole answer with status 200, of these fields."""
    return lambda exchange, _: exchange.send_json(fields)


WRONG = {
    "a page": (page, r"no JSON .*is that its API\?"),
    "an error object": (body(object="error", message="bad thing", code=400), r"refuses the request \(400\): bad thing"),
    "choices that are no list": (body(choices={"a": 1}), r"no reply \(choices=\{'a': 1\}\): is that OpenAI's API\?"),
    "a count in words": (
        body(choices=[{"message": {"content": "x"}, "finish_reason": "stop"}], usage={"prompt_tokens": "5"}),
        r"no reply \(usage.prompt_tokens='5'\)",
    ),
    "calls that are no list": (body(choices=[{"message": {"tool_calls": {"a": 1}}}]), r"\(tool_calls=\{'a': 1\}\)"),
    "no choices": (body(id="x"), r"answered without a reply: \{'id': 'x'\}"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("step", "text"), WRONG.values(), ids=WRONG.keys())
async def test_what_is_no_reply_is_shown(serve: Any, step: Step, text: str, stream: bool) -> None:
    _, engine = await serve(step, retry=0)
    with pytest.raises(ServerError, match=text):
        await said(engine, stream)


@pytest.mark.parametrize("usage", [{"prompt_tokens": "5"}, {"completion_tokens": [1]}])
async def test_a_count_that_is_none_within_a_stream(serve: Any, usage: dict[str, Any]) -> None:
    _, engine = await serve(streamed(events([{"content": "x"}], usage=usage)), retry=0)
    with pytest.raises(ServerError, match=r"no reply \(usage\."):
        await said(engine)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_whole_answer_needs_no_type_and_no_reason_to_end(serve: Any, stream: bool) -> None:
    _, engine = await serve(untyped, retry=0)
    assert await said(engine, stream) == "ok"


def test_counts_that_mean_nothing_are_left_out() -> None:
    reader = ReplyReader()
    usage = {"prompt_tokens": 5.0, "completion_tokens": -1, "prompt_tokens_details": {"cached_tokens": "many"}}
    assert odd_part({"choices": [], "usage": usage}) is None
    list(reader.feed({"choices": [{"message": {"content": "x"}}], "usage": usage}))
    done = reader.completion()
    assert (done.prompt_tokens, done.completion_tokens, done.cached_tokens) == (5, None, None)


# ==== calls in the API's old form ====


OLD = either(
    answer({"content": None, "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}}, "function_call"),
    streamed(
        events(
            [
                {"function_call": {"name": "weather", "arguments": ""}},
                {"function_call": {"arguments": '{"city": '}},
                {"function_call": {"name": "weather", "arguments": '"Rome"}'}},  # some repeat the name
            ],
            "function_call",
        )
    ),
)


async def test_an_old_function_call_is_a_call(serve: Any) -> None:
    _, engine = await serve(OLD, OLD)
    *items, streamed_ = [item async for item in engine.stream(HI, [AIFunction(weather)])]
    whole = await engine.predict(HI, [AIFunction(weather)])
    for done in (streamed_, whole):
        (call,) = done.message.tool_calls or ()
        assert (call.function.name, call.function.kwargs) == ("weather", {"city": "Rome"})
        assert call.id
        assert done.message.content is None
        assert done.finish_reason == "stop"
    assert [item.name for item in items if isinstance(item, ToolCallStarted)] == ["weather"]
    assert "".join(item.arguments for item in items if isinstance(item, ToolCallDelta)) == '{"city": "Rome"}'


async def test_a_call_in_both_forms_is_one(serve: Any) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    _, engine = await serve(answer({"function_call": function, "tool_calls": [{"id": "a", "function": function}]}))
    assert [call.id for call in (await engine.predict(HI)).message.tool_calls or ()] == ["a"]
