"""The embedded model keeps its skills."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.nano.training.evaluate import evaluate, load
from kani_lite.engines.quantization import Int4Config

DIALOGUES = 60


@pytest.mark.parametrize("config", [Int4Config(), Int4Config(quantize_embeddings=True)], ids=["linears", "all"])
def test_keeps_its_skills(config: Int4Config) -> None:
    model, tokenizer = load(WEIGHTS)
    in_4bit = AutoModelForCausalLM.from_pretrained(WEIGHTS, quantization_config=config, dtype="float32")
    scores = [
        [sum(column) for column in zip(*evaluate(one, tokenizer, count=DIALOGUES).values(), strict=True)]
        for one in (model, in_4bit)
    ]
    (right, answers), (right_in_4bit, _) = scores
    assert right_in_4bit >= right - 0.03 * answers
