"""How a reply looks on a terminal: text as it streams; thoughts, calls and results dimly on a line each."""

from __future__ import annotations

import json
import os
import shutil
from typing import TextIO

from kani_lite.events import EndReason, Event, ReasoningDelta, RoundEnd, TextDelta, ToolCallFinished, ToolResult
from kani_lite.messages import ToolCall

from .sanitize import sanitize

_DIM, _RESET, _ERASE_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
_ENDED_BY = {
    EndReason.TOOL_ROUNDS: "the limit of tool rounds was reached",
    EndReason.TOOL_ERRORS: "too many calls failed",
    EndReason.SECONDS: "the time limit was reached",
    EndReason.TOKENS: "the token limit was reached",
}


def has_escapes(out: TextIO) -> bool:
    """Whether the terminal understands escape sequences, and the user wants them (NO_COLOR)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def call_text(call: ToolCall) -> str:
    """`calculate(expression="37 * 12")`: the arguments as the model wrote them if they aren't a JSON object."""
    try:
        arguments = json.loads(call.function.arguments)
        text = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    except (ValueError, AttributeError, RecursionError):
        text = call.function.arguments
    return f"{call.function.name}({text})"


class OneLine:
    """Fits a stream of text on one line: white space is squeezed, and an ellipsis stands for what has no room."""

    def __init__(self, width: int) -> None:
        self._room = width - 1  # one column is for the ellipsis
        self._gap = ""
        self._begun = self._full = False

    def feed(self, text: str) -> str:
        """What of it is to be shown, made safe."""
        from prompt_toolkit.utils import get_cwidth

        if self._full:
            return ""
        shown: list[str] = []
        for char in text:
            if char.isspace():
                self._gap = " " if self._begun else ""
                continue
            piece = self._gap + sanitize(char)
            self._room -= get_cwidth(piece)
            if self._room < 0:
                self._full = True
                return "".join([*shown, "…"])
            shown.append(piece)
            self._gap, self._begun = "", True
        return "".join(shown)


class Screen:
    """Writes to a terminal, always knowing whether the cursor is at the start of a line."""

    def __init__(self, out: TextIO, escapes: bool | None = None) -> None:
        self._out = out
        self.escapes = has_escapes(out) if escapes is None else escapes
        self._at_start = True

    @property
    def width(self) -> int:
        return max(shutil.get_terminal_size().columns - 1, 10)

    def write(self, text: str) -> None:
        """Text of a reply, made safe."""
        if text:
            self._raw(sanitize(text))

    def dim(self, text: str) -> None:
        """The same, dimly."""
        if text:
            safe = sanitize(text)
            self._raw(f"{_DIM}{safe}{_RESET}" if self.escapes else safe, at_start=False)

    def line(self, text: str) -> None:
        """A whole line, dimly, cut to the width."""
        self.end_line()
        self.dim(OneLine(self.width).feed(text))
        self.end_line()

    def end_line(self) -> None:
        if not self._at_start:
            self._raw("\n")

    def erase_line(self) -> None:
        """Takes back a line that wasn't ended, where the terminal can do that."""
        if self.escapes:
            self._raw(_ERASE_LINE, at_start=True)
        else:
            self.end_line()

    def _raw(self, text: str, at_start: bool | None = None) -> None:
        self._out.write(text)
        self._out.flush()
        self._at_start = text.endswith("\n") if at_start is None else at_start


class ReplyView:
    """Shows the events of one reply."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._held = ""  # white space at the end of what was shown: dropped unless text follows
        self._in_text = False
        self._thought: OneLine | None = None
        self._waiting: list[ToolCall] = []  # calls without a result
        self._call_line: OneLine | None = None  # of the first of them, open for its result

    def show(self, event: Event) -> None:
        match event:
            case TextDelta(text=text):
                self._show_text(text)
            case ReasoningDelta(text=text):
                if self._thought is None:
                    self._end_block()
                    self._thought = OneLine(self._screen.width)
                self._screen.dim(self._thought.feed(text))
            case ToolCallFinished(call=call):
                self._waiting.append(call)
                if len(self._waiting) == 1:
                    self._open_call()
            case ToolResult(call=call, message=message):
                self._show_result(call, message.text or "")
            case RoundEnd(reason=reason):
                self.finish()
                if reason in _ENDED_BY:
                    self._screen.line(f"({_ENDED_BY[reason]})")
            case _:
                pass

    def finish(self) -> None:
        """Ends the line, at the end of a reply or where it was broken off."""
        self._end_block()
        self._waiting.clear()

    def _show_text(self, text: str) -> None:
        if not self._in_text:
            text = text.lstrip()
            if not text:
                return
            self._end_block()
            self._in_text = True
        text = self._held + text
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._screen.write(shown)

    def _open_call(self) -> None:
        self._end_block()
        self._call_line = OneLine(self._screen.width)
        self._screen.dim(self._call_line.feed(call_text(self._waiting[0])))

    def _show_result(self, call: ToolCall, result: str) -> None:
        if self._call_line is None or not self._waiting or self._waiting[0].id != call.id:
            self._screen.line(f"{call_text(call)} -> {result}")
            self._call_line = None
        else:
            self._screen.dim(self._call_line.feed(f" -> {result}"))
        self._waiting = [other for other in self._waiting if other.id != call.id]
        if self._waiting:
            self._open_call()
        else:
            self._end_block()

    def _end_block(self) -> None:
        self._screen.end_line()
        self._held = ""
        self._in_text = False
        self._thought = self._call_line = None
