"""The scripted engine: what it says, what it keeps, and what it is strict about."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest

from kani_lite import AIFunction, ChatMessage, Kani, ToolCall
from kani_lite.engines import BaseCompletion
from kani_lite.events import ReasoningDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.messages import ReasoningPart
from kani_lite.testing import Gate, Pause, Reply, ScriptedEngine, UnexpectedCall

HELLO = [ChatMessage.user("hello")]
CALL = ToolCall.from_function("get_time", call_id_="c1", city="Paris")


def get_time(city: str) -> str:
    """Get the time in a city."""
    return f"It is noon in {city}."


async def streamed(engine: ScriptedEngine, messages: list[ChatMessage] = HELLO) -> list[Any]:
    return [item async for item in engine.stream(messages)]


async def test_says_texts_messages_and_what_functions_return() -> None:
    async def later(messages: list[ChatMessage]) -> ChatMessage:
        await anyio.lowlevel.checkpoint()
        return ChatMessage.assistant(f"{len(messages)} messages")

    message = ChatMessage.assistant("two")
    with ScriptedEngine("one", message, lambda messages: f"{messages[-1].text}!", later) as engine:
        said = [(await engine.predict(HELLO)).message.text for _ in range(4)]
    assert said == ["one", "two", "hello!", "1 messages"]


async def test_streams_in_pieces_and_the_completion_last() -> None:
    with ScriptedEngine("one two three", chunk=5) as engine:
        *pieces, last = await streamed(engine)
    assert pieces == ["one t", "wo th", "ree"]
    assert isinstance(last, BaseCompletion)
    assert last.message == ChatMessage.assistant("one two three")
    assert (last.prompt_tokens, last.completion_tokens) == (engine.prompt_len(HELLO), 4)
    assert engine.streams_closed == 1


async def test_a_reply_of_parts_is_streamed_as_it_is() -> None:
    with ScriptedEngine(Reply(ReasoningDelta("hm"), "Let me ", "see.", CALL)) as engine:
        *items, last = await streamed(engine)
    assert items == [
        ReasoningDelta("hm"),
        "Let me ",
        "see.",
        ToolCallStarted(0, "c1", "get_time"),
        ToolCallDelta(0, '{"city": "Paris"}'),
        ToolCallFinished(0, CALL),
    ]
    expected = ChatMessage.assistant([ReasoningPart(content="hm"), "Let me see."], tool_calls=[CALL])
    assert last.message == expected


@pytest.mark.parametrize("steps", [(CALL,), ([CALL, CALL],), (Reply(CALL),)], ids=["one", "two", "reply"])
async def test_tool_calls_drive_a_round(steps: Any) -> None:
    with ScriptedEngine(*steps, "It is noon.") as engine:
        ai = Kani(engine, functions=[AIFunction(get_time)])
        messages = [m async for m in ai.full_round("what time is it in Paris?")]
    calls = len(messages[0].tool_calls or [])
    assert [m.text for m in messages] == [None, *["It is noon in Paris."] * calls, "It is noon."]
    assert [f.name for f in engine.functions[0] or []] == ["get_time"]


@pytest.mark.parametrize("stream", [False, True])
async def test_exceptions_are_raised(stream: bool) -> None:
    with ScriptedEngine(ConnectionError("gone"), Reply("some ", ValueError("broke"))) as engine:
        seen: list[str] = []

        async def ask() -> None:
            nonlocal seen
            if not stream:
                await engine.predict(HELLO)
            async for item in engine.stream(HELLO):
                seen += [str(item)]

        with pytest.raises(ConnectionError, match="gone"):
            await ask()
        with pytest.raises(ValueError, match="broke"):
            await ask()
    assert seen == (["some "] if stream else [])


async def test_a_gate_holds_the_stream_for_a_cancel() -> None:
    gate = Gate()
    with ScriptedEngine(Reply("Once ", gate, "upon a time"), "again") as engine:
        seen: list[Any] = []

        async def listen() -> None:
            nonlocal seen
            async with aclosing(engine.stream(HELLO)) as stream:  # type: ignore[type-var]  # an async generator
                async for item in stream:
                    seen += [item]

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await gate.reached()
            assert seen == ["Once "]
            group.cancel_scope.cancel()
        assert engine.streams_closed == 1
        assert (await engine.predict(HELLO)).message.text == "again"
    assert seen == ["Once "]


async def test_an_open_gate_lets_all_through() -> None:
    gate = Gate()
    with ScriptedEngine(gate, "one", gate, Pause(0), "two") as engine:
        said: list[str | None] = []

        async def ask() -> None:
            said.append((await engine.predict(HELLO)).message.text)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await gate.reached()
            assert not said
            gate.open()
        await ask()
        await gate.reached()
    assert said == ["one", "two"]


async def test_a_pause_can_be_cut_short() -> None:
    with ScriptedEngine(Pause(600), "late") as engine:
        with anyio.move_on_after(0.01) as scope:
            await engine.predict(HELLO)
        assert scope.cancelled_caught
        assert (await engine.predict(HELLO)).message.text == "late"


async def test_keeps_what_it_was_asked_as_it_was_then() -> None:
    asked = [ChatMessage.user("hello")]
    with ScriptedEngine("hi") as engine:
        await engine.predict(asked, temperature=0.5)
        asked[0].content = "changed"
        asked.append(ChatMessage.assistant("hi"))
    assert engine.prompts == [HELLO]
    assert engine.functions == [None]
    assert engine.kwargs == [{"temperature": 0.5}]


# ==== strict ====


async def test_a_step_that_is_not_asked_for_fails() -> None:
    engine = ScriptedEngine("one", "two")
    await engine.predict(HELLO)
    with pytest.raises(UnexpectedCall, match=r"1 of the engine's replies .* the first is 'two'"):
        engine.assert_done()
    with pytest.raises(AssertionError), engine:
        pass


async def test_a_call_without_a_step_fails_even_if_it_is_swallowed() -> None:
    engine = ScriptedEngine("one")
    await engine.predict(HELLO)
    engine.assert_done()
    with pytest.raises(UnexpectedCall, match="after 'hello', has no step"):
        await engine.predict(HELLO)
    with pytest.raises(EngineError, match="Call 3"):
        await streamed(engine)
    with pytest.raises(UnexpectedCall, match="Call 2 of the scripted engine"):
        engine.assert_done()


def test_the_error_of_a_test_comes_before_what_is_left() -> None:
    with pytest.raises(KeyError, match="mine"), ScriptedEngine("unused"):
        raise KeyError("mine")


async def test_otherwise_answers_any_number_of_calls() -> None:
    with ScriptedEngine("first", otherwise=lambda messages: f"{messages[-1].text} too") as engine:
        said = [(await engine.predict(HELLO)).message.text for _ in range(3)]
    assert said == ["first", "hello too", "hello too"]
    with ScriptedEngine(otherwise="never asked"):
        pass


async def test_context_and_close_are_those_of_an_engine() -> None:
    engine = ScriptedEngine("unused", max_context_size=5)
    with pytest.raises(PromptTooLong, match=r"has 26 tokens, and the context is 5"):
        await engine.predict([ChatMessage.user("a" * 100)])
    assert len(engine.steps) == 1
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.predict(HELLO)
    with pytest.raises(ValueError, match="chunk is 0"):
        ScriptedEngine(chunk=0)
