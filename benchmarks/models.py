"""Random Llamas with the embedded model's tokenizer and template, for figures that don't depend on weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kani_lite.engines.nano import WEIGHTS

SIZES = {
    "55M": {
        "hidden_size": 512,
        "intermediate_size": 1152,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "430M": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}
VOCABULARY, CONTEXT = 32_000, 8192


def random_llama(folder: Path, size: str, dtype: torch.dtype = torch.float32, context: int = CONTEXT) -> Path:
    """Saves the model of this size into `folder`, once. It writes only tokens that the tokenizer knows."""
    made = folder / f"{size}-{str(dtype).removeprefix('torch.')}-{context}"
    if (made / "done").exists():
        return made
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.model_max_length = context
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=VOCABULARY,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # of random logits some are above 0, so the others' are never the largest
        model.lm_head.weight[: len(tokenizer)].normal_(std=0.05)
        model.lm_head.weight[len(tokenizer) :].zero_()
        model.lm_head.weight[:3].zero_()
    model.to(dtype).save_pretrained(made)
    tokenizer.save_pretrained(made)
    (made / "done").write_text(json.dumps({"parameters": model.num_parameters()}))
    return made
