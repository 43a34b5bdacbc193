from __future__ import annotations

from typing import Annotated

import anyio
import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, AIParam, ChatMessage, ChatRole, Kani, Limits, ai_function
from kani_lite.events import (
    EndReason,
    MessageAdded,
    MessageStarted,
    RoundEnd,
    TextDelta,
    ToolCallDelta,
    ToolCallFinished,
    ToolCallStarted,
    ToolResult,
    Usage,
)
from kani_lite.exceptions import KaniException, RoundEnded

pytestmark = pytest.mark.anyio


class Weather(Kani):
    """Two functions: one works, one fails."""

    @ai_function()
    def get_weather(self, city: Annotated[str, AIParam("where")]) -> str:
        """The weather in a city."""
        return f"Sunny in {city}."

    @ai_function()
    async def fail(self) -> str:
        """Always fails."""
        raise ValueError("broken pipe")


def roles(ai: Kani) -> list[str]:
    return [m.role.value for m in ai.chat_history]


async def test_chat_round() -> None:
    ai = Kani(engine := ScriptedEngine("Hello!", "Ada."), system_prompt=" Be kind. ")
    assert (await ai.chat_round("Hi, I am Ada.")).text == "Hello!"
    assert await ai.chat_round_str("Who am I?") == "Ada."
    assert [m.text for m in engine.prompts[1]] == ["Be kind.", "Hi, I am Ada.", "Hello!", "Who am I?"]
    assert roles(ai) == ["user", "assistant", "user", "assistant"]
    assert ai.desired_response_tokens == 1000


async def test_chat_round_with_functions_warns_and_offers_none() -> None:
    ai = Weather(engine := ScriptedEngine("Hello!"))
    with pytest.warns(UserWarning, match="full_round"):
        await ai.chat_round("Hi")
    assert engine.functions == [None]


async def test_chat_round_answers_calls_it_can_not_run() -> None:
    ai = Kani(ScriptedEngine(calling(call("x", "1")), "ok"))
    message = await ai.chat_round("Hi")
    assert message.tool_calls
    assert [m.tool_call_id for m in ai.chat_history if m.role is ChatRole.FUNCTION] == ["1"]
    assert await ai.chat_round_str("And now?") == "ok"


async def test_chat_round_stream() -> None:
    ai = Kani(ScriptedEngine("Hello there!", "again"))
    stream = ai.chat_round_stream("Hi")
    assert [token async for token in stream] == ["Hell", "o th", "ere!"]
    assert (await stream).text == "Hello there!"
    assert (await stream.completion()).prompt_tokens == 10
    with pytest.raises(RuntimeError, match="before"):
        _ = [token async for token in stream]
    assert (await ai.chat_round_stream("Hi")).text == "again"
    assert len(ai.chat_history) == 4


async def test_full_round_runs_calls_and_speaks_again() -> None:
    ai = Weather(engine := ScriptedEngine(calling(call("get_weather", "1", city="Rome")), "Sunny in Rome."))
    messages = [m async for m in ai.full_round("Rome?")]
    assert [m.role.value for m in messages] == ["assistant", "function", "assistant"]
    assert messages[1] == ChatMessage.function("get_weather", "Sunny in Rome.", "1", is_tool_call_error=False)
    assert ai.chat_history[1:] == messages
    assert [f.name for f in engine.functions[0] or []] == ["fail", "get_weather"]


async def test_full_round_str() -> None:
    ai = Weather(ScriptedEngine(calling(call("get_weather", city="Rome"), text="Let me see."), "Sunny."))
    assert [text async for text in ai.full_round_str("Rome?")] == ["Let me see.", "Sunny."]


async def test_full_round_stream_gives_a_stream_for_each_message() -> None:
    ai = Weather(ScriptedEngine(calling(call("get_weather", city="Rome"), text="Hmm."), "It is sunny."))
    seen = []
    async for stream in ai.full_round_stream("Rome?"):
        tokens = [token async for token in stream] if stream.role is ChatRole.ASSISTANT else []
        seen.append((stream.role.value, "".join(tokens), (await stream.message()).text))
    assert seen == [
        ("assistant", "Hmm.", "Hmm."),
        ("function", "", "Sunny in Rome."),
        ("assistant", "It is sunny.", "It is sunny."),
    ]


