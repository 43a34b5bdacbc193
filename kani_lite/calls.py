"""Running the calls of one message: together, under the round's limits, each answered whatever happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from .exceptions import FunctionCallException
from .messages import ChatMessage, ToolCall

if TYPE_CHECKING:
    from .rounds import Round

T = TypeVar("T")

inside_rounds: ContextVar[tuple[Round, ...]] = ContextVar("inside_rounds", default=())
"""The rounds whose functions are running in this context, outermost first."""


class FunctionCallResult:
    """What a function call gave: the message for the history, and whether the model speaks next."""

    def __init__(self, is_model_turn: bool, message: ChatMessage) -> None:
        self.is_model_turn = is_model_turn
        self.message = message


class ExceptionHandleResult:
    """What was made of a failed call: the message that tells the model, and whether it may try again."""

    def __init__(self, should_retry: bool, message: ChatMessage) -> None:
        self.should_retry = should_retry
        self.message = message


@dataclass(frozen=True)
class CallOutcome:
    """One call and its answer."""

    call: ToolCall
    message: ChatMessage
    is_model_turn: bool
    failed: bool = False
    should_retry: bool = False


def not_run(call: ToolCall, why: str) -> ChatMessage:
    """The error result of a call that was not run."""
    return ChatMessage.function(call.function.name, why, call.id, is_tool_call_error=True)


async def run_calls(
    round_: Round, calls: list[ToolCall], attempt: int, deadline: float, outcomes: dict[int, CallOutcome]
) -> bool:
    """Runs the calls and puts each one's outcome in `outcomes`, by its place, as soon as it is known; False if the
    deadline passed first. An exception that is no FunctionCallException stops the other calls and is raised."""
    token = inside_rounds.set((*inside_rounds.get(), round_))
    try:
        if deadline == inf:
            await _run_together(round_, calls, attempt, outcomes)
        else:
            with anyio.move_on_at(deadline):
                await _run_together(round_, calls, attempt, outcomes)
    finally:
        inside_rounds.reset(token)
    return len(outcomes) == len(calls)


async def _run_together(round_: Round, calls: list[ToolCall], attempt: int, outcomes: dict[int, CallOutcome]) -> None:
    if len(calls) == 1 or round_.kani._run_at_once(calls):
        for index, call in enumerate(calls):
            outcomes[index] = await _run_call(round_, call, attempt)
        return
    errors: list[Exception] = []
    todo = deque(range(len(calls)))
    spare = round_.kani.limits.parallel_calls - 1

    async def work() -> None:
        while todo:
            index = todo.popleft()
            try:
                outcomes[index] = await Watched(_run_call(round_, calls[index], attempt), another)
            except Exception as e:
                errors.append(e)
                todo.clear()
                tasks.cancel_scope.cancel()

    def another() -> None:
        # a call has to wait: time for the next one. Calls that never wait need no task of their own
        nonlocal spare
        if spare and todo:
            spare -= 1
            tasks.start_soon(work)

    async with anyio.create_task_group() as tasks:
        await work()
    if errors:
        raise errors[0]


async def in_time(coroutine: Coroutine[Any, Any, T], seconds: float, name: str) -> T:
    """Awaits it for that long at most; raises TimeoutError otherwise. The time runs from when it first has to wait:
    setting a timer costs more than a function that doesn't wait."""

    def waits() -> None:
        scope.deadline = anyio.current_time() + seconds

    with anyio.CancelScope() as scope:
        return await Watched(coroutine, waits)
    raise TimeoutError(f"{name} took more than {seconds:g} seconds, and its result is not waited for.")


class Watched(Generic[T]):
    """Awaits a coroutine, and calls `waits` when that first has to wait."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._waits: Callable[[], None] | None = waits

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, value, error = self._coroutine, None, None
        while True:
            try:
                trap = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as e:
                return e.value  # type: ignore[no-any-return]  # StopIteration isn't generic
            if self._waits is not None:
                self._waits()
                self._waits = None
            value = error = None
            try:
                value = yield trap
            except BaseException as e:
                error = e


async def _run_call(round_: Round, call: ToolCall, attempt: int) -> CallOutcome:
    kani = round_.kani
    try:
        result = await kani.do_function_call(call.function, tool_call_id=call.id)
    except FunctionCallException as e:
        handled = await kani.handle_function_call_exception(call.function, e, attempt, tool_call_id=call.id)
        message = _answer_to(round_, call, handled.message, error=True)
        return CallOutcome(call, message, is_model_turn=True, failed=True, should_retry=handled.should_retry)
    return CallOutcome(call, _answer_to(round_, call, result.message, error=False), result.is_model_turn)


def _answer_to(round_: Round, call: ToolCall, message: ChatMessage, error: bool) -> ChatMessage:
    """The message, no longer than the limit, with what an overridden hook may have left out: which call it answers, and
    whether that failed."""
    if (most := round_.kani.limits.result_chars) is not None:
        message = round_.kani._auto_truncate_message(message, most)
    if message.is_tool_call_error is None:
        message = message.copy_with(is_tool_call_error=error)
    return message if message.tool_call_id is not None else message.copy_with(tool_call_id=call.id)
