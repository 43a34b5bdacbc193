"""From messages to a model's prompt, and from a model's text back to messages."""

from __future__ import annotations

from .chat_template import ChatTemplatePromptPipeline
from .parsing import CHATML, HERMES, PLAIN, Format, Parser, format_for_template

__all__ = ["CHATML", "HERMES", "PLAIN", "ChatTemplatePromptPipeline", "Format", "Parser", "format_for_template"]
