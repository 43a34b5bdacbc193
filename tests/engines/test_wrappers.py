"""RetryEngine and FallbackEngine."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from flaky import HI, WAYS, DownError, Flaky, heard, said
from scripted import ScriptedEngine

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.engines import NanoEngine
from kani_lite.engines.wrappers import Backoff, FallbackEngine, RetryEngine
from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptTooLong

pytestmark = pytest.mark.anyio

NO_WAIT = Backoff(0.0)


# ==== retry ====


@WAYS
async def test_retry_tries_again(stream: bool) -> None:
    inner = Flaky(DownError("a"), ConnectionResetError("b"))
    engine = RetryEngine(inner, 3, backoff=NO_WAIT)
    assert await said(engine, stream) == "ok"
    assert inner.calls == 3
    assert inner.streams_closed == (3 if stream else 0)


@WAYS
async def test_retry_gives_up(stream: bool) -> None:
    inner = Flaky(*[DownError(text) for text in "abc"])
    with pytest.raises(EngineError, match="b"):
        await said(RetryEngine(inner, 2, backoff=NO_WAIT), stream)
    assert inner.calls == 2


@WAYS
@pytest.mark.parametrize("error", [ValueError("x"), PromptTooLong("x"), MissingModelDependencies("x")])
async def test_retry_passes_other_errors_on(stream: bool, error: Exception) -> None:
    inner = Flaky(error)
    with pytest.raises(type(error)):
        await said(RetryEngine(inner, backoff=NO_WAIT), stream)
    assert inner.calls == 1


@WAYS
async def test_retry_of_other_errors_if_told_so(stream: bool) -> None:
    inner = Flaky(KeyError("x"))
    assert await said(RetryEngine(inner, backoff=NO_WAIT, errors=[KeyError]), stream) == "ok"


async def test_retry_never_repeats_what_was_heard() -> None:
    inner = Flaky(DownError("a"), says="Once ")
    items, error = await heard(RetryEngine(inner, 3, backoff=NO_WAIT))
    assert items == ["Once "]
    assert str(error) == "a"
    assert inner.calls == inner.streams_closed == 1


async def test_retry_waits_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("kani_lite.engines.wrappers.anyio.sleep", sleep)
    asks = DownError("later")
    asks.retry_after = 7.0  # type: ignore[attr-defined]  # as errors of servers have it
    inner = Flaky(DownError("a"), DownError("b"), asks, DownError("d"))
    await RetryEngine(inner, 5, backoff=Backoff(1, 3, 5, jitter=0)).predict(HI)
    assert waits == [1, 3, 7, 5]

    inner = Flaky(EngineError("no use"))
    with pytest.raises(EngineError, match="no use"):
        await RetryEngine(inner, 5).predict(HI)
    assert inner.calls == 1


def test_backoff() -> None:
    exact = Backoff(0.5, 2, 3, jitter=0, longest=60)
    assert [exact.seconds(n) for n in (1, 2, 3, 4, 10_000)] == [0.5, 1, 2, 3, 3]
    assert (exact.seconds(1, 10), exact.seconds(4, 0.1), exact.seconds(1, 61)) == (10, 3, None)
    shaken = {Backoff(1, jitter=0.5).seconds(1) for _ in range(50)}
    assert len(shaken) > 10
    assert all(0.5 <= seconds <= 1 for seconds in shaken if seconds is not None)
    for wrong in ({"first": -1}, {"jitter": 2}, {"factor": float("nan")}):
        with pytest.raises(EngineError, match="Backoff"):
            Backoff(**wrong)
    with pytest.raises(EngineError, match="attempts=0"):
        RetryEngine(Flaky(), 0)


async def test_a_chat_through_retry() -> None:
    inner = ScriptedEngine(DownError("a"), "Hello", DownError("b"), "Again")
    ai = Kani(RetryEngine(inner, backoff=NO_WAIT))
    assert await ai.chat_round_str("Hi") == "Hello"
    assert "".join([token async for token in ai.chat_round_stream("Hi")]) == "Again"
    assert [message.text for message in ai.chat_history] == ["Hi", "Hello", "Hi", "Again"]


# ==== fallback ====


@WAYS
async def test_fallback_goes_to_the_next(stream: bool) -> None:
    first, second, third = Flaky(EngineError("a")), Flaky(ConnectionError("b")), Flaky(answer="third")
    engine = FallbackEngine(first, second, third)
    assert await said(engine, stream) == "third"
    assert (first.calls, second.calls, third.calls) == (1, 1, 1)
    if stream:
        assert (first.streams_closed, second.streams_closed, third.streams_closed) == (1, 1, 1)
    first.answer = "first again"
    assert await said(engine, stream) == "first again"
    await engine.close()
    assert first.closed
    assert third.closed


@WAYS
async def test_fallback_to_nobody(stream: bool) -> None:
    engine = FallbackEngine(Flaky(EngineError("first is down")), Flaky(EngineError("second is down")))
    with pytest.raises(EngineError, match="second is down") as found:
        await said(engine, stream)
    assert found.value.__notes__ == ["Engine 1 failed before: EngineError: first is down"]


@WAYS
async def test_fallback_passes_other_errors_on(stream: bool) -> None:
    second = Flaky()
    for error in (ValueError("x"), PromptTooLong("x")):
        with pytest.raises(type(error)):
            await said(FallbackEngine(Flaky(error), second), stream)
    assert second.calls == 0


async def test_fallback_never_repeats_what_was_heard() -> None:
    second = Flaky()
    items, error = await heard(FallbackEngine(Flaky(EngineError("a"), says="Once "), second))
    assert (items, str(error), second.calls) == (["Once "], "a", 0)


@WAYS
async def test_fallback_for_long_prompts(stream: bool) -> None:
    small, large = Flaky(PromptTooLong("x"), size=50), Flaky(answer="large", size=500)
    engine = FallbackEngine(small, large, when_too_long=True)
    assert engine.max_context_size == 500
    assert await said(engine, stream) == "large"


class Counting(Flaky):
    """Counts whole prompts only, if it can."""

    def __init__(self, count: int | Exception) -> None:
        super().__init__()
        self.count = count

    def message_len(self, message: ChatMessage) -> int:
        raise NotImplementedError

    async def prompt_len(  # type: ignore[override]  # engines may count asynchronously
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        await anyio.lowlevel.checkpoint()
        if isinstance(self.count, Exception):
            raise self.count
        return self.count


async def test_fallback_counts_for_all_engines() -> None:
    engine = FallbackEngine(Flaky(size=300, tokens=3), Flaky(size=200, tokens=5), Counting(7))
    assert engine.max_context_size == 100
    assert engine.message_len(HI[0]) == 5
    assert await engine.prompt_len(HI) == 7
    assert await engine.prompt_len(HI * 2) == 10
    down = EngineError("down")
    assert await FallbackEngine(Counting(down), Counting(4)).prompt_len(HI) == 4
    with pytest.raises(EngineError, match="down"):
        await FallbackEngine(Counting(down), Counting(down)).prompt_len(HI)
    with pytest.raises(NotImplementedError):
        FallbackEngine(Counting(1)).message_len(HI[0])
    engine.max_context_size = 60
    assert Kani(engine).max_context_size == 60


class Reusing(Flaky):
    reuses_prefix = True
    disable_function_calling_kwargs = {"tool_choice": "none"}  # noqa: RUF012  # declared a ClassVar by its base


def test_fallback_promises_what_all_engines_do() -> None:
    alike, mixed = FallbackEngine(Reusing(), Reusing()), FallbackEngine(Reusing(), Flaky())
    assert (alike.reuses_prefix, alike.disable_function_calling_kwargs) == (True, {"tool_choice": "none"})
    assert FallbackEngine(Reusing()).counts_exactly
    assert not alike.counts_exactly
    assert (mixed.reuses_prefix, mixed.disable_function_calling_kwargs) == (False, {"include_functions": False})


async def test_fallback_closes_all() -> None:
    class Stuck(Flaky):
        async def close(self) -> None:
            raise OSError("stuck")

    last = Flaky()
    with pytest.raises(OSError, match="stuck"):
        await FallbackEngine(Stuck(), last).close()
    assert last.closed


async def test_the_embedded_model_behind_one_that_is_down() -> None:
    nano = await anyio.to_thread.run_sync(NanoEngine)
    down = Flaky(*[DownError("down")] * 9, size=4096)
    engine = FallbackEngine(RetryEngine(down, 2, backoff=NO_WAIT), nano)
    assert engine.max_context_size == nano.max_context_size
    ai, alone = Kani(engine), Kani(nano)
    text = await ai.chat_round_str("Hello!", temperature=0, max_tokens=10)
    assert text == await alone.chat_round_str("Hello!", temperature=0, max_tokens=10)
    assert text
    assert down.calls == 2
    await engine.close()
