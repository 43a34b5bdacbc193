"""The registries of prompt pipelines and parsers, and the search in them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import MissingModelDependencies

from ..chat_template import ChatTemplatePromptPipeline
from ..pipeline import PromptPipeline
from .parents import family

if TYPE_CHECKING:
    from ..parsers import BaseParser

_log = logging.getLogger(__name__)
_HERE = __name__.rpartition(".")[0]
_PROMPTS = _HERE.rpartition(".")[0]

PROMPT_PIPELINE_REGISTRY = [
    ("openai/gpt-oss-*", f"{_HERE}.gpt_oss.build_prompt_pipeline"),
    ("meta-llama/Llama-2*", f"{_PROMPTS}.pipelines.LLAMA2_PIPELINE"),
    ("meta-llama/Llama-3-*", f"{_PROMPTS}.pipelines.LLAMA3_PIPELINE"),
    ("meta-llama/Meta-Llama-3-*", f"{_PROMPTS}.pipelines.LLAMA3_PIPELINE"),
    ("mistralai/Mistral-7B*", f"{_PROMPTS}.pipelines.MISTRAL_V3_PIPELINE"),
    ("mistralai/Mixtral-8x*", f"{_PROMPTS}.pipelines.MISTRAL_V3_PIPELINE"),
    ("mistralai/*-2407", f"{_PROMPTS}.pipelines.MISTRAL_V3_PIPELINE"),
    ("mistralai/*-2409", f"{_PROMPTS}.pipelines.MISTRAL_V3_PIPELINE"),
    ("Qwen/Qwen3-*", f"{_HERE}.qwen3.build_prompt_pipeline"),
    ("Qwen/Qwen3.[568]-*", f"{_HERE}.qwen3_5.build_prompt_pipeline"),
]
"""Patterns of model names, whose case doesn't count, and where to import what the first that fits stands for: a
PromptPipeline, or a function that makes one of a tokenizer, `chat_template_reasoning_content_key` and the keywords for
the chat template."""

PARSER_REGISTRY = [
    ("deepseek-ai/DeepSeek-R1*", f"{_PROMPTS}.parsers.DeepSeekR1Parser"),
    ("openai/gpt-oss-*", f"{_PROMPTS}.parsers.GPTOSSParser"),
    ("meta-llama/Llama-3.*", f"{_PROMPTS}.parsers.Llama3XToolCallParser"),
    ("meta-llama/Meta-Llama-3.*", f"{_PROMPTS}.parsers.Llama3XToolCallParser"),
    ("mistralai/Mistral-7B-Instruct-v0.3", f"{_PROMPTS}.parsers.MistralToolCallParser"),
    ("mistralai/*-240[4579]", f"{_PROMPTS}.parsers.MistralToolCallParser"),
    ("Qwen/Qwen3-*-Thinking*", f"{_PROMPTS}.parsers.Qwen3ThinkingParser"),
    ("Qwen/Qwen3-*", f"{_PROMPTS}.parsers.Qwen3Parser"),
    ("Qwen/Qwen3.[568]-*", f"{_PROMPTS}.parsers.Qwen3_5Parser"),
]
"""The same for parsers: the classes."""


def prompt_pipeline_for_hf_model(
    model_id: str,
    tokenizer: Any = None,
    search_parents: bool = True,
    fallback_to_chat_template: bool = True,
    *,
    chat_template_reasoning_content_key: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> PromptPipeline[Any] | None:
    """The pipeline that is registered for this model, or for one that it was made from (`search_parents`); else its
    chat template, or None without `fallback_to_chat_template`.

    The tokenizer is that of this very model, loaded if it is needed and not given. Raises MissingModelDependencies if
    that takes transformers and they aren't installed. May ask the hub for model cards: see `parents.family`.
    """
    found = _registered(PROMPT_PIPELINE_REGISTRY, _names(model_id, search_parents))
    if isinstance(found, PromptPipeline):
        return found
    if found is None and not fallback_to_chat_template:
        return None
    build: Callable[..., PromptPipeline[Any]] = found or ChatTemplatePromptPipeline
    return build(
        _tokenizer(model_id) if tokenizer is None else tokenizer,
        chat_template_reasoning_content_key=chat_template_reasoning_content_key,
        **(chat_template_kwargs or {}),
    )


@cache
def parser_for_hf_model(model_id: str, search_parents: bool = True) -> type[BaseParser] | None:
    """The parser that is registered for this model, or for one that it was made from (`search_parents`), or None.
    What was found is remembered: `parser_for_hf_model.cache_clear()` after a change of the registry."""
    found: type[BaseParser] | None = _registered(PARSER_REGISTRY, _names(model_id, search_parents))
    return found


def warn_for_uninitialized_parser(model_id: str) -> None:
    """Warns if there is a parser for this model and none in the program that wraps it. For engines that return the
    raw text of a model; those of this package parse by themselves."""
    from ..parsers import parsers_in_use

    if any(getattr(parser, "model_id", model_id) == model_id for parser in parsers_in_use()):
        return
    if (parser := parser_for_hf_model(model_id)) is not None:
        warnings.warn(
            f"The text of {model_id} holds tool calls or reasoning that nothing parses: wrap its engine as "
            f"{parser.__name__}(engine), after `from {parser.__module__} import {parser.__name__}`.",
            UserWarning,
            stacklevel=3,
        )


def _names(model_id: str, search_parents: bool) -> Iterable[str]:
    return family(model_id) if search_parents else islice(family(model_id), 1)


def _registered(registry: list[tuple[str, str]], names: Iterable[str]) -> Any:
    for name in names:
        # a folder may be called like the model, its owner's name before it
        name = "/".join(Path(name).parts[-2:]).lower()
        for pattern, where in registry:
            if fnmatchcase(name, pattern.lower()):
                _log.debug("%s fits %s: %s is used.", name, pattern, where)
                module, _, attribute = where.rpartition(".")
                return getattr(import_module(module), attribute)
    return None


def _tokenizer(model_id: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingModelDependencies(
            "Loading a tokenizer takes transformers: pip install 'kani-lite[huggingface]', or pass tokenizer=."
        ) from error
    return AutoTokenizer.from_pretrained(model_id)
