"""The ways of reading a round: events, messages, text, or a stream for each message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Self, TypeVar

from .engines.base import BaseCompletion
from .events import Event, MessageAdded, MessageStarted, TextDelta, ToolResult
from .messages import ChatMessage, ChatRole
from .rounds import Round
from .streaming import DummyStream, StreamManager

T = TypeVar("T")


class View(Generic[T]):
    """A round seen through `pick`, which gives None for what is left out. Leaving `async with` ends the round."""

    def __init__(self, round_: Round, pick: Callable[[Event | str], T | None]) -> None:
        self._round = round_
        self._pick = pick

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        async for event in self._round:
            if (value := self._pick(event)) is not None:
                return value
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the round: the model stops, and the history is settled as `on_broken` says."""
        await self._round.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def as_event(event: Event | str) -> Event:
    return TextDelta(event) if isinstance(event, str) else event


def as_message(event: Event | str) -> ChatMessage | None:
    return event.message if isinstance(event, MessageAdded | ToolResult) else None


class _MessageItems:
    """The part of a round that is one message of the model: its text, then its completion."""

    def __init__(self, round_: Round, to_end: bool) -> None:
        self._round = round_
        self._to_end = to_end
        self._done = False

    def __aiter__(self) -> AsyncIterator[str | BaseCompletion]:
        return self

    async def __anext__(self) -> str | BaseCompletion:
        if self._done:
            raise StopAsyncIteration
        async for event in self._round:
            if isinstance(event, str):
                return event
            if isinstance(event, TextDelta):
                return event.text
            if isinstance(event, MessageAdded) and not self._to_end:
                break
        self._done = True
        if self._round.completion is None:
            raise RuntimeError("The round ended before the model's message was complete.")
        return self._round.completion

    async def aclose(self) -> None:
        self._done = True
        await self._round.aclose()


def message_stream(round_: Round, *, to_end: bool) -> StreamManager:
    """A stream of the model's next message; `to_end`: the round is over with it."""
    return StreamManager(_MessageItems(round_, to_end), ChatRole.ASSISTANT)


class StreamsView(View[StreamManager]):
    """A stream for each message of a round. Asking for the next one reads the last one to its end."""

    def __init__(self, round_: Round) -> None:
        super().__init__(round_, self._stream_of)
        self._last: StreamManager | None = None

    def _stream_of(self, event: Event | str) -> StreamManager | None:
        if isinstance(event, MessageStarted):
            self._last = message_stream(self._round, to_end=False)
            return self._last
        return DummyStream(event.message) if isinstance(event, ToolResult) else None

    async def __anext__(self) -> StreamManager:
        if self._last is not None:
            last, self._last = self._last, None
            await last.message()
        return await super().__anext__()


def text_of(formatter: Callable[[ChatMessage], str | None]) -> Callable[[Event | str], str | None]:
    """A `pick` that formats messages, and leaves out those without text."""

    def pick(event: Event | str) -> Any:
        message = as_message(event)
        return (message is not None and formatter(message)) or None

    return pick
