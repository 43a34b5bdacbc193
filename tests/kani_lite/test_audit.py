"""Faults that an audit of the core found, each as the smallest program that showed it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, ChatMessage, ChatRole, Kani, Limits
from kani_lite.budget import Budget
from kani_lite.engines import BaseCompletion, BaseEngine, Completion, WrapperEngine
from kani_lite.events import Event, MessageAdded, ReasoningDelta, TextDelta
from kani_lite.messages import ReasoningPart


class Sized(BaseEngine):
    """Counts a message by the number that is its text, or by `estimates`."""

    max_context_size = 10_000

    def __init__(self, *, blocks: bool, overhead: int = 0, strict: bool = False, wrong_by: int = 0) -> None:
        self.reuses_prefix = blocks  # type: ignore[misc]  # of this engine alone
        self.overhead, self.strict, self.wrong_by = overhead, strict, wrong_by

    def message_len(self, message: ChatMessage) -> int:
        return max(0, int(message.text or 0) - self.wrong_by)

    def prompt_len(self, messages: list[ChatMessage], functions: Any = None, **kwargs: Any) -> int:
        if self.strict and messages and messages[0].role is not ChatRole.USER:
            raise ValueError("has to begin with a user message")
        return self.overhead + sum(int(m.text or 0) for m in messages)

    async def predict(self, messages: list[ChatMessage], functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        return Completion(ChatMessage.assistant("0"))


def history(*sizes: str) -> list[ChatMessage]:
    roles = {"U": ChatRole.USER, "A": ChatRole.ASSISTANT, "F": ChatRole.FUNCTION}
    return [ChatMessage(role=roles[s[0]], content=s[1:], tool_call_id="1" if s[0] == "F" else None) for s in sizes]


@pytest.mark.parametrize(
    ("engine", "chat", "size", "start"),
    [
        (Sized(blocks=True, strict=True), history("U500", "A50", "U100", "A350", "F350"), 1000, 2),
        (Sized(blocks=True, overhead=300), history("U500", "U40", "A350", "F350"), 1000, 2),
        (Sized(blocks=False, overhead=5, wrong_by=1), history("U3", "U5", "A12", "F12"), 29, 2),
    ],
)
async def test_a_start_that_fits_is_found(engine: Sized, chat: list[ChatMessage], size: int, start: int) -> None:
    assert await Budget().fit(engine, [], chat, None, size, {}) == chat[start:]


async def test_a_hook_that_hangs_holds_no_cancelled_round_up() -> None:
    class Storing(Kani):
        async def add_to_history(self, message: ChatMessage) -> None:
            if message.role is ChatRole.FUNCTION:
                await anyio.sleep_forever()
            await super().add_to_history(message)

    async def quick() -> str:
        """Is quick."""
        return "done"

    ai = Storing(ScriptedEngine(calling(call("quick"))), functions=[AIFunction(quick)])
    with anyio.fail_after(10), anyio.move_on_after(0.05):
        async for _ in ai.full_round("go"):
            pass
    assert [m.role.value for m in ai.chat_history] == ["user", "assistant", "function"]


@pytest.mark.parametrize("wrong", [None, 5, b"b"])
async def test_a_stream_yields_nothing_else(wrong: Any) -> None:
    class Odd(ScriptedEngine):
        async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            yield "a"
            yield wrong

    for run in (lambda ai: ai.events("go"), lambda ai: ai.chat_round_stream("go")):
        ai = Kani(Odd())
        with pytest.raises(TypeError, match="yields str, deltas and a BaseCompletion, not"):
            async for _ in run(ai):
                pass
        assert ai.chat_history == []


async def test_a_whole_completion_has_its_events() -> None:
    message = ChatMessage.assistant([ReasoningPart(content="Hm."), "Yes."])

    class Whole(ScriptedEngine):
        async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            yield Completion(message)

    events: list[Event] = [event async for event in Kani(Whole()).events("go")]
    assert events[1:4] == [ReasoningDelta("Hm."), TextDelta("Yes."), MessageAdded(message)]
    stream = Kani(Whole()).chat_round_stream("go")
    assert [token async for token in stream] == ["Yes."]


async def test_every_result_is_bounded() -> None:
    def fail() -> None:
        """Fails."""
        raise ValueError("x" * 1000)

    limits = Limits(result_chars=50)
    ai = Kani(ScriptedEngine(calling(call("fail")), "ok"), functions=[AIFunction(fail)], limits=limits)
    async for _ in ai.full_round("go"):
        pass
    assert len(ai.chat_history[2].text or "") == 50


@pytest.mark.parametrize("answer", [None, 0, 1, ""])
async def test_an_approval_that_says_nothing_is_a_denial(answer: Any) -> None:
    def wipe() -> None:
        """Wipes."""
        raise AssertionError

    ai = Kani(ScriptedEngine(calling(call("wipe")), "ok"), functions=[AIFunction(wipe)], approve=lambda *_: answer)
    messages = [m async for m in ai.full_round("go")]
    assert messages[1].text == "The user did not approve this call of wipe."


async def test_calls_run_together_where_their_hook_waits() -> None:
    async def done() -> str:
        """Is done."""
        return "done"

    ai = Kani(ScriptedEngine(calling(call("done"), call("done")), "ok"), functions=[AIFunction(done)])
    both, plain = anyio.Event(), ai.do_function_call
    waiting = 0

    async def hook(*args: Any, **kwargs: Any) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        with anyio.fail_after(5):
            await both.wait()
        return await plain(*args, **kwargs)

    ai.do_function_call = hook  # type: ignore[method-assign]
    assert [m.text async for m in ai.full_round("go")] == [None, "done", "done", "ok"]


def test_a_wrapper_may_have_a_context_of_its_own() -> None:
    wrapper = WrapperEngine(ScriptedEngine(max_context_size=100))
    assert wrapper.max_context_size == 100
    wrapper.max_context_size = 50
    assert (wrapper.max_context_size, wrapper.engine.max_context_size) == (50, 100)


def test_the_last_function_of_a_name_counts() -> None:
    def f() -> int:
        """First."""
        return 1

    first, second = AIFunction(f), AIFunction(f)
    assert Kani(ScriptedEngine(), functions=[first, second]).functions == {"f": second}


@pytest.mark.parametrize("wrong", [{"tool_rounds": 1.5}, {"tool_seconds": float("nan")}, {"parallel_calls": 0}])
def test_limits_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Limits.{next(iter(wrong))} is .*: give a positive"):
        Limits(**wrong)
