from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, Kani
from kani_lite.terminal import chat_in_terminal, chat_in_terminal_async


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """These lines are typed; then the input ends."""
    left: Iterator[str] = iter(lines)

    def read(prompt: str = "") -> str:
        for line in left:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_chat_until_the_input_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: bool
) -> None:
    type_lines(monkeypatch, " hello ", "again")
    ai = Kani(ScriptedEngine("Hi there.", "Yes\x1b[2J?"))
    await chat_in_terminal_async(ai, stream=stream)
    assert capsys.readouterr().out == "AI: Hi there.\nAI: Yes\\x1b[2J?\n"
    assert [m.text for m in ai.chat_history] == ["hello", "Hi there.", "again", "Yes\x1b[2J?"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "AI: Thinking... [add]\nAI: 3.\n"),
        ({"show_function_args": True}, "AI: Thinking... [add(a=1, b=2)]\nAI: 3.\n"),
        ({"show_function_returns": True}, "AI: Thinking... [add]\nFUNC: 3\nAI: 3.\n"),
        ({"verbose": True}, "USER: add\nAI: Thinking... [add(a=1, b=2)]\nFUNC: 3\nAI: 3.\n"),
        ({"echo": True, "stream": False}, "USER: add\nAI: Thinking... [add]\nAI: 3.\n"),
    ],
)
async def test_functions_are_shown_as_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: dict[str, Any], expected: str
) -> None:
    type_lines(monkeypatch, "add")
    engine = ScriptedEngine(calling(call("add", a=1, b=2)), "3.")
    await chat_in_terminal_async(Kani(engine, functions=[AIFunction(add)]), rounds=1, **options)
    assert capsys.readouterr().out == expected


@pytest.mark.anyio
async def test_the_model_may_speak_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_lines(monkeypatch, "Ada")
    ai = Kani(ScriptedEngine("Who are you?", "Hello Ada."), "You greet people.")
    await chat_in_terminal_async(ai, rounds=2, ai_first=True)
    assert capsys.readouterr().out == "AI: Who are you?\nAI: Hello Ada.\n"
    assert [m.role.value for m in ai.chat_history] == ["assistant", "user", "assistant"]


def test_stopword_and_rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_lines(monkeypatch, "a", "!stop", "b")
    chat_in_terminal(Kani(ScriptedEngine("one", "two")), stopword="!stop")
    chat_in_terminal(Kani(ScriptedEngine("one", "two")), rounds=1, width=20)
    assert capsys.readouterr().out == "AI: one\nAI: one\n"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_in_a_running_loop_it_names_the_async_version() -> None:
    with pytest.raises(RuntimeError, match="await chat_in_terminal_async"):
        chat_in_terminal(Kani(ScriptedEngine()))
