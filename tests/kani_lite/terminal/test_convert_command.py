from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kani_lite.exceptions import EngineError
from kani_lite.terminal import convert_command
from kani_lite.terminal.convert_command import CONVERTERS, add_convert_parser, run_convert


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_convert_parser(made.add_subparsers(dest="command"))
    return made


def run(*arguments: str) -> int:
    return run_convert(parser().parse_args(["convert", *arguments]))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a converter of ours was asked for."""
    calls: list[Any] = []
    module = ModuleType("odd_converter")

    def add_arguments(options: argparse.ArgumentParser) -> None:
        calls.append("options")
        options.add_argument("--bits", type=int, default=4, help="bits of a weight")

    def convert(model: str, out: str | None, **options: Any) -> Path:
        calls.append((model, out, options))
        return Path(out or f"{model}\x1b[31m.odd")

    vars(module).update(add_arguments=add_arguments, convert=convert)
    monkeypatch.setitem(sys.modules, "odd_converter", module)
    odd = convert_command._Converter("odd_converter", "an odd file", "a new file")
    monkeypatch.setitem(convert_command.CONVERTERS, "odd", odd)
    return calls


def test_a_converter_gets_its_own_options(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("odd", "nano", "out.odd", "--bits", "8") == 0
    assert asked == ["options", ("nano", "out.odd", {"bits": 8})]
    assert capsys.readouterr().out == "out.odd\n"


def test_a_name_cannot_harm_the_terminal(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("odd", "nano") == 0
    assert asked[-1] == ("nano", None, {"bits": 4})
    assert "\x1b" not in capsys.readouterr().out


def test_options_are_read_only_when_they_are_needed(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parser().parse_args(["convert", "--help"])
    assert not asked
    assert "an odd file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        parser().parse_args(["convert", "odd", "--help"])
    assert asked == ["options"]
    assert "bits of a weight" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["odd"], ["even", "nano"], ["odd", "nano", "--byte", "1"], []])
def test_what_is_no_command(asked: list[Any], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["convert", *arguments])
    assert "error:" in capsys.readouterr().err


def test_gguf_has_its_types(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parser().parse_args(["convert", "gguf", "nano", "--type", "q4_0"])
    assert (arguments.model, arguments.out, arguments.type) == ("nano", None, "q4_0")
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["convert", "gguf", "nano", "--type", "q3"])
    assert "'q8_0'" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(EngineError, match=r"has no config\.json"):
        run("gguf", str(tmp_path), str(tmp_path / "out.gguf"))
    assert not list(tmp_path.iterdir())


def test_there_is_a_module_for_each() -> None:
    for converter in CONVERTERS.values():
        __import__(converter.module)
        assert callable(sys.modules[converter.module].convert)
