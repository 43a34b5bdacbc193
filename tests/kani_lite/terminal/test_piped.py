from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite.terminal.interactive import ChatSetup
from kani_lite.terminal.piped import chat_piped


def piped(engine: ScriptedEngine, *lines: str, tools: bool = False, verbose: bool = False) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = chat_piped(engine, ChatSetup(tools=tools), lines, out, err, verbose=verbose)
    return status, out.getvalue(), err.getvalue()


def test_each_line_is_a_message_and_only_answers_are_printed() -> None:
    engine = ScriptedEngine("Hello!", calling(call("calculate", expression="12*7"), text="Hm."), " It is\n84.\n")
    assert piped(engine, "hi\n", "\n", "what is 12*7?", tools=True) == (0, "Hello!\nHm.\nIt is\n84.\n", "")
    assert [m.text for m in engine.prompts[-1]] == ["hi", "Hello!", "what is 12*7?", "Hm.", "84"]


def test_calls_are_on_stderr_if_asked_for() -> None:
    engine = ScriptedEngine(calling(call("calculate", expression="12*7")), "84.")
    status, out, err = piped(engine, "12*7", tools=True, verbose=True)
    assert (status, out, err) == (0, "84.\n", 'calculate(expression="12*7") -> 84\n')


def test_control_characters_are_escaped() -> None:
    assert piped(ScriptedEngine("a\x1b[2J\rb"), "hi")[1] == "a\\x1b[2J\\x0db\n"


def test_a_failed_round_goes_to_stderr_and_shows_in_the_status() -> None:
    status, out, err = piped(ScriptedEngine(RuntimeError("no memory"), "Better."), "a", "b")
    assert (status, out, err) == (1, "Better.\n", "kani-lite: the reply failed: RuntimeError: no memory\n")


def test_nobody_reads_the_answers() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    engine = ScriptedEngine("Hello!", "never said")
    with pytest.raises(BrokenPipeError):
        chat_piped(engine, ChatSetup(), ["a", "b"], Closed(), io.StringIO())
    assert len(engine.prompts) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a thread")
def test_ctrl_c_stops_the_model() -> None:
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            main = threading.main_thread().ident
            assert main is not None
            if not self.getvalue():
                signal.pthread_kill(main, signal.SIGINT)
            return super().write(text)

    class Endless(ScriptedEngine):
        async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async for item in super().stream(*args, **kwargs):
                yield item
                await anyio.sleep_forever()

    engine = Endless("Hello!")
    # a job in the background is started with the signal ignored
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            chat_piped(engine, ChatSetup(), ["a"], Interrupting(), io.StringIO())
    finally:
        signal.signal(signal.SIGINT, previous)
    assert engine.streams_closed == 1
