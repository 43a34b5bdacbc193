"""Engines for the tests of the core: they say what a test has written down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio

from kani_lite import AIFunction, ChatMessage, ToolCall
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.events import Delta

Step = str | ChatMessage | BaseException | Callable[[list[ChatMessage]], "str | ChatMessage"]


def call(name: str, /, id_: str | None = None, **kwargs: Any) -> ToolCall:
    return ToolCall.from_function(name, call_id_=id_, **kwargs)


def calling(*calls: ToolCall, text: str | None = None) -> ChatMessage:
    return ChatMessage.assistant(text, tool_calls=list(calls))


class ScriptedEngine(BaseEngine):
    """Says one step after another; four characters count as a token. `prompts` has what it was asked."""

    def __init__(self, *steps: Step, max_context_size: int = 10_000, chunk: int = 4) -> None:
        self.steps = list(steps)
        self.max_context_size = max_context_size
        self.chunk = chunk
        self.prompts: list[list[ChatMessage]] = []
        self.functions: list[list[AIFunction] | None] = []
        self.kwargs: list[dict[str, Any]] = []
        self.streams_closed = 0

    def message_len(self, message: ChatMessage) -> int:
        calls = "".join(c.function.name + c.function.arguments for c in message.tool_calls or [])
        return len((message.text or "") + calls) // 4 + 1

    def _next(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None, kwargs: dict[str, Any]
    ) -> ChatMessage:
        self.prompts.append(list(messages))
        self.functions.append(functions)
        self.kwargs.append(kwargs)
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        if not isinstance(step, str | ChatMessage):
            step = step(messages)
        return ChatMessage.assistant(step) if isinstance(step, str) else step.copy_with()

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        await anyio.lowlevel.checkpoint()
        message = self._next(messages, functions, hyperparams)
        return Completion(message, prompt_tokens=10, completion_tokens=self.message_len(message))

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        try:
            message = self._next(messages, functions, hyperparams)
            text = message.text or ""
            for i in range(0, len(text), self.chunk):
                await anyio.lowlevel.checkpoint()
                yield text[i : i + self.chunk]
            yield Completion(message, prompt_tokens=10, completion_tokens=self.message_len(message))
        finally:
            self.streams_closed += 1
