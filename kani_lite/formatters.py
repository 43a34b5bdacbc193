"""Messages as text for a person; each takes a message and returns text, or None to leave it out."""

from __future__ import annotations

import json
from itertools import groupby

from .messages import ChatMessage, ChatRole, FunctionCall, ReasoningPart

_GREY, _RESET = "\x1b[0;37m", "\x1b[0m"


def all_message_contents(msg: ChatMessage) -> str | None:
    """The text of every message."""
    return msg.text


def assistant_message_contents(msg: ChatMessage, show_reasoning: bool = True, color: bool = True) -> str | None:
    """The text of the model's messages; its reasoning (in grey) on lines of its own, where it stands in the message."""
    if msg.role is not ChatRole.ASSISTANT:
        return None
    if not show_reasoning or not any(isinstance(p, ReasoningPart) for p in msg.parts):
        return msg.text
    lines = []
    for is_reasoning, parts in groupby(msg.parts, lambda p: isinstance(p, ReasoningPart)):
        text = "".join(p.content if isinstance(p, ReasoningPart) else str(p) for p in parts)
        lines.append(f"{_GREY}{text}{_RESET}" if is_reasoning and color and text else text)
    return "\n".join(filter(None, lines))


def assistant_message_thinking(msg: ChatMessage, show_args: bool = False) -> str | None:
    """The calls of a message of the model: `Thinking... [name; name]`."""
    if msg.role is not ChatRole.ASSISTANT or not msg.tool_calls:
        return None
    calls = (_call_text(call.function) if show_args else call.function.name for call in msg.tool_calls)
    return f"Thinking... [{'; '.join(calls)}]"


def assistant_message_contents_thinking(
    msg: ChatMessage, show_args: bool = False, show_reasoning: bool = True, color: bool = True
) -> str | None:
    """The text of the model's messages, and on the next line the calls that it makes."""
    if msg.role is not ChatRole.ASSISTANT:
        return None
    lines = assistant_message_contents(msg, show_reasoning, color), assistant_message_thinking(msg, show_args)
    return "\n".join(filter(None, lines)) or None


def _call_text(call: FunctionCall) -> str:
    try:
        arguments = json.loads(call.arguments)
        return f"{call.name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    except (ValueError, AttributeError):
        return f"{call.name}({call.arguments})"
