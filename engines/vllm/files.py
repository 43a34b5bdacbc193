"""A model's files but its weights, as transformers reads them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import transformers

from kani_lite.engines.huggingface import loading
from kani_lite.engines.sampling import SamplingParams, params_of_model

from .arguments import Arguments


@dataclass(frozen=True)
class ModelFiles:
    """`ends`: the ids that end a reply; `recommended`: what the model's authors do."""

    name: str
    tokenizer: Any
    ends: list[int]
    vocabulary_size: int
    recommended: SamplingParams


def read_files(arguments: Arguments) -> ModelFiles:
    """Raises EngineError if there is no such model, or it has no tokenizer."""
    source = loading.find_source(arguments.model, arguments.token, arguments.trust_remote_code, {})
    tokenizer = loading.load_tokenizer(source, None, {})
    config = transformers.AutoConfig.from_pretrained(source.name, **source.options)
    try:
        recommended = transformers.GenerationConfig.from_pretrained(source.name, **source.options)
    except OSError:  # a model need not have one
        recommended = None
    ends = loading.end_ids(SimpleNamespace(generation_config=recommended, config=config), tokenizer)
    size = int(config.get_text_config(decoder=True).vocab_size)
    return ModelFiles(source.name, tokenizer, ends, size, params_of_model(recommended))
