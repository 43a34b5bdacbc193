"""A tiny random Llama with a ChatML tokenizer, made once per test run; nothing comes from the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tiny import chatml_tokenizer, save_llama

from kani_lite.engines import HuggingEngine


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return chatml_tokenizer()


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    """Makes another tiny model: `save(folder, **config)`."""
    return save_llama


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tiny-llama"))


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
