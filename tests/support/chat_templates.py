"""Chat templates to test on, and a tokenizer of bytes that needs no training."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kani_lite.prompts.templates import named_template, template_names

FOLDER = Path(__file__).parents[1] / "prompts" / "templates"
MORE = os.environ.get("KANI_LITE_TEMPLATES")  # a folder of further templates, such as published ones
BOS, EOS = "<s>", "</s>"


def all_templates() -> dict[str, str]:
    """The fixtures, our named templates (as "named-..."), and what the folder in KANI_LITE_TEMPLATES holds."""
    folders = [FOLDER, Path(MORE)] if MORE else [FOLDER]
    texts = {path.stem: path.read_text("utf-8") for folder in folders for path in sorted(folder.glob("*.jinja"))}
    return texts | {f"named-{name}": named_template(name) for name in template_names()}


TEMPLATES = all_templates()


@cache
def _backend() -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(["the assistant and the user speak of a function", "result of the system"] * 4, trainer)
    return tok


def make_tokenizer(template: str | dict[str, str] | None) -> Any:
    """A transformers tokenizer with this chat template."""
    fast = PreTrainedTokenizerFast(tokenizer_object=_backend(), bos_token=BOS, eos_token=EOS)
    fast.chat_template = template
    return fast


def encode(text: str) -> list[int]:
    """The tokens of a text, special ones recognised and none added."""
    ids: list[int] = _backend().encode(text, add_special_tokens=False).ids
    return ids
