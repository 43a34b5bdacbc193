"""A tiny random Llama with a tokenizer of bytes, made once per test run; nothing comes from the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tiny import byte_tokenizer, save_llama

from kani_lite.engines import HqqEngine


def save_model(folder: Path, **config: Any) -> Path:
    return save_llama(folder, byte_tokenizer(), **({"max_position_embeddings": 512} | config))


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
