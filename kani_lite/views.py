"""The ways of reading a round: events, messages, text, or a stream for each message."""

from __future__ import annotations

from collections.abc import Callable
from types import AsyncGeneratorType
from typing import Any, Generic, Self, TypeVar, cast

from .events import Event, MessageAdded, MessageStarted, TextDelta, ToolResult
from .messages import ChatMessage, ChatRole
from .rounds import Round
from .streaming import DummyStream, StreamManager

T = TypeVar("T")


class Reader:
    """Held by all that may still read a round; when the last of them is gone, the model stops."""

    def __init__(self, round_: Round) -> None:
        self.round = round_

    def __del__(self) -> None:
        self.round.let_go()


class View(Generic[T]):
    """A round seen through `pick`, which gives None for what is left out. Leaving `async with` ends the round."""

    def __init__(self, round_: Round, pick: Callable[[Event | str], T | None]) -> None:
        self._round = round_
        self._reader = Reader(round_)
        self._pick = pick

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            if (value := self._pick(await self._round.__anext__())) is not None:
                return value

    async def aclose(self) -> None:
        """Ends the round: the model stops, and the history is settled as `on_broken` says."""
        await self._round.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def reply(round_: Round) -> ChatMessage | None:
    """The model's message of a round without functions; None if its time ran out."""
    message = None
    async for event in round_:
        if isinstance(event, MessageAdded):
            message = event.message
            if round_.closed:
                break  # nothing but its end is left to be told
    return message


def as_event(event: Event | str) -> Event:
    return TextDelta(event) if isinstance(event, str) else event


def as_message(event: Event | str) -> ChatMessage | None:
    return event.message if isinstance(event, MessageAdded | ToolResult) else None


class _MessageStream(StreamManager):
    """The part of a round that is one message of the model."""

    def __init__(self, reader: Reader, to_end: bool) -> None:
        self._setup(ChatRole.ASSISTANT, reader.round)
        self._reader = reader
        self._tokens = reader.round.text
        self._waiting = reader.round.waiting
        self._gen = cast("AsyncGeneratorType[str, None]", reader.round.texts(self._told, to_end))

    def _told(self, error: BaseException | None) -> None:
        self._completion = self._reader.round.completion if error is None else None
        self._end(error)


def message_stream(reader: Reader, *, to_end: bool) -> StreamManager:
    """A stream of the model's next message; `to_end`: the round is over with it."""
    return _MessageStream(reader, to_end)


class StreamsView(View[StreamManager]):
    """A stream for each message of a round. Asking for the next one reads the last one to its end."""

    def __init__(self, round_: Round) -> None:
        super().__init__(round_, self._stream_of)
        self._last: StreamManager | None = None

    def _stream_of(self, event: Event | str) -> StreamManager | None:
        if isinstance(event, MessageStarted):
            self._last = message_stream(self._reader, to_end=False)
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
