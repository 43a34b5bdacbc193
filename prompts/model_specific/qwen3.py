"""Qwen 3."""

from __future__ import annotations

from typing import Any

from ..chat_template import ChatTemplatePromptPipeline


def build_prompt_pipeline(
    tokenizer: Any, *, chat_template_reasoning_content_key: str | None = None, **chat_template_kwargs: Any
) -> ChatTemplatePromptPipeline:
    """The model's chat template, which finds a message's reasoning under `reasoning_content`."""
    key = chat_template_reasoning_content_key or "reasoning_content"
    return ChatTemplatePromptPipeline(tokenizer, chat_template_reasoning_content_key=key, **chat_template_kwargs)
