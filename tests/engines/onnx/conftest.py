"""The embedded model in ONNX format, converted once per test run; nothing comes from the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from kani_lite.engines.nano import WEIGHTS, NanoEngine
from kani_lite.engines.onnx import OnnxEngine
from kani_lite.engines.onnx.convert import convert

Load = Callable[..., Awaitable[OnnxEngine]]
Change = Callable[[str, dict[str, Any]], Path]


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime_genai")
    return convert("nano", tmp_path_factory.mktemp("onnx") / "fp32", precision="fp32")


@pytest.fixture(scope="session")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime_genai")
    return convert(WEIGHTS, tmp_path_factory.mktemp("onnx") / "new" / "int4")


@pytest.fixture
async def load(fp32: Path) -> AsyncIterator[Load]:
    """Loads the model off the loop (a constructor reads files), and closes it after the test."""
    made: list[OnnxEngine] = []

    async def new(folder: Path = fp32, **kwargs: Any) -> OnnxEngine:
        made.append(await anyio.to_thread.run_sync(lambda: OnnxEngine(folder, **{"threads": 1, **kwargs})))
        return made[-1]

    yield new
    for engine in made:
        await engine.close()


@pytest.fixture
async def nano() -> AsyncIterator[NanoEngine]:
    """The same model, as transformers runs it."""
    engine = await anyio.to_thread.run_sync(lambda: NanoEngine(device="cpu"))
    yield engine
    await engine.close()


@pytest.fixture
def copy(fp32: Path, tmp_path: Path) -> Path:
    """A folder to be changed; the weights are links."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in fp32.iterdir():
        if file.name.startswith("model.onnx"):
            (folder / file.name).hardlink_to(file)
        else:
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def change(copy: Path) -> Change:
    """Changes values in one of the folder's JSON files; one that is None is taken out."""

    def changed(file: str, values: dict[str, Any]) -> Path:
        path = copy / file
        content = json.loads(path.read_text("utf-8"))
        for name, value in values.items():
            *parents, last = name.split(".")
            part = content
            for parent in parents:
                part = part[parent]
            if value is None:
                del part[last]
            else:
                part[last] = value
        path.write_text(json.dumps(content), "utf-8")
        return copy

    return changed
