from __future__ import annotations

import stat
import sys
from pathlib import Path

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kani_lite.terminal.prompt import LineEditor, open_history, state_folder


def typed(history: Path, keys: str, times: int = 1) -> list[str | None]:
    """What the prompt returns when these keys are pressed."""
    shown = []

    async def ask() -> list[str | None]:
        editor = LineEditor(lambda: shown.append(1), source=source, output=DummyOutput(), history=history)
        return [await editor.ask() for _ in range(times)]

    with create_pipe_input() as source, create_app_session(input=source, output=DummyOutput()):
        source.send_text(keys)
        lines = anyio.run(ask, backend="asyncio")
    assert shown
    return lines


def test_lines_and_the_end_of_input(tmp_path: Path) -> None:
    assert typed(tmp_path / "h", "hello\r\x04", times=2) == ["hello", None]


def test_alt_enter_and_pasting_make_several_lines(tmp_path: Path) -> None:
    assert typed(tmp_path / "h", "one\x1b\rtwo\r") == ["one\ntwo"]
    assert typed(tmp_path / "h", "\x1b[200~one\ntwo\n\x1b[201~three\r") == ["one\ntwo\nthree"]


def test_ctrl_c_clears_the_line_then_hints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(tmp_path / "h", "wrong\x03right\r") == ["right"]


def test_commands_are_completed(tmp_path: Path) -> None:
    assert typed(tmp_path / "h", "/res\t\r") == ["/reset"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files are POSIX")
def test_history_is_kept_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    assert isinstance(open_history(path), FileHistory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert typed(path, "first\r") == ["first"]
    assert list(FileHistory(str(path)).load_history_strings()) == ["first"]


def test_history_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)


def test_history_is_in_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "kani_lite"
