"""Reading what an engine streams, without a generator of our own around it: that would cost time at each chunk, and
someone to close it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Self, TypeVar

import anyio

from .engines.base import BaseCompletion
from .events import Delta

T = TypeVar("T")
Item = str | Delta | BaseCompletion


class ModelStream:
    """What a model says, piece by piece, and its completion last. Nothing happens before it is iterated."""

    def __init__(self, begin: Callable[[], Awaitable[AsyncIterator[Item]]]) -> None:
        self._begin = begin
        self.source: AsyncIterator[Item] | None = None  # the engine's, once it has begun
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Item]:
        return self._first() if self.source is None else self.source.__anext__()

    async def _first(self) -> Item:
        if self._closed:
            raise StopAsyncIteration
        self.source = aiter(await self._begin())
        return await first_item(self.source)

    async def aclose(self) -> None:
        """Ends the engine's stream: the model stops."""
        self._closed = True
        if self.source is not None:
            await close(self.source)


def first_item(stream: AsyncIterator[T]) -> Awaitable[T]:
    """Starts a stream that may be dropped before its end, which is no mistake of anybody: the event loop then closes
    it as always, but trio doesn't warn."""
    finalizer = sys.get_asyncgen_hooks().finalizer
    if finalizer is None:
        return stream.__anext__()
    # a generator takes its finalizer from the hooks when it is first asked for an item
    sys.set_asyncgen_hooks(finalizer=partial(_finalize_quietly, finalizer))
    try:
        return stream.__anext__()
    finally:
        sys.set_asyncgen_hooks(finalizer=finalizer)


def first_of_ours(generator: AsyncGenerator[T, None]) -> Awaitable[T]:
    """Starts a generator of this package, which waits for nothing when it is closed: Python itself can do that when it
    is dropped, without the event loop."""
    finalizer = sys.get_asyncgen_hooks().finalizer
    sys.set_asyncgen_hooks(finalizer=None)
    try:
        return generator.__anext__()
    finally:
        sys.set_asyncgen_hooks(finalizer=finalizer)


def _finalize_quietly(finalizer: Callable[[Any], Any], generator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        finalizer(generator)


async def close(stream: Any) -> None:
    """Closes a stream, if it can be closed: an engine's may be any iterator. Not cut short by a cancellation."""
    if (aclose := getattr(stream, "aclose", None)) is not None:
        with anyio.CancelScope(shield=True):
            await aclose()
