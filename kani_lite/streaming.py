"""One message as it is being written: kani's stream objects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterator
from functools import partial
from types import AsyncGeneratorType
from typing import Any, Protocol, Self, cast
from weakref import ref

import anyio

from .engines.base import BaseCompletion, Completion
from .messages import ChatMessage, ChatRole
from .model_stream import close, first_item, first_of_ours

After = Callable[[BaseCompletion], Awaitable[Any]]


class Lock(Protocol):
    """What a stream needs of a lock: those of anyio, asyncio and trio have it."""

    async def acquire(self) -> object: ...

    def release(self) -> object: ...


_END: Any = object()


def _nobody() -> None:
    return None


class StreamManager:
    """Iterate it for the tokens of one message, or await it for the message; both can be done, in any order or at once.

    Tokens can be iterated once. Whoever waits for the message also gets the error if the stream breaks.
    """

    def __init__(
        self,
        stream_iter: AsyncIterable[Any],
        role: ChatRole,
        *,
        after: After | None = None,
        lock: Lock | None = None,
    ) -> None:
        """
        :param stream_iter: yields `str` tokens and, last if at all, a BaseCompletion
        :param role: of the message; known before it is
        :param after: awaited with the completion before anyone gets it
        :param lock: held from the first token to the end. An anyio.Lock can be released only by the task that took it:
            where several tasks read the stream, give an `anyio.Semaphore(1)`
        """
        self._setup(role, aiter(stream_iter))
        self._gen = self._pump(after, lock)

    # what reads the stream: a generator, because that costs least at each token
    _gen: AsyncGeneratorType[str, None] | _Broken
    _release: Callable[[], object] | None = None  # of the lock, while it is held

    def _setup(self, role: ChatRole, source: Any) -> None:
        self.role = role
        self._source = source  # what closing this closes
        self._iterated = False
        self._tokens: list[str] = []
        self._completion: BaseCompletion | None = None
        self._ended = self._started = self._shared = False
        self._iteration: Callable[[], _Tokens | None] = _nobody
        self._alone = False  # the iteration is the only reader, which costs less
        self._at = 0  # how many tokens the iteration has given, where it isn't
        self._waiting: list[anyio.Event] = []

    def __aiter__(self) -> AsyncIterator[str]:
        if self._iterated:
            raise RuntimeError("The tokens of this stream were iterated before: await `message()` for all of it.")
        self._iterated = True
        tokens = _Tokens(self)
        self._iteration = ref(tokens)
        return tokens

    def __await__(self) -> Generator[Any, None, ChatMessage]:
        return self.message().__await__()

    async def message(self) -> ChatMessage:
        """The whole message, once it is complete."""
        return (await self.completion()).message

    async def completion(self) -> BaseCompletion:
        """The completion, once the message is complete."""
        self._share()
        try:
            while True:
                await self._next()
        except StopAsyncIteration:
            pass
        if self._completion is None:
            raise RuntimeError("The stream was closed before its message was complete.")
        return self._completion

    async def aclose(self) -> None:
        """Ends the stream: the model stops."""
        while self._gen.ag_running:
            await self._other_reader()
        if not self._ended:
            await self._gen.aclose()
            self._end(RuntimeError("The stream was closed before its message was complete."))
            await close(self._source)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _next_token(self) -> Awaitable[str]:
        return self._next(iterating=True)

    def _set_alone(self, alone: bool) -> None:
        if alone != self._alone:
            self._alone = alone
            if (tokens := self._iteration()) is not None:
                tokens.__anext__ = self._gen.__anext__ if alone else self._next_token

    async def _next(self, iterating: bool = False) -> str:
        """The next token of the stream; `iterating`: the next that the iteration has not given yet. One reader at a
        time; all readers get the error. Raises StopAsyncIteration at the end."""
        while self._gen.ag_running:
            await self._other_reader()
        if iterating:
            self._at += 1
            if self._at <= len(self._tokens):
                return self._tokens[self._at - 1]
            self._set_alone(not (self._shared or self._ended))
        if self._started or isinstance(self._gen, _Broken):
            return await self._gen.__anext__()
        self._started = True
        return await first_of_ours(self._gen)

    def _share(self) -> None:
        """From now on the iteration isn't the only reader: it has to count what it has given."""
        self._shared = True
        if self._alone:
            self._set_alone(False)
            self._at = len(self._tokens) + self._gen.ag_running

    async def _other_reader(self) -> None:
        changed = anyio.Event()
        self._waiting.append(changed)
        await changed.wait()

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()
        self._waiting.clear()

    def _pump(self, after: After | None, lock: Lock | None) -> AsyncGeneratorType[str, None]:
        # a generator function is typed as giving the interface, which lacks ag_running
        return cast("AsyncGeneratorType[str, None]", self._read_all(after, lock))

    async def _read_all(self, after: After | None, lock: Lock | None) -> AsyncGenerator[str, None]:
        """The tokens; at the end the completion is set. Whoever closes this finds nothing to wait for in it."""
        read = partial(first_item, self._source)
        last: Any = None
        try:
            if lock is not None:
                await lock.acquire()
                self._release = lock.release
            while (item := await _or_end(read)) is not _END:
                read = self._source.__anext__
                if last is not None:
                    raise RuntimeError(f"A stream's completion has to be its last element, but {item!r} follows.")
                if isinstance(item, BaseCompletion):
                    last = item
                    continue
                if not isinstance(item, str):
                    raise TypeError(f"A stream yields str and a BaseCompletion, not {type(item).__name__}: {item!r}")
                self._tokens.append(item)
                self._wake()
                yield item
            if last is None:
                last = Completion(ChatMessage(role=self.role, content="".join(self._tokens).strip()))
            if after is not None:
                await after(last)
            self._completion = last
            self._end(None)
        except GeneratorExit:
            raise
        except BaseException as e:
            await close(self._source)
            self._end(e)
            raise

    def _end(self, error: BaseException | None) -> None:
        self._ended = True
        self._set_alone(False)
        if error is not None:
            # who waits for the message in another task is not cancelled by the cancelling of this one
            cancelled = not isinstance(error, Exception)
            broken = RuntimeError("The stream was broken off before its message was complete.")
            self._gen = _Broken(broken if cancelled else error)
        if self._release is not None:
            release, self._release = self._release, None
            release()
        self._wake()


async def _or_end(read: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await read()
    except StopAsyncIteration:
        return _END


class _Broken:
    """In place of what reads a stream, when that broke."""

    ag_running = False

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def __anext__(self) -> str:
        raise self._error

    async def aclose(self) -> None: ...


class _Tokens:
    """The one iteration over a stream's tokens. What gives the next token is an attribute: while nobody else reads the
    stream, that is its generator itself, with no call of ours between."""

    __slots__ = ("__anext__", "__weakref__", "_stream")
    __anext__: Callable[[], Awaitable[str]]

    def __init__(self, stream: StreamManager) -> None:
        self._stream = stream  # kept alive as long as it is read
        self.__anext__ = stream._next_token

    def __aiter__(self) -> Self:
        return self


class DummyStream(StreamManager):
    """A message that is complete already, as a stream of one token."""

    def __init__(self, message: ChatMessage) -> None:
        super().__init__(_Items(message), message.role)


class _Items:
    """What a DummyStream is made of."""

    def __init__(self, message: ChatMessage) -> None:
        text = [] if message.text is None else [message.text]
        self._items: Iterator[str | BaseCompletion] = iter([*text, Completion(message)])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | BaseCompletion:
        for item in self._items:
            return item
        raise StopAsyncIteration
