"""Functions that await nothing are told from those that may, since they need no time limit and no task."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any

import pytest
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, FunctionCall, Kani, Limits


async def adds(a: int = 1) -> int:
    """Adds."""
    return a + 1


async def awaits() -> None:
    """Awaits."""
    await asyncio.sleep(0)


async def iterates(items: list[int]) -> None:
    """Iterates."""
    async for _ in items:  # type: ignore[attr-defined]
        pass


async def comprehends(items: list[int]) -> list[int]:
    """Comprehends."""
    return [i async for i in items]  # type: ignore[attr-defined]


async def enters() -> None:
    """Enters."""
    async with nullcontext():
        pass


def in_thread() -> None:
    """Runs in a thread."""


@wraps(adds)
async def wrapped(*args: Any) -> int:
    return await adds(*args)


class Methods:
    async def adds(self) -> int:
        """Adds."""
        return 1

    async def __call__(self) -> int:
        """Adds."""
        return 1


@pytest.mark.parametrize(
    ("function", "never"),
    [
        (adds, True),
        (Methods().adds, True),
        (awaits, False),
        (iterates, False),
        (comprehends, False),
        (enters, False),
        (in_thread, False),
        (wrapped, False),
        (Methods(), True),
        (partial(adds, 2), False),  # what is behind it is not looked at
    ],
)
def test_never_waits(function: Any, never: bool) -> None:
    assert AIFunction(function, name="f", desc="Does it.").never_waits is never


@pytest.mark.parametrize("overridden", [False, True])
async def test_such_functions_run_one_after_another(overridden: bool) -> None:
    order: list[int] = []

    async def note(number: int) -> int:
        """Notes a number."""
        order.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    class Watching(Kani):
        async def do_function_call(self, call: FunctionCall, tool_call_id: str | None = None) -> Any:
            return await super().do_function_call(call, tool_call_id)

    engine = ScriptedEngine(calling(*(call("note", number=i) for i in range(4))), "Done.")
    ai = (Watching if overridden else Kani)(engine, functions=[AIFunction(note)], limits=Limits(parallel_calls=2))
    async for _ in ai.full_round("go"):
        pass
    assert order == [0, 1, 2, 3]
    results = [(m.text, m.is_tool_call_error) for m in ai.chat_history[2:6]]
    assert results == [("0", False), ("1", False), ("two", True), ("3", False)]
