"""For tests: engines that need no model, and a check for engines that have one."""

from __future__ import annotations

from kani_lite.engines.replay import RecordingEngine, ReplayEngine, StrictEngine, UnexpectedCall

from .conformance import (
    ENGINE_CASES,
    CaseFailed,
    CaseResult,
    CaseSkipped,
    EngineCase,
    EngineProfile,
    EngineReport,
    check_engine,
)
from .scripted import Gate, Pause, Reply, ScriptedEngine

__all__ = [
    "ENGINE_CASES",
    "CaseFailed",
    "CaseResult",
    "CaseSkipped",
    "EngineCase",
    "EngineProfile",
    "EngineReport",
    "Gate",
    "Pause",
    "RecordingEngine",
    "ReplayEngine",
    "Reply",
    "ScriptedEngine",
    "StrictEngine",
    "UnexpectedCall",
    "check_engine",
]
