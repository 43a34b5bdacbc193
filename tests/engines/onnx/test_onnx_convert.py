"""`kani-lite convert onnx`: what it makes, and what it refuses before and after the work."""

from __future__ import annotations

import argparse
import filecmp
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.onnx import convert as module
from kani_lite.engines.onnx.convert import add_arguments, convert
from kani_lite.exceptions import EngineError, MissingModelDependencies


def test_what_it_makes(fp32: Path, int4: Path, tmp_path: Path) -> None:
    (plain := tmp_path / "plain").mkdir()
    for folder in (fp32, int4):
        for file in ("tokenizer.json", "chat_template.jinja"):
            assert filecmp.cmp(folder / file, WEIGHTS / file, shallow=False)
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing else is left behind"
        assert folder.stat().st_mode == plain.stat().st_mode, "others may read it as they may any folder"
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (fp32, int4)]
    # 4 bits and a 32-bit scale for 32 weights, beside 32 bits; the embedding table is not counted twice
    assert sizes[1] < 0.2 * sizes[0]


def test_the_commands_options() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args([])) == {"precision": "int4", "block_size": 32}
    for precision in module.PRECISIONS:
        read = vars(parser.parse_args([f"--{precision}", "--block-size", "128"]))
        assert read == {"precision": precision, "block_size": 128}
    with pytest.raises(SystemExit):
        parser.parse_args(["--int4", "--fp32"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "bf16"}, "precision='bf16' isn't possible on a CPU: give one of int4, int8, fp16, fp32"),
        ({"block_size": 48}, "block_size=48 isn't possible: give one of 16, 32"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        convert(WEIGHTS, tmp_path / "out", **options)
    assert not [*tmp_path.iterdir()]


def test_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime_genai", "onnx", "onnx_ir", "torch", "transformers"):
        with monkeypatch.context() as patch:
            patch.setattr(module, "find_spec", lambda name, package=package: None if name == package else name)
            with pytest.raises(MissingModelDependencies, match=rf"'{package}', .*kani-lite\[onnx-convert\]"):
                convert(WEIGHTS, tmp_path / "out")


@pytest.mark.skipif(find_spec("onnx_ir") is None, reason="it needs the extra onnx-convert")
def test_what_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(EngineError, match="is there and not empty"):
        convert(WEIGHTS, tmp_path)
    with pytest.raises(EngineError, match="is there and not empty"):
        convert(WEIGHTS, tmp_path / "file")
    with pytest.raises(EngineError, match="no folder"):
        convert(tmp_path / "none", tmp_path / "out")
    with pytest.raises(EngineError, match="is a GGUF file"):
        convert(tmp_path / "model.gguf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model.gguf"]


@pytest.mark.skipif(find_spec("onnx_ir") is None, reason="it needs the extra onnx-convert")
def test_when_the_builder_fails(tmp_path: Path) -> None:
    """It says why, and nothing is left behind."""
    broken = tmp_path / "broken"
    shutil.copytree(WEIGHTS, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(
        EngineError, match=r"Converting the folder '.*broken' to ONNX failed .* ended with 1\): .*Error"
    ):
        convert(broken, tmp_path / "out", precision="fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
