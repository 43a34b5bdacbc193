"""From messages to a model's prompt, and from a model's text back to messages. Names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .chat_template import ChatTemplatePromptPipeline
    from .formats import CHATML, FORMATS, HERMES, PLAIN, format_for_model, format_for_template, get_format
    from .helpers import Persona, few_shot, fill, load_prompt
    from .jinja import JinjaChatTemplate
    from .model_specific import (
        PARSER_REGISTRY,
        PROMPT_PIPELINE_REGISTRY,
        parser_for_hf_model,
        prompt_pipeline_for_hf_model,
        warn_for_uninitialized_parser,
    )
    from .parsers import (
        BaseParser,
        BaseToolCallParser,
        DeepSeekR1Parser,
        DeepSeekR1ToolCallParser,
        GPTOSSParser,
        Llama3XToolCallParser,
        MistralToolCallParser,
        NaiveJSONToolCallParser,
        Qwen3_5Parser,
        Qwen3Parser,
        Qwen3ThinkingParser,
    )
    from .parsing import Format, Kind, Parser, Region, parse
    from .pipeline import PromptPipeline
    from .pipelines import LLAMA2_PIPELINE, LLAMA3_PIPELINE, MISTRAL_V3_PIPELINE
    from .steps_base import FilterMixin, PipelineStep
    from .types import ApplyContext

_MODULES = {
    name: module
    for module, names in {
        "chat_template": "ChatTemplatePromptPipeline",
        "formats": "CHATML FORMATS HERMES PLAIN format_for_model format_for_template get_format",
        "helpers": "Persona few_shot fill load_prompt",
        "jinja": "JinjaChatTemplate",
        "model_specific": "PARSER_REGISTRY PROMPT_PIPELINE_REGISTRY parser_for_hf_model prompt_pipeline_for_hf_model "
        "warn_for_uninitialized_parser",
        "parsers": "BaseParser BaseToolCallParser DeepSeekR1Parser DeepSeekR1ToolCallParser GPTOSSParser "
        "Llama3XToolCallParser MistralToolCallParser NaiveJSONToolCallParser Qwen3_5Parser Qwen3Parser "
        "Qwen3ThinkingParser",
        "parsing": "Format Kind Parser Region parse",
        "pipeline": "PromptPipeline",
        "pipelines": "LLAMA2_PIPELINE LLAMA3_PIPELINE MISTRAL_V3_PIPELINE",
        "steps_base": "FilterMixin PipelineStep",
        "types": "ApplyContext",
    }.items()
    for name in names.split()
}

__all__ = [
    "CHATML",
    "FORMATS",
    "HERMES",
    "LLAMA2_PIPELINE",
    "LLAMA3_PIPELINE",
    "MISTRAL_V3_PIPELINE",
    "PARSER_REGISTRY",
    "PLAIN",
    "PROMPT_PIPELINE_REGISTRY",
    "ApplyContext",
    "BaseParser",
    "BaseToolCallParser",
    "ChatTemplatePromptPipeline",
    "DeepSeekR1Parser",
    "DeepSeekR1ToolCallParser",
    "FilterMixin",
    "Format",
    "GPTOSSParser",
    "JinjaChatTemplate",
    "Kind",
    "Llama3XToolCallParser",
    "MistralToolCallParser",
    "NaiveJSONToolCallParser",
    "Parser",
    "Persona",
    "PipelineStep",
    "PromptPipeline",
    "Qwen3Parser",
    "Qwen3ThinkingParser",
    "Qwen3_5Parser",
    "Region",
    "few_shot",
    "fill",
    "format_for_model",
    "format_for_template",
    "get_format",
    "load_prompt",
    "parse",
    "parser_for_hf_model",
    "prompt_pipeline_for_hf_model",
    "warn_for_uninitialized_parser",
]

__getattr__ = lazy(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
