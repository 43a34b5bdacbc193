"""Engines around engines: try again, fall back to another, limit how many run at once."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

import anyio
import anyio.lowlevel

from kani_lite.events import Delta
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage
from kani_lite.model_stream import close as close_stream

from .base import BaseCompletion, BaseEngine
from .worker import Channel
from .wrapper import WrapperEngine

Item = str | Delta | BaseCompletion
TEMPORARY: tuple[type[Exception], ...] = (EngineError, OSError, TimeoutError, anyio.BrokenResourceError)
"""What trying again, or elsewhere, may help against."""


@dataclass(frozen=True)
class Backoff:
    """Seconds to wait before another attempt: `first`, then `factor` times more each time, at most `most`; each is
    shortened by a random share of up to `jitter`, so that those who failed together don't come back together.

    A wait that the failed server asked for counts instead, if it is longer; one of more than `longest` seconds is not
    waited for at all.
    """

    first: float = 0.5
    factor: float = 2.0
    most: float = 30.0
    jitter: float = 0.25
    longest: float = 120.0

    def __post_init__(self) -> None:
        for name in ("first", "factor", "most", "longest"):
            if not getattr(self, name) >= 0:
                raise EngineError(f"Backoff({name}={getattr(self, name)!r}): give a number of 0 or more.")
        if not 0 <= self.jitter <= 1:
            raise EngineError(f"Backoff(jitter={self.jitter!r}): give a share from 0 to 1.")

    def seconds(self, failures: int, asked: float | None = None) -> float | None:
        """How long to wait after so many failures (1 or more); None: don't try again."""
        if asked is not None and asked > self.longest:
            return None
        grown = self.first * self.factor ** min(failures - 1, 60)  # beyond that a float could overflow
        wait = min(grown, self.most) * (1 - self.jitter * random.random())
        return wait if asked is None else max(wait, asked)


class RetryEngine(WrapperEngine):
    """Tries a call of the model again when it fails, up to `attempts` times in all, with a growing wait between.

    `errors`: what is worth another attempt; by default connection errors, and an EngineError that is `temporary`. Of
    other classes all are, but for those that have a `temporary` that is False. Once a piece of the reply was yielded
    nothing is repeated: who listens would hear it twice. A `retry_after` (seconds) of the error is waited for.
    """

    def __init__(
        self,
        engine: BaseEngine,
        attempts: int = 3,
        *,
        backoff: Backoff | None = None,
        errors: Sequence[type[Exception]] = TEMPORARY,
    ) -> None:
        super().__init__(engine)
        if attempts < 1:
            raise EngineError(f"attempts={attempts!r} never calls the model: give 1 or more.")
        self.attempts, self.backoff = attempts, backoff or Backoff()
        self.errors: tuple[type[Exception], ...] = tuple(errors)

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        for failures in range(1, self.attempts):
            try:
                return await self.engine.predict(messages, functions, **hyperparams)
            except self.errors as error:
                await self._wait_or_raise(error, failures)
        return await self.engine.predict(messages, functions, **hyperparams)

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncGenerator[Item]:
        for failures in range(1, self.attempts + 1):
            begun, stream = False, self.engine.stream(messages, functions, **hyperparams)
            try:
                async for item in stream:
                    begun = True
                    yield item
                return
            except self.errors as error:
                if begun or failures == self.attempts:
                    raise
                failed = error
            finally:
                await close_stream(stream)
            await self._wait_or_raise(failed, failures)

    async def _wait_or_raise(self, error: Exception, failures: int) -> None:
        worth_it = getattr(error, "temporary", True)
        seconds = self.backoff.seconds(failures, getattr(error, "retry_after", None)) if worth_it else None
        if seconds is None:
            raise error
        await anyio.sleep(seconds)


