"""Messages and functions as the chat completions API takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kani_lite.exceptions import PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole, MessagePart, ReasoningPart, ToolCall
from kani_lite.prompts import PromptPipeline

_ROLES = {
    ChatRole.SYSTEM: "system",
    ChatRole.USER: "user",
    ChatRole.ASSISTANT: "assistant",
    ChatRole.FUNCTION: "tool",
}

_BOUND: PromptPipeline[list[ChatMessage]] = PromptPipeline().ensure_bound_function_calls()


def wire_messages(messages: Sequence[ChatMessage], reasoning_key: str | None = None) -> list[dict[str, Any]]:
    """Messages as dicts; each result of a function has the id of its call, and one whose call isn't here is left out.
    Raises PromptError for a part that has no text form, and for calls without a result."""
    return [wire_message(message, reasoning_key) for message in _BOUND(list(messages))]


def wire_message(message: ChatMessage, reasoning_key: str | None = None) -> dict[str, Any]:
    """One message as a dict. What the model thought goes under `reasoning_key`, or is left out."""
    sent: dict[str, Any] = sendable(_fields(message, reasoning_key))
    return sent


def _fields(message: ChatMessage, reasoning_key: str | None) -> dict[str, Any]:
    made: dict[str, Any] = {"role": _ROLES[message.role], "content": _text(message)}
    if message.role is ChatRole.FUNCTION:
        return made if message.tool_call_id is None else made | {"tool_call_id": message.tool_call_id}
    if message.name is not None:
        made["name"] = message.name
    if message.role is not ChatRole.ASSISTANT:
        return made
    if reasoning_key and (thought := "".join(p.content for p in message.parts if isinstance(p, ReasoningPart))):
        made[reasoning_key] = thought
    if message.tool_calls:
        made["content"] = made["content"] or None
        made["tool_calls"] = [_wire_call(call) for call in message.tool_calls]
    return made


def _text(message: ChatMessage) -> str:
    for part in message.parts:
        if isinstance(part, MessagePart) and type(part).__str__ is MessagePart.__str__:
            raise PromptError(
                f"A {message.role.value} message holds a part of type {type(part).__name__}, and OpenAIEngine sends "
                "text only: replace it by text, or define __str__ on its class."
            )
    return message.text or ""


def _wire_call(call: ToolCall) -> dict[str, Any]:
    # servers parse the arguments of earlier calls and refuse the whole chat where they are no JSON object
    arguments = call.function.arguments
    if not is_object(arguments):
        arguments = json.dumps({"unreadable": arguments} if arguments.strip() else {}, ensure_ascii=False)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name or "unknown", "arguments": arguments},
    }


def is_object(text: str) -> bool:
    """Whether this is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def wire_tools(functions: Sequence[AIFunction] | None, strict: bool = False) -> list[dict[str, Any]]:
    """Functions as the API's tools; `strict` asks the server to hold the model to their schemas."""
    tools = []
    for function in functions or ():
        spec = {"name": function.name, "description": function.desc or "", "parameters": function.json_schema}
        tools.append({"type": "function", "function": sendable(spec | ({"strict": True} if strict else {}))})
    return tools


def sendable(value: Any) -> Any:
    """JSON with whole characters in its texts only."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {sendable(name): sendable(one) for name, one in value.items()}
    return [sendable(one) for one in value] if isinstance(value, list | tuple) else value


def whole(text: str) -> str:
    """A text without half surrogate pairs, which UTF-8 has not: a pair becomes its character, a half U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def wire_tool_choice(choice: Any, functions: Sequence[AIFunction] | None) -> Any:
    """What the API takes for "none", "auto", "required" or the name of a function that must be called; what is a dict
    already stays as it is. Raises PromptError for anything else."""
    names = [function.name for function in functions or ()]
    if isinstance(choice, dict) or choice in ("none", "auto", "required"):
        return choice
    if choice in names:
        return {"type": "function", "function": {"name": choice}}
    known = ", ".join(names) or "none"
    raise PromptError(
        f"tool_choice={choice!r} is no choice: give 'auto', 'none', 'required' or the name of a function on offer "
        f"({known})."
    )
