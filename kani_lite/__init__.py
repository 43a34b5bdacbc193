"""Conversational agents on models that run on your own machine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._lazy import lazy
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
    from .exceptions import (
        EngineError,
        FunctionCallException,
        FunctionSpecError,
        KaniException,
        MessageTooLong,
        MissingMessagePartType,
        MissingModelDependencies,
        NoSuchFunction,
        PromptError,
        PromptTooLong,
        RoundEnded,
        WrappedCallException,
    )
    from .formatters import (
        all_message_contents,
        assistant_message_contents,
        assistant_message_contents_thinking,
        assistant_message_thinking,
    )
    from .functions import REF_TEMPLATE, AIParamSchema, JSONSchemaBuilder, create_json_schema, get_aiparam
    from .messages import MESSAGEPART_TYPE_KEY, MessagePartType, QueryType
    from .prompts import PromptPipeline
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
    "MESSAGEPART_TYPE_KEY",
    "REF_TEMPLATE",
    "AIFunction",
    "AIParam",
    "AIParamSchema",
    "ChatMessage",
    "ChatRole",
    "DummyStream",
    "EngineError",
    "ExceptionHandleResult",
    "FunctionCall",
    "FunctionCallException",
    "FunctionCallResult",
    "FunctionSpecError",
    "JSONSchemaBuilder",
    "Kani",
    "KaniException",
    "Limits",
    "MessagePart",
    "MessagePartType",
    "MessageTooLong",
    "MissingMessagePartType",
    "MissingModelDependencies",
    "NoSuchFunction",
    "PromptError",
    "PromptPipeline",
    "PromptTooLong",
    "QueryType",
    "ReasoningPart",
    "RoundEnded",
    "StreamManager",
    "TextPart",
    "ToolCall",
    "WrappedCallException",
    "__version__",
    "ai_function",
    "all_message_contents",
    "assistant_message_contents",
    "assistant_message_contents_thinking",
    "assistant_message_thinking",
    "chat_in_terminal",
    "chat_in_terminal_async",
    "create_json_schema",
    "engines",
    "events",
    "exceptions",
    "format_stream",
    "format_width",
    "formatters",
    "get_aiparam",
    "print_stream",
    "print_width",
    "prompts",
]

_LAZY_MODULES = ("engines", "events", "exceptions", "formatters", "prompts", "testing")
# what most programs don't need is imported when it is first asked for
_LAZY = {
    name: module
    for module, names in {
        "exceptions": "EngineError FunctionCallException FunctionSpecError KaniException MessageTooLong "
        "MissingMessagePartType MissingModelDependencies NoSuchFunction PromptError PromptTooLong RoundEnded "
        "WrappedCallException",
        "formatters": "all_message_contents assistant_message_contents assistant_message_contents_thinking "
        "assistant_message_thinking",
        "functions": "REF_TEMPLATE AIParamSchema JSONSchemaBuilder create_json_schema get_aiparam",
        "messages": "MESSAGEPART_TYPE_KEY MessagePartType QueryType",
        "prompts": "PromptPipeline",
        "terminal": "chat_in_terminal chat_in_terminal_async format_stream format_width print_stream print_width",
    }.items()
    for name in names.split()
}


_lazy_name = lazy(__name__, _LAZY)


def __getattr__(name: str) -> Any:
    return import_module(f".{name}", __name__) if name in _LAZY_MODULES else _lazy_name(name)
