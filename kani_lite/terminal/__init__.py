"""Chatting in a terminal: the program `kani-lite`, and helpers to chat with any Kani from a script or a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .formatting import format_stream, format_width, print_stream, print_width
    from .program import chat_in_terminal, chat_in_terminal_async

_MODULES = {
    "chat_in_terminal": "program",
    "chat_in_terminal_async": "program",
    "format_stream": "formatting",
    "format_width": "formatting",
    "print_stream": "formatting",
    "print_width": "formatting",
}

__all__ = [
    "chat_in_terminal",
    "chat_in_terminal_async",
    "format_stream",
    "format_width",
    "print_stream",
    "print_width",
]


__getattr__ = lazy(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
