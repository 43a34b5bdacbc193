"""What an engine remembers between counting a prompt and running it, and between a reply and the next prompt."""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kani_lite.messages import ChatMessage

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

_ANCHOR = 64  # characters of the prompt before a reply, by which the reply is found in a later prompt


@dataclass(frozen=True)
class Prompt:
    """A prompt as it runs. `text` is None where `build_prompt` gave ids."""

    ids: list[int]
    text: str | None


def message_key(message: ChatMessage) -> Hashable:
    """Everything of a message that a prompt can show. Strings are kept as they are: equal ones compare by identity
    first, so a long unchanged history costs next to nothing, and no hash collision can go unnoticed."""
    shown: Hashable
    if isinstance(message.content, list):
        shown = tuple(p if isinstance(p, str) else (type(p), p.model_dump_json()) for p in message.content)
    else:
        shown = message.content
    calls = tuple((call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    more = repr(message.extra) if message.extra else None
    return (
        id(message),
        message.role,
        shown,
        message.name,
        message.tool_call_id,
        calls,
        message.is_tool_call_error,
        more,
    )


def function_key(function: AIFunction) -> Hashable:
    """Everything of a function that a prompt can show."""
    return (function.name, function.desc, json.dumps(function.json_schema, default=str))


class PromptMemo:
    """The prompts built last, by what is in their messages and functions now: an edit in place makes another prompt."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._known: OrderedDict[Hashable, Prompt] = OrderedDict()

    @staticmethod
    def key(messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None) -> Hashable:
        return (tuple(map(message_key, messages)), tuple(map(function_key, functions or ())))

    def get(self, key: Hashable) -> Prompt | None:
        prompt = self._known.get(key)
        if prompt is not None:
            try:
                self._known.move_to_end(key)
            except KeyError:  # another thread has just dropped it
                pass
        return prompt

    def put(self, key: Hashable, prompt: Prompt) -> None:
        self._known[key] = prompt
        while len(self._known) > self._size:
            self._known.popitem(last=False)

    def clear(self) -> None:
        self._known.clear()


@dataclass(frozen=True)
class _Reply:
    message: weakref.ref[ChatMessage]
    anchor: str
    raw: str
    ids: list[int]


class ReplyIds:
    """The ids that the model chose for its replies, as long as their messages live.

    A tokenizer may cut the same text into other tokens than the model wrote; a prompt with those would not match the
    keys and values that the reply left behind.
    """

    def __init__(self) -> None:
        self._replies: dict[int, _Reply] = {}  # messages can't be hashed

    def note(self, message: ChatMessage, prompt: str, raw: str, ids: list[int]) -> None:
        """`raw` is what `ids` decode to, written after `prompt`."""
        key = id(message)
        replies = self._replies
        forget = weakref.ref(message, lambda _: replies.pop(key, None))
        replies[key] = _Reply(forget, prompt[-_ANCHOR:], raw, ids)

    def splice(
        self,
        text: str,
        messages: Sequence[ChatMessage],
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> list[int]:
        """The ids of a prompt: the model's own where a reply stands in it as the model wrote it, directly after the
        text that it was written after; the tokenizer's elsewhere. They decode to exactly `text`, or else the
        tokenizer's ids of the whole text are returned."""
        ids: list[int] = []
        done = 0
        for message in messages:
            reply = self._replies.get(id(message))
            if reply is None or reply.message() is not message:
                continue
            # a trimmed history may have lost the anchor's beginning, an edited one all of it
            found = text.find(reply.anchor + reply.raw, max(0, done - _ANCHOR))
            at = found + len(reply.anchor)
            if found < 0 or at < done:
                continue
            if at > done:
                ids += encode(text[done:at])
            ids += reply.ids
            done = at + len(reply.raw)
        if not done:
            return encode(text)
        if done < len(text):
            ids += encode(text[done:])
        return ids if decode(ids) == text else encode(text)
