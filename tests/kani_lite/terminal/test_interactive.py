from __future__ import annotations

import io
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import ChatMessage, Kani
from kani_lite.engines.base import BaseCompletion, BaseEngine
from kani_lite.exceptions import EngineError
from kani_lite.terminal.commands import command_of
from kani_lite.terminal.interactive import ChatSetup, InteractiveChat
from kani_lite.terminal.loading import ModelLoader
from kani_lite.terminal.replies import Reply, keep_what_was_said
from kani_lite.terminal.screen import Screen

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # prompt_toolkit needs it


class Lines:
    """Types these lines, then Ctrl-D; an Event among them is waited for."""

    def __init__(self, *lines: str | anyio.Event) -> None:
        self.lines = list(lines)
        self.left = anyio.Event()

    async def ask(self) -> str | None:
        while self.lines:
            line = self.lines.pop(0)
            if isinstance(line, str):
                return line
            await line.wait()
        return None

    def leave(self) -> None:
        self.left.set()


class InterruptedEngine(ScriptedEngine):
    """Ctrl-C is pressed after each reply's text, before its end."""

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for item in super().stream(*args, **kwargs):
            if isinstance(item, BaseCompletion) and not item.message.tool_calls:
                signal.raise_signal(signal.SIGINT)
                await anyio.sleep_forever()
            yield item


async def chat(engine: BaseEngine, *lines: str, **setup: Any) -> tuple[str, Kani | None]:
    """What is on the screen after these lines, without escapes, and the chat."""
    out = io.StringIO()
    ui = InteractiveChat(ModelLoader(lambda: engine), ChatSetup(**setup), Screen(out, escapes=False), Lines(*lines))
    await ui.run()
    return out.getvalue().removeprefix("loading the model...\n"), ui.ai


async def test_a_conversation() -> None:
    engine = ScriptedEngine("Hello!", "Fine.")
    out, ai = await chat(engine, "hi", "  ", "how are you?", options={"temperature": 0.0}, system_prompt="Be kind.")
    assert out == "Hello!\n12 / 10000 tokens\nFine.\n12 / 10000 tokens\n"
    assert engine.kwargs == [{"temperature": 0.0}] * 2
    assert [m.text for m in engine.prompts[1]] == ["Be kind.", "hi", "Hello!", "how are you?"]
    assert ai is not None


async def test_a_tool_call() -> None:
    engine = ScriptedEngine(calling(call("calculate", expression="37 * 12")), "It is 444.")
    out, _ = await chat(engine, "what is 37 times 12?", tools=True)
    assert out.splitlines()[:2] == ['calculate(expression="37 * 12") -> 444', "It is 444."]


async def test_the_reply_waits_for_the_model_and_says_so() -> None:
    may_load = threading.Event()
    out = io.StringIO()

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "loading" in text:
                may_load.set()
            return out.write(text)

    def load() -> BaseEngine:
        assert may_load.wait(60)
        return ScriptedEngine("Hello!")

    ui = InteractiveChat(ModelLoader(load), ChatSetup(), Screen(Watched(), escapes=True), Lines("/tools", "hi"))
    await ui.run()
    assert out.getvalue().startswith("\x1b[2mThe model is being loaded")
    assert "\x1b[2mloading the model...\x1b[0m\r\x1b[KHello!\n" in out.getvalue()


async def test_ctrl_c_keeps_what_was_said() -> None:
    out, ai = await chat(InterruptedEngine("Once upon a", "time"), "tell a story", "go on")
    assert out == "Once upon a\n(stopped)\ntime\n(stopped)\n"
    assert ai is not None
    assert [m.text for m in ai.chat_history] == ["tell a story", "Once upon a", "go on", "time"]


async def test_ctrl_c_after_a_tool_call_keeps_both() -> None:
    engine = InterruptedEngine(calling(call("calculate", expression="1 + 1")), "It is")
    out, ai = await chat(engine, "1 + 1?", tools=True)
    assert out == 'calculate(expression="1 + 1") -> 2\nIt is\n(stopped)\n'
    assert ai is not None
    assert [m.text for m in ai.chat_history] == ["1 + 1?", None, "2", "It is"]


async def test_ctrl_c_while_the_model_loads() -> None:
    may_load = threading.Event()

    class Impatient(io.StringIO):
        def write(self, text: str) -> int:
            if "loading" in text:
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    def load() -> BaseEngine:
        may_load.wait(60)
        return ScriptedEngine()

    screen = Impatient()
    ui = InteractiveChat(ModelLoader(load), ChatSetup(), Screen(screen, escapes=False), Lines("hi"))
    await ui.run()
    may_load.set()
    assert screen.getvalue() == "loading the model...\n(stopped)\n"
    assert ui.ai is None


async def test_what_a_rolled_back_round_had_is_put_back() -> None:
    asked = calling(call("f", id_="1"))
    unanswered = calling(call("f", id_="2"))
    answer = ChatMessage.function("f", "r", "1")
    ai = Kani(ScriptedEngine())
    await keep_what_was_said(ai, "q", Reply("half a", [asked, answer, unanswered]), before=0)
    assert ai.chat_history == [ChatMessage.user("q"), asked, answer, ChatMessage.assistant("half a")]
    await keep_what_was_said(ai, "q", Reply("  ", [unanswered]), before=4)
    assert len(ai.chat_history) == 4


async def test_a_failed_round_is_one_line_and_the_chat_goes_on() -> None:
    out, _ = await chat(ScriptedEngine(RuntimeError("out of\n\x1b[31mmemory"), "Better."), "a", "b")
    assert out.splitlines() == [
        "The reply failed: RuntimeError: out of \\x1b[31mmemory",
        "Better.",
        "12 / 10000 tokens",
    ]


@pytest.mark.parametrize("lines", [("hi",), (anyio.Event,)])
async def test_a_model_that_cannot_be_loaded_ends_the_chat(lines: tuple[Any, ...]) -> None:
    def load() -> BaseEngine:
        raise EngineError("There is no model like that.")

    loader = ModelLoader(load)
    typed = Lines("hi")
    if lines != ("hi",):  # it fails while the user is being asked
        typed.lines = [typed.left]
        loader.start()
    with pytest.raises(EngineError, match="no model like that"):
        await InteractiveChat(loader, ChatSetup(), Screen(io.StringIO()), typed).run()


async def test_commands() -> None:
    engine = ScriptedEngine("Hello!", "Hello!")
    lines = ["/nonsense now", "hi", "/tools", "/reset", "hi", "/help", "/exit", "never sent"]
    out, ai = await chat(engine, *lines, tools=True)
    assert "There is no command /nonsense" in out
    assert "calculate(expression): Evaluate an arithmetic expression." in out
    assert "Ctrl-C" in out
    assert len(engine.prompts) == 2
    assert ai is not None
    assert len(ai.chat_history) == 2


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/exit", "/exit"),
        (" /QUIT ", "/exit"),
        ("/help me", "/help"),
        ("/?", "/help"),
        ("/", "/"),
        ("/what-is-this", "/what-is-this"),
        ("/home/ada/notes.txt what is this?", None),
        ("1/2", None),
        ("/exit\nis a command", None),
    ],
)
async def test_what_is_a_command(line: str, command: str | None) -> None:
    assert command_of(line) == command


async def test_a_chat_without_tools_says_so() -> None:
    out, ai = await chat(ScriptedEngine("Hello!"), "hi", "/tools")
    assert "The model has no tools." in out
    assert ai is not None
    assert not ai.functions
