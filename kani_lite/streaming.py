"""One message as it is being written: kani's stream objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Self

import anyio

from .engines.base import BaseCompletion, Completion
from .messages import ChatMessage, ChatRole


class StreamManager:
    """Iterate it for the tokens of one message, or await it for the message; both can be done, in any order.

    Tokens can be iterated once. Whoever waits for the message also gets the error if the stream breaks.
    """

    def __init__(
        self,
        stream_iter: AsyncIterator[Any],
        role: ChatRole,
        *,
        after: Callable[[BaseCompletion], Awaitable[Any]] | None = None,
        lock: anyio.Lock | None = None,
    ) -> None:
        """
        :param stream_iter: yields `str` tokens and, last if at all, a BaseCompletion
        :param role: of the message; known before it is
        :param after: awaited with the completion before anyone gets it
        :param lock: held from the first token to the end
        """
        self.role = role
        self._iter = stream_iter
        self._after = after
        self._lock = lock
        self._locked = False
        self._iterated = False
        self._tokens: list[str] = []
        self._completion: BaseCompletion | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._reading = anyio.Lock(fast_acquire=True)

    def __aiter__(self) -> AsyncIterator[str]:
        if self._iterated:
            raise RuntimeError("The tokens of this stream were iterated before: await `message()` for the whole message.")
        self._iterated = True
        return _Tokens(self)

    def __await__(self) -> Generator[Any, None, ChatMessage]:
        return self.message().__await__()

    async def message(self) -> ChatMessage:
        """The whole message, once it is complete."""
        return (await self.completion()).message

    async def completion(self) -> BaseCompletion:
        """The completion, once the message is complete."""
        while await self._next() is not None:
            pass
        if self._completion is None:
            raise self._error or RuntimeError("The stream was closed before its message was complete.")
        return self._completion

    async def aclose(self) -> None:
        """Ends the stream: the model stops."""
        async with self._reading:
            if not self._ended:
                await self._finish(RuntimeError("The stream was closed before its message was complete."))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _next(self) -> str | None:
        """The next token, None at the end. One reader at a time; all readers get the error."""
        async with self._reading:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            try:
                if self._lock is not None and not self._locked:
                    await self._lock.acquire()
                    self._locked = True
                token = await self._read()
                if token is None:
                    await self._end_well()
            except BaseException as e:
                await self._finish(e)
                raise
            return token

    async def _read(self) -> str | None:
        async for item in self._iter:
            if isinstance(item, BaseCompletion):
                self._completion = item
                async for extra in self._iter:
                    raise RuntimeError(f"A stream's completion has to be its last element, but {extra!r} follows.")
                return None
            if not isinstance(item, str):
                raise TypeError(f"A stream yields str and a BaseCompletion, not {type(item).__name__}: {item!r}")
            self._tokens.append(item)
            return item
        return None

    async def _end_well(self) -> None:
        if self._completion is None:
            self._completion = Completion(ChatMessage(role=self.role, content="".join(self._tokens).strip()))
        if self._after is not None:
            await self._after(self._completion)
        await self._finish(None)

    async def _finish(self, error: BaseException | None) -> None:
        self._ended = True
        if error is not None:
            self._completion = None
            # who waits for the message in another task is not cancelled by the cancelling of this one
            cancelled = not isinstance(error, Exception)
            self._error = RuntimeError("The stream was broken off before its message was complete.") if cancelled else error
        try:
            if error is not None and (close := getattr(self._iter, "aclose", None)) is not None:
                with anyio.CancelScope(shield=True):
                    await close()
        finally:
            if self._lock is not None and self._locked:
                self._locked = False
                self._lock.release()


class _Tokens:
    """The one iteration over a stream's tokens."""

    def __init__(self, stream: StreamManager) -> None:
        self._next = stream._next

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        token = await self._next()
        if token is None:
            raise StopAsyncIteration
        return token


class DummyStream(StreamManager):
    """A message that is complete already, as a stream of one token."""

    def __init__(self, message: ChatMessage) -> None:
        async def items() -> AsyncIterator[Any]:
            if message.text is not None:
                yield message.text
            yield Completion(message)

        super().__init__(items(), message.role)