async def test_full_round_stream_can_be_skipped_through() -> None:
    ai = Weather(ScriptedEngine(calling(call("get_weather", city="Rome")), "Sunny."))
    assert [s.role.value async for s in ai.full_round_stream("Rome?")] == ["assistant", "function", "assistant"]
    assert roles(ai) == ["user", "assistant", "function", "assistant"]


async def test_events() -> None:
    ai = Weather(ScriptedEngine(request := calling(one := call("get_weather", "1", city="Rome")), "Sunny."))
    result = ChatMessage.function("get_weather", "Sunny in Rome.", "1", is_tool_call_error=False)
    assert [e async for e in ai.events("Rome?")] == [
        MessageStarted(),
        ToolCallStarted(0, "1", "get_weather"),
        ToolCallDelta(0, '{"city": "Rome"}'),
        ToolCallFinished(0, one),
        MessageAdded(request),
        Usage(10, 7),
        ToolResult(one, result),
        MessageStarted(),
        TextDelta("Sunn"),
        TextDelta("y."),
        MessageAdded(ChatMessage.assistant("Sunny.")),
        Usage(10, 2),
        RoundEnd(EndReason.DONE),
    ]


async def test_errors_are_retried_then_functions_are_off() -> None:
    fail = calling(call("fail", "1"))
    ai = Weather(engine := ScriptedEngine(fail, fail, "It does not work."), retry_attempts=1)
    events = [e async for e in ai.events("go")]
    assert [m.text for m in ai.chat_history if m.role is ChatRole.FUNCTION] == ["broken pipe", "broken pipe"]
    assert [f is not None for f in engine.functions] == [True, True, False]
    assert events[-1] == RoundEnd(EndReason.TOOL_ERRORS)


async def test_calls_after_functions_are_off_are_not_run() -> None:
    ran = []

    def spy() -> str:
        """Spies."""
        ran.append(1)
        return "ok"

    forever = [calling(call("spy", str(i))) for i in range(4)]
    ai = Kani(ScriptedEngine(*forever, "fine"), functions=[AIFunction(spy)])
    messages = [m async for m in ai.full_round("go", max_function_rounds=2)]
    assert len(ran) == 2
    assert messages[-1].tool_calls
    assert ai.chat_history[-1].is_tool_call_error
    assert ai.chat_history[-1].tool_call_id == "2"
    ai.engine.steps.pop(0)  # type: ignore[attr-defined]  # the scripted engine's
    assert await ai.chat_round_str("and now?", include_functions=False) == "fine"


async def test_max_function_rounds_0_offers_none() -> None:
    ai = Weather(engine := ScriptedEngine("No."))
    assert [m.text async for m in ai.full_round("Rome?", max_function_rounds=0)] == ["No."]
    assert engine.functions == [None]


async def test_what_was_not_offered_never_runs() -> None:
    ran = []

    async def secret() -> None:
        """Runs."""
        ran.append(1)

    ai = Kani(ScriptedEngine(calling(call("secret")), "Sorry."), functions=[AIFunction(secret, enabled=False)])
    messages = [m async for m in ai.full_round("go")]
    assert not ran
    assert messages[1].is_tool_call_error
    assert "'secret' is not defined" in (messages[1].text or "")


async def test_results_come_in_the_order_of_the_calls_though_they_run_together() -> None:
    started = anyio.Event()

    async def first() -> str:
        """Waits for the second."""
        await started.wait()
        return "1"

    async def second() -> str:
        """Lets the first go on."""
        started.set()
        return "2"

    ai = Kani(
        ScriptedEngine(calling(call("first"), call("second")), "done"),
        functions=[AIFunction(first), AIFunction(second)],
    )
    assert [m.text async for m in ai.full_round("go")] == [None, "1", "2", "done"]


