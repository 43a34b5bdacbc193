from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedEngine

from kani_lite import __version__
from kani_lite.exceptions import EngineError, MissingModelDependencies
from kani_lite.terminal import cli, loading
from kani_lite.terminal.loading import ModelChoice, check_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program with these arguments, and this text on its standard input."""
    monkeypatch.setattr(loading, "find_spec", lambda name: object())

    def run_it(*arguments: str, text: str = "hi\n") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run_it


def use(monkeypatch: pytest.MonkeyPatch, engine: Any) -> list[ModelChoice]:
    """The model that is loaded, or what loading raises; what was asked for."""
    asked = []

    def load(choice: ModelChoice) -> Any:
        asked.append(choice)
        if isinstance(engine, Exception):
            raise engine
        return engine

    monkeypatch.setattr(cli, "load_engine", load)
    return asked


def test_piped_input_is_answered(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    engine = ScriptedEngine("Hello!")
    assert use(monkeypatch, engine) == []
    assert run("chat") == (0, "Hello!\n", "")
    assert engine.kwargs == [{}]
    assert [f.name for f in engine.functions[0] or ()] == ["calculate", "roll_dice", "current_time", "convert_units"]


def test_options_reach_the_model(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    engine = ScriptedEngine("Hello!")
    asked = use(monkeypatch, engine)
    options = ["--context", "512", "--quantize", "4bit", "--temperature", "0.5", "--max-tokens", "20", "--system"]
    assert run("chat", "some/model", *options, "Be brief.") == (0, "Hello!\n", "")
    assert asked == [ModelChoice("some/model", 512, "4bit")]
    assert engine.kwargs == [{"temperature": 0.5, "max_tokens": 20}]
    assert engine.functions == [None]
    assert engine.prompts[0][0].text == "Be brief."


@pytest.mark.parametrize(("model", "flag", "tools"), [([], "--no-tools", False), (["a/b"], "--tools", True)])
def test_tools_by_flag(monkeypatch: pytest.MonkeyPatch, run: Run, model: list[str], flag: str, tools: bool) -> None:
    engine = ScriptedEngine("Hello!")
    use(monkeypatch, engine)
    assert run("chat", *model, flag)[0] == 0
    assert bool(engine.functions[0]) is tools


def test_no_input_loads_no_model(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    asked = use(monkeypatch, ScriptedEngine())
    assert run("chat", text=" \n\n") == (0, "", "")
    assert asked == []


def test_a_model_that_cannot_be_loaded_is_one_line_and_status_2(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    use(monkeypatch, EngineError("There is no\nmodel \x1b[1mx."))
    assert run("chat", "x") == (2, "", "kani-lite: There is no model \\x1b[1mx.\n")


def test_a_bug_is_one_line_and_status_1(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    use(monkeypatch, ZeroDivisionError("oh"))
    line = "kani-lite: ZeroDivisionError: oh (set KANI_LITE_DEBUG=1 for the traceback)\n"
    assert run("chat", "x") == (1, "", line)
    monkeypatch.setenv("KANI_LITE_DEBUG", "1")
    assert "Traceback" in run("chat", "x")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "chat --context 5",
        "chat --quantize 4bit",
        "chat x --max-tokens 0",
        "chat x --temperature -1",
        "chat --no",
    ],
)
def test_wrong_arguments(run: Run, arguments: str) -> None:
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    assert "kani-lite" in err


def test_version_and_help(run: Run) -> None:
    assert run("--version")[:2] == (0, f"kani-lite {__version__}\n")
    assert "kani-lite chat Qwen/Qwen3-0.6B" in run("--help")[1]
    assert "--no-tools" in run("chat", "--help")[1]


def folder(path: Path, config: str | None) -> str:
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(config)
    return str(path)


def test_folders_are_checked_before_anything_heavy_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    a_file = tmp_path / "model.bin"
    a_file.touch()
    for name, why in [
        (str(tmp_path / "nowhere"), "There is no folder"),
        ("./nowhere", "There is no folder"),
        (folder(tmp_path / "empty", None), "has no config.json"),
        (folder(tmp_path / "broken", "{"), "can't be read"),
        (folder(tmp_path / "list", "[]"), "holds no JSON object"),
        (str(a_file), "is a file"),
        ("a/b/c", "neither a folder nor"),
        ("no spaces please", "neither a folder nor"),
        (" ", "is empty"),
    ]:
        with pytest.raises(EngineError, match=why):
            check_model(ModelChoice(name))
    check_model(ModelChoice(folder(tmp_path / "good", json.dumps({"model_type": "llama"}))))
    check_model(ModelChoice("Qwen/Qwen3-0.6B"))
    check_model(ModelChoice())


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(MissingModelDependencies, match=r"'torch'.*kani-lite\[huggingface\]"):
        check_model(ModelChoice())
