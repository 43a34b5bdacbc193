"""The least change that makes a chat such that its template takes it, with nothing lost.

What a template takes is found out by trying (see probing.py). A chat within that reaches it as it is; else, in this
order:

- Functions that the template doesn't show are listed in the system message.
- Calls and results that it doesn't show become text: a call is JSON on a line of its own, after the assistant's text,
  where the parser finds it again; a result is a user message that begins with "Result of NAME:".
- Calls of one message that it takes only one by one are each followed by their result. Text beside calls that it
  leaves out becomes a message before them.
- Several system messages at the start become one. Without a system role they are put before the first user message,
  with a blank line between; a later system message becomes a user message in its place.
- Where the chat must begin or end with a user message, or have one, "(continued)" is put there; likewise as a reply
  between a function's result and a user message, and as a user message between text and calls that can't be neighbours.
- Other consecutive messages of a role that must alternate become one, with a blank line between.

A chat that is refused even so is tried once more with all of these changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from .probing import Ability, Message, decoded, has_calls

Can: TypeAlias = Callable[[Ability], bool]

CONTINUED = "(continued)"
"""The content of a message that stands where a template wants one."""


def adapted(
    messages: Sequence[Message], tools: list[dict[str, Any]] | None, can: Can
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages and functions in a form that the template takes, as little changed as may be (see above)."""
    chat = list(messages)
    if tools and not can("tools"):
        chat, tools = _with_tools(chat, tools), None
    if has_calls(chat):
        chat = _split(chat, can) if can("calls") else _as_text(chat)
    if chat:
        chat = _met_start(_met_systems(chat, can), can, tools is not None)
        chat = _met_rows(chat, can)
        if chat[-1]["role"] == "assistant" and not can("assistant_last"):
            chat.append({"role": "user", "content": CONTINUED})
    return chat, tools


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _with_tools(chat: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    specs = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = "\n".join(
        [
            "You can call these functions. To call one, answer with nothing but JSON: "
            '{"name": its name, "arguments": {its arguments}}',
            *specs,
        ]
    )
    if chat and chat[0]["role"] == "system":
        return [chat[0] | {"content": _joined(chat[0]["content"], text)}, *chat[1:]]
    return [{"role": "system", "content": text}, *chat]


def _as_text(chat: list[Message]) -> list[Message]:
    out = []
    for message in chat:
        if calls := message.get("tool_calls"):
            lines = [message["content"]] if message["content"] else []
            for call in calls:
                name, arguments = call["function"]["name"], decoded(call["function"]["arguments"])
                lines.append(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))
            message = {k: v for k, v in message.items() if k != "tool_calls"} | {"content": "\n".join(lines)}
        elif message["role"] == "tool":
            name = message.get("name") or "the function"
            message = {"role": "user", "content": f"Result of {name}:\n{message['content']}"}
        out.append(message)
    return out


def _split(chat: list[Message], can: Can) -> list[Message]:
    """Text and calls, and calls beside each other, as messages of their own where the template wants it."""
    out: list[Message] = []
    results = {m.get("tool_call_id"): m for m in chat if m["role"] == "tool"}
    moved: set[int] = set()
    for message in chat:
        calls = message.get("tool_calls")
        if calls and message["content"] and not can("content_with_calls"):
            out.append({"role": "assistant", "content": message["content"]})
            message = message | {"content": ""}
        if not calls or len(calls) == 1 or can("parallel_calls"):
            if id(message) not in moved:
                out.append(message)
            continue
        for call in calls:
            out.append(message | {"tool_calls": [call]})
            message = {"role": "assistant", "content": ""}
            if call["id"] in results:
                result = results.pop(call["id"])
                moved.add(id(result))
                out.append(result)
    return out


def _met_systems(chat: list[Message], can: Can) -> list[Message]:
    first = next((i for i, m in enumerate(chat) if m["role"] != "system"), len(chat))
    system, rest = chat[:first], chat[first:]
    if any(m["role"] == "system" for m in rest) and not can("system_later"):
        rest = [m | {"role": "user"} if m["role"] == "system" else m for m in rest]
    if len(system) > 1 and not can("systems"):
        system = [system[0] | {"content": _joined(*(m["content"] for m in system))}]
    shown = can("system") and (not has_calls(rest) or can("system_with_calls"))
    if rest and rest[-1]["role"] == "assistant":
        shown = shown and can("system_reply_last")
    if system and not shown:
        if rest and rest[0]["role"] == "user":
            rest = [rest[0] | {"content": _joined(system[0]["content"], rest[0]["content"])}, *rest[1:]]
        else:
            rest = [system[0] | {"role": "user"}, *rest]
        system = []
    return system + rest


def _met_start(chat: list[Message], can: Can, with_tools: bool) -> list[Message]:
    start = next((i for i, m in enumerate(chat) if m["role"] != "system"), len(chat))
    wanted = not any(m["role"] == "user" for m in chat) and not can("no_user_with_tools" if with_tools else "no_user")
    if start < len(chat) and chat[start]["role"] == "assistant":
        wanted = wanted or not can("assistant_first_with_tools" if with_tools else "assistant_first")
        wanted = wanted or (has_calls(chat[start : start + 1]) and not can("call_first"))
    if wanted:
        chat.insert(start, {"role": "user", "content": CONTINUED})
    return chat


def _met_rows(chat: list[Message], can: Can) -> list[Message]:
    out = [chat[0]]
    for message in chat[1:]:
        before, role = out[-1]["role"], message["role"]
        if before == role == "user" and not can("users_in_row"):
            out[-1] = _merged(out[-1], message)
            continue
        if before == role == "assistant" and not can("assistants_in_row"):
            merged = _merged(out[-1], message)
            if not (merged.get("tool_calls") and merged["content"]) or can("content_with_calls"):
                out[-1] = merged
                continue
            if out[-1].get("tool_calls") or not can("split_content"):
                out.append({"role": "user", "content": CONTINUED})
        elif before == "tool" and role == "user" and not can("user_after_tool"):
            out.append({"role": "assistant", "content": CONTINUED})
        out.append(message)
    return out


def _merged(first: Message, second: Message) -> Message:
    merged = first | second | {"content": _joined(first["content"], second["content"])}
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        merged["tool_calls"] = calls
    if thoughts := _joined(first.get("reasoning_content", ""), second.get("reasoning_content", "")):
        merged["reasoning_content"] = thoughts
    return merged
