from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import pytest

from kani_lite.engines import registry
from kani_lite.engines.registry import EngineInfo
from kani_lite.terminal.engines_command import add_engines_parser, run_engines, table


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_engines_parser(parser.add_subparsers())
    return run_engines(parser.parse_args(["engines", *arguments]))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are taken to be installed."""
    names = {"torch", "transformers", "accelerate", "jinja2", "psutil", "openai"}
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if name in names else None)
    return names


def test_the_list_says_what_is_missing(installed: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    schemes = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert schemes == ["engine", "nano", "hf", "hqq", "vllm", "vllm-server", "llamacpp", "onnx", "openai"]
    after = dict(itertools.pairwise(lines))
    (hqq,) = [line for line in lines if line.startswith("hqq")]
    assert after[hqq].strip() == "needs hqq: pip install 'kani-lite[hqq]'"
    (hf,) = [line for line in lines if line.startswith("hf")]
    assert after[hf].strip().startswith("installed (torch 2.")
    assert all(len(line) <= 120 for line in lines)


def test_the_list_as_json(installed: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    installed.discard("openai")
    assert run("--json") == 0
    found = {one["engine"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["openai"]["missing"] == ["openai"]
    assert found["openai"]["install"] == "pip install 'kani-lite[openai]'"
    assert not found["openai"]["installed"]
    assert found["nano"]["installed"]
    assert found["nano"]["from"] == "kani-lite"


def test_what_another_package_says_cannot_harm_the_terminal() -> None:
    odd = EngineInfo("odd", "red \x1b[31m text", "odd:MODEL", origin="odd")
    lines = table([odd], 80)
    assert "\x1b" not in "\n".join(lines)
    assert lines[1].startswith("odd")


@pytest.mark.parametrize("width", [10, 60, 200])
def test_lines_are_no_wider_than_the_terminal(width: int) -> None:
    lines = table(registry.engine_schemes(), width)
    assert max(map(len, lines)) <= max(width, 60)
    text = "".join(line.strip() for line in lines)
    assert "http://localhost:8000/v1" in text


def test_nothing_is_imported_for_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("an engine was imported")

    monkeypatch.setattr(registry, "import_module", refuse)
    assert run() == 0
    assert "nano" in capsys.readouterr().out
