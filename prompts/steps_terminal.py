"""The steps that end a prompt pipeline: they make text or dicts of its messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole

from .steps_base import MessageStep
from .types import PipelineMsgT


class ConversationFmt(MessageStep):
    """Writes the messages as one text."""

    def __init__(
        self,
        *,
        prefix: str = "",
        sep: str = "",
        suffix: str = "",
        generation_suffix: str = "",
        user_prefix: str = "",
        user_suffix: str = "",
        assistant_prefix: str = "",
        assistant_suffix: str = "",
        assistant_suffix_if_last: str | None = None,
        system_prefix: str = "",
        system_suffix: str = "",
        function_prefix: str | None = None,
        function_suffix: str | None = None,
    ) -> None:
        self.prefix = prefix
        self.sep = sep
        self.suffix = suffix
        self.generation_suffix = generation_suffix
        self.user_prefix = user_prefix
        self.user_suffix = user_suffix
        self.assistant_prefix = assistant_prefix
        self.assistant_suffix = assistant_suffix
        self.assistant_suffix_if_last = assistant_suffix_if_last
        self.system_prefix = system_prefix
        self.system_suffix = system_suffix
        self.function_prefix = user_prefix if function_prefix is None else function_prefix
        self.function_suffix = user_suffix if function_suffix is None else function_suffix

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> str:
        around = {
            ChatRole.USER: (self.user_prefix, self.user_suffix),
            ChatRole.ASSISTANT: (self.assistant_prefix, self.assistant_suffix),
            ChatRole.SYSTEM: (self.system_prefix, self.system_suffix),
            ChatRole.FUNCTION: (self.function_prefix, self.function_suffix),
        }
        texts = [f"{around[msg.role][0]}{msg.text or ''}{around[msg.role][1]}" for msg in msgs]
        if self.assistant_suffix_if_last is not None and msgs and msgs[-1].role is ChatRole.ASSISTANT:
            # the model goes on with this message: nothing may say that a new one begins
            texts[-1] = f"{self.assistant_prefix}{msgs[-1].text or ''}{self.assistant_suffix_if_last}"
        else:
            texts.append(self.generation_suffix)
        return self.prefix + self.sep.join(texts) + self.suffix

    def explain(self) -> str:
        return "Write all messages as one text, the prompt."

    def explain_example_kwargs(self) -> dict[str, bool]:
        shown = {}
        if (self.function_prefix, self.function_suffix) != (self.user_prefix, self.user_suffix):
            shown["function_call"] = True
        if self.assistant_suffix_if_last is not None:
            shown["end_on_assistant"] = True
        return shown


def message_text(msg: ChatMessage) -> str | None:
    """The content of a message's dict, unless told otherwise: its text."""
    return msg.text


def no_keys(msg: ChatMessage) -> dict[str, Any]:
    """What else a message's dict holds, unless told otherwise: nothing."""
    return {}


class ConversationDict(MessageStep):
    """Writes each message as a dict."""

    def __init__(
        self,
        *,
        system_role: str = "system",
        user_role: str = "user",
        assistant_role: str = "assistant",
        function_role: str = "tool",
        content_transform: Callable[[ChatMessage], Any] = message_text,
        additional_keys: Callable[[ChatMessage], dict[str, Any]] = no_keys,
    ) -> None:
        self.role_to_str = {
            ChatRole.SYSTEM: system_role,
            ChatRole.USER: user_role,
            ChatRole.ASSISTANT: assistant_role,
            ChatRole.FUNCTION: function_role,
        }
        self.content_transform = content_transform
        self.additional_keys = additional_keys

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[dict[str, Any]]:
        return [
            {
                "role": self.role_to_str[msg.role],
                "content": self.content_transform(msg),
                **self.additional_keys(msg),
            }
            for msg in msgs
        ]

    def explain(self) -> str:
        return "Write each message as a dict with its role and content."

    def explain_example_kwargs(self) -> dict[str, bool]:
        return {"function_call": True}
