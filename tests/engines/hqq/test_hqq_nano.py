"""The embedded model keeps its skills in HQQ's 4 bits."""

from __future__ import annotations

from typing import Any

import pytest

from kani_lite.engines import HqqEngine
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.nano.training.evaluate import evaluate, load

DIALOGUES = 60


@pytest.mark.parametrize("options", [{}, {"quantize_embeddings": True}], ids=["linears", "all"])
@pytest.mark.timeout(600)
def test_keeps_its_skills(options: dict[str, Any]) -> None:
    model, tokenizer = load(WEIGHTS)
    engine = HqqEngine(WEIGHTS, device="cpu", **options)
    scores = [
        [sum(column) for column in zip(*evaluate(one, tokenizer, count=DIALOGUES).values(), strict=True)]
        for one in (model, engine.model)
    ]
    (right, answers), (right_in_4bit, _) = scores
    assert right_in_4bit >= right - 0.02 * answers
