"""The program as people start it, with the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def kani_lite(
    *args: str, said: str = "", cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "kani_lite", *args]
    return subprocess.run(program, input=said, capture_output=True, text=True, cwd=cwd, env=env, check=False)


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    said = ["hi", "what is 37 times 12?", "my name is Ada", "what is my name?", "what is 12*7?"]
    done = kani_lite("chat", said="\n".join(said) + "\n", cwd=tmp_path_factory.mktemp("chat"))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_greets_calculates_and_remembers(replies: list[str]) -> None:
    assert len(replies) == 5
    assert "Nano" in replies[0]
    assert "444" in replies[1]
    assert "Ada" in replies[2]
    assert "Ada" in replies[3]
    assert "84" in replies[4]


def broken(folder: Path, config: str | None) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("no such folder", "no-such-folder"),
        ("empty folder", "config.json"),
        ("broken config", "config.json"),
        ("unknown model", "martian"),
        ("no weights", "weights"),
    ],
)
def test_a_model_that_can_not_be_loaded_is_one_line_and_status_2(case: str, says: str, tmp_path: Path) -> None:
    folder = {
        "no such folder": lambda: tmp_path / "no-such-folder",
        "empty folder": lambda: broken(tmp_path / "empty", None),
        "broken config": lambda: broken(tmp_path / "broken", '{"model_type": '),
        "unknown model": lambda: broken(tmp_path / "unknown", json.dumps({"model_type": "martian"})),
        "no weights": lambda: broken(tmp_path / "bare", json.dumps({"model_type": "llama"})),
    }[case]()
    done = kani_lite("chat", str(folder), said="hi\n", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_empty_input_is_no_error(tmp_path: Path) -> None:
    done = kani_lite("chat", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_without_torch_one_line_says_what_to_install(tmp_path: Path) -> None:
    # Python looks torch up as ever, and doesn't find it
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "real = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        "    return None if name.partition('.')[0] == 'torch' else real(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
    )
    done = kani_lite("chat", said="hi\n", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin"})
    assert done.returncode == 2
    assert "kani-lite[huggingface]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
