"""The events that a whole completion stands for, where its engine did not stream them."""

from __future__ import annotations

from .engines.base import BaseCompletion
from .events import Event, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted, Usage
from .messages import ChatMessage, ReasoningPart


def usage_of(completion: BaseCompletion) -> Usage:
    # of a bare engine's completion only the two counts are required
    known = {name: getattr(completion, name, None) for name in ("cached_tokens", "seconds", "first_token_seconds")}
    return Usage(completion.prompt_tokens, completion.completion_tokens, **known)


def events_of(message: ChatMessage, told: set[type]) -> list[Event]:
    """The deltas of a message, without those of the kinds that were told already."""
    events: list[Event] = []
    if ReasoningDelta not in told:
        events += [ReasoningDelta(p.content) for p in message.parts if isinstance(p, ReasoningPart) and p.content]
    if TextDelta not in told and message.text:
        events.append(TextDelta(message.text))
    for index, call in enumerate(message.tool_calls or ()) if ToolCallStarted not in told else ():
        events.append(ToolCallStarted(index, call.id, call.function.name))
        events.append(ToolCallDelta(index, call.function.arguments))
        events.append(ToolCallFinished(index, call))
    return events
