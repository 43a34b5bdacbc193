"""Engines that return the raw text of a model, for the tests of kani's parsers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
from scripted import ScriptedEngine

from kani_lite import AIFunction, ChatMessage, MessagePart, ReasoningPart
from kani_lite.engines import BaseCompletion, Completion
from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallFinished
from kani_lite.prompts.parsers import (
    BaseParser,
    DeepSeekR1Parser,
    GPTOSSParser,
    Llama3XToolCallParser,
    MistralToolCallParser,
    NaiveJSONToolCallParser,
    Qwen3_5Parser,
    Qwen3Parser,
    Qwen3ThinkingParser,
)

PARSERS: list[type[BaseParser]] = [
    NaiveJSONToolCallParser,
    Llama3XToolCallParser,
    MistralToolCallParser,
    GPTOSSParser,
    Qwen3Parser,
    Qwen3ThinkingParser,
    Qwen3_5Parser,
    DeepSeekR1Parser,
]

HI = [ChatMessage.user("Hi")]
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


class Says(ScriptedEngine):
    """Streams these items, then a completion with their text or with `message`; None leaves it out."""

    def __init__(self, *items: str | Delta, message: ChatMessage | bool | None = True, **details: Any) -> None:
        super().__init__()
        self.items = items
        self.message = ChatMessage.assistant(self.text) if message is True else message
        self.details = details

    @property
    def text(self) -> str:
        return "".join(i if isinstance(i, str) else i.text for i in self.items if isinstance(i, str | TextDelta))

    def completion(self) -> Completion:
        assert isinstance(self.message, ChatMessage)
        return Completion(self.message.copy_with(), 3, 5, **self.details)

    async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
        await anyio.lowlevel.checkpoint()
        return self.completion()

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[str | Delta | BaseCompletion]:
        try:
            for item in self.items:
                await anyio.lowlevel.checkpoint()
                yield item
            if self.message is not None:
                yield self.completion()
        finally:
            self.streams_closed += 1


class Reply:
    """What a parser's stream yields."""

    def __init__(self, items: list[Any]) -> None:
        *self.items, self.completion = items
        self.message: ChatMessage = self.completion.message
        self.text = "".join(item for item in self.items if isinstance(item, str))
        self.reasoning = "".join(item.text for item in self.items if isinstance(item, ReasoningDelta))
        self.calls = [item.call for item in self.items if isinstance(item, ToolCallFinished)]


async def streamed(parser: BaseParser, functions: list[AIFunction] | None = None) -> Reply:
    return Reply([item async for item in parser.stream(HI, functions)])


def seen(message: ChatMessage) -> tuple[Any, ...]:
    """A message without the random ids of its calls."""
    calls = message.tool_calls
    return (
        message.content,
        calls and [(call.function.name, call.function.arguments) for call in calls],
    )


def parsed(parser: type[BaseParser], text: str, **kwargs: Any) -> tuple[Any, ...]:
    completion = Completion(ChatMessage.assistant(text))
    return seen(parser(Says(), **kwargs).parse_completion(completion).message)


def thought(text: str, *rest: str) -> list[MessagePart | str]:
    return [ReasoningPart(content=text), *rest]


F = [("f", '{"a": 1}')]
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
