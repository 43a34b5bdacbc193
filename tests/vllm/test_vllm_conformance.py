"""The suite that every engine passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kani_lite import AIFunction
from kani_lite.testing import ENGINE_CASES, EngineCase, EngineProfile, check_engine

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


PROFILE = EngineProfile(
    tool=AIFunction(get_weather),
    tool_query="What is the weather in Paris?",
    tool_arguments={"city": "Paris"},
    end_seconds=60.0,  # vLLM takes some to end its processes
)


def _cases() -> list[Any]:
    """Of those that start an engine of their own, one is in the short form."""
    long = [case for case in ENGINE_CASES if case.needs_fresh and case.name != "close_leaves_nothing_behind"]
    return [pytest.param(case, id=case.name, marks=[pytest.mark.long] * (case in long)) for case in ENGINE_CASES]


@pytest.mark.parametrize("case", _cases())
async def test_case(case: EngineCase, engine: Any, build: Callable[..., Any]) -> None:
    await case(engine, partial(build, type(engine).__name__), PROFILE)


@pytest.mark.long
@pytest.mark.parametrize("name", ["VLLMEngine", "VLLMServerEngine"])
async def test_the_suite_passes(name: str, build: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    report = await check_engine(lambda: build(name), PROFILE, case_seconds=900.0)
    with capsys.disabled():
        print(f"\n{report.table()}")
    report.raise_if_failed()
    assert len(report.results) == len(ENGINE_CASES)
