"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .profile import CaseFailed

Outcome = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class CaseResult:
    """What became of one case. `reason`: why it failed or was skipped, or what was measured."""

    name: str
    outcome: Outcome
    reason: str
    seconds: float


@dataclass(frozen=True)
class EngineReport:
    """What a check found about one engine."""

    engine: str
    results: tuple[CaseResult, ...]

    def of(self, outcome: Outcome) -> list[CaseResult]:
        """The results with this outcome."""
        return [result for result in self.results if result.outcome == outcome]

    @property
    def failed(self) -> list[CaseResult]:
        return self.of("fail")

    def table(self) -> str:
        """All results, one a line."""
        width = max((len(result.name) for result in self.results), default=0)
        rows = [f"{r.name:<{width}}  {r.outcome}  {r.seconds:6.2f} s  {r.reason}".rstrip() for r in self.results]
        counts = ", ".join(f"{len(self.of(outcome))} {outcome}" for outcome in ("pass", "fail", "skip"))
        return "\n".join([f"{self.engine}: {counts}", *rows])

    def raise_if_failed(self) -> None:
        """Raises CaseFailed with the reasons if a case failed."""
        if self.failed:
            reasons = "\n".join(f"{result.name}: {result.reason}" for result in self.failed)
            raise CaseFailed(f"{self.engine} failed {len(self.failed)} of {len(self.results)} cases.\n{reasons}")

    def __str__(self) -> str:
        return self.table()
