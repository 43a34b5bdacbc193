"""What a chat template can take, found out by trying: tiny chats are rendered, each when it first matters, and their
words looked for in the result. A template may refuse messages, or leave them out without a word."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, TypeAlias

Message: TypeAlias = dict[str, Any]
Render: TypeAlias = Callable[[list[Message], list[dict[str, Any]] | None], str]
Ability: TypeAlias = Literal[
    "assistant_first",
    "assistant_first_with_tools",
    "assistant_last",
    "assistants_in_row",
    "broken_arguments",
    "call_first",
    "calls",
    "content_with_calls",
    "no_user",
    "no_user_with_tools",
    "parallel_calls",
    "split_content",
    "system",
    "system_later",
    "system_reply_last",
    "system_with_calls",
    "systems",
    "tools",
    "user_after_tool",
    "users_in_row",
]

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

_WORDS = [f"probe{letter}qz" for letter in string.ascii_lowercase[:12]]
_KEY, _VALUE, _BROKEN = "probekeyqz", "probevalueqz", "probebrokenqz"


def _user(number: int) -> Message:
    return {"role": "user", "content": _WORDS[number]}


def _reply(number: int) -> Message:
    return {"role": "assistant", "content": _WORDS[number]}


def _system(number: int) -> Message:
    return {"role": "system", "content": _WORDS[number]}


def _calling(*numbers: int, content: str = "", arguments: str = json.dumps({_KEY: _VALUE})) -> Message:
    calls = [
        {
            "id": f"call_{_WORDS[number]}0123456789",
            "type": "function",
            "function": {"name": _WORDS[number], "arguments": arguments},
        }
        for number in numbers
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(number: int, of: int) -> Message:
    call_id = f"call_{_WORDS[of]}0123456789"
    return {"role": "tool", "content": _WORDS[number], "name": _WORDS[of], "tool_call_id": call_id}


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probetoolqz",
        "description": "A function.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "Text."}}},
    },
}
_ROUND = [_user(0), _calling(1), _result(2, of=1)]  # as the model sees it when a function has run
_LATER = [*_ROUND, _reply(3), _user(4)]
_THINKING = {"reasoning_content": "thought"}

# each ability, and a chat whose words all show if the template has it
_PROBES: dict[Ability, list[Message]] = {
    "assistant_first": [_reply(0), _user(1)],
    "assistant_last": [_user(0), _reply(1)],
    "assistants_in_row": [_user(0), _reply(1), _reply(2), _user(3)],
    "assistant_first_with_tools": [_reply(0), _user(1)],
    "broken_arguments": [_user(0), _calling(1, arguments=_BROKEN), _result(2, of=1)],
    "call_first": [*_ROUND[1:], _user(3)],
    "content_with_calls": [_user(0), _calling(1, content=_WORDS[2]) | _THINKING, _result(3, of=1)],
    "no_user": [_system(0)],
    "no_user_with_tools": [_system(0)],
    "parallel_calls": [_user(0), _calling(1, 2), _result(3, of=1), _result(4, of=2)],
    "split_content": [_user(0), _reply(5), *_LATER[1:]],
    "system": [_system(0), _user(1), _reply(2), _user(3)],
    "system_later": [_system(0), _user(1), _reply(2), _system(3), _user(4)],
    "system_reply_last": [_system(0), _user(1), _reply(2)],
    "system_with_calls": [_system(5), *_ROUND],
    "systems": [_system(0), _system(1), _user(2)],
    "tools": [_user(0)],
    "user_after_tool": [*_ROUND, _user(3)],
    "users_in_row": [_user(0), _user(1), _reply(2), _user(3)],
}


@dataclass(frozen=True)
class CallStyle:
    """How a template wants calls and results: the arguments as a dict or as JSON text, ids of nine characters or as
    they are, a result's content as a list of parts or as text."""

    as_dict: bool
    short_ids: bool
    parts: bool


