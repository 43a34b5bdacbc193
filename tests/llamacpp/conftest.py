"""The embedded model in llama.cpp, really: these tests run only where llama_cpp is installed (`make test-llamacpp`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

HERE = Path(__file__).parent
collect_ignore_glob = [] if find_spec("llama_cpp") and find_spec("gguf") else ["test_*.py"]

# keys and values as exact as the weights: a tie of two tokens must not be decided by rounding
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            # llama_cpp leaves a file open for the whole process
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The embedded model as a GGUF file of this type, made once."""
    from kani_lite.engines.llamacpp.convert import convert

    folder = tmp_path_factory.mktemp("gguf")

    def made(kind: str = "f32") -> Path:
        path = folder / f"nano-{kind}.gguf"
        return path if path.exists() else convert("nano", path, type=kind)

    return made


@pytest.fixture(scope="session")
def build(gguf: Callable[[str], Path]) -> Callable[..., Any]:
    """Builds an engine on the embedded model."""
    from kani_lite.engines.llamacpp import LlamaCppEngine

    def new(kind: str = "f32", **kwargs: Any) -> LlamaCppEngine:
        kwargs.setdefault("model_load_kwargs", EXACT)
        return LlamaCppEngine(model_path=gguf(kind), **kwargs)

    return new


@pytest.fixture(scope="session")
def build_later(build: Callable[..., Any]) -> Callable[..., Any]:
    """The same for async tests: loading a model blocks."""

    async def new(*args: Any, **kwargs: Any) -> Any:
        return await anyio.to_thread.run_sync(partial(build, *args, **kwargs))

    return new


@pytest.fixture(scope="session")
def engine(build: Callable[..., Any]) -> Iterator[Any]:
    """One engine for many tests, on any event loop."""
    made = build(threads=1)
    yield made
    anyio.run(made.close)


@pytest.fixture(scope="session")
def nano() -> Iterator[Any]:
    """The same model in transformers."""
    from kani_lite.engines import NanoEngine

    made = NanoEngine()
    yield made
    anyio.run(made.close)
