"""The suite that every engine passes, with the embedded model behind a server of the test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import anyio
import pytest
from openai_server import Script, script_of, serving

from kani_lite.engines import NanoEngine, OpenAIEngine
from kani_lite.testing import ENGINE_CASES, EngineProfile, check_engine

PROFILE = EngineProfile(tool_query="get the price of honey", tool_arguments={"product": "honey"}, end_seconds=60)


@pytest.fixture(scope="module")
def served() -> Iterator[Script]:
    engine = NanoEngine()
    with serving(script_of(engine)) as script:
        yield script
    anyio.run(engine.close)


@pytest.mark.timeout(600)
async def test_it_passes_the_suite(served: Script) -> None:
    make = partial(OpenAIEngine, api_base=served.url, api_key="none", max_tokens=200)
    report = await check_engine(make, PROFILE, case_seconds=300)
    report.raise_if_failed()
    assert not report.of("skip"), report
    assert len(report.results) == len(ENGINE_CASES)
