"""An engine that says what a test has written down, and no more."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from kani_lite.engines.base import BaseCompletion, Completion
from kani_lite.engines.replay import StrictEngine
from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, MessagePart, ReasoningPart, ToolCall


class Pause:
    """The engine waits for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def wait(self) -> None:
        await anyio.sleep(self.seconds)

    def __repr__(self) -> str:
        return f"Pause({self.seconds})"


class Gate:
    """The engine waits here until the test opens it; the test can wait until the engine is here."""

    def __init__(self) -> None:
        self.opened = False
        self.was_reached = False
        self._waiting: list[anyio.Event] = []  # made when somebody waits: a gate may be built before the loop runs

    def open(self) -> None:
        """Lets the engine go on, now and whenever it comes here again."""
        self.opened = True
        self._wake()

    async def reached(self) -> None:
        """Waits until the engine is here, or has been."""
        while not self.was_reached:
            await self._changed()

    async def wait(self) -> None:
        """What the engine does."""
        self.was_reached = True
        self._wake()
        while not self.opened:
            await self._changed()

    async def _changed(self) -> None:
        event = anyio.Event()
        self._waiting.append(event)
        try:
            await event.wait()
        finally:
            if event in self._waiting:
                self._waiting.remove(event)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self.opened else 'closed'}>"


Part: TypeAlias = str | Delta | ToolCall | Pause | Gate | BaseException


class Reply:
    """One message, part by part: each text is streamed as it is; calls are streamed as such; at a Pause or Gate the
    stream waits; an exception ends it there. Its message is what its parts add up to."""

    def __init__(self, *parts: Part) -> None:
        self.parts = list(_with_call_deltas(parts))

    @property
    def message(self) -> ChatMessage:
        """The message that the parts add up to."""
        text = "".join(p if isinstance(p, str) else p.text for p in self.parts if isinstance(p, str | TextDelta))
        reasoning = "".join(p.text for p in self.parts if isinstance(p, ReasoningDelta))
        calls = [p.call for p in self.parts if isinstance(p, ToolCallFinished)]
        content: list[MessagePart | str] | str | None = text if text or not calls else None
        if reasoning:
            content = [ReasoningPart(content=reasoning), *([text] if text else [])]
        return ChatMessage.assistant(content, tool_calls=calls or None)

    def __repr__(self) -> str:
        return f"Reply({', '.join(map(repr, self.parts))})"


def _with_call_deltas(parts: Sequence[Part]) -> Iterator[Part]:
    index = 0
    for part in parts:
        if isinstance(part, ToolCall):
            yield ToolCallStarted(index, part.id, part.function.name)
            yield ToolCallDelta(index, part.function.arguments)
            yield ToolCallFinished(index, part)
        else:
            yield part
        index += isinstance(part, ToolCall | ToolCallFinished)


Say: TypeAlias = str | ChatMessage | ToolCall | Sequence[ToolCall] | Reply | BaseException
Step: TypeAlias = Say | Pause | Gate | Callable[[list[ChatMessage]], Say | Awaitable[Say]]


class ScriptedEngine(StrictEngine):
    """Says one step after another, and is strict about it: see StrictEngine.

    A step is what the model says next: a text; a message; one or more tool calls; a Reply; an exception, which is
    raised; or a function of the prompt's messages that returns one of these (it may be async). A Pause or a Gate
    between two of them makes the next call wait. `otherwise`, a step too, answers every call after the last step; a
    call that finds no step fails the test. Texts are streamed in pieces of `chunk` characters. Four characters count
    as a token.

    `prompts`, `functions` and `kwargs` have what each call was given, as it was then; `streams_closed` counts the
    streams that are over, in whatever way.
    """

    def __init__(
        self, *steps: Step, otherwise: Step | None = None, max_context_size: int = 10_000, chunk: int = 4
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, but a piece of text has at least one character.")
        self.steps = list(steps)
        self.otherwise = otherwise
        self.max_context_size = max_context_size
        self.chunk = chunk
        self.closed = False
        self.prompts: list[list[ChatMessage]] = []
        self.functions: list[list[AIFunction] | None] = []
        self.kwargs: list[dict[str, Any]] = []
        self.streams_closed = 0

    def unused(self) -> list[str]:
        return [f"{step!r:.200}" for step in self.steps]

    def message_len(self, message: ChatMessage) -> int:
        calls = "".join(c.function.name + c.function.arguments for c in message.tool_calls or [])
        return len((message.text or "") + calls) // 4 + 1

    def _completion(self, messages: list[ChatMessage], message: ChatMessage) -> Completion:
        prompt_tokens = sum(map(self.message_len, messages))
        return Completion(message, prompt_tokens, completion_tokens=self.message_len(message))

    def _note(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None, hyperparams: dict[str, Any]
    ) -> None:
        """Keeps what the call was given. Raises EngineError after `close`, PromptTooLong as a model's engine would."""
        if self.closed:
            raise EngineError("This engine was closed; build a new one to go on.")
        self.prompts.append([message.copy_with() for message in messages])
        self.functions.append(functions)
        self.kwargs.append(hyperparams)
        tokens = sum(map(self.message_len, messages))
        if tokens >= self.max_context_size:
            raise PromptTooLong(
                f"The prompt has {tokens} tokens, and the context is {self.max_context_size} with the reply: give the "
                "scripted engine a larger max_context_size."
            )

    async def _next(self, messages: list[ChatMessage]) -> Reply | ChatMessage:
        """What is said next. Raises it if it is an exception."""
        step = self._take()
        while isinstance(step, Pause | Gate):
            await step.wait()
            step = self._take()
        if not isinstance(step, BaseException | str | ChatMessage | ToolCall | Reply | Sequence):
            said = step(messages)
            step = await said if inspect.isawaitable(said) else said
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, str):
            return ChatMessage.assistant(step)
        if isinstance(step, ChatMessage):
            return step.copy_with()
        if isinstance(step, Reply):
            return step
        return Reply(*([step] if isinstance(step, ToolCall) else step))

    def _take(self) -> Step:
        if self.steps:
            return self.steps.pop(0)
        if self.otherwise is not None:
            return self.otherwise
        asked = self.prompts[-1][-1].text if self.prompts[-1] else None
        self.refuse(
            f"Call {len(self.prompts)} of the scripted engine, after {asked!r:.200}, has no step: write one, or find "
            "out why the model is called once more."
        )

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        await anyio.lowlevel.checkpoint()
        self._note(messages, functions, hyperparams)
        said = await self._next(messages)
        if isinstance(said, ChatMessage):
            return self._completion(messages, said)
        for part in said.parts:
            await _reach(part)
        return self._completion(messages, said.message)

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        try:
            self._note(messages, functions, hyperparams)
            said = await self._next(messages)
            for part in self._pieces(said) if isinstance(said, ChatMessage) else said.parts:
                await anyio.lowlevel.checkpoint()
                await _reach(part)
                if not isinstance(part, Pause | Gate | BaseException | ToolCall):
                    yield part
            yield self._completion(messages, said if isinstance(said, ChatMessage) else said.message)
        finally:
            self.streams_closed += 1

    def _pieces(self, message: ChatMessage) -> Iterator[str]:
        text = message.text or ""
        for i in range(0, len(text), self.chunk):
            yield text[i : i + self.chunk]

    async def close(self) -> None:
        self.closed = True


async def _reach(part: Part) -> None:
    if isinstance(part, Pause | Gate):
        await part.wait()
    elif isinstance(part, BaseException):
        raise part
