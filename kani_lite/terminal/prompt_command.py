"""`kani-lite prompt`: the exact prompt that a model gets for a chat, and what each message adds to it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .screen import has_escapes

_DESCRIPTION = """\
Show the exact prompt for a chat, coloured by role, and how many tokens each message adds. In a pipe, the prompt goes
to stdout as it is, and the table to stderr.
"""


def add_prompt_parser(commands: Any, positive: Any) -> None:
    """Adds the command. `positive`: makes a number of an argument."""
    parser = commands.add_parser(
        "prompt", allow_abbrev=False, help="show the prompt that a chat makes", description=_DESCRIPTION
    )
    parser.add_argument(
        "source",
        metavar="MODEL_OR_FORMAT",
        help="a folder, a hub name, 'nano' for the embedded model, a named format, or a .jinja file",
    )
    parser.add_argument("file", metavar="FILE", help="a saved chat, or a JSON list of messages; '-' for stdin")
    parser.add_argument("--tools", metavar="FILE", help="a JSON list of the tools, as OpenAI's API takes them")
    parser.add_argument("--no-color", action="store_true", help="no colours on a terminal")
    parser.add_argument("--no-generation-prompt", action="store_true", help="end with the last message")
    parser.add_argument("--context", type=positive, metavar="N", help="say how much of a context of N is left")


def run_prompt(arguments: argparse.Namespace) -> int:
    """Shows the prompt; the exit status. Raises KaniException if an argument or a file is no good."""
    from .prompt_input import read_chat, read_tools
    from .prompt_parts import analyse
    from .prompt_source import find_source
    from .prompt_view import show_prompt, show_table

    messages, functions = read_chat(arguments.file)  # before the tokenizer, which may take seconds
    if arguments.tools is not None:
        functions = read_tools(arguments.tools)
    source = find_source(arguments.source)
    prompt = analyse(source, messages, functions, not arguments.no_generation_prompt)
    terminal = sys.stdout.isatty()
    table = sys.stdout if terminal else sys.stderr
    if terminal:
        show_prompt(prompt, messages, sys.stdout, colour=has_escapes(sys.stdout) and not arguments.no_color)
        print()
    else:
        sys.stdout.write(prompt.text)
    sys.stdout.flush()
    show_table(
        prompt,
        messages,
        functions,
        table,
        unit=source.unit,
        context=arguments.context,
        colour=has_escapes(table) and not arguments.no_color,
    )
    table.flush()
    return 0
