"""Engines without a model of their own pass what can be asked of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from kani_lite import ChatMessage, ToolCall
from kani_lite.engines import NanoEngine
from kani_lite.messages import ChatRole
from kani_lite.testing import EngineProfile, Pause, RecordingEngine, Reply, ScriptedEngine, check_engine

QUERY = "get the price of honey"


def answer(messages: list[ChatMessage]) -> str | Reply:
    """What a small model might say."""
    last = messages[-1] if messages else ChatMessage.user("")
    if last.role is ChatRole.FUNCTION:
        return f"I have looked. {last.text}"
    if last.text == QUERY:
        return Reply(ToolCall.from_function("get_price", product="honey"))
    if "Count" in (last.text or ""):
        return Reply(*[part for _ in range(200) for part in ("one, ", Pause(0.01))])
    return f"You said: {last.text}"


def scripted() -> ScriptedEngine:
    return ScriptedEngine(otherwise=answer)


async def test_scripted_engine() -> None:
    profile = EngineProfile(
        greedy={}, long={}, sampling=False, tool_query=QUERY, tool_arguments={"product": "honey"}, end_seconds=60
    )
    left_out = {"calls_can_be_switched_off": "a script says what is written, whatever is on offer"}
    report = await check_engine(scripted, profile, leave_out=left_out)
    report.raise_if_failed()
    about_sampling = {
        "seed_repeats",
        "max_tokens_is_kept",
        "stop_texts_end_the_reply",
        "unknown_names_are_refused",
        "wrong_values_are_refused",
        "no_parameter_is_dropped",
        "sampling_beside_others_repeats",
    }
    assert {result.name for result in report.of("skip")} == {*about_sampling, *left_out}


def recorded(folder: Path) -> Callable[[], RecordingEngine]:
    numbers = count()
    return lambda: RecordingEngine(NanoEngine(), folder / f"{next(numbers)}.jsonl")


async def test_recording_changes_nothing(tmp_path: Path) -> None:
    profile = EngineProfile(tool_query=QUERY, tool_arguments={"product": "honey"}, end_seconds=60)
    report = await check_engine(recorded(tmp_path), profile, case_seconds=300)
    report.raise_if_failed()
    assert not report.of("skip")
