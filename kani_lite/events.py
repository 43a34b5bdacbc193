"""What happens in a round, as typed values: the stream that every way of running a round is a view of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .messages import ChatMessage, ToolCall


@dataclass(frozen=True, slots=True)
class MessageStarted:
    """The model is called; what it says follows."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the assistant's visible text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The model has begun to write a call; `index` counts the calls of its message."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the call's arguments, as JSON text."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallFinished:
    """The call is complete. It has not been run yet."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class MessageAdded:
    """A message of the model has entered the history."""

    message: ChatMessage


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A call was answered and its result has entered the history."""

    call: ToolCall
    message: ChatMessage


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model completion, None where the engine doesn't say.

    `cached_tokens` of the prompt were reused from an earlier one; `seconds` is the time that generating took, and
    `first_token_seconds` that from the request to its first token, waiting included.
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None = None
    seconds: float | None = None
    first_token_seconds: float | None = None


class EndReason(StrEnum):
    """Why a round ended."""

    DONE = "done"  # the model said its last word
    USER_TURN = "user_turn"  # every function that ran wants the user to speak next
    TOOL_ROUNDS = "tool_rounds"  # the limit of tool rounds was reached
    TOOL_ERRORS = "tool_errors"  # the model still made calls after its retries were spent
    FUNCTIONS_OFF = "functions_off"  # the model made calls in a round without functions
    SECONDS = "seconds"  # the limit of seconds was reached
    TOKENS = "tokens"  # the limit of tokens was reached


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """The last event of every round that was not broken off."""

    reason: EndReason


# what an engine's stream may yield beside text and its completion
Delta = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta | ToolCallFinished
Event = Delta | MessageStarted | MessageAdded | ToolResult | Usage | RoundEnd
