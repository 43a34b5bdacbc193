"""Every engine on the local runtime passes the suite, with the embedded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import anyio
import pytest

from kani_lite.engines import BaseEngine, HqqEngine, HuggingEngine, NanoEngine, WrapperEngine
from kani_lite.engines.nano import WEIGHTS
from kani_lite.testing import ENGINE_CASES, EngineCase, EngineProfile, check_engine

# a machine may be busy with other tests
PROFILE = EngineProfile(tool_query="get the price of honey", tool_arguments={"product": "honey"}, end_seconds=60)
# at two bits so small a model says nothing sensible
NO_TOOLS = replace(PROFILE, tool_query=None)
CASES_WITH_CALLS = {"tools_are_called", "calls_can_be_switched_off", "a_full_round_runs"}


def hugging(quantize: str | None = None) -> BaseEngine:
    return HuggingEngine(WEIGHTS, model_load_kwargs={"dtype": "float32"}, quantize=quantize)


def hqq(nbits: int, group_size: int) -> BaseEngine:
    return HqqEngine(WEIGHTS, quantization_config={"nbits": nbits, "group_size": group_size})


ENGINES: dict[str, tuple[Callable[[], BaseEngine], EngineProfile]] = {
    "nano": (NanoEngine, PROFILE),
    "hugging": (hugging, PROFILE),
    "hugging-4bit": (lambda: hugging("4bit"), PROFILE),
    "hugging-8bit": (lambda: hugging("8bit"), PROFILE),
    "hqq-4bit": (lambda: hqq(4, 64), PROFILE),
    "hqq-2bit": (lambda: hqq(2, 16), NO_TOOLS),
    "wrapper": (lambda: WrapperEngine(NanoEngine()), PROFILE),
}


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Half of the engines on each: all share the thread that talks to the loop, which runs on both."""
    params = request.node.callspec.params
    return "trio" if params.get("name") in ("hugging", "hugging-8bit", "hqq-2bit") else "asyncio"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ENGINES)
async def test_engine_passes(name: str) -> None:
    make, profile = ENGINES[name]
    report = await check_engine(make, profile, case_seconds=300)
    report.raise_if_failed()
    skipped = {result.name for result in report.of("skip")}
    assert skipped == (CASES_WITH_CALLS if profile is NO_TOOLS else set()), report
    assert len(report.results) == len(ENGINE_CASES)


# ==== one test for each case, as an engine's author would write it ====


@pytest.fixture(scope="module")
def nano() -> Iterator[NanoEngine]:
    engine = NanoEngine()
    yield engine
    anyio.run(engine.close)


@pytest.mark.parametrize("backend", ["trio"])
@pytest.mark.parametrize("case", ENGINE_CASES, ids=str)
def test_nano(case: EngineCase, nano: NanoEngine, backend: str) -> None:
    async def run() -> None:
        await case(nano, NanoEngine, PROFILE)

    anyio.run(run, backend=backend)
