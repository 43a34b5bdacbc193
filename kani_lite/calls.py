"""Running the calls of one message: together, under the round's limits, each answered whatever happens."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import anyio

from .exceptions import FunctionCallException
from .messages import ChatMessage, ToolCall

if TYPE_CHECKING:
    from .rounds import Round

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


async def run_calls(round_: Round, calls: list[ToolCall], attempt: int, deadline: float) -> list[CallOutcome] | None:
    """The outcomes in the order of the calls; None if the deadline passed first. An exception that is no
    FunctionCallException stops the other calls and is raised."""
    token = inside_rounds.set((*inside_rounds.get(), round_))
    try:
        if len(calls) == 1 and deadline == inf:
            return [await _run_call(round_, calls[0], attempt)]
        with anyio.move_on_at(deadline):
            return await _run_together(round_, calls, attempt)
        return None
    finally:
        inside_rounds.reset(token)


async def _run_together(round_: Round, calls: list[ToolCall], attempt: int) -> list[CallOutcome]:
    outcomes: dict[int, CallOutcome] = {}
    errors: list[Exception] = []
    limiter = anyio.Semaphore(round_.kani.limits.parallel_calls)

    async def run(index: int) -> None:
        async with limiter:
            try:
                outcomes[index] = await _run_call(round_, calls[index], attempt)
            except Exception as e:
                errors.append(e)
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index in range(len(calls)):
            tasks.start_soon(run, index)
    if errors:
        raise errors[0]
    return [outcomes[index] for index in range(len(calls))]


async def _run_call(round_: Round, call: ToolCall, attempt: int) -> CallOutcome:
    kani = round_.kani
    try:
        result = await kani.do_function_call(call.function, tool_call_id=call.id)
    except FunctionCallException as e:
        handled = await kani.handle_function_call_exception(call.function, e, attempt, tool_call_id=call.id)
        message = _marked(handled.message, error=True)
        return CallOutcome(call, message, is_model_turn=True, failed=True, should_retry=handled.should_retry)
    return CallOutcome(call, _marked(result.message, error=False), result.is_model_turn)


def _marked(message: ChatMessage, error: bool) -> ChatMessage:
    return message if message.is_tool_call_error is not None else message.copy_with(is_tool_call_error=error)
