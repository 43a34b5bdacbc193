"""How a case talks to the engine that it checks."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import anyio
import anyio.to_thread

from kani_lite.engines.base import BaseCompletion, BaseEngine
from kani_lite.events import Delta, TextDelta
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage
from kani_lite.model_stream import close as close_stream

from .profile import CaseFailed, CaseSkipped, EngineProfile

MakeEngine: TypeAlias = Callable[[], "BaseEngine | Awaitable[BaseEngine]"]
Said: TypeAlias = tuple[str, list[tuple[str, str]]]


def said(message: ChatMessage) -> Said:
    """What of a message two runs must agree in: its text, and its calls without their ids."""
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return (message.text or "").strip(), calls


@dataclass
class Streamed:
    """All that a stream gave."""

    items: list[str | Delta | BaseCompletion] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(i if isinstance(i, str) else i.text for i in self.items if isinstance(i, str | TextDelta))

    @property
    def completion(self) -> BaseCompletion:
        """The last item. Raises CaseFailed if it is none."""
        last = self.items[-1] if self.items else None
        if not isinstance(last, BaseCompletion):
            raise CaseFailed(f"The stream's last item should be its completion, and is {last!r:.200}.")
        return last


async def build_engine(make: MakeEngine) -> BaseEngine:
    """Builds an engine without blocking the loop: loading a model may take long."""
    if inspect.iscoroutinefunction(make):
        built: Any = make()
    else:
        built = await anyio.to_thread.run_sync(make)
    engine = await built if inspect.isawaitable(built) else built
    if not isinstance(engine, BaseEngine):
        raise TypeError(f"make_engine should return an engine, and returned {engine!r:.200}.")
    return engine


class Probe:
    """An engine, and what to ask it."""

    def __init__(self, engine: BaseEngine, make: MakeEngine | None, profile: EngineProfile) -> None:
        self.engine = engine
        self.profile = profile
        self._make = make

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Probe]:
        """A probe of an engine of its own, which is closed afterwards. Raises CaseSkipped where none can be made."""
        if self._make is None:
            raise CaseSkipped("This case closes its engine: pass make_engine, so that it can build one.")
        engine = await build_engine(self._make)
        try:
            yield Probe(engine, self._make, self.profile)
        finally:
            with anyio.CancelScope(shield=True):
                await engine.close()

    def messages(self, text: str | None = None) -> list[ChatMessage]:
        return [ChatMessage.user(self.profile.query if text is None else text)]

    @property
    def functions(self) -> list[AIFunction]:
        return [self.profile.tool]

    def tool_query(self) -> list[ChatMessage]:
        """Raises CaseSkipped if the profile has none."""
        if self.profile.tool_query is None:
            raise CaseSkipped("The profile has no tool_query.")
        return self.messages(self.profile.tool_query)

    async def predict(
        self,
        messages: list[ChatMessage] | None = None,
        functions: list[AIFunction] | None = None,
        **hyperparams: Any,
    ) -> BaseCompletion:
        """A short greedy reply, unless the hyperparameters say otherwise."""
        asked = self.messages() if messages is None else messages
        return await self.engine.predict(asked, functions, **{**self.profile.greedy, **hyperparams})

    async def said(self, text: str | None = None, **hyperparams: Any) -> Said:
        return said((await self.predict(self.messages(text), **hyperparams)).message)

    async def stream(
        self,
        messages: list[ChatMessage] | None = None,
        functions: list[AIFunction] | None = None,
        **hyperparams: Any,
    ) -> Streamed:
        """The same streamed, to its end."""
        asked = self.messages() if messages is None else messages
        streamed = Streamed()
        stream = self.engine.stream(asked, functions, **{**self.profile.greedy, **hyperparams})
        try:
            async for item in stream:
                streamed.items.append(item)
        finally:
            await close_stream(stream)
        return streamed

    def long_stream(self) -> AsyncIterator[str | Delta | BaseCompletion]:
        """A reply that is broken off."""
        return self.engine.stream(self.messages(self.profile.long_query), None, **self.profile.long)

    async def long_predict(self) -> BaseCompletion:
        return await self.engine.predict(self.messages(self.profile.long_query), None, **self.profile.long)

    async def count(self, messages: list[ChatMessage], functions: list[AIFunction] | None = None) -> int:
        counted = self.engine.prompt_len(messages, functions)
        return await counted if inspect.isawaitable(counted) else counted

    async def still_says(self, before: Said) -> None:
        """Raises CaseFailed if the engine no longer answers as it did."""
        try:
            now = await self.said()
        except Exception as error:
            raise CaseFailed(f"Afterwards the engine no longer answers: {named(error)}.") from error
        if now != before:
            raise CaseFailed(f"Afterwards the engine says {now!r:.200} to the query that it answered {before!r:.200}.")

    async def sampled(self, name: str, extra: Mapping[str, Any], *, stream: bool = False) -> BaseCompletion | None:
        """A reply with `extra`, which are about the sampling parameter `name`; None if the engine refuses it by its
        name. Raises CaseFailed if it refuses it in another way."""
        try:
            return (await self.stream(**extra)).completion if stream else await self.predict(**extra)
        except (TypeError, ValueError, NotImplementedError, EngineError) as error:
            if name not in str(error):
                raise CaseFailed(f"{name} is refused without being named: {named(error)}.") from error
            return None

    def needs_sampling(self) -> None:
        if not self.profile.sampling:
            raise CaseSkipped("The profile says that this engine doesn't take SamplingParams (sampling=False).")


def named(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {str(error)!a:.300}"


def calls_in(items: Sequence[object]) -> list[object]:
    """The deltas of a stream that are about calls."""
    return [item for item in items if type(item).__name__.startswith("ToolCall")]