class FallbackEngine(WrapperEngine):
    """Calls `first`; where it fails, the next of `others`, and so on. The last one's error is raised, with the others'
    as its notes. Once a piece of a reply was yielded, its engine's error is raised at once.

    `errors`: what sends a call on; by default every EngineError and connection errors. A prompt is counted as the
    longest that it is for any of the engines, and the context is the smallest of theirs, so what fits one fits all.
    With `when_too_long=True` the context is the largest instead, and PromptTooLong sends a call on as well.
    """

    def __init__(
        self,
        first: BaseEngine,
        *others: BaseEngine,
        errors: Sequence[type[Exception]] = TEMPORARY,
        when_too_long: bool = False,
    ) -> None:
        super().__init__(first)
        self.engines = (first, *others)
        also = (PromptTooLong,) if when_too_long else ()
        self.errors: tuple[type[Exception], ...] = (*errors, *also)
        self.when_too_long = when_too_long

    @property
    def max_context_size(self) -> int:
        if self._size is not None:
            return self._size
        sizes = [engine.max_context_size for engine in self.engines]
        return max(sizes) if self.when_too_long else min(sizes)

    @max_context_size.setter
    def max_context_size(self, size: int) -> None:
        self._size = size

    @property
    def disable_function_calling_kwargs(self) -> dict[str, Any]:  # type: ignore[override]  # a property in place of the attribute
        given = self.engine.disable_function_calling_kwargs
        same = all(engine.disable_function_calling_kwargs == given for engine in self.engines)
        return given if same else BaseEngine.disable_function_calling_kwargs  # that one every engine understands

    @property
    def counts_exactly(self) -> bool:  # type: ignore[override]  # a property in place of the attribute
        # another engine than the one with the longest count may run the prompt
        return len(self.engines) == 1 and self.engine.counts_exactly

    @property
    def reuses_prefix(self) -> bool:  # type: ignore[override]  # a property in place of the attribute
        return all(engine.reuses_prefix for engine in self.engines)

    def message_len(self, message: ChatMessage) -> int:
        """The largest count of the engines that count single messages. Raises NotImplementedError if none does."""
        counts: list[int] = []
        for engine in self.engines:
            with suppress(NotImplementedError):  # it counts whole prompts only
                counts.append(engine.message_len(message))
        if not counts:
            raise NotImplementedError("none of these engines defines message_len")
        return max(counts)

    async def prompt_len(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        """The largest count of the engines that can count this prompt now. Raises the last error if none can."""
        counts: list[int] = []
        failed: Exception | None = None
        for engine in self.engines:
            try:
                count = engine.prompt_len(messages, functions, **kwargs)
                counts.append(await count if isawaitable(count) else count)
            except self.errors as error:  # a server that is down must not stop the others
                failed = error
        if not counts and failed is not None:
            raise failed
        return max(counts)

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        failed: list[Exception] = []
        for engine in self.engines:
            try:
                return await engine.predict(messages, functions, **hyperparams)
            except self.errors as error:
                failed.append(error)
        raise _last_with_notes(failed)

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncGenerator[Item]:
        failed: list[Exception] = []
        for engine in self.engines:
            begun, stream = False, engine.stream(messages, functions, **hyperparams)
            try:
                async for item in stream:
                    begun = True
                    yield item
                return
            except self.errors as error:
                if begun:
                    raise
                failed.append(error)
            finally:
                await close_stream(stream)
        raise _last_with_notes(failed)

    async def close(self) -> None:
        """Closes all engines, whatever one of them raises; the first error is raised at the end."""
        failed: list[Exception] = []
        for engine in self.engines:
            try:
                await engine.close()
            except Exception as error:  # raised below
                failed.append(error)
        if failed:
            raise failed[0]


class LimitEngine(WrapperEngine):
    """At most `max_concurrent` calls of the engine run at once; the others wait their turn, first come, first served.

    A stream takes a place from its first item until it ends or is closed. Several wrappers of one engine share the
    limit if they are given the same `places`.
    """

    def __init__(self, engine: BaseEngine, max_concurrent: int = 1, *, places: Places | None = None) -> None:
        super().__init__(engine)
        self.places = places or Places(max_concurrent)

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        async with self.places.taken():
            return await self.engine.predict(messages, functions, **hyperparams)

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncGenerator[Item]:
        # a place belongs to no task, so the stream may be closed by another task than began it
        await self.places.take()
        try:
            stream = self.engine.stream(messages, functions, **hyperparams)
            try:
                async for item in stream:
                    yield item
            finally:
                await close_stream(stream)
        finally:
            self.places.give_back()


class Places:
    """A number of places, taken first come, first served, by tasks of any event loops and threads. Unlike anyio's
    limiters, a place is bound to no task."""

    def __init__(self, number: int) -> None:
        if number < 1:
            raise EngineError(f"max_concurrent={number!r} lets nothing run: give 1 or more.")
        self.number = number
        self._free = number
        self._waiting: deque[Channel] = deque()
        self._lock = threading.Lock()  # never held while something waits

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self.number - self._free

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    async def take(self) -> None:
        """Waits for a place. Cancelling gives up the wait, or the place if it has just come."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return
            turn = Channel()
            self._waiting.append(turn)
        try:
            await turn.receive()
        except BaseException:
            with self._lock:
                waited = turn in self._waiting
                if waited:
                    self._waiting.remove(turn)
            if not waited:
                self.give_back()
            raise

    def give_back(self) -> None:
        """Hands a place to who has waited longest."""
        with self._lock:
            while self._waiting:
                if self._waiting.popleft().put(None):
                    return  # the place stays taken: it is theirs now
            self._free += 1

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """A place for the time of a `with` block."""
        await self.take()
        try:
            yield
        finally:
            self.give_back()


def _last_with_notes(failed: list[Exception]) -> Exception:
    """The last engine's error; why the ones before it failed is in its notes."""
    *earlier, last = failed
    for number, error in enumerate(earlier, 1):
        last.add_note(f"Engine {number} failed before: {type(error).__name__}: {error}")
    return last
