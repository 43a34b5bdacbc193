"""Tiny random Llamas with tokenizers of their own, made while the tests run; nothing comes from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
TEXTS = ["the quick brown fox jumps over the lazy dog", "hello there, how are you? I am fine.", "one two three four"]


def chatml_tokenizer() -> Any:
    """380 tokens with merges; its template shows tools."""
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


def byte_tokenizer() -> Any:
    """A token for each byte, and the special ones; its template shows no tools."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(symbols)}, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = PLAIN_CHATML
    return fast


def save_llama(folder: Path, tokenizer: Any = None, **config: Any) -> Path:
    """The folder of a model with random weights; `config` goes over the values of a tiny one. The tokenizer is
    `chatml_tokenizer` unless another is given."""
    tokenizer = chatml_tokenizer() if tokenizer is None else tokenizer
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
        "initializer_range": 0.3,  # spread the logits: ties would make two ways differ by rounding
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    dtype = config.pop("dtype", torch.float32)
    LlamaForCausalLM(LlamaConfig(**(values | config))).to(dtype).save_pretrained(folder)
    return folder