class Capabilities:
    """What a template takes. `render` renders messages and functions with it; `text` is its own text."""

    def __init__(self, render: Render, text: str, reasoning_key: str | None = None) -> None:
        self._render = render
        self.reasoning_key = reasoning_key or _reasoning_key(text)
        self._known: dict[Ability, bool] = {}
        self._parts: dict[str, bool] = {}

    def can(self, ability: Ability) -> bool:
        """Whether the template has this ability; tried once."""
        if ability not in self._known:
            self._known[ability] = True  # while it is tried, the probe is left as it is
            self._known[ability] = self._try(ability)
        return self._known[ability]

    def _try(self, ability: Ability) -> bool:
        if ability == "calls":
            return self.calls is not None
        chat = _PROBES[ability]
        shown = ability in ("tools", "no_user_with_tools")
        tools = [_TOOL] if shown or (has_calls(chat) and self.can("tools")) else None
        words = [_TOOL["function"]["name"]] if shown else []
        if ability in ("no_user", "no_user_with_tools") and not self.can("system"):
            chat = [_reply(0)]
        if ability == "assistant_first_with_tools":
            # some take the first message for the user's, whatever its role
            return self._shows(self.dressed(chat), [_TOOL]) and not self._alike(chat, [_user(0), _user(1)], [_TOOL])
        return self._shows(self.dressed(chat), tools, words)

    def _alike(self, one: list[Message], other: list[Message], tools: list[dict[str, Any]]) -> bool:
        try:
            return self._render(self.dressed(one), tools) == self._render(self.dressed(other), tools)
        except Exception:  # see _shows
            return False

    def parts(self, role: str) -> bool:
        """Whether the content of messages of this role (not of results: see `calls`) must be a list of parts."""
        if role not in self._parts:
            self._parts[role] = False  # so that the others of the probe are dressed
            chat = {"user": [_user(0)], "system": [_system(0), _user(1)]}.get(role, [_user(1), _reply(0), _user(2)])
            self._parts[role] = not self._shows(self.dressed(chat)) and self._shows(
                [_in_parts(m) if m["role"] == role else m for m in self.dressed(chat)]
            )
        return self._parts[role]

    @cached_property
    def calls(self) -> CallStyle | None:
        """The first style in which the template shows calls and their results; None if there is none."""
        tools = [_TOOL] if self.can("tools") else None
        for as_dict, short_ids, parts in product((True, False), (False, True), (False, True)):
            style = CallStyle(as_dict, short_ids, parts)
            if (not parts or self.parts("user")) and all(
                self._shows([self._dress(m, style) for m in chat], tools) for chat in (_ROUND, _LATER)
            ):
                return style
        return None

    @cached_property
    def empty_is_none(self) -> bool:
        """Whether the content of a call without text should be None: for "" some write an empty turn."""
        if self.calls is None:
            return False
        tools = [_TOOL] if self.can("tools") else None
        chat = [self._dress(m, self.calls) for m in _ROUND]
        try:
            text = self._render(_without_empty(chat), tools)
            return len(text) < len(self._render(chat, tools)) and "None" not in text and _all_in(_words(_ROUND), text)
        except Exception:  # see _shows
            return False

    def dressed(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with keys and values as the template wants them."""
        style = self.calls if has_calls(messages) else None
        chat = [self._dress(m, style or CallStyle(True, False, False)) for m in messages]
        return _without_empty(chat) if style and self.empty_is_none else chat

    def _dress(self, message: Message, style: CallStyle) -> Message:
        if style.parts if message["role"] == "tool" else self.parts(message["role"]):
            message = _in_parts(message)
        if "reasoning_content" in message and self.reasoning_key != "reasoning_content":
            message = dict(message)
            message[self.reasoning_key] = message.pop("reasoning_content")
        if message.get("tool_call_id") and style.short_ids:
            message = message | {"tool_call_id": short_id(message["tool_call_id"])}
        if message.get("tool_calls"):
            message = message | {"tool_calls": [self._dress_call(call, style) for call in message["tool_calls"]]}
        return message

    def _dress_call(self, call: dict[str, Any], style: CallStyle) -> dict[str, Any]:
        function = call["function"]
        if style.as_dict:
            arguments = decoded(function["arguments"])
            if not isinstance(arguments, dict) and not self.can("broken_arguments"):
                arguments = {"arguments": arguments}
            function = function | {"arguments": arguments}
        elif "\\u" in function["arguments"] and isinstance(arguments := decoded(function["arguments"]), dict):
            # the template prints the text as it is, and the model should read letters
            function = function | {"arguments": json.dumps(arguments, ensure_ascii=False)}
        return call | {"id": short_id(call["id"]) if style.short_ids else call["id"], "function": function}

    def _shows(
        self, chat: Sequence[Message], tools: list[dict[str, Any]] | None = None, words: Sequence[str] = ()
    ) -> bool:
        """Whether the template takes this chat and all its words are in the prompt, in a form that is no accident."""
        try:
            text = self._render(list(chat), tools)
        except Exception:  # a template is a program: its refusal may be any error
            return False
        # Python's own way to write a dict, or JSON in JSON: the template wanted the value in another form
        spoilt = ("'type': 'text'", f"'{_KEY}'", f'\\"{_KEY}')
        return _all_in([*_words(chat), *words], text) and not any(s in text for s in spoilt)


def _all_in(words: Sequence[str], text: str) -> bool:
    return all(word in text for word in words)


def _without_empty(chat: Sequence[Message]) -> list[Message]:
    return [m | {"content": None} if m.get("tool_calls") and not m["content"] else m for m in chat]


def _words(chat: Sequence[Message]) -> list[str]:
    words = []
    for message in chat:
        content = message["content"]
        words.append(content[0]["text"] if isinstance(content, list) else content or "")
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            words += [call["function"]["name"], _BROKEN if arguments == _BROKEN else _VALUE]
    return words


def _reasoning_key(template: str) -> str:
    """The key under which the template reads reasoning; if it reads none, the one that most templates use."""
    for key in REASONING_KEYS:
        if re.search(rf"""\.{key}\b|['"]{key}['"]\s*[\])]|['"]{key}['"] in\b|get\(['"]{key}['"]""", template):
            return key
    return REASONING_KEYS[0]


def has_calls(messages: Sequence[Message]) -> bool:
    return any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def _in_parts(message: Message) -> Message:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def decoded(arguments: str) -> Any:
    """A call's arguments as a dict; broken ones as the model wrote them."""
    try:
        decoded = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return decoded if isinstance(decoded, dict) else arguments


def short_id(call_id: str) -> str:
    """An id of nine letters and digits, as Mistral's models want them: always the same for the same id."""
    if re.fullmatch("[a-zA-Z0-9]{9}", call_id):
        return call_id
    digits = string.digits + string.ascii_lowercase
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:8])
    return "".join(digits[number // 36**place % 36] for place in range(9))