async def test_user_turn_ends_the_round() -> None:
    def show() -> str:
        """Shows."""
        return "shown"

    ai = Kani(ScriptedEngine(calling(call("show"))), functions=[AIFunction(show, after=ChatRole.USER)])
    events = [e async for e in ai.events("go")]
    assert events[-1] == RoundEnd(EndReason.USER_TURN)
    assert roles(ai) == ["user", "assistant", "function"]


async def test_risky_needs_approval() -> None:
    ran: list[str] = []

    def wipe(path: str) -> str:
        """Wipes."""
        ran.append(path)
        return "wiped"

    step = calling(call("wipe", path="/"))
    functions = [AIFunction(wipe, risky=True)]
    denied = Kani(ScriptedEngine(step, "ok"), functions=functions)
    assert "approval" in ([m async for m in denied.full_round("go")][1].text or "")
    asked = []

    async def approve(function: AIFunction, arguments: dict[str, object]) -> bool | str:
        asked.append((function.name, arguments))
        return True if arguments["path"] == "/tmp" else "not there"

    ai = Kani(ScriptedEngine(step, calling(call("wipe", path="/tmp")), "ok"), functions=functions, approve=approve)
    assert [m.text async for m in ai.full_round("go")] == [None, "not there", None, "wiped", "ok"]
    assert asked == [("wipe", {"path": "/"}), ("wipe", {"path": "/tmp"})]
    assert ran == ["/tmp"]


async def test_limits() -> None:
    async def slow() -> str:
        """Never ends."""
        await anyio.sleep_forever()
        return ""

    def long() -> str:
        """Says a lot."""
        return "word " * 100

    step = calling(call("slow"), call("long"))
    limits = Limits(tool_seconds=0.01, result_chars=80, parallel_calls=1)
    ai = Kani(ScriptedEngine(step, "ok"), functions=[AIFunction(slow), AIFunction(long)], limits=limits)
    messages = [m async for m in ai.full_round("go")]
    assert "more than 0.01 seconds" in (messages[1].text or "")
    assert len(messages[2].text or "") <= 80
    ai = Kani(ScriptedEngine(calling(call("slow"))), functions=[AIFunction(slow)], limits=Limits(round_seconds=0.05))
    events = [e async for e in ai.events("go")]
    assert events[-1] == RoundEnd(EndReason.SECONDS)
    assert roles(ai) == ["user", "assistant", "function"]
    ai = Kani(ScriptedEngine(calling(call("long"))), functions=[AIFunction(long)], limits=Limits(total_tokens=5))
    assert [e async for e in ai.events("go")][-1] == RoundEnd(EndReason.TOKENS)
    with pytest.raises(ValueError, match="tool_rounds is -1"):
        Limits(tool_rounds=-1)


async def test_failed_round_leaves_no_user_message_behind() -> None:
    ai = Kani(ScriptedEngine(ConnectionError("gone"), "Hello!"))
    with pytest.raises(ConnectionError):
        await ai.chat_round("Hi")
    assert ai.chat_history == []
    assert await ai.chat_round_str("Hi") == "Hello!"


@pytest.mark.parametrize(("policy", "left"), [("answer", ["user", "assistant", "function"]), ("rollback", [])])
async def test_cancelled_tool(policy: str, left: list[str]) -> None:
    async def slow() -> None:
        """Never ends."""
        scope.cancel()
        await anyio.sleep_forever()

    ai = Kani(ScriptedEngine(calling(call("slow", "1")), "ok"), functions=[AIFunction(slow)], on_broken=policy)  # type: ignore[arg-type]
    with anyio.CancelScope() as scope:
        async for _ in ai.full_round("go"):
            pass
    assert scope.cancelled_caught
    assert roles(ai) == left
    if left:
        assert ai.chat_history[-1].tool_call_id == "1"
        assert ai.chat_history[-1].is_tool_call_error
    assert await ai.chat_round_str("next", include_functions=False) == "ok"


