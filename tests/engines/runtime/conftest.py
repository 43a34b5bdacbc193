"""Tiny random models, made in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture(scope="session")
def make_llama() -> MakeLlama:
    def make(**config: Any) -> LlamaForCausalLM:
        torch.manual_seed(0)
        values: dict[str, Any] = {
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,  # spread the logits: ties would make two ways differ by rounding
            "eos_token_id": None,
        }
        return LlamaForCausalLM(LlamaConfig(**(values | config))).eval()

    return make


@pytest.fixture(scope="session")
def llama(make_llama: MakeLlama) -> LlamaForCausalLM:
    return make_llama()
