"""A tiny random Llama with a tokenizer of bytes, made once per test run; nothing comes from the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kani_lite.engines import HqqEngine

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def make_tokenizer() -> Any:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(symbols)}, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    return fast


def save_model(folder: Path, **config: Any) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # spread the logits: ties would make two ways differ by rounding
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**(values | config))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is only slowed down by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    """Makes another tiny model: `save(folder, **config)`."""
    return save_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny-llama"))


Load = Callable[..., HqqEngine]


@pytest.fixture
def load(model_dir: Path) -> Iterator[Load]:
    """Loads the tiny model, for greedy replies of 12 tokens, and closes it after the test."""
    made: list[HqqEngine] = []

    def new(folder: Path | str = model_dir, **kwargs: Any) -> HqqEngine:
        made.append(HqqEngine(folder, **({"device": "cpu", "temperature": 0.0, "max_tokens": 12} | kwargs)))
        return made[-1]

    yield new
    for engine in made:
        anyio.run(engine.close)
