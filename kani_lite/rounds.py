"""The one loop: a model speaks, its calls are run, and it speaks again, until it has said its last word.

Every way of running a round is a view of a `Round`. Nothing is held while a round waits at a yield for whoever reads
it: a new round on the same chat ends such a round, and waits for one that is running.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import anyio

from .calls import inside_rounds, not_run, run_calls
from .engines.base import BaseCompletion, Completion
from .events import (
    EndReason,
    Event,
    MessageAdded,
    MessageStarted,
    RoundEnd,
    TextDelta,
    ToolCallDelta,
    ToolCallFinished,
    ToolCallStarted,
    ToolResult,
    Usage,
)
from .exceptions import KaniException, RoundEnded
from .messages import ChatMessage, QueryType, ToolCall

if TYPE_CHECKING:
    from .functions import AIFunction
    from .kani import Kani

_T = TypeVar("_T")

OnBroken = Literal["answer", "rollback"]
"""What becomes of a round that was cancelled, closed or failed. `"answer"`: what is complete stays in the history, and
calls without a result are answered by an error; a user message that got no reply is taken back. `"rollback"`: the
history is as it was before the round."""


@dataclass(frozen=True)
class RoundOptions:
    """How a round runs."""

    stream: bool
    functions: bool
    max_function_rounds: int | None
    kwargs: dict[str, Any]


class Round:
    """One round, as an async iterator of events; text comes as plain `str`, which is cheaper than a TextDelta."""

    def __init__(self, kani: Kani, query: QueryType, options: RoundOptions) -> None:
        self.kani = kani
        self.query = query
        self.options = options
        self.completion: BaseCompletion | None = None  # the model's last
        self.offered: dict[str, AIFunction] = {}  # in the prompt that the model answers
        self.running = False
        self.closed = False
        self._ended_by_other = False
        self._added: list[ChatMessage] = []
        self._open_calls: list[ToolCall] = []
        self._waiting: list[anyio.Event] = []
        self._locked = False
        self._events = self._run()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Event | str]:
        if self._ended_by_other:
            raise RoundEnded("This round was waiting to be read when another one began on the same chat, which ended it.")
        return self._events.__anext__()

    async def aclose(self) -> None:
        """Ends the round: the model stops, and the history is settled as `on_broken` says."""
        await self._events.aclose()
        self._leave()

    # --- whose turn it is ------------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        kani = self.kani
        while (other := kani._round) is not None and not other.closed:
            if other in inside_rounds.get():
                raise KaniException(
                    "A function called back into the chat whose round it runs in, which would wait for itself for ever: "
                    "use another Kani (a sub-agent) in the function."
                )
            if other.running:
                changed = anyio.Event()
                other._waiting.append(changed)
                await changed.wait()
            else:
                other._ended_by_other = True
                await other.aclose()
        kani._round = self
        await self._resume()

    async def _resume(self) -> None:
        self.running = True
        try:
            await self.kani.lock.acquire()
        except BaseException:
            self.running = False
            raise
        self._locked = True

    def _pause(self) -> None:
        """Lets go of the chat: before each yield."""
        self.running = False
        if self._locked:
            self._locked = False
            self.kani.lock.release()
        if self._waiting:
            for event in self._waiting:
                event.set()
            self._waiting.clear()

    def _leave(self) -> None:
        self.closed = True
        self._pause()
        if self.kani._round is self:
            self.kani._round = None

    # --- the loop --------------------------------------------------------------------------------------------------

    async def _run(self) -> AsyncGenerator[Event | str, None]:
        try:
            await self._enter()
            if self.query is not None:
                await self._add(ChatMessage.user(self.query))
            deadline = anyio.current_time() + limit if (limit := self.kani.limits.round_seconds) is not None else inf
            async with aclosing(self._turns(deadline)) as turns:
                async for event in turns:
                    self._pause()
                    yield event
                    await self._resume()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._settle()
            raise
        finally:
            self._leave()

    async def _turns(self, deadline: float) -> AsyncGenerator[Event | str, None]:
        """The model's turns and the functions' between them. Yields without owning the chat (see `_run`)."""
        kani, options = self.kani, self.options
        limits = kani.limits
        most = options.max_function_rounds if options.max_function_rounds is not None else limits.tool_rounds
        allowed, reason = options.functions, EndReason.FUNCTIONS_OFF
        tool_rounds = failed_rounds = tokens = 0
        while True:
            if allowed and most is not None and tool_rounds >= most:
                allowed, reason = False, EndReason.TOOL_ROUNDS
            yield MessageStarted()
            async with aclosing(self._speak(allowed, deadline)) as items:
                async for item in items:
                    yield item
            completion = self.completion
            if completion is None:
                yield RoundEnd(EndReason.SECONDS)
                return
            message = await kani.add_completion_to_history(completion)
            self._added.append(message)
            self._open_calls = list(message.tool_calls or [])
            usage = _usage(completion)
            tokens += (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
            yield MessageAdded(message)
            yield usage
            if not message.tool_calls:
                yield RoundEnd(EndReason.DONE if allowed or reason is EndReason.FUNCTIONS_OFF else reason)
                return
            if limits.total_tokens is not None and tokens >= limits.total_tokens:
                allowed, reason = False, EndReason.TOKENS
            if not allowed:
                await self._answer_open_calls(f"not run: {_WHY[reason]}")
                yield RoundEnd(reason)
                return
            outcomes = await run_calls(self, message.tool_calls, failed_rounds, deadline)
            if outcomes is None:
                await self._answer_open_calls(f"not run: {_WHY[EndReason.SECONDS]}")
                yield RoundEnd(EndReason.SECONDS)
                return
            # all results enter the history together, so that it is whole at each of the yields
            for outcome in outcomes:
                await self._add(outcome.message)
                self._open_calls.remove(outcome.call)
            for outcome in outcomes:
                yield ToolResult(outcome.call, outcome.message)
            tool_rounds += 1
            errors = [o for o in outcomes if o.failed]
            if errors and not any(o.should_retry for o in errors):
                allowed, reason = False, EndReason.TOOL_ERRORS
            failed_rounds = failed_rounds + 1 if errors else 0
            if not errors and not any(o.is_model_turn for o in outcomes):
                yield RoundEnd(EndReason.USER_TURN)
                return

    async def _speak(self, allowed: bool, deadline: float) -> AsyncGenerator[Event | str, None]:
        """One completion of the model; what it streams is yielded. Sets `completion`, to None if time ran out."""
        kani, kwargs = self.kani, dict(self.options.kwargs)
        self.completion = None
        if not self.options.functions:
            kwargs["include_functions"] = False
        elif not allowed:
            kwargs |= kani.engine.disable_function_calling_kwargs
        self.offered = {f.name: f for f in kani.get_enabled_functions()} if allowed else {}
        if not self.options.stream:
            with anyio.move_on_at(deadline) if deadline < inf else _NO_SCOPE:
                self.completion = await kani.get_model_completion(**kwargs)
            return
        text: list[str] = []
        calls_seen = False
        async with _closing(kani.get_model_stream(**kwargs)) as stream:
            while True:
                item = None
                with anyio.move_on_at(deadline) if deadline < inf else _NO_SCOPE:
                    item = await anext(stream, _END)
                if item is None:
                    return
                if item is _END:
                    break
                if isinstance(item, BaseCompletion):
                    self.completion = item
                    continue
                if self.completion is not None:
                    raise RuntimeError(f"The engine's stream goes on after its completion, with {item!r}.")
                if isinstance(item, str):
                    text.append(item)
                elif isinstance(item, TextDelta):
                    text.append(item.text)
                elif isinstance(item, ToolCallStarted):
                    calls_seen = True
                yield item
        if self.completion is None:
            self.completion = Completion(ChatMessage.assistant("".join(text).strip()))
        if not calls_seen:
            for event in _call_events(self.completion.message):
                yield event

    # --- the history -----------------------------------------------------------------------------------------------

    async def _add(self, message: ChatMessage) -> None:
        self._added.append(message)
        await self.kani.add_to_history(message)

    async def _answer_open_calls(self, why: str) -> None:
        while self._open_calls:
            await self._add(not_run(self._open_calls[0], why))
            del self._open_calls[0]

    async def _settle(self) -> None:
        """Makes the history whole again after the round was broken off."""
        history = self.kani.chat_history
        if self.kani.on_broken == "rollback":
            gone = {id(m) for m in self._added}
            history[:] = [m for m in history if id(m) not in gone]
            return
        there = {id(m) for m in history}
        answered = {m.tool_call_id for m in self._added if id(m) in there}
        self._open_calls = [call for call in self._open_calls if call.id not in answered]
        await self._answer_open_calls("not run: the round was broken off before this call had a result.")
        if len(self._added) == 1 and self.query is not None and history and history[-1] is self._added[0]:
            history.pop()


@asynccontextmanager
async def _closing(stream: AsyncIterator[_T]) -> AsyncIterator[AsyncIterator[_T]]:
    """Closes the stream, if it can be closed: an engine's stream may be any iterator."""
    try:
        yield stream
    finally:
        if (close := getattr(stream, "aclose", None)) is not None:
            with anyio.CancelScope(shield=True):
                await close()


class _NoScope:
    """In place of a cancel scope where there is no deadline."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_NO_SCOPE = _NoScope()
_END = object()

_WHY = {
    EndReason.FUNCTIONS_OFF: "functions can't be used in this round.",
    EndReason.TOOL_ROUNDS: "the limit of function calls in a round was reached.",
    EndReason.TOOL_ERRORS: "too many function calls failed in this round.",
    EndReason.TOKENS: "the limit of tokens of a round was reached.",
    EndReason.SECONDS: "the limit of time of a round was reached.",
}


def _usage(completion: BaseCompletion) -> Usage:
    cached, seconds = getattr(completion, "cached_tokens", None), getattr(completion, "seconds", None)
    return Usage(completion.prompt_tokens, completion.completion_tokens, cached, seconds)


def _call_events(message: ChatMessage) -> list[Event]:
    """The events of calls that an engine returned without streaming them."""
    events: list[Event] = []
    for index, call in enumerate(message.tool_calls or []):
        events.append(ToolCallStarted(index, call.id, call.function.name))
        events.append(ToolCallDelta(index, call.function.arguments))
        events.append(ToolCallFinished(index, call))
    return events
