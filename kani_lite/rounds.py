"""The one loop: a model speaks, its calls are run, and it speaks again, until it has said its last word.

Every way of running a round is a view of a `Round`. Nothing is held while a round waits at a yield for whoever reads
it: a new round on the same chat ends such a round, and waits for one that is running.

A round is a machine of steps and not an async generator: generators inside each other cost time at each chunk of text,
and one that is dropped has to be closed by the event loop.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio

from .calls import inside_rounds, run_calls
from .derived import events_of, usage_of
from .engines.base import BaseCompletion, Completion
from .events import Delta, EndReason, Event, MessageAdded, MessageStarted, RoundEnd, TextDelta, ToolResult
from .exceptions import KaniException, RoundEnded
from .ledger import Ledger
from .messages import ChatMessage, QueryType, ToolCall
from .model_stream import ModelStream, close, first_item

if TYPE_CHECKING:
    from .functions import AIFunction
    from .kani import Kani

_log = logging.getLogger(__name__)
_NOTHING: Any = object()

OnBroken = Literal["answer", "rollback"]
"""What becomes of a round that was cancelled, closed or failed. `"answer"`: what is complete stays in the history, and
calls without a result are answered by an error; a user message that got no reply is taken back. `"rollback"`: the
history is as it was before the round."""


@dataclass(slots=True)
class RoundOptions:
    """How a round runs."""

    stream: bool  # all events; otherwise only those of messages
    functions: bool
    max_function_rounds: int | None
    kwargs: dict[str, Any]


class Round:
    """One round, as an async iterator of events; text comes as plain `str`, which is cheaper than a TextDelta."""

    # what most rounds never change
    completion: BaseCompletion | None = None  # the model's last
    running = False  # somebody waits for the next event
    closed = False  # nothing more will happen
    _stream: AsyncIterator[Any] | None = None  # the model's, while it speaks
    _pending: Any = _NOTHING  # an item of the stream that was read and not looked at yet
    _tool_rounds = _failed_rounds = _tokens = 0
    _deadline = inf
    _ledger: Ledger | None = None
    _locked = False
    _ended_by_other = False
    _reason = EndReason.FUNCTIONS_OFF

    def __init__(self, kani: Kani, query: QueryType, options: RoundOptions) -> None:
        self.kani = kani
        self.query = query
        self.options = options
        self.offered: dict[str, AIFunction] = {}  # in the prompt that the model answers
        self.text: list[str] = []  # what the model streamed of its message
        self.waiting: list[anyio.Event] = []  # set when the round waits to be read, or is over
        self._step: Callable[[Round], Awaitable[Event | str | None]] = Round._begin
        self._ready: deque[Event] = deque()  # what happened already and is still to be told
        self._calls: list[ToolCall] = []  # of the model's last message
        self._told: set[type] = set()  # the kinds of deltas that the model's stream had
        self._allowed = options.functions

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | str:
        if self._ready:
            return self._ready.popleft()
        if self.closed:
            if self._ended_by_other:
                raise RoundEnded("This round was waiting to be read when another began on its chat, which ended it.")
            raise StopAsyncIteration
        if self.running:
            raise RuntimeError("This round is being read by another task: one reads it at a time.")
        self.running = True
        try:
            item = await self._read() if self._stream is not None else None
            while item is None:
                if not self._locked:
                    await self._own()
                item = await self._step(self)
        except BaseException:
            await self._break_off()
            raise
        self._pause()
        return item

    async def aclose(self) -> None:
        """Ends the round: the model stops, and the history is settled as `on_broken` says."""
        self._ready.clear()
        if self.closed:
            return
        if self.running:
            raise RuntimeError("This round is being read by another task: cancel that task to end it.")
        await self._break_off()

    def let_go(self) -> None:
        """Nobody will read on: the model stops. The next round settles the history, which can't be done here."""
        if not self.running:
            self._stream = None

    async def texts(self, told: Callable[[BaseException | None], None], to_end: bool) -> AsyncGenerator[str, None]:
        """The text of the model's next message; `to_end`: of the round's only one. `told` gets the error, or None when
        the message is complete. A generator that reads the engine's stream itself, which costs least at each chunk."""
        text, waiting = self.text, self.waiting
        try:
            async for event in self:
                if isinstance(event, str | TextDelta):
                    yield event if isinstance(event, str) else event.text
                    if self._stream is None or self._deadline < inf:
                        continue
                    self.running = True
                    async for item in self._stream:
                        if type(item) is not str:
                            self._pending = item
                            break
                        text.append(item)
                        self.running = False
                        if waiting:
                            self._wake()
                        yield item
                        if self.closed:
                            break
                        self.running = True
                    self.running = False
                elif isinstance(event, RoundEnd) or (isinstance(event, MessageAdded) and not to_end):
                    break
            if self.completion is None:
                raise TimeoutError("The round's time was up before the model's message was complete.")
            told(None)
        except GeneratorExit:
            raise
        except BaseException as e:
            if self.running:
                await self._break_off()
            told(e)
            raise

    # --- whose turn it is ------------------------------------------------------------------------------------------

    async def _own(self) -> None:
        """Takes the chat: waits for a round on it that is running, ends one that waits to be read."""
        kani = self.kani
        while (other := kani._round) is not None and other is not self:
            if other in inside_rounds.get():
                raise KaniException(
                    "A function called back into the chat whose round it runs in, which would wait for itself for "
                    "ever: use another Kani (a sub-agent) in the function."
                )
            if other.running:
                changed = anyio.Event()
                other.waiting.append(changed)
                await changed.wait()
            else:
                other._ended_by_other = True
                try:
                    await other.aclose()
                except Exception:
                    _log.warning("Ending a round that was not read to its end failed.", exc_info=True)
        kani._round = self
        try:
            kani.lock.acquire_nowait()
        except anyio.WouldBlock:
            await kani.lock.acquire()
        self._locked = True

    def _pause(self) -> None:
        """Lets go of the chat: before each time that it waits to be read."""
        self.running = False
        if self._locked:
            self._locked = False
            self.kani.lock.release()
        if self.waiting:
            self._wake()

    def _wake(self) -> None:
        for event in self.waiting:
            event.set()
        self.waiting.clear()

    async def _break_off(self) -> None:
        """Ends the round before its end, whatever the state it is in."""
        self.running = True
        try:
            with anyio.CancelScope(shield=True):
                try:
                    await self._close_stream()
                finally:
                    if self._ledger is not None:
                        await self._ledger.settle()
        finally:
            self._leave()

    def _leave(self) -> None:
        self.closed = True
        self._pause()
        if self.kani._round is self:
            self.kani._round = None

    # --- the loop: each step gives the first of its events, None for no event, and says which step is next ------------

    async def _begin(self) -> None:
        self._ledger = Ledger(self.kani)
        await self._ledger.ask(self.query)
        if (limit := self.kani.limits.round_seconds) is not None:
            self._deadline = anyio.current_time() + limit
        self._step = Round._start_message

    async def _start_message(self) -> Event | None:
        options = self.options
        most = options.max_function_rounds if options.max_function_rounds is not None else self.kani.limits.tool_rounds
        if self._allowed and most is not None and self._tool_rounds >= most:
            self._allowed, self._reason = False, EndReason.TOOL_ROUNDS
        self._step = Round._speak
        if self.text:
            self.text = []
        return MessageStarted() if options.stream else None

    async def _speak(self) -> Event | str | None:
        """One completion of the model, or the first of what it streams."""
        kani, kwargs = self.kani, dict(self.options.kwargs)
        if not self.options.functions:
            kwargs["include_functions"] = False
        elif not self._allowed:
            kwargs |= kani.engine.disable_function_calling_kwargs
        offered = self._allowed and kwargs.get("include_functions", True)
        self.offered = {f.name: f for f in kani.get_enabled_functions()} if offered else {}
        self.completion = None
        self._step = Round._finish_message
        if not self.options.stream:
            if self._deadline == inf:
                self.completion = await kani.get_model_completion(**kwargs)
            else:
                with anyio.move_on_at(self._deadline):
                    self.completion = await kani.get_model_completion(**kwargs)
            return None
        self._told.clear()
        self._stream = aiter(kani.get_model_stream(**kwargs))
        return await self._read(first=True)

    async def _read(self, first: bool = False) -> Event | str | None:
        """The next of what the model streams; None at the end of it, or of the time."""
        item: Any
        stream = self._stream
        assert stream is not None
        try:
            while True:
                item, self._pending = self._pending, _NOTHING
                if item is not _NOTHING:
                    pass
                elif self._deadline == inf:
                    item = await (first_item(stream) if first else stream.__anext__())
                else:
                    with anyio.move_on_at(self._deadline):
                        item = await (first_item(stream) if first else stream.__anext__())
                if first and isinstance(stream, ModelStream) and stream.source is not None:
                    self._stream = stream = stream.source  # from here on without anything between
                first = False
                if self.completion is not None and item is not _NOTHING:
                    raise RuntimeError(f"The engine's stream goes on after its completion, with {item!r}.")
                if isinstance(item, str):
                    self.text.append(item)
                    return item
                if not isinstance(item, BaseCompletion):
                    break
                self.completion = item
        except StopAsyncIteration:
            item = _NOTHING
            if self.completion is None:
                self.completion = Completion(ChatMessage.assistant("".join(self.text).strip()))
        if item is _NOTHING:
            await self._close_stream()
            return None
        if not isinstance(item, Delta):
            raise TypeError(f"An engine's stream yields str, deltas and a BaseCompletion, not {item!r}.")
        if isinstance(item, TextDelta):
            self.text.append(item.text)
        self._told.add(type(item))
        return item

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await close(stream)

    async def _finish_message(self) -> Event | None:
        """Puts the model's message in the history and looks at what follows from it."""
        kani, completion = self.kani, self.completion
        if completion is None:
            return await self._end_in_time()
        assert self._ledger is not None
        self._ledger.outcomes = {}
        message = await kani.add_completion_to_history(completion)
        if self.options.stream:
            if self.text:
                self._told.add(TextDelta)
            derived = events_of(completion.message, self._told)
            self.text += [event.text for event in derived if isinstance(event, TextDelta)]
            self._ready.extend(derived)
        self._tokens += (completion.prompt_tokens or 0) + (completion.completion_tokens or 0)
        self._ready.append(MessageAdded(message))
        if self.options.stream:
            self._ready.append(usage_of(completion))
        if not message.tool_calls:
            done = self._allowed or self._reason is EndReason.FUNCTIONS_OFF
            return self._end(EndReason.DONE if done else self._reason)
        most = kani.limits.total_tokens
        if most is not None and self._tokens >= most:
            self._allowed, self._reason = False, EndReason.TOKENS
        self._calls = message.tool_calls
        self._step = Round._call_functions if self._allowed else Round._refuse
        return self._ready.popleft()

    async def _refuse(self) -> Event:
        assert self._ledger is not None
        await self._ledger.answer(f"not run: {_WHY[self._reason]}")
        return self._end(self._reason)

    async def _call_functions(self) -> Event | None:
        ledger, calls = self._ledger, self._calls
        assert ledger is not None
        outcomes = ledger.outcomes
        if not await run_calls(self, calls, self._failed_rounds, self._deadline, outcomes):
            return await self._end_in_time()
        # all results enter the history together, so that it is whole whenever somebody looks at it
        for index, call in enumerate(calls):
            await ledger.add(outcomes[index].message)
            self._ready.append(ToolResult(call, outcomes[index].message))
        self._tool_rounds += 1
        errors = [o for o in outcomes.values() if o.failed]
        if errors and not any(o.should_retry for o in errors):
            self._allowed, self._reason = False, EndReason.TOOL_ERRORS
        self._failed_rounds = self._failed_rounds + 1 if errors else 0
        self._step = Round._start_message
        if not errors and not any(o.is_model_turn for o in outcomes.values()):
            return self._end(EndReason.USER_TURN)
        return self._ready.popleft()

    async def _end_in_time(self) -> Event:
        """The round's time is up: like a round that is broken off, but it says so."""
        assert self._ledger is not None
        with anyio.CancelScope(shield=True):
            await self._ledger.settle()
        return self._end(EndReason.SECONDS)

    def _end(self, reason: EndReason) -> Event:
        """The first of the events that are left, RoundEnd being the last of them."""
        if reason in (EndReason.TOOL_ROUNDS, EndReason.TOKENS, EndReason.SECONDS):
            _log.warning("A round ended early: %s", _WHY[reason])
        self._ready.append(RoundEnd(reason))
        self._leave()
        return self._ready.popleft()


_WHY = {
    EndReason.FUNCTIONS_OFF: "functions can't be used in this round.",
    EndReason.TOOL_ROUNDS: "the limit of function calls in a round was reached.",
    EndReason.TOOL_ERRORS: "too many function calls failed in this round.",
    EndReason.TOKENS: "the limit of tokens of a round was reached.",
    EndReason.SECONDS: "the limit of time of a round was reached.",
}