async def test_break_in_a_stream_then_message_does_not_hang() -> None:
    ai = Kani(engine := ScriptedEngine("Hello there!", "ok"))
    stream = ai.chat_round_stream("Hi")
    async for _token in stream:
        break
    assert (await stream.message()).text == "Hello there!"
    async with ai.chat_round_stream("Hi") as second:
        async for _token in second:
            break
    with pytest.raises(RuntimeError, match="closed"):
        await second.message()
    assert engine.streams_closed == 2
    assert roles(ai) == ["user", "assistant"]


async def test_error_in_a_stream_reaches_everyone() -> None:
    ai = Kani(ScriptedEngine(ConnectionError("gone")))
    stream = ai.chat_round_stream("Hi")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await stream.message()


async def test_suspended_round_is_ended_by_the_next() -> None:
    ai = Weather(engine := ScriptedEngine(calling(call("get_weather", city="Rome")), "ok"))
    old = ai.full_round("Rome?")
    assert (await anext(old)).tool_calls
    assert await ai.chat_round_str("Never mind.", include_functions=False) == "ok"
    assert roles(ai) == ["user", "assistant", "function", "user", "assistant"]
    assert ai.chat_history[2].is_tool_call_error
    with pytest.raises(RoundEnded):
        await anext(old)
    assert engine.steps == []


async def test_running_round_is_waited_for() -> None:
    go = anyio.Event()
    order = []

    class Slow(ScriptedEngine):
        async def predict(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # passes all on
            order.append("start")
            await go.wait()
            order.append("end")
            return await super().predict(*args, **kwargs)

    ai = Kani(Slow("one", "two"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ai.chat_round, "1")
        tasks.start_soon(ai.chat_round, "2")
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert order == ["start", "end", "start", "end"]
    assert [m.text for m in ai.chat_history if m.role is ChatRole.ASSISTANT] == ["one", "two"]


async def test_function_that_calls_its_own_chat_is_told() -> None:
    class Inner(Kani):
        @ai_function()
        async def again(self) -> str:
            """Talks to itself."""
            return await self.chat_round_str("hm", include_functions=False)

    ai = Inner(ScriptedEngine(calling(call("again")), "ok"))
    messages = [m async for m in ai.full_round("go")]
    assert "sub-agent" in (messages[1].text or "")
    assert messages[-1].text == "ok"


async def test_sub_agent() -> None:
    sub = Kani(ScriptedEngine("42"))

    async def ask(question: str) -> str:
        """Asks the expert."""
        return await sub.chat_round_str(question)

    ai = Kani(ScriptedEngine(calling(call("ask", question="?")), "It is 42."), functions=[AIFunction(ask)])
    assert [m.text async for m in ai.full_round("go")] == [None, "42", "It is 42."]


async def test_bad_arguments_come_back_to_the_model() -> None:
    broken = calling(call("get_weather"))
    assert broken.tool_calls
    broken.tool_calls[0].function.arguments = '{"city": '
    ai = Weather(ScriptedEngine(broken, calling(call("get_weather", town="Rome")), "ok"), retry_attempts=3)
    results = [m async for m in ai.full_round("go") if m.role is ChatRole.FUNCTION]
    assert all(m.is_tool_call_error for m in results)
    assert "city" in (results[1].text or "")


async def test_exceptions_from_an_overridden_hook_end_the_round_with_a_valid_history() -> None:
    class Odd(Weather):
        async def do_function_call(self, call, tool_call_id=None):  # type: ignore[no-untyped-def]  # an override
            raise RuntimeError("odd")

    ai = Odd(ScriptedEngine(calling(call("fail", "1"), call("fail", "2")), "ok"))
    with pytest.raises(RuntimeError, match="odd"):
        async for _ in ai.full_round("go"):
            pass
    assert roles(ai) == ["user", "assistant", "function", "function"]


def test_names_clash() -> None:
    def get_weather() -> None:
        """Clashes."""

    with pytest.raises(ValueError, match="'get_weather' is already registered"):
        Weather(ScriptedEngine(), functions=[AIFunction(get_weather)])
    with pytest.raises(ValueError, match="on_broken"):
        Kani(ScriptedEngine(), on_broken="undo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_function_rounds"):
        Kani(ScriptedEngine()).full_round("x", max_function_rounds=-1)
    assert issubclass(RoundEnded, KaniException)
