"""An engine that fails as often as it is told, for the wrappers to deal with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kani_lite import AIFunction, ChatMessage
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.events import Delta
from kani_lite.exceptions import EngineError, PromptTooLong

HI = [ChatMessage.user("Hi")]


class DownError(EngineError):
    """What may be better the next time."""

    temporary = True


class Flaky(BaseEngine):
    """Fails as often as it has errors, after `says` was yielded; then it answers. `size` tokens of context, and each
    message counts as `tokens`."""

    def __init__(
        self, *errors: Exception, says: str = "", answer: str = "ok", size: int = 100, tokens: int = 1
    ) -> None:
        self.errors, self.says, self.answer = list(errors), says, answer
        self.max_context_size, self.tokens = size, tokens
        self.calls = self.streams_closed = 0
        self.closed = False

    def message_len(self, message: ChatMessage) -> int:
        return self.tokens

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        self.calls += 1
        await anyio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return Completion(ChatMessage.assistant(self.answer))

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        try:
            if self.says:
                yield self.says
            yield await self.predict(messages, functions, **hyperparams)
        finally:
            self.streams_closed += 1

    async def close(self) -> None:
        self.closed = True


async def said(engine: BaseEngine, stream: bool) -> str | None:
    """The reply, by one of the two ways."""
    if not stream:
        return (await engine.predict(HI)).message.text
    last: Any = None
    async for item in engine.stream(HI):
        last = item
    assert isinstance(last, Completion)
    return last.message.text


async def heard(engine: BaseEngine) -> tuple[list[Any], Exception | None]:
    """What a stream yields, and the error that ends it."""
    items: list[Any] = []
    try:
        async for item in engine.stream(HI):
            items.append(item)  # noqa: PERF401  # what came before the error counts
    except (EngineError, PromptTooLong) as error:
        return items, error
    return items, None


WAYS = pytest.mark.parametrize("stream", [False, True], ids=["predict", "stream"])
