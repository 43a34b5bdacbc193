"""The line editor of the chat: history, completion of commands, several lines, Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

from .commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.document import Document
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

HINT = "Ctrl-D or /exit leaves the chat."


def state_folder() -> Path:
    """Where a program of this user keeps what it remembers on this platform."""
    if named := os.environ.get("XDG_STATE_HOME"):
        return Path(named) / "kani_lite"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "kani_lite"
    return Path.home() / ".local" / "state" / "kani_lite"


def open_history(path: Path | None = None) -> History:
    """The messages of earlier chats, in a file that only the user can read; in memory if it can't be written."""
    try:
        path = path or state_folder() / "history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return InMemoryHistory()
    return _History(str(path))


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            pass  # a full disk must not end a chat


class _CommandCompleter(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if text.startswith("/") and not document.text_after_cursor:
            for name, meaning in COMMANDS.items():
                if name.startswith(text):
                    yield Completion(name, start_position=-len(text), display_meta=meaning)


def _key_bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        fitting = [name for name in COMMANDS if buffer.text.startswith("/") and name.startswith(buffer.text)]
        if len(fitting) == 1:  # at once: the menu is filled in the background, and Enter may come first
            buffer.insert_text(fitting[0][len(buffer.text) :])
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion(insert_common_part=True)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(lambda: print(HINT))

    return keys


class LineEditor:
    """Asks for messages. `on_shown` is called each time that the prompt has been drawn."""

    def __init__(
        self,
        on_shown: Callable[[], None],
        *,
        source: Input | None = None,
        output: Output | None = None,
        history: Path | None = None,
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            history=open_history(history),
            completer=_CommandCompleter(),
            complete_while_typing=True,
            reserve_space_for_menu=len(COMMANDS),
            key_bindings=_key_bindings(),
            prompt_continuation="  ",
            input=source,
            output=output,
        )
        self._session.app.after_render += lambda _: on_shown()

    async def ask(self) -> str | None:
        """The next line, which may hold newlines; None at the end of input, or once `leave` was called."""
        while True:
            try:
                # what a library prints in the meantime appears above the prompt
                with patch_stdout(raw=True):
                    return await self._session.prompt_async()
            except EOFError:
                return None
            except KeyboardInterrupt:
                continue

    def leave(self) -> None:
        """Gives up asking, if it is."""
        if self._session.app.is_running:
            self._session.app.exit(exception=EOFError)
