"""The chat on a terminal: the prompt is there at once, the model is loaded behind it, Ctrl-C stops a reply."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from .commands import Then, run_command
from .errors import describe
from .replies import Reply, keep_what_was_said, run_round
from .screen import ReplyView, Screen

if TYPE_CHECKING:
    from kani_lite.engines.base import BaseEngine
    from kani_lite.kani import Kani

    from .loading import ModelLoader


@dataclass(frozen=True)
class ChatSetup:
    """How the chat's Kani is made, and its rounds are run."""

    system_prompt: str | None = None
    tools: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # of each round: temperature, max_tokens

    def kani(self, engine: BaseEngine) -> Kani:
        from kani_lite.kani import Kani

        from .demo_tools import demo_tools

        return Kani(engine, self.system_prompt, functions=demo_tools() if self.tools else None)


class Asks(Protocol):
    """Where messages come from: `prompt.LineEditor`."""

    async def ask(self) -> str | None:
        """The next line; None at the end of input, or once `leave` was called."""

    def leave(self) -> None:
        """Gives up asking."""


class InteractiveChat:
    """Reads messages from a prompt and shows the replies, until the user leaves. Needs asyncio."""

    def __init__(self, loader: ModelLoader, setup: ChatSetup, screen: Screen, editor: Asks) -> None:
        self.ai: Kani | None = None
        self._loader = loader
        self._setup = setup
        self._screen = screen
        self._editor = editor

    async def run(self) -> None:
        """Chats until the user leaves. Raises what loading the model raised."""
        loop = asyncio.get_running_loop()
        self._loader.on_failure(lambda: loop.call_soon_threadsafe(self._editor.leave))
        while (line := await self._ask()) is not None:
            if not line.strip():
                continue
            then = run_command(line, self._kani_if_ready(), self._screen)
            if then is Then.LEAVE:
                break
            if then is Then.SEND:
                await self._reply(line.strip())
        if self.ai is not None:
            await self.ai.engine.close()

    async def _ask(self) -> str | None:
        """The next line; None at the end of input."""
        line = None
        if self._loader.error is None:
            line = await self._editor.ask()
        if (error := self._loader.error) is not None:
            raise error
        return line

    def _kani_if_ready(self) -> Kani | None:
        if self.ai is None and (engine := self._loader.engine_if_ready()) is not None:
            self.ai = self._setup.kani(engine)
        return self.ai

    async def _loaded(self) -> Kani:
        if (ai := self._kani_if_ready()) is None:
            self._screen.dim("loading the model...")
            try:
                engine = await self._loader.engine()
            finally:
                self._screen.erase_line()
            ai = self.ai = self._setup.kani(engine)
        return ai

    async def _reply(self, query: str) -> None:
        """One round. Ctrl-C stops it, and what was said is kept; an error is shown, and the chat goes on."""
        reply, view = Reply(), ReplyView(self._screen)
        before = len(self.ai.chat_history) if self.ai is not None else 0
        with anyio.CancelScope() as scope, _on_ctrl_c(scope.cancel):
            ai = await self._loaded()
            try:
                await run_round(ai, query, view.show, reply, self._setup.options)
            except Exception as error:
                view.finish()
                self._screen.line(f"The reply failed: {describe(error)}")
                return
            finally:
                view.finish()
        if scope.cancelled_caught:
            self._screen.line("(stopped)")
            if self.ai is not None:
                await keep_what_was_said(self.ai, query, reply, before)
        elif self.ai is not None and (status := reply.status(self.ai.max_context_size)):
            self._screen.line(status)


@contextmanager
def _on_ctrl_c(cancel: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C cancels instead of ending the program; pressed again while that takes effect, it does end it."""
    loop = asyncio.get_running_loop()
    pressed = False

    def handle(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        loop.call_soon_threadsafe(cancel)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def chat_interactively(loader: ModelLoader, setup: ChatSetup) -> None:
    """The chat on this process's terminal. Raises what loading the model raised."""
    from .prompt import LineEditor

    # the model is loaded once the prompt is there: importing torch would hold up drawing it
    chat = InteractiveChat(loader, setup, Screen(sys.stdout), LineEditor(loader.start))
    anyio.run(chat.run, backend="asyncio")
