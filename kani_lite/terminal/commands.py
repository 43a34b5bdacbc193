"""What a user can ask of the chat itself: lines that begin with a slash."""

from __future__ import annotations

import inspect
import re
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kani_lite.kani import Kani

    from .screen import Screen

COMMANDS = {
    "/help": "show this",
    "/tools": "list the tools that the model may call",
    "/reset": "forget the conversation and start anew",
    "/exit": "leave (or Ctrl-D)",
}
_KEYS = {
    "Enter": "send the message",
    "Alt-Enter": "begin a new line in it",
    "Ctrl-C": "stop the reply, or clear the message that is being typed",
}
_ALIASES = {"/quit": "/exit", "/?": "/help", "/bye": "/exit"}


class Then(Enum):
    """What follows a line."""

    SEND = auto()  # it isn't a command
    GO_ON = auto()
    LEAVE = auto()


def command_of(line: str) -> str | None:
    """The command that a line is, known or not. A path such as /home/ada is none."""
    match = re.fullmatch(r"(/(?:[A-Za-z_-]*|\?))([ \t][^\n]*)?", line.strip())
    return _ALIASES.get(match[1].lower(), match[1].lower()) if match else None


def run_command(line: str, ai: Kani | None, screen: Screen) -> Then:
    """Does what the line asks for, if it is a command. `ai` is None until the model is loaded."""
    command = command_of(line)
    match command:
        case None:
            return Then.SEND
        case "/exit":
            return Then.LEAVE
        case "/help":
            for name, meaning in (COMMANDS | _KEYS).items():
                screen.line(f"{name:<10} {meaning}")
        case "/reset":
            if ai is not None:
                ai.chat_history.clear()
            screen.line("The conversation is forgotten.")
        case "/tools":
            _list_tools(ai, screen)
        case _:
            screen.line(f"There is no command {command}; /help lists them. It was not sent to the model.")
    return Then.GO_ON


def _list_tools(ai: Kani | None, screen: Screen) -> None:
    if ai is None:
        screen.line("The model is being loaded; ask again when it has answered.")
        return
    functions = ai.get_enabled_functions()
    if not functions:
        screen.line("The model has no tools. Start the chat with --tools to give it some.")
    for function in functions:
        names = ", ".join(inspect.signature(function.inner).parameters)
        screen.line(f"{function.name}({names}): {function.desc or ''}")
