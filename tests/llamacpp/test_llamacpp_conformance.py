"""The suite that every engine passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kani_lite.testing import EngineProfile, check_engine

PROFILE = EngineProfile(
    # the embedded model is so sure of some answers that even at temperature 2 most seeds give them
    query="What is the weather?",
    tool_query="get the price of honey",
    tool_arguments={"product": "honey"},
    end_seconds=60.0,
)
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {"model_load_kwargs": {}},
    "strict": {"strict_tools": True},
    "q8_0": {"kind": "q8_0", "model_load_kwargs": {"type_k": "q8_0", "type_v": "q8_0"}, "max_batch_size": 3},
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ENGINES)
async def test_the_suite_passes(name: str, build: Callable[..., Any]) -> None:
    report = await check_engine(lambda: build(**ENGINES[name]), PROFILE, case_seconds=100.0)
    report.raise_if_failed()
    assert not report.of("skip")
    assert len(report.of("pass")) > 30
