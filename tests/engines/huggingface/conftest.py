"""A tiny random Llama with a ChatML tokenizer, made once per test run; nothing comes from the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kani_lite.engines import HuggingEngine

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
TEXTS = ["the quick brown fox jumps over the lazy dog", "hello there, how are you? I am fine.", "one two three four"]


def make_tokenizer() -> Any:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(TEXTS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
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
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,  # spread the logits: ties would make warm and cold differ by rounding
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**(values | config))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    """Makes another tiny model: `save(folder, **config)`."""
    return save_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny-llama"))


Load = Callable[..., Awaitable[HuggingEngine]]


@pytest.fixture
async def load(model_dir: Path) -> AsyncIterator[Load]:
    """Loads the tiny model off the loop (a constructor reads files), and closes it after the test."""
    made: list[HuggingEngine] = []

    async def new(cls: type[HuggingEngine] = HuggingEngine, folder: Path = model_dir, **kwargs: Any) -> HuggingEngine:
        made.append(await anyio.to_thread.run_sync(lambda: cls(folder, device="cpu", **kwargs)))
        return made[-1]

    yield new
    for engine in made:
        await engine.close()


@pytest.fixture
async def engine(load: Load) -> HuggingEngine:
    return await load(temperature=0.0, max_tokens=12)


@pytest.fixture
def counted(engine: HuggingEngine) -> Callable[[], int]:
    """How many forward passes the engine's model has made."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    engine.model.register_forward_pre_hook(count)
    return lambda: calls


@pytest.fixture
def scripted(engine: HuggingEngine) -> Callable[[str], None]:
    """Makes the model write this text, then its end token, in reply to the next prompt."""
    script: list[int] = []

    def choose(_module: Any, _args: Any, out: Any) -> None:
        token = script.pop(0) if script else engine.tokenizer.eos_token_id
        out.logits[..., token] = 1e4

    engine.model.register_forward_hook(choose)
    return lambda text: script.extend(engine.encode(text))
