"""What `kani-lite prompt` reads: a saved chat, or messages and tools as OpenAI's API has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kani_lite.exceptions import PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole, FunctionCall, MessagePart, ReasoningPart, ToolCall
from kani_lite.saving import SavedKani, load

MAX_BYTES = 2**26
"""The largest file of messages or tools."""

_ROLES = {role.value: role for role in ChatRole} | {"tool": ChatRole.FUNCTION, "developer": ChatRole.SYSTEM}
_ROLE_NAMES = "system, user, assistant or tool"


def read_chat(path: str) -> tuple[list[ChatMessage], list[AIFunction]]:
    """The messages in a file (`-`: standard input) and the tools beside them, if it is the body of a request.

    Raises PromptError, naming the file and what is wrong in it; KaniException if it is a damaged saved chat.
    """
    data = _read(path)
    value = None if data.startswith(b"PK") else _decoded(data, path)
    tools = []
    if value is None or (isinstance(value, dict) and "chat_history" in value):
        saved = _saved(path, data)
        messages = [*saved.always_included_messages, *saved.chat_history]
    elif isinstance(value, dict) and "messages" in value:
        messages = _messages_of(value["messages"], path)
        tools = _tools_of(value.get("tools") or [], path)
    else:
        messages = _messages_of(value, path)
    if not messages:
        raise PromptError(f"{_named(path)} holds no messages.")
    return messages, tools


def read_tools(path: str) -> list[AIFunction]:
    """The tools in a file: a list of them, as in a request to OpenAI's API. Raises PromptError."""
    return _tools_of(_decoded(_read(path), path), path)


# ==== files ====


def _named(path: str) -> str:
    return "The standard input" if path == "-" else f"The file {path!r}"


def _read(path: str) -> bytes:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(Path(path).expanduser(), "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PromptError(f"There is no file {path!r}.") from None
    except OSError as error:
        raise PromptError(f"{_named(path)} can't be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise PromptError(f"{_named(path)} has more than {MAX_BYTES:,} bytes.")
    return data


def _decoded(data: bytes, path: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{_named(path)} is not JSON: {error}") from None


def _saved(path: str, data: bytes) -> SavedKani:
    if path != "-":
        return load(Path(path).expanduser())
    try:
        return SavedKani.model_validate_json(data)
    except ValueError as error:
        raise PromptError("The standard input is not a saved chat as JSON, or is damaged: give the file.") from error


# ==== messages ====


def _messages_of(value: Any, path: str) -> list[ChatMessage]:
    if not isinstance(value, list):
        raise PromptError(f"{_named(path)} is neither a saved chat nor a list of messages.")
    names: dict[str, str] = {}  # of the functions, by the id of a call
    return [_message_of(item, f"{_named(path)}: message {i}", names) for i, item in enumerate(value)]


def _message_of(item: Any, where: str, names: dict[str, str]) -> ChatMessage:
    if not isinstance(item, dict):
        raise PromptError(f"{where} is not an object with a role and content.")
    role = _ROLES.get(item["role"]) if isinstance(item.get("role"), str) else None
    if role is None:
        given = f"the unknown role {item['role']!r}" if "role" in item else "no role"
        raise PromptError(f"{where} has {given}: give {_ROLE_NAMES}.")
    calls = _calls_of(item, where)
    names.update((call.id, call.function.name) for call in calls)
    result_of = _text_or_none(item, "tool_call_id", where)
    return ChatMessage(
        role=role,
        content=_content_of(item, where),
        name=_text_or_none(item, "name", where) or names.get(result_of or ""),
        tool_call_id=result_of,
        tool_calls=calls or None,
    )


def _text_or_none(item: dict[str, Any], key: str, where: str) -> str | None:
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise PromptError(f"{where}: its {key} is not text.")
    return value


def _content_of(item: dict[str, Any], where: str) -> str | list[MessagePart | str] | None:
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(_part_of(part, where) for part in content)
    elif content is not None and not isinstance(content, str):
        raise PromptError(f"{where}: its content is neither text nor a list of parts.")
    thought = _text_or_none(item, "reasoning_content", where)
    return [ReasoningPart(content=thought), content or ""] if thought else content


def _part_of(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else None
        raise PromptError(f"{where} has a part of the type {kind!r}: only text can be shown.")
    return text


def _calls_of(item: dict[str, Any], where: str) -> list[ToolCall]:
    calls = item.get("tool_calls")
    if calls is None:
        calls = [{"function": item["function_call"]}] if item.get("function_call") is not None else []
    if not isinstance(calls, list):
        raise PromptError(f"{where}: its tool_calls are not a list.")
    return [_call_of(call, f"call_{i}", f"{where}, call {i}") for i, call in enumerate(calls)]


def _call_of(call: Any, default_id: str, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise PromptError(f"{where} names no function.")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    made = FunctionCall(name=function["name"], arguments=arguments)
    return ToolCall.from_function_call(made, _text_or_none(call, "id", where) or default_id)


# ==== tools ====


def _tools_of(value: Any, path: str) -> list[AIFunction]:
    if not isinstance(value, list):
        raise PromptError(f"{_named(path)} holds no list of tools.")
    return [_tool_of(item, f"{_named(path)}: tool {i}") for i, item in enumerate(value)]


def _tool_of(item: Any, where: str) -> AIFunction:
    spec = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise PromptError(f"{where} is not an object with a name, a description and parameters.")
    schema = spec.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(schema, dict):
        raise PromptError(f"{where}: its parameters are not a JSON schema.")
    tool = AIFunction(_never_run, name=spec["name"], desc="-", json_schema=schema)
    tool.desc = _text_or_none(spec, "description", where)  # after the making, which warns where there is none
    return tool


def _never_run(**_: Any) -> None:
    """Stands for a function of which only the description is known."""
