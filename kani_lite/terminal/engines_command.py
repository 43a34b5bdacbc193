"""`kani-lite engines`: which engines there are, and what each would need."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .sanitize import sanitize

if TYPE_CHECKING:
    from kani_lite.engines.registry import EngineInfo

_DESCRIPTION = """\
List the engines that run models: which of them are installed, and what the others need. A line such as the examples
names an engine and its options wherever a MODEL is asked for.
"""
_NARROW, _GAP = 60, 2


def add_engines_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "engines", allow_abbrev=False, help="list the engines, and what each needs", description=_DESCRIPTION
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run_engines(arguments: argparse.Namespace) -> int:
    """Prints the list; the exit status."""
    from kani_lite.engines.registry import engine_schemes

    engines = engine_schemes()
    if arguments.json:
        print(json.dumps([as_dict(engine) for engine in engines], indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
        print("\n".join(table(engines, width)))
    return 0


def as_dict(engine: EngineInfo) -> dict[str, Any]:
    """An engine as JSON takes it."""
    return {
        "engine": engine.scheme,
        "runs": engine.text,
        "installed": not engine.missing,
        "versions": engine.versions,
        "missing": list(engine.missing),
        "install": engine.install,
        "from": engine.origin or "kani-lite",
        "example": engine.example,
    }


def table(engines: Sequence[EngineInfo], width: int) -> list[str]:
    """Lines of at most `width` characters (or 60, if that is less)."""
    left = max([len("engine"), *(len(engine.scheme) for engine in engines)]) + _GAP
    room = max(width, _NARROW) - left
    lines = ["engine".ljust(left) + "runs"]
    for engine in engines:
        for number, text in enumerate([sanitize(engine.text), _state(engine), f"example: {engine.example}"]):
            wrapped = textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False)
            head = sanitize(engine.scheme) if number == 0 else ""
            lines += [(head if i == 0 else "").ljust(left) + part for i, part in enumerate(wrapped)]
    return lines


def _state(engine: EngineInfo) -> str:
    """Whether it can run, or what it would need."""
    if engine.missing:
        return f"needs {', '.join(engine.missing)}: {engine.install}"
    versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    return f"installed ({versions})" if versions else "installed"
