"""Prompts by the chat template that a transformers tokenizer brings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import EngineError, PromptError
from kani_lite.messages import ChatMessage, ChatRole, ReasoningPart, ToolCall

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

_ROLES = {
    ChatRole.SYSTEM: "system",
    ChatRole.USER: "user",
    ChatRole.ASSISTANT: "assistant",
    ChatRole.FUNCTION: "tool",
}


def tool_schema(function: AIFunction) -> dict[str, Any]:
    """A function in the OpenAI format, which chat templates take."""
    spec = {"name": function.name, "description": function.desc, "parameters": function.json_schema}
    return {"type": "function", "function": spec}


def _call_dict(call: ToolCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    try:
        arguments = json.loads(arguments)
    except ValueError:
        arguments = call.function.arguments  # broken JSON is shown to the model as it wrote it
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def message_dict(message: ChatMessage) -> dict[str, Any]:
    """A message as the dict that chat templates take."""
    out: dict[str, Any] = {"role": _ROLES[message.role], "content": message.text or ""}
    reasoning = "".join(p.content for p in message.parts if isinstance(p, ReasoningPart))
    if reasoning:
        out["reasoning_content"] = reasoning
    if message.tool_calls:
        out["tool_calls"] = [_call_dict(call) for call in message.tool_calls]
    if message.role is ChatRole.FUNCTION:
        out |= {"name": message.name, "tool_call_id": message.tool_call_id}
    return out


class ChatTemplatePromptPipeline:
    """Renders messages with a tokenizer's chat template; `chat_template_kwargs` go to the template."""

    def __init__(self, tokenizer: Any, **chat_template_kwargs: Any) -> None:
        if not tokenizer.chat_template and "chat_template" not in chat_template_kwargs:
            raise EngineError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template: pass "
                "chat_template_kwargs={'chat_template': ...}, or subclass the engine and override build_prompt."
            )
        self.tokenizer = tokenizer
        self.chat_template_kwargs = chat_template_kwargs

    def __call__(
        self,
        messages: Sequence[ChatMessage],
        functions: Sequence[AIFunction] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt as text. Raises PromptError where the template refuses these messages."""
        # transformers needs jinja2 for its templates, so it is there
        from jinja2.exceptions import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                [message_dict(m) for m in messages],
                tools=[tool_schema(f) for f in functions] if functions else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.chat_template_kwargs,
            )
        except TemplateError as e:
            roles = ", ".join(_ROLES[m.role] for m in messages)
            raise PromptError(f"The chat template refuses these messages ({roles}): {e}") from e
        return text
