"""Details of rounds that programs written for kani rely on, and what limits and hooks do in corners."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, ChatMessage, ChatRole, Kani, Limits, TextPart
from kani_lite.engines import BaseEngine, Completion
from kani_lite.events import (
    EndReason,
    Event,
    ReasoningDelta,
    RoundEnd,
    TextDelta,
    ToolCallDelta,
    ToolCallFinished,
    ToolCallStarted,
)


async def told(ai: Kani) -> list[str | None]:
    return [m.text async for m in ai.full_round("go")]


async def test_a_result_is_cut_to_what_the_function_allows() -> None:
    def long() -> str:
        """Says a lot."""
        return "one two three. four five"

    ai = Kani(ScriptedEngine(calling(call("long")), "ok"), functions=[AIFunction(long, auto_truncate=18)])
    assert await told(ai) == [None, "one two three...", "ok"]


@pytest.mark.parametrize("most", [1, 3, 8])
async def test_no_more_calls_at_a_time_than_allowed(most: int) -> None:
    now, top = 0, 0

    async def waits() -> None:
        """Waits."""
        nonlocal now, top
        now += 1
        top = max(top, now)
        await anyio.sleep(0.01)
        now -= 1

    engine = ScriptedEngine(calling(*(call("waits") for _ in range(12))), "ok")
    ai = Kani(engine, functions=[AIFunction(waits)], limits=Limits(parallel_calls=most))
    await told(ai)
    assert top == most


def test_the_defaults_of_limits() -> None:
    defaults = Limits(
        tool_rounds=32, parallel_calls=8, tool_seconds=120, result_chars=100_000, round_seconds=None, total_tokens=None
    )
    assert Limits() == defaults


@pytest.mark.parametrize(("limits", "rounds"), [(None, 32), (Limits(tool_rounds=0), 0), (Limits(tool_rounds=2), 2)])
async def test_rounds_with_tools_are_limited(limits: Limits | None, rounds: int) -> None:
    ran = 0

    def note() -> None:
        """Counts."""
        nonlocal ran
        ran += 1

    engine = ScriptedEngine(*[calling(call("note")) for _ in range(40)])
    ai = Kani(engine, functions=[AIFunction(note)], limits=limits)
    events = [event async for event in ai.events("go", max_function_rounds=None)]
    assert (ran, events[-1]) == (rounds, RoundEnd(EndReason.TOOL_ROUNDS))


async def test_a_sync_function_that_takes_too_long_is_left() -> None:
    released = threading.Event()

    def stuck() -> str:
        """Is stuck."""
        released.wait(10)
        return "late"

    ai = Kani(ScriptedEngine(calling(call("stuck")), "ok"), functions=[AIFunction(stuck, timeout=0.02)])
    started = time.monotonic()
    _, result, last = await told(ai)
    released.set()
    assert (last, time.monotonic() - started < 5) == ("ok", True)
    assert "stuck took more than 0.02 seconds" in (result or "")


class Slow(ScriptedEngine):
    async def predict(self, *_: Any, **__: Any) -> Any:
        await anyio.sleep_forever()

    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        yield "a"
        await anyio.sleep_forever()


async def test_time_is_up_while_the_model_speaks() -> None:
    ai = Kani(Slow(), limits=Limits(round_seconds=0.02))
    with pytest.raises(TimeoutError):
        await ai.chat_round("go")
    with pytest.raises(TimeoutError):
        await ai.chat_round_stream("go")
    assert [event async for event in ai.events("go")][-1] == RoundEnd(EndReason.SECONDS)
    assert ai.chat_history == []


async def test_deltas_of_the_engine_are_told_once() -> None:
    asked = call("f", "1", a=1)
    deltas = [
        ReasoningDelta("Hm."),
        TextDelta("See."),
        ToolCallStarted(0, "1", "f"),
        ToolCallDelta(0, asked.function.arguments),
        ToolCallFinished(0, asked),
    ]

    class Telling(ScriptedEngine):
        async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            for delta in deltas:
                yield delta
            yield Completion(ChatMessage.assistant("See.", tool_calls=[asked]))

    events: list[Event] = [event async for event in Kani(Telling()).events("go", max_function_rounds=0)]
    assert [event for event in events if isinstance(event, tuple(map(type, deltas)))] == deltas


async def test_a_stream_ends_with_its_completion() -> None:
    class Going(ScriptedEngine):
        async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            yield Completion(ChatMessage.assistant("a"))
            yield "b"

    ai = Kani(Going())
    with pytest.raises(RuntimeError, match="goes on after its completion, with 'b'"):
        await ai.chat_round_stream("go")
    assert ai.chat_history == []


async def test_a_formatter_of_ones_own() -> None:
    def f() -> str:
        """Does it."""
        return "x"

    ai = Kani(ScriptedEngine(calling(call("f")), "ok"), functions=[AIFunction(f)])
    texts = ai.full_round_str("go", lambda m: f"{m.role.value}: {m.text}" if m.text else None)
    assert [text async for text in texts] == ["function: x", "assistant: ok"]


async def test_asking_the_model_changes_no_history() -> None:
    ai = Kani(ScriptedEngine("a", "b"), chat_history=[ChatMessage.user("hi")])
    assert (await ai.get_model_completion()).message.text == "a"
    items = [item async for item in ai.get_model_stream()]
    assert "".join(item for item in items if isinstance(item, str)) == "b"
    assert [m.text for m in ai.chat_history] == ["hi"]


async def test_hooks_that_take_anything() -> None:
    seen: list[str] = []

    class Loose(Kani):
        async def get_prompt(self, *args: Any, **kwargs: Any) -> Any:
            seen.append("prompt")
            return await super().get_prompt(*args, **kwargs)

        async def do_function_call(self, *args: Any, **kwargs: Any) -> Any:
            seen.append("call")
            return await super().do_function_call(*args, **kwargs)

        async def handle_function_call_exception(self, *args: Any, **kwargs: Any) -> Any:
            seen.append("error")
            return await super().handle_function_call_exception(*args, **kwargs)

        async def add_to_history(self, *args: Any, **kwargs: Any) -> None:
            seen.append("add")
            await super().add_to_history(*args, **kwargs)

    def fails() -> None:
        """Fails."""
        raise ValueError("no")

    ai = Loose(ScriptedEngine(calling(call("fails")), "ok"), functions=[AIFunction(fails)])
    assert await told(ai) == [None, "no", "ok"]
    assert seen == ["add", "prompt", "add", "call", "error", "add", "prompt", "add"]


async def test_a_hook_for_errors_that_fails() -> None:
    class Broken(Kani):
        async def handle_function_call_exception(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyError("broken hook")

    def fails() -> None:
        """Fails."""
        raise ValueError("no")

    ai = Broken(ScriptedEngine(calling(call("fails"), call("fails")), "ok"), functions=[AIFunction(fails)])
    with pytest.raises(KeyError, match="broken hook"):
        await told(ai)
    assert [m.role.value for m in ai.chat_history] == ["user", "assistant", "function", "function"]
    assert await ai.chat_round_str("go on", include_functions=False) == "ok"


async def test_the_model_speaks_after_a_denial() -> None:
    def wipe() -> None:
        """Wipes."""

    functions = [AIFunction(wipe, after=ChatRole.USER, risky=True)]
    assert (await told(Kani(ScriptedEngine(calling(call("wipe")), "ok"), functions=functions)))[-1] == "ok"
    asked = []

    def approve(function: AIFunction, arguments: dict[str, Any]) -> bool:
        asked.append(function.name)
        return True

    ai = Kani(ScriptedEngine(calling(call("wipe", wrong=1)), "ok"), functions=functions, approve=approve)
    await told(ai)
    assert asked == []  # the arguments don't fit
    ai = Kani(ScriptedEngine(calling(call("wipe"))), functions=functions, approve=approve)
    assert await told(ai) == [None, "None"]
    assert asked == ["wipe"]


async def test_calls_of_one_id_have_each_their_result() -> None:
    def same(x: int) -> int:
        """Gives it back."""
        return x

    ai = Kani(
        ScriptedEngine(calling(call("same", "1", x=1), call("same", "1", x=2)), "ok"), functions=[AIFunction(same)]
    )
    assert await told(ai) == [None, "1", "2", "ok"]


async def test_what_was_given_is_not_changed() -> None:
    query: list[Any] = ["a", TextPart(content="b")]
    history = [ChatMessage.user("before")]
    ai = Kani(ScriptedEngine("ok"), chat_history=history)
    await ai.chat_round(query)
    assert (query, history) == (["a", TextPart(content="b")], [ChatMessage.user("before")])
    assert ai.chat_history[1].text == "ab"


def test_a_chat_outlives_its_event_loop() -> None:
    ai = Kani(ScriptedEngine("a", "b"))
    assert asyncio.run(ai.chat_round_str("1")) == "a"
    assert asyncio.run(ai.chat_round_str("2")) == "b"


async def test_the_lock_is_everybodys() -> None:
    ai = Kani(ScriptedEngine("a"))
    order: list[str] = []

    async def ask() -> None:
        order.append(await ai.chat_round_str("1"))

    async with anyio.create_task_group() as tasks, ai.lock:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        order.append("mine")
    assert order == ["mine", "a"]


def test_an_engine_needs_no_more_than_two_methods() -> None:
    class Least(BaseEngine):
        max_context_size = 100

        def message_len(self, message: ChatMessage) -> int:
            return 1

        async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> Completion:
            return Completion(ChatMessage.assistant("least"))

    assert asyncio.run(Kani(Least()).chat_round_str("hi")) == "least"
