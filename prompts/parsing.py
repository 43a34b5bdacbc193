"""A model's text, in any chunking, to reasoning, visible text and tool calls.

One state machine for all formats; a format only declares its markers. A marker never shows up in the text, not even in
part: text that may be the start of one is held back until it is decided.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum, auto
from uuid import uuid4

from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.messages import ChatMessage, FunctionCall, MessagePart, ReasoningPart, ToolCall


@dataclass(frozen=True)
class Format:
    """The markers of a model family's output. `None`: the format has no such thing."""

    name: str
    call_start: str | None = None
    call_end: str | None = None
    reasoning_start: str | None = None
    reasoning_end: str | None = None
    starts_in_reasoning: bool = False
    """The prompt already ends with the opening marker, so the model's text begins inside the reasoning."""


PLAIN = Format("plain")
CHATML = Format("chatml", reasoning_start="<think>", reasoning_end="</think>")
HERMES = replace(CHATML, name="hermes", call_start="<tool_call>", call_end="</tool_call>")


def format_for_template(chat_template: str | None) -> Format:
    """The format that a chat template's own text gives away: by the markers it writes around calls and reasoning."""
    template = chat_template or ""
    if "<tool_call>" in template:
        return HERMES
    return CHATML if "</think>" in template else PLAIN


class _State(Enum):
    TEXT = auto()
    REASONING = auto()
    CALL = auto()


class Parser:
    """Reads one reply. `feed` it text as it comes, then `finish`; `message` is the reply so far."""

    def __init__(self, fmt: Format) -> None:
        self.format = fmt
        self.state = _State.REASONING if fmt.starts_in_reasoning else _State.TEXT
        self._buffer = ""
        self._space = ""  # whitespace that is text only if more text follows
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self.calls: list[ToolCall] = []
        self._openers = {m: s for m, s in ((fmt.reasoning_start, _State.REASONING), (fmt.call_start, _State.CALL)) if m}

    def feed(self, text: str) -> list[Delta]:
        """What this piece of the model's text decides."""
        self._buffer += text
        out: list[Delta] = []
        while self._advance(out):
            pass
        return out

    def finish(self) -> list[Delta]:
        """The model has said its last: what was held back is text after all, and an open call is closed."""
        out = self.feed("")
        if self.state is _State.CALL:
            self._end_call(self._buffer, out)
        else:
            self._emit(self._buffer, out)
        self._buffer = ""
        self.state = _State.TEXT
        return out

    def message(self) -> ChatMessage:
        """The reply as a message: content None where there are calls and no text."""
        text, reasoning = "".join(self._text), "".join(self._reasoning).strip()
        content: str | list[MessagePart | str] | None = text or (None if self.calls else "")
        if reasoning:
            content = [ReasoningPart(content=reasoning), *([text] if text else [])]
        return ChatMessage.assistant(content, tool_calls=self.calls or None)

    def _advance(self, out: list[Delta]) -> bool:
        """Takes what is decided off the buffer. True if the state changed, so that there may be more to do."""
        if self.state is _State.TEXT:
            markers = self._openers
        else:
            end = self.format.call_end if self.state is _State.CALL else self.format.reasoning_end
            markers = {end: _State.TEXT} if end else {}
        found = min(((i, m) for m in markers if (i := self._buffer.find(m)) >= 0), default=None)
        if found is None:
            if self.state is not _State.CALL:
                sure = len(self._buffer) - max((_overlap(self._buffer, m) for m in markers), default=0)
                self._emit(self._buffer[:sure], out)
                self._buffer = self._buffer[sure:]
            return False
        at, marker = found
        before, self._buffer = self._buffer[:at], self._buffer[at + len(marker) :]
        if self.state is _State.CALL:
            self._end_call(before, out)
        else:
            self._emit(before, out)
        self._space = ""
        self.state = markers[marker]
        return True

    def _emit(self, text: str, out: list[Delta]) -> None:
        """Text or reasoning without the whitespace at its two ends."""
        kept = self._text if self.state is _State.TEXT else self._reasoning
        text = self._space + text
        if not kept:
            text = text.lstrip()
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            kept.append(body)
            out.append(TextDelta(body) if self.state is _State.TEXT else ReasoningDelta(body))

    def _end_call(self, text: str, out: list[Delta]) -> None:
        call = read_call(text)
        index = len(self.calls)
        self.calls.append(call)
        out.append(ToolCallStarted(index, call.id, call.function.name))
        out.append(ToolCallDelta(index, call.function.arguments))
        out.append(ToolCallFinished(index, call))


def read_call(text: str) -> ToolCall:
    """A call from its JSON. What can't be read becomes a call whose running fails, so that the model is told of it."""
    try:
        data = json.loads(text, strict=False)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return _call("", text.strip())
    arguments = data.get("arguments", data.get("parameters", {}))
    return _call(data["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id=str(uuid4()), type="function", function=FunctionCall(name=name, arguments=arguments))


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the start of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
