"""What sections 2.1 and 2.2 of the specification name beside what test_rounds.py holds, and kani's faults in rounds."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, ChatMessage, ChatRole, Kani, TextPart
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.events import EndReason, RoundEnd

pytestmark = pytest.mark.anyio


async def fine() -> str:
    """Works."""
    return "fine"


async def bad() -> str:
    """Fails."""
    raise ValueError("bad")


def functions(**kwargs: Any) -> list[AIFunction]:
    return [AIFunction(fine, **kwargs), AIFunction(bad, **kwargs)]


async def read(ai: Kani, **kwargs: Any) -> list[ChatMessage]:
    return [message async for message in ai.full_round("go", **kwargs)]


async def test_no_query_adds_no_user_message_and_kwargs_reach_the_engine() -> None:
    ai = Kani(engine := ScriptedEngine("Hello."))
    await ai.chat_round(None, temperature=0)
    assert [m.role for m in ai.chat_history] == [ChatRole.ASSISTANT]
    assert engine.kwargs == [{"temperature": 0}]


async def test_a_query_of_parts() -> None:
    ai = Kani(ScriptedEngine("Hello."))
    await ai.chat_round(["a", TextPart(content="b")])
    assert ai.chat_history[0].text == "ab"


async def test_n_rounds_of_tools_then_one_message_without() -> None:
    ai = Kani(engine := ScriptedEngine(calling(call("fine")), calling(call("fine")), "done"), functions=functions())
    messages = await read(ai, max_function_rounds=2)
    assert [m.role.value for m in messages] == ["assistant", "function"] * 2 + ["assistant"]
    assert [f is not None for f in engine.functions] == [True, True, False]


async def test_an_engine_that_keeps_its_prefix_gets_the_functions_and_is_told_not_to_call() -> None:
    class Keeps(ScriptedEngine):
        disable_function_calling_kwargs = {"tool_choice": "none"}  # noqa: RUF012  # as users write it

    ai = Kani(engine := Keeps(calling(call("fine"))), functions=functions())
    events = [e async for e in ai.events("go", max_function_rounds=0)]
    assert engine.kwargs == [{"tool_choice": "none"}]
    assert engine.functions[0] is not None
    assert events[-1] == RoundEnd(EndReason.TOOL_ROUNDS)  # and its call did not run
    assert ai.chat_history[-1].is_tool_call_error


async def test_the_model_speaks_if_any_call_failed_though_all_are_for_the_user() -> None:
    both = calling(call("fine"), call("bad"))
    ai = Kani(ScriptedEngine(both, "Sorry."), functions=functions(after=ChatRole.USER))
    assert (await read(ai))[-1].text == "Sorry."


async def test_a_round_without_errors_gives_the_retries_back() -> None:
    steps = [calling(call(name)) for name in ("bad", "fine", "bad", "bad")]
    ai = Kani(engine := ScriptedEngine(*steps, "No."), functions=functions(), retry_attempts=1)
    await read(ai)
    assert [f is not None for f in engine.functions] == [True, True, True, True, False]


async def test_no_auto_retry_switches_functions_off_at_once() -> None:
    ai = Kani(engine := ScriptedEngine(calling(call("bad")), "No."), functions=functions(auto_retry=False))
    await read(ai)
    assert [f is not None for f in engine.functions] == [True, False]


async def test_an_unknown_function_may_always_be_retried() -> None:
    ai = Kani(ScriptedEngine(calling(call("nope", "1")), "Oh."), functions=functions())
    result = (await read(ai))[1]
    assert (result.name, result.tool_call_id, result.is_tool_call_error) == (None, "1", True)


async def test_a_message_as_result_keeps_what_it_says() -> None:
    async def ready() -> ChatMessage:
        """Gives a message."""
        return ChatMessage.function("other", "x", is_tool_call_error=True)

    ai = Kani(ScriptedEngine(calling(call("ready", "7")), "ok"), functions=[AIFunction(ready)])
    result = (await read(ai))[1]
    assert (result.name, result.tool_call_id, result.is_tool_call_error) == ("other", "7", True)


async def test_calls_with_the_same_id_each_get_a_result_when_the_round_is_closed() -> None:
    twice = calling(call("fine", "1"), call("fine", "1"))
    ai = Kani(ScriptedEngine(twice, "ok"), functions=functions())
    async with ai.full_round("go") as messages:
        await anext(messages)
    assert [m.tool_call_id for m in ai.chat_history[2:]] == ["1", "1"]


async def test_calls_without_end_are_not_run_without_end() -> None:  # kani's fault 4
    ran: list[int] = []

    async def spy() -> None:
        """Fails."""
        ran.append(1)
        raise ValueError

    engine = ScriptedEngine(*(calling(call("spy")) for _ in range(20)))
    await read(Kani(engine, functions=[AIFunction(spy)], retry_attempts=1))
    assert len(ran) == 2


async def test_a_call_alone_from_an_engine_that_does_not_stream() -> None:  # kani's fault 8
    class Whole(BaseEngine):
        max_context_size = 1000

        def message_len(self, message: ChatMessage) -> int:
            return 1

        async def predict(self, messages: list[ChatMessage], functions: Any = None, **kwargs: Any) -> BaseCompletion:
            last = messages[-1].role is ChatRole.FUNCTION
            return Completion(ChatMessage.assistant("ok") if last else calling(call("fine")))

    ai = Kani(Whole(), functions=functions())
    assert [(await s.message()).text async for s in ai.full_round_stream("go")] == [None, "fine", "ok"]


async def test_a_stream_counts_the_functions_it_sends_and_no_others() -> None:  # kani's fault 9
    counted: list[Any] = []

    class Counts(ScriptedEngine):
        def prompt_len(self, messages: list[ChatMessage], functions: Any = None, **kwargs: Any) -> int:
            counted.append(functions)
            return 1

    ai = Kani(engine := Counts("Hello."), functions=functions())
    await ai.chat_round_stream("go", include_functions=False)
    assert counted
    assert not any(counted)
    assert engine.functions == [None]


async def test_no_response_tokens_and_no_tool_rounds_are_taken_at_their_word() -> None:  # kani's fault 11
    ai = Kani(engine := ScriptedEngine("No."), functions=functions(), desired_response_tokens=0)
    assert ai.desired_response_tokens == 0
    await read(ai, max_function_rounds=0)
    assert engine.functions == [None]


async def test_a_prompt_is_a_list_of_its_own() -> None:  # kani's fault 20
    ai = Kani(ScriptedEngine(), system_prompt="Be kind.")
    (await ai.get_prompt()).clear()
    assert len(ai.always_included_messages) == 1
