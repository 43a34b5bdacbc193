"""A few tools that need nothing but the standard library, so that a first chat has something to call.

Their names, parameters and docstrings are what a model reads: the embedded model was trained on them as they stand.
"""

from __future__ import annotations

import random
from datetime import datetime
from typing import TYPE_CHECKING

from . import calculator, units

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction


def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return calculator.evaluate(expression)


def roll_dice(count: int = 1, sides: int = 6) -> str:
    """Roll dice and add them up."""
    if not 1 <= count <= 1000:
        raise ValueError(f"Between 1 and 1000 dice can be rolled, not {count}.")
    if not 2 <= sides <= 1_000_000:
        raise ValueError(f"A die has between 2 and 1000000 sides, not {sides}.")
    return str(sum(random.randint(1, sides) for _ in range(count)))


def current_time() -> str:
    """Get the current date and time."""
    now = _now()
    return f"It is {now:%H:%M} on {now:%A} {now.day} {now:%B} {now.year}."


def convert_units(value: float, from_unit: str, to_unit: str) -> str:
    """Convert a value from one unit to another."""
    result = units.convert(value, from_unit, to_unit)
    return f"{units.format_number(value)} {from_unit.strip()} is {units.format_number(result)} {to_unit.strip()}."


def demo_tools() -> list[AIFunction]:
    """The tools, ready for `Kani(engine, functions=demo_tools())`."""
    from kani_lite.functions import AIFunction

    return [AIFunction(tool) for tool in (calculate, roll_dice, current_time, convert_units)]


def _now() -> datetime:
    return datetime.now().astimezone()
