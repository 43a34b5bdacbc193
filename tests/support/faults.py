"""Rounds that can be hit by a fault at each of their awaits in turn."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
from scripted import call, calling

from kani_lite import ChatMessage, ChatRole, FunctionCall, Kani, ai_function
from kani_lite.engines import BaseCompletion, BaseEngine, Completion


class Points:
    """Counts the awaits of a round; at the one numbered `at`, `fault` happens."""

    def __init__(self, at: int = 0, fault: Callable[[], Awaitable[None]] | None = None) -> None:
        self.at = at
        self.fault = fault
        self.passed = 0

    async def __call__(self) -> None:
        self.passed += 1
        if self.passed == self.at and self.fault is not None:
            await self.fault()
        await anyio.lowlevel.checkpoint()


class PointedEngine(BaseEngine):
    """Says its steps, with a point before and after each piece of them. Counts the streams that are open."""

    max_context_size = 10_000

    def __init__(self, point: Points, *steps: ChatMessage) -> None:
        self.point = point
        self.steps = list(steps)
        self.open = 0

    def message_len(self, message: ChatMessage) -> int:
        return len(message.text or "") // 4 + 1

    async def predict(self, messages: list[ChatMessage], functions: Any = None, **kwargs: Any) -> BaseCompletion:
        await self.point()
        step = self.steps.pop(0)
        await self.point()
        return Completion(step, 1, 1)

    async def stream(self, messages: list[ChatMessage], functions: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        self.open += 1
        try:
            await self.point()
            step = self.steps.pop(0)
            for word in (step.text or "").split():
                yield word + " "
                await self.point()
            yield Completion(step, 1, 1)
            await self.point()
        finally:
            self.open -= 1


class PointedKani(Kani):
    """Two functions and every hook, with points everywhere."""

    engine: PointedEngine

    @ai_function()
    async def look(self, what: str) -> str:
        """Looks."""
        await self.engine.point()
        return f"It is {what}."

    @ai_function()
    def think(self) -> str:
        """Thinks, in a thread."""
        return "Hm."

    @ai_function()
    async def fail(self) -> None:
        """Fails."""
        await self.engine.point()
        raise ValueError("no")

    async def get_prompt(self, *args: Any, **kwargs: Any) -> list[ChatMessage]:
        await self.engine.point()
        prompt = await super().get_prompt(*args, **kwargs)
        await self.engine.point()
        return prompt

    async def do_function_call(self, call: FunctionCall, tool_call_id: str | None = None) -> Any:
        await self.engine.point()
        result = await super().do_function_call(call, tool_call_id)
        await self.engine.point()
        return result

    async def handle_function_call_exception(self, *args: Any, **kwargs: Any) -> Any:
        await self.engine.point()
        handled = await super().handle_function_call_exception(*args, **kwargs)
        await self.engine.point()
        return handled

    async def add_completion_to_history(self, completion: BaseCompletion) -> ChatMessage:
        await self.engine.point()
        message = await super().add_completion_to_history(completion)
        await self.engine.point()
        return message

    async def add_to_history(self, message: ChatMessage) -> None:
        await self.engine.point()
        await super().add_to_history(message)
        await self.engine.point()


def script() -> list[ChatMessage]:
    """Three messages of the model: two calls together, one that fails, and the last word."""
    return [
        calling(call("look", "1", what="red"), call("think", "2"), text="Let me see."),
        calling(call("fail", "3")),
        ChatMessage.assistant("It is red."),
    ]


def pointed(point: Points, *, functions: bool = True, **kwargs: Any) -> PointedKani:
    steps = script() if functions else script()[-1:]
    history = [ChatMessage.user("before"), ChatMessage.assistant("yes")]
    return PointedKani(PointedEngine(point, *steps), chat_history=history, **kwargs)


def check_history(history: list[ChatMessage]) -> None:
    """Each call has exactly one result, right after it; the user never speaks twice in a row."""
    index, last = 0, None
    while index < len(history):
        message = history[index]
        assert message.role is not ChatRole.FUNCTION, f"an orphan at {index} of {history}"
        assert not (message.role is last is ChatRole.USER), f"the user spoke twice at {index} of {history}"
        asked = [c.id for c in message.tool_calls or []]
        results = history[index + 1 : index + 1 + len(asked)]
        assert sorted(asked) == sorted(str(m.tool_call_id) for m in results), f"results at {index} of {history}"
        index += 1 + len(asked)
        last = message.role


def tasks_alive(backend: str) -> int:
    if backend == "trio":
        return int(sys.modules["trio"].lowlevel.current_statistics().tasks_living)
    return len(sys.modules["asyncio"].all_tasks())


async def settled(backend: str, tasks: int) -> None:
    """Nothing is left running that was not before. What is closed in the background gets some turns to end."""
    for turn in range(20):
        await anyio.lowlevel.checkpoint()
        if turn > 5 and tasks_alive(backend) <= tasks:
            return
    raise AssertionError(f"{tasks_alive(backend)} tasks, {tasks} before")


async def read_streams(ai: Kani) -> None:
    async for stream in ai.full_round_stream("go"):
        async for _token in stream:
            pass


async def read_stream(ai: Kani) -> None:
    async for _token in ai.chat_round_stream("go", include_functions=False):
        pass


async def read_messages(ai: Kani) -> None:
    async for _message in ai.full_round("go"):
        pass


async def read_events(ai: Kani) -> None:
    async for _event in ai.events("go"):
        pass


async def chat(ai: Kani) -> None:
    await ai.chat_round("go", include_functions=False)


WAYS: dict[str, Callable[[Kani], Awaitable[None]]] = {
    "chat_round": chat,
    "chat_round_stream": read_stream,
    "full_round": read_messages,
    "full_round_stream": read_streams,
    "events": read_events,
}
__all__ = ["WAYS", "PointedKani", "Points", "check_history", "pointed", "settled", "tasks_alive"]
