"""What a check reports, whatever an engine does."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import anyio
import pytest

from kani_lite import ChatMessage
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.testing import (
    ENGINE_CASES,
    CaseFailed,
    CaseResult,
    CaseSkipped,
    EngineProfile,
    EngineReport,
    ScriptedEngine,
    check_engine,
)

PROFILE = EngineProfile(greedy={}, long={}, sampling=False)
CASES = {case.name: case for case in ENGINE_CASES}


class Bare(BaseEngine):
    """The least that an engine may be: it defines `prompt_len`, async, and `predict`."""

    max_context_size = 1000
    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    async def prompt_len(self, messages: Any, functions: Any = None, **kwargs: Any) -> int:  # type: ignore[override]  # async
        await anyio.lowlevel.checkpoint()
        return 1 + sum(len(message.text or "") for message in messages)

    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        await anyio.lowlevel.checkpoint()
        return Completion(ChatMessage.assistant("yes"))


class Fails(Bare):
    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        raise LookupError("no such model")


class Hangs(Bare):
    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        await anyio.sleep_forever()
        raise AssertionError


async def test_the_least_engine_gets_results_that_fit_it() -> None:
    only = ["counting_equals_the_prompt", "counts_grow_with_the_chat", "stream_equals_predict", "usage_is_told"]
    report = await check_engine(Bare, PROFILE, only=only)
    assert report.engine == "Bare"
    found = {result.name: (result.outcome, result.reason) for result in report.results}
    assert found == {
        "counting_equals_the_prompt": ("skip", "Its completions don't say how many tokens their prompts had."),
        "counts_grow_with_the_chat": ("pass", "prompt_len only: the engine doesn't count single messages"),
        "stream_equals_predict": ("pass", ""),
        "usage_is_told": ("pass", "None + None tokens"),
    }


async def test_what_an_engine_raises_is_the_reason_and_the_next_case_gets_a_new_engine() -> None:
    Fails.made = 0
    report = await check_engine(Fails, PROFILE, only=["greedy_repeats", "usage_is_told", "eight_at_once"])
    assert [result.outcome for result in report.results] == ["fail"] * 3
    assert {result.reason for result in report.results} == {"LookupError: 'no such model'"}
    assert Fails.made == 4
    with pytest.raises(CaseFailed, match="Fails failed 3 of 3 cases") as caught:
        report.raise_if_failed()
    assert "greedy_repeats: LookupError" in str(caught.value)


async def test_a_case_that_hangs_has_failed() -> None:
    report = await check_engine(Hangs, PROFILE, only=["greedy_repeats"], case_seconds=0.05)
    (result,) = report.results
    assert (result.outcome, result.reason) == ("fail", "It was not done after 0.05 s.")


async def test_an_estimate_need_not_be_exact() -> None:
    class Estimates(ScriptedEngine):
        counts_exactly = False

        def prompt_len(self, *args: Any, **kwargs: Any) -> Any:
            counted: Any = super().prompt_len(*args, **kwargs)
            return counted * 2

    def make() -> ScriptedEngine:
        return Estimates(otherwise="yes")

    only = ["counting_equals_the_prompt"]
    report = await check_engine(make, PROFILE, only=only)
    assert [(r.outcome, r.reason) for r in report.results] == [("pass", "an estimate, off by at most 100%")]
    Estimates.counts_exactly = True
    assert (await check_engine(make, PROFILE, only=only)).failed


async def test_async_makers_work_and_others_are_refused() -> None:
    async def make() -> BaseEngine:
        await anyio.lowlevel.checkpoint()
        return Bare()

    assert not (await check_engine(make, PROFILE, only=["greedy_repeats"])).failed
    with pytest.raises(TypeError, match="make_engine should return an engine, and returned 'Bare'"):
        await check_engine(lambda: "Bare", PROFILE)  # type: ignore[arg-type, return-value]  # a mistake
    with pytest.raises(ValueError, match="'greedy' is no case; there are counting"):
        await check_engine(Bare, PROFILE, leave_out={"greedy": ""})


async def test_a_case_alone_raises_what_it_found() -> None:
    assert await CASES["greedy_repeats"](Bare(), profile=PROFILE) == ""
    with pytest.raises(LookupError):
        await CASES["eight_at_once"](Fails(), profile=PROFILE)
    with pytest.raises(CaseSkipped, match="pass make_engine"):
        await CASES["close_may_be_called_again"](Bare(), profile=PROFILE)
    with pytest.raises(CaseSkipped, match="no tool_query"):
        await CASES["tools_are_called"](Bare(), profile=PROFILE)
    assert {name for name, case in CASES.items() if case.needs_fresh} == {
        "close_may_be_called_again",
        "closed_engine_refuses",
        "close_ends_what_runs",
        "close_leaves_nothing_behind",
    }


async def test_cases_are_skipped_with_their_reason() -> None:
    report = await check_engine(Bare, PROFILE, only=["greedy_repeats"], leave_out={"greedy_repeats": "not today"})
    assert report.results == (CaseResult("greedy_repeats", "skip", "not today", 0.0),)


def test_the_table_has_a_line_for_each_case() -> None:
    results = (CaseResult("a_case", "pass", "", 1.0), CaseResult("another", "fail", "It broke.", 0.25))
    assert str(EngineReport("Mine", results)) == (
        "Mine: 1 pass, 1 fail, 0 skip\na_case   pass    1.00 s\nanother  fail    0.25 s  It broke."
    )


def test_names_and_words() -> None:
    names = [case.name for case in ENGINE_CASES]
    assert len(set(names)) == len(names) > 30
    assert all(case.about.endswith(".") for case in ENGINE_CASES)


def test_needs_no_model_to_import() -> None:
    heavy = ("torch", "transformers", "rich", "pytest")
    code = f"import sys, kani_lite.testing; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == ""
