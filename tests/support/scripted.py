"""The scripted engine as the tests of the core use it: they look at the history, not at what was left unsaid."""

from __future__ import annotations

from typing import Any

from kani_lite import AIFunction, ChatMessage, ToolCall
from kani_lite.engines import Completion
from kani_lite.testing.scripted import ScriptedEngine as StrictScriptedEngine
from kani_lite.testing.scripted import Step

__all__ = ["ScriptedEngine", "Step", "call", "calling"]


def call(name: str, /, id_: str | None = None, **kwargs: Any) -> ToolCall:
    return ToolCall.from_function(name, call_id_=id_, **kwargs)


def calling(*calls: ToolCall, text: str | None = None) -> ChatMessage:
    return ChatMessage.assistant(text, tool_calls=list(calls))


class ScriptedEngine(StrictScriptedEngine):
    """Keeps the very messages that it was asked, so that a test can compare them by identity, takes prompts of any
    length, and says that each prompt had 10 tokens. Nobody checks that all steps were asked for."""

    def _note(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None, hyperparams: dict[str, Any]
    ) -> None:
        self.prompts.append(list(messages))
        self.functions.append(functions)
        self.kwargs.append(hyperparams)

    def _completion(self, messages: list[ChatMessage], message: ChatMessage) -> Completion:
        return Completion(message, prompt_tokens=10, completion_tokens=self.message_len(message))
