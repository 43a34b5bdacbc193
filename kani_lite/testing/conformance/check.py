"""Running the cases on an engine."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import anyio

from kani_lite.engines.base import BaseEngine

from .cases import ENGINE_CASES, EngineCase
from .probe import MakeEngine, build_engine, named
from .profile import CaseFailed, CaseSkipped, EngineProfile
from .report import CaseResult, EngineReport, Outcome

_log = logging.getLogger(__name__)


async def check_engine(
    make_engine: MakeEngine,
    profile: EngineProfile | None = None,
    *,
    only: Collection[str] | None = None,
    leave_out: Mapping[str, str] | None = None,
    case_seconds: float = 120.0,
) -> EngineReport:
    """Checks an engine, one case after another, and tells what each found.

    `make_engine` builds it, sync (called in a thread) or async, once for most cases, again for those that close it and
    after a case that failed. `only` names the cases to run, `leave_out` those to skip with the reason. A case that
    takes more than `case_seconds` is cancelled and has failed. Raises ValueError for a name that is no case, and what
    `make_engine` raises.
    """
    left_out = dict(leave_out or {})
    names = [case.name for case in ENGINE_CASES]
    if unknown := sorted({*(only or ()), *left_out} - set(names)):
        raise ValueError(f"{unknown[0]!r} is no case; there are {', '.join(names)}.")
    profile = profile or EngineProfile()
    results: list[CaseResult] = []
    engine = await build_engine(make_engine)
    kind = type(engine).__name__
    try:
        for case in ENGINE_CASES:
            if only is not None and case.name not in only:
                continue
            if case.name in left_out:
                results.append(CaseResult(case.name, "skip", left_out[case.name], 0.0))
                continue
            result = await _run(case, engine, make_engine, profile, case_seconds)
            results.append(result)
            if result.outcome == "fail":  # it may have left anything behind
                await _close(engine, profile)
                engine = await build_engine(make_engine)
    finally:
        await _close(engine, profile)
    return EngineReport(kind, tuple(results))


async def _run(
    case: EngineCase, engine: BaseEngine, make_engine: MakeEngine, profile: EngineProfile, seconds: float
) -> CaseResult:
    start = anyio.current_time()
    outcome: Outcome = "pass"
    try:
        with anyio.fail_after(seconds) as scope:
            reason = await case(engine, make_engine, profile)
    except CaseSkipped as skipped:
        outcome, reason = "skip", str(skipped)
    except CaseFailed as failed:
        outcome, reason = "fail", str(failed)
    except Exception as error:  # an engine may raise anything: that is what is told of it
        slow = isinstance(error, TimeoutError) and scope.cancelled_caught
        outcome, reason = "fail", f"It was not done after {seconds} s." if slow else named(error)
    return CaseResult(case.name, outcome, reason, anyio.current_time() - start)


async def _close(engine: BaseEngine, profile: EngineProfile) -> None:
    """What is wrong with `close` is for its own cases to tell."""
    with anyio.CancelScope(shield=True):
        try:
            with anyio.move_on_after(profile.end_seconds):
                await engine.close()
        except Exception:  # it may raise anything
            _log.warning("Closing the %s between two cases failed.", type(engine).__name__, exc_info=True)
