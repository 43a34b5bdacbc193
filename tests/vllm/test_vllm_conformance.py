"""The suite that every engine passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kani_lite import AIFunction
from kani_lite.testing import EngineProfile, check_engine


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


PROFILE = EngineProfile(
    tool=AIFunction(get_weather),
    tool_query="What is the weather in Paris?",
    tool_arguments={"city": "Paris"},
    end_seconds=60.0,  # vLLM takes some to end its processes
)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("name", ["VLLMEngine", "VLLMServerEngine"])
async def test_the_suite_passes(name: str, build: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    report = await check_engine(lambda: build(name), PROFILE, case_seconds=900.0)
    with capsys.disabled():
        print(f"\n{report.table()}")
    report.raise_if_failed()
    assert len(report.of("pass")) > 20
