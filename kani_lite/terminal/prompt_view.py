"""How `kani-lite prompt` looks: the prompt in a colour by role, and a table of what each message adds."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TextIO

from rich.console import Console
from rich.text import Text

from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole

from .prompt_parts import Prompt
from .sanitize import sanitize
from .screen import OneLine, call_text

_STYLES = {
    ChatRole.SYSTEM: "magenta",
    ChatRole.USER: "green",
    ChatRole.ASSISTANT: "cyan",
    ChatRole.FUNCTION: "yellow",
}
_NAMES = {
    ChatRole.SYSTEM: "system",
    ChatRole.USER: "user",
    ChatRole.ASSISTANT: "assistant",
    ChatRole.FUNCTION: "tool",
}
_PREVIEW = 40  # columns of a message's text in the table


@cache
def _escapes() -> dict[int, str]:
    """Characters that can't be seen, or look like a space, as visible escapes; the tags among them can hold a whole
    hidden text."""
    unseen = [c for c in range(0x80, sys.maxunicode + 1) if unicodedata.category(chr(c)) in ("Cf", "Zs")]
    return {c: f"\\x{c:02x}" if c < 0x100 else f"\\u{c:04x}" if c < 0x10000 else f"\\U{c:08x}" for c in unseen}


def visible(text: str) -> str:
    """The text with everything in it to be seen: control characters as by `sanitize`, other invisible ones too."""
    text = sanitize(text)
    return text if text.isascii() else text.translate(_escapes())


def show_prompt(prompt: Prompt, messages: list[ChatMessage], out: TextIO, *, colour: bool) -> None:
    """The prompt on a terminal, its last line ended. What belongs to no message is dim, and what the template
    puts around a message is dim in the message's colour."""
    text = Text()
    for piece in prompt.pieces:
        style = _STYLES[messages[piece.message].role] if piece.message is not None else ""
        text.append(visible(piece.text), style if piece.content else f"dim {style}".strip())
    _console(out, colour).print(text, soft_wrap=True, end="" if prompt.text.endswith("\n") else "\n")


def show_table(
    prompt: Prompt,
    messages: list[ChatMessage],
    functions: list[AIFunction],
    out: TextIO,
    *,
    unit: str,
    context: int | None,
    colour: bool,
) -> None:
    """What each message adds, and the sum; `context`: how many units there is room for."""
    rows = [_Row(("#", "role", unit, "sum", "text"), "bold"), *_rows(prompt, messages, functions)]
    widths = [max(len(row.cells[column]) for row in rows) for column in range(4)]
    console = _console(out, colour)
    for row in rows:
        number, role, added, total, text = row.cells
        line = f"{number:>{widths[0]}}  {role:<{widths[1]}}  {added:>{widths[2]}}  {total:>{widths[3]}}  {text}"
        console.print(Text(line.rstrip(), row.style), soft_wrap=True)
    console.print(_summary(prompt.counts.total, unit, context), soft_wrap=True)


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, str, str, str, str]
    style: str


def _rows(prompt: Prompt, messages: list[ChatMessage], functions: list[AIFunction]) -> Iterator[_Row]:
    counts = prompt.counts
    if functions:
        names = _cut(", ".join(function.name for function in functions))
        yield _Row(("", "(tools)", _number(counts.tools), _number(counts.tools), names), "dim")
    last = counts.tools
    for i, (message, now) in enumerate(zip(messages, counts.after, strict=True)):
        # a shorter prompt: the template took something back, so nobody can say what this message adds
        added = None if now is None or last is None or now < last else now - last
        cells = (str(i), _NAMES[message.role], _number(added), _number(now), _cut(_said(message)))
        yield _Row(cells, _STYLES[message.role])
        last = now
    if counts.generation:
        end = prompt.pieces[-1]  # its line breaks matter, and can't be told from ours where it is shown
        text = _cut(end.text.replace("\n", "\\n")) if end.message is None else ""
        yield _Row(("", "(reply)", str(counts.generation), str(counts.total), text), "dim")


def _said(message: ChatMessage) -> str:
    return " ".join([message.text or "", *map(call_text, message.tool_calls or ())])


def _cut(text: str) -> str:
    return OneLine(_PREVIEW).feed(visible(text))


def _number(count: int | None) -> str:
    return "-" if count is None else str(count)


def _summary(total: int, unit: str, context: int | None) -> str:
    text = f"{total} {unit}"
    if unit == "characters":
        text += " (a format has no tokenizer: name a model to count tokens)"
    if context is None:
        return f"{text}."
    if total > context:
        return f"{text}: {total - context} more than the context of {context}."
    return f"{text}: {context - total} of the context of {context} are left."


def _console(out: TextIO, colour: bool) -> Console:
    # what is printed is told by us, not guessed: rich would colour numbers, and cut lines at the width
    return Console(
        file=out,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
