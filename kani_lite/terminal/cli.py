"""The program `kani-lite`: its arguments, and what becomes of errors."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from kani_lite.exceptions import KaniException

from .convert_command import add_convert_parser, run_convert
from .engines_command import add_engines_parser, run_engines
from .errors import DEBUG_VARIABLE, debugging, describe
from .loading import ModelChoice, ModelLoader, check_model, load_engine
from .prompt_command import add_prompt_parser, run_prompt
from .sanitize import sanitize

_EPILOG = """\
examples:
  kani-lite chat                         the model inside this package, with a few tools
  kani-lite chat Qwen/Qwen3-0.6B         a model from the Hugging Face hub
  kani-lite chat ./my-model --tools      a model in a folder
  kani-lite chat http://localhost:8000/v1  a server that speaks OpenAI's API
  echo "what is 12*7?" | kani-lite chat  one message a line; prints the answers only
  kani-lite prompt nano chat.json        the exact prompt of a saved chat, with its tokens counted
  kani-lite convert gguf nano --type q8_0    a model as a GGUF file, for llama.cpp
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    from kani_lite import __version__

    parser = argparse.ArgumentParser(
        prog="kani-lite",
        description="Chat with language models that run on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kani-lite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chat = commands.add_parser("chat", allow_abbrev=False, help="chat in this terminal, or answer lines of a pipe")
    chat.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder, a hub name, or ENGINE:MODEL?OPTIONS (see `kani-lite engines`; default: the embedded model)",
    )
    chat.add_argument(
        "--tools",
        action=argparse.BooleanOptionalAction,
        help="let the model call a calculator, dice, a clock and a unit converter (default: only the embedded model)",
    )
    chat.add_argument("--system", metavar="TEXT", help="the system prompt")
    chat.add_argument("--temperature", type=_not_negative, metavar="F", help="0 for the likeliest word each time")
    chat.add_argument("--max-tokens", type=_positive, metavar="N", help="the longest reply, in tokens")
    chat.add_argument("--context", type=_positive, metavar="N", help="tokens of the context (needs a MODEL)")
    chat.add_argument("--quantize", choices=["4bit", "8bit"], help="load the weights smaller (needs a MODEL)")
    chat.add_argument("--verbose", action="store_true", help="in a pipe, print the calls of tools to stderr")
    add_prompt_parser(commands, _positive)
    add_convert_parser(commands)
    add_engines_parser(commands)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; the exit status: 0; 1 after an error; 2 if the arguments, a file or the model are no good."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    embedded = arguments.command == "chat" and arguments.model is None
    if embedded and (arguments.context is not None or arguments.quantize is not None):
        parser.error("--context and --quantize need a MODEL")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    if not debugging():
        warnings.simplefilter("ignore")
    if arguments.command == "prompt":
        return _status_of(lambda: run_prompt(arguments))
    if arguments.command == "engines":
        return _status_of(lambda: run_engines(arguments))
    if arguments.command == "convert":
        return _status_of(lambda: run_convert(arguments))
    choice = ModelChoice(arguments.model, arguments.context, arguments.quantize)
    loader = ModelLoader(lambda: load_engine(choice))

    def chat() -> int:
        check_model(choice)
        return _chat(arguments, loader)

    status = _status_of(chat)
    if loader.busy:
        _leave_at_once(status)
    return status


def _status_of(command: Callable[[], int]) -> int:
    """Runs a command; its exit status, whatever it raises."""
    try:
        return command()
    except BrokenPipeError:
        # who read the answers has left; nothing is left to be flushed at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _report(error)


def _chat(arguments: argparse.Namespace, loader: ModelLoader) -> int:
    from .interactive import ChatSetup, chat_interactively

    options = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
    tools = arguments.tools if arguments.tools is not None else arguments.model is None
    setup = ChatSetup(arguments.system, tools, {name: value for name, value in options.items() if value is not None})
    if sys.stdin.isatty() and sys.stdout.isatty():
        chat_interactively(loader, setup)
        return 0
    from .piped import chat_piped

    first = next((line for line in sys.stdin if line.strip()), None)
    if first is None:
        return 0
    lines = (line for part in ([first], sys.stdin) for line in part)
    return chat_piped(loader.load_here(), setup, lines, sys.stdout, sys.stderr, verbose=arguments.verbose)


def _report(error: Exception) -> int:
    """Says what went wrong on one line of stderr; the exit status."""
    if debugging():
        traceback.print_exception(error)
    line = f"kani-lite: {sanitize(describe(error))}"
    if isinstance(error, KaniException):  # its text says what to do
        print(line, file=sys.stderr)
        return 2
    print(f"{line} (set {DEBUG_VARIABLE}=1 for the traceback)", file=sys.stderr)
    return 1


def _leave_at_once(status: int) -> NoReturn:
    """Ends the process without unloading what a thread is still importing, which could crash or take seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
