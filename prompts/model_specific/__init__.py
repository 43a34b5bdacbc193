"""Which prompt pipeline and which parser a model of the Hugging Face hub needs."""

from __future__ import annotations

from .search import (
    PARSER_REGISTRY,
    PROMPT_PIPELINE_REGISTRY,
    parser_for_hf_model,
    prompt_pipeline_for_hf_model,
    warn_for_uninitialized_parser,
)

__all__ = [
    "PARSER_REGISTRY",
    "PROMPT_PIPELINE_REGISTRY",
    "parser_for_hf_model",
    "prompt_pipeline_for_hf_model",
    "warn_for_uninitialized_parser",
]
