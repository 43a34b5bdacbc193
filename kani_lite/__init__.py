"""Conversational agents on models that run on your own machine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .calls import ExceptionHandleResult, FunctionCallResult
from .functions import AIFunction, AIParam, ai_function
from .kani import Kani
from .limits import Limits
from .messages import (
    ChatMessage,
    ChatRole,
    FunctionCall,
    MessagePart,
    ReasoningPart,
    TextPart,
    ToolCall,
)
from .streaming import DummyStream, StreamManager

if TYPE_CHECKING:
    from . import engines, events, exceptions, formatters, prompts
    from .terminal import (
        chat_in_terminal,
        chat_in_terminal_async,
        format_stream,
        format_width,
        print_stream,
        print_width,
    )

__version__ = "0.1.0"

__all__ = [
    "AIFunction",
    "AIParam",
    "ChatMessage",
    "ChatRole",
    "DummyStream",
    "ExceptionHandleResult",
    "FunctionCall",
    "FunctionCallResult",
    "Kani",
    "Limits",
    "MessagePart",
    "ReasoningPart",
    "StreamManager",
    "TextPart",
    "ToolCall",
    "__version__",
    "ai_function",
    "chat_in_terminal",
    "chat_in_terminal_async",
    "engines",
    "events",
    "exceptions",
    "format_stream",
    "format_width",
    "formatters",
    "print_stream",
    "print_width",
    "prompts",
]

_LAZY_MODULES = ("engines", "events", "exceptions", "formatters", "prompts")
_TERMINAL = (
    "chat_in_terminal",
    "chat_in_terminal_async",
    "format_stream",
    "format_width",
    "print_stream",
    "print_width",
)


def __getattr__(name: str) -> Any:
    # what most programs don't need is imported when it is first asked for
    if name in _LAZY_MODULES:
        return import_module(f".{name}", __name__)
    if name in _TERMINAL:
        return getattr(import_module(".terminal", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
