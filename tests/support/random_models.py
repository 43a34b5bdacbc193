"""Models with random weights, large enough that memory can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def save_random_llama(folder: Path, shard: int, **config: Any) -> int:
    """Saves a Llama in bf16, in shards of so many megabytes; returns its bytes."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **config)).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.save_pretrained(folder, max_shard_size=f"{shard}MB")
    return sum(parameter.nbytes for parameter in model.parameters())
