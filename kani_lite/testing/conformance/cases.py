"""What a case is, and the list of all."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from kani_lite.engines.base import BaseEngine

from .probe import MakeEngine, Probe
from .profile import EngineProfile

Body: TypeAlias = Callable[[Probe], Awaitable[str | None]]


@dataclass(frozen=True)
class EngineCase:
    """One thing that an engine should do. `about` says it in a line; `needs_fresh`: it builds an engine to close."""

    name: str
    about: str
    body: Body
    needs_fresh: bool = False

    async def __call__(
        self, engine: BaseEngine, make_engine: MakeEngine | None = None, profile: EngineProfile | None = None
    ) -> str:
        """Checks it on `engine`, and says what was measured. `make_engine` builds another for cases that close theirs.
        Raises CaseFailed, or what the engine raised; CaseSkipped where there is nothing to check."""
        try:
            return await self.body(Probe(engine, make_engine, profile or EngineProfile())) or ""
        except ExceptionGroup as group:  # of a case that asks several things at once: the first says enough
            error: Exception = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            raise error from group

    def __str__(self) -> str:
        return self.name


ENGINE_CASES: list[EngineCase] = []
"""Every case, in the order in which they are run."""


def case(body: Body) -> Body:
    """Makes a function one of the cases, by its name and the first line of its docstring."""
    about = (inspect.getdoc(body) or "").split("\n")[0]
    name = getattr(body, "__name__", "")
    ENGINE_CASES.append(EngineCase(name, about, body))
    return body


def closing_case(body: Body) -> Body:
    """The same for one that builds its own engine and closes it."""
    case(body)
    last = ENGINE_CASES.pop()
    ENGINE_CASES.append(EngineCase(last.name, last.about, last.body, needs_fresh=True))
    return body
