"""From messages to a model's prompt, and from a model's text back to messages."""

from __future__ import annotations

from .chat_template import ChatTemplatePromptPipeline
from .formats import CHATML, FORMATS, HERMES, PLAIN, format_for_model, format_for_template, get_format
from .parsing import Format, Kind, Parser, Region, parse
from .pipeline import PromptPipeline
from .steps_base import FilterMixin, PipelineStep
from .types import ApplyContext

__all__ = [
    "CHATML",
    "FORMATS",
    "HERMES",
    "PLAIN",
    "ApplyContext",
    "ChatTemplatePromptPipeline",
    "FilterMixin",
    "Format",
    "Kind",
    "Parser",
    "PipelineStep",
    "PromptPipeline",
    "Region",
    "format_for_model",
    "format_for_template",
    "get_format",
    "parse",
]
