"""Text fitted to a width: whole, or as it streams in."""

from __future__ import annotations

import re
import textwrap
from collections.abc import AsyncIterable, AsyncIterator

from .sanitize import sanitize


def format_width(msg: str, width: int | None = None, prefix: str = "") -> str:
    """The text with lines of at most `width` characters (None: as they are); the first starts with `prefix`, the
    others are indented by as much if there is a width."""
    if not width:
        return prefix + msg
    indent = " " * len(prefix)
    first, *others = msg.splitlines() or [""]
    lines = [textwrap.fill(first, width, initial_indent=prefix, subsequent_indent=indent) or prefix]
    lines += [textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent) for line in others]
    return "\n".join(lines)


def print_width(msg: str, width: int | None = None, prefix: str = "") -> None:
    """Prints what `format_width` makes of the text, control characters escaped."""
    print(format_width(sanitize(msg), width, prefix))


async def strip_stream(stream: AsyncIterable[str]) -> AsyncIterator[str]:
    """The stream without white space at its start and its end."""
    held = ""
    started = False
    async for token in stream:
        text = held + token if started else token.lstrip()
        kept = text.rstrip()
        held = text[len(kept) :]
        if kept:
            started = True
            yield kept


async def format_stream(stream: AsyncIterable[str], width: int | None = None, prefix: str = "") -> AsyncIterator[str]:
    """The stream as `format_width` would set it, as early as possible: with a width, a word comes when it is complete.

    White space around the text is dropped; the prefix comes with the first text, and not without any. However the
    stream is cut into pieces, what it yields is the same when joined.
    """
    if not width:
        async for token in strip_stream(stream):
            yield prefix + token
            prefix = ""
        return
    wrapper = _Wrapper(width, prefix)
    async for token in strip_stream(stream):
        if text := wrapper.feed(token):
            yield text
    if text := wrapper.finish():
        yield text


async def print_stream(stream: AsyncIterable[str], width: int | None = None, prefix: str = "") -> None:
    """Prints the stream as `format_stream` sets it, control characters escaped, and ends the line. Prints nothing if
    there is no text."""
    printed = False
    async for text in format_stream(_sanitized(stream), width, prefix):
        print(text, end="", flush=True)
        printed = True
    if printed:
        print()


async def _sanitized(stream: AsyncIterable[str]) -> AsyncIterator[str]:
    async for token in stream:
        yield sanitize(token)


class _Wrapper:
    """Breaks lines at white space, by columns that are counted over all that was fed."""

    def __init__(self, width: int, prefix: str) -> None:
        self._indent = " " * len(prefix)
        self._room = max(width - len(prefix), 1)
        self._used = 0
        self._gap = ""  # white space not yet written: dropped if the line breaks there
        self._word = ""
        self._start = prefix  # of the line, not yet written

    def feed(self, text: str) -> str:
        out = []
        for piece in re.findall(r"\n|[^\S\n]+|\S+", text):
            if piece.isspace():
                out.append(self._end_word())
                if piece == "\n":
                    out.append(self._start.rstrip() + "\n")
                    self._start, self._used, self._gap = self._indent, 0, ""
                else:
                    self._gap += piece.replace("\t", "    ")
            else:
                self._word += piece
        return "".join(out)

    def finish(self) -> str:
        return self._end_word()

    def _end_word(self) -> str:
        word, self._word = self._word, ""
        if not word:
            return ""
        out = []
        if self._used and self._used + len(self._gap) + len(word) > self._room:
            out.append("\n")
            self._start, self._used, self._gap = self._indent, 0, ""
        while len(self._gap) + len(word) > self._room - self._used:  # longer than a line
            if len(self._gap) >= self._room - self._used:
                self._gap = ""
                continue
            cut = self._room - self._used - len(self._gap)
            out.append(f"{self._start}{self._gap}{word[:cut]}\n")
            word = word[cut:]
            self._start, self._used, self._gap = self._indent, 0, ""
        out.append(self._start + self._gap + word)
        self._used += len(self._gap) + len(word)
        self._start = self._gap = ""
        return "".join(out)
