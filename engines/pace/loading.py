"""Finds a model and a tokenizer as PACE does, and puts them on the local runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from kani_lite.engines.huggingface import loading
from kani_lite.engines.runtime.engine import RuntimeEngine
from kani_lite.engines.runtime.generator import RuntimeOptions
from kani_lite.engines.sampling import SamplingParams
from kani_lite.exceptions import EngineError

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


class AutoTokenizer:
    """transformers' AutoTokenizer, whose tokenizers still have `batch_encode_plus`, which transformers 5 has not."""

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        tokenizer = transformers.AutoTokenizer.from_pretrained(*args, **kwargs)
        if not hasattr(tokenizer, "batch_encode_plus"):
            tokenizer.batch_encode_plus = tokenizer.__call__
        return tokenizer


class TextEngine(RuntimeEngine):
    """A model on the local runtime that continues texts, and has no chats."""

    def __init__(self, source: loading.Source, model: Any, tokenizer: Any, options: RuntimeOptions) -> None:
        self.model_id, self.tokenizer = source.name, tokenizer
        self.sampling = SamplingParams()
        self.ends = loading.end_ids(model, tokenizer)
        self.max_context_size = loading.context_length(model.config, tokenizer, source)

        def decode(ids: Sequence[int]) -> str:  # without `self`: the model's thread must not keep the engine alive
            text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return text

        self.start_runtime(model, decode, self.ends, options)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def message_len(self, message: Any) -> int:
        return len(self.encode(message.text or ""))

    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> Any:
        raise EngineError("LLMModel continues texts: for a chat load the model with HuggingEngine.")


def find_model(path: str | os.PathLike[str], trust_remote_code: bool) -> loading.Source:
    try:
        return loading.find_source(path, None, trust_remote_code, {})
    except EngineError as error:
        folder = Path(path).expanduser()
        if folder.is_dir() and (folder / "config.json").is_file():
            raise  # it is there, and can't be used
        raise FileNotFoundError(str(error)) from error


def load_tokenizer(model: loading.Source, path: str | os.PathLike[str] | None) -> Any:
    """The tokenizer of `path`, or of the model's folder. A folder needs nothing else in it."""
    source = model
    if path is not None:
        name = os.path.expanduser(os.fspath(path))
        local = os.path.isdir(name)
        if not local and (os.path.exists(name) or os.path.isabs(name) or name.startswith(".")):
            raise FileNotFoundError(f"There is no folder {name!r}: check the path of the tokenizer.")
        source = replace(model, name=name, local=local, options=model.options | {"local_files_only": local})
    if source.local and not any(next(Path(source.name).glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise FileNotFoundError(f"The folder {source.name!r} has no tokenizer: pass tokenizer_name_or_path.")
    tokenizer = loading.load_tokenizer(source, AutoTokenizer, {"padding_side": "left"})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
