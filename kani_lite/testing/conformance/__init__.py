"""What every engine should do, as cases that run from a test or a script."""

from __future__ import annotations

# each adds its cases to the list, in this order
from . import counting, errors, lifecycle, sampling, streaming, tools  # noqa: F401
from .cases import ENGINE_CASES, EngineCase
from .check import check_engine
from .profile import CaseFailed, CaseSkipped, EngineProfile
from .report import CaseResult, EngineReport

__all__ = [
    "ENGINE_CASES",
    "CaseFailed",
    "CaseResult",
    "CaseSkipped",
    "EngineCase",
    "EngineProfile",
    "EngineReport",
    "check_engine",
]
