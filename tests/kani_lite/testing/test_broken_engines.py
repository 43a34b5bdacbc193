"""Each case fails for an engine that has what it looks for: the embedded model, broken in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import anyio
import pytest
import torch
from broken_engines import (
    BROKEN,
    PROFILE,
    STOP,
    ForgetsWhoWaits,
    GoesOnWhenCancelled,
    Items,
    LeavesAThread,
    NeverCloses,
    Sound,
    breaks,
    with_message,
)

from kani_lite import ToolCall
from kani_lite.engines import BaseCompletion, NanoEngine, WrapperEngine
from kani_lite.messages import ChatRole, FunctionCall
from kani_lite.testing import ENGINE_CASES, CaseFailed, check_engine


@pytest.fixture(scope="module")
def nano() -> Iterator[NanoEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = NanoEngine()
    yield engine
    anyio.run(engine.close)
    torch.set_num_threads(threads)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # what is looked for is in the cases; that they run on both is for tests/conformance


# ==== sampling ====


@breaks("greedy_repeats", "the reply is")
class NeverSaysTheSame(Sound):
    async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
        text = str(next(self.__dict__.setdefault("counter", count())))
        return with_message(await super().predict(*args, **kwargs), content=text)


@breaks("seed_repeats", "Seed 1 gives")
class ForgetsTheSeed(Sound):
    def changed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "temperature": 5.0, "seed": next(self.__dict__.setdefault("counter", count()))}


@breaks("seed_repeats", "nothing is sampled")
class NeverSamples(Sound):
    def changed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "temperature": 0}


class Drops(Sound):
    name = ""

    def changed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if name != self.name}


@breaks("max_tokens_is_kept", "With max_tokens=1 a reply has")
class DropsMaxTokens(Drops):
    name = "max_tokens"


@breaks("stop_texts_end_the_reply", "in predict's message")
class DropsStop(Drops):
    name = "stop"


@breaks("unknown_names_are_refused", "takes no_such_parameter=1 and drops it")
class DropsTheUnknown(Drops):
    name = "no_such_parameter"


@breaks("wrong_values_are_refused", "top_p=2.0 is accepted")
class DropsTopP(Drops):
    name = "top_p"


@breaks("no_parameter_is_dropped", "1 parameters have no effect: with .*logit_bias")
class DropsLogitBias(Drops):
    name = "logit_bias"


@breaks("no_parameter_is_dropped", "top_k is refused without being named")
class RefusesWithoutAName(Sound):
    def changed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if "top_k" in kwargs:
            raise TypeError("not supported")
        return kwargs


@breaks("sampling_beside_others_repeats", "Greedy beside hot requests")
class SharesParameters(Sound):
    running = 0

    async def stream(self, messages: Any, functions: Any = None, **kwargs: Any) -> Items:
        if not self.running:
            self.shared = kwargs
        self.running += 1
        await anyio.sleep(0.01)
        try:
            async for item in super().stream(messages, functions, **self.shared):
                yield item
        finally:
            self.running -= 1


# ==== functions ====


@breaks("tools_are_called", "should call get_price")
class HidesFunctions(Sound):
    async def stream(self, messages: Any, functions: Any = None, **kwargs: Any) -> Items:
        async for item in super().stream(messages, None, **kwargs):
            yield item


@breaks("calls_can_be_switched_off", "Calls are switched off, and")
class DropsToolChoice(Drops):
    name = "tool_choice"


@breaks("tool_results_are_taken", "ValueError: 'no results'")
class TakesNoResults(Sound):
    async def stream(self, messages: Any, functions: Any = None, **kwargs: Any) -> Items:
        if any(message.role is ChatRole.FUNCTION for message in messages):
            raise ValueError("no results")
        async for item in super().stream(messages, functions, **kwargs):
            yield item


@breaks("tools_are_called", "arguments of get_price are not valid")
@breaks("a_full_round_runs", "arguments of get_price are not valid")
class CutsArguments(Sound):
    async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
        completion = await super().predict(*args, **kwargs)
        calls = [
            ToolCall.from_function_call(FunctionCall(name=c.function.name, arguments=c.function.arguments[:-2]), c.id)
            for c in completion.message.tool_calls or []
        ]
        return with_message(completion, tool_calls=calls or None)


# ==== errors ====


@breaks("too_long_a_prompt_is_refused", "predict takes a prompt of")
class CutsLongPrompts(Sound):
    async def stream(self, messages: Any, functions: Any = None, **kwargs: Any) -> Items:
        async for item in super().stream([m.copy_with(text=m.text[:200]) for m in messages], functions, **kwargs):
            yield item


@breaks("no_messages_are_handled", "A prompt without messages is no reason for IndexError")
class LooksAtTheLastMessage(Sound):
    def prompt_len(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self.engine.prompt_len([messages[-1]], *args, **kwargs)


@breaks("odd_texts_are_handled", "half a surrogate pair is no reason for UnicodeEncodeError")
class EncodesStrictly(Sound):
    def prompt_len(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        for message in messages:
            message.text.encode()
        return self.engine.prompt_len(messages, *args, **kwargs)


# ==== the test ====


IMPATIENT = (GoesOnWhenCancelled, ForgetsWhoWaits, NeverCloses, LeavesAThread)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    STOP.clear()
    yield
    STOP.set()


@pytest.mark.parametrize(
    ("case", "engine", "problem"),
    [(case, engine, problem) for case, found in BROKEN.items() for engine, problem in found],
    ids=[f"{case}-{engine.__name__}" for case, found in BROKEN.items() for engine, _ in found],
)
async def test_the_case_catches_it(
    nano: NanoEngine, no_thread_left: None, case: str, engine: type[WrapperEngine], problem: str
) -> None:
    profile = replace(PROFILE, end_seconds=0.5) if engine in IMPATIENT else PROFILE
    report = await check_engine(lambda: engine(nano), profile, only=[case])
    with pytest.raises(CaseFailed, match=problem):
        report.raise_if_failed()


def test_every_case_has_an_engine_that_it_catches() -> None:
    assert set(BROKEN) == {case.name for case in ENGINE_CASES}
