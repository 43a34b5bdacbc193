"""How a HuggingEngine runs: cancelling, failing, many at once, closing. A blocked loop fails each of these tests."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from kani_lite.engines import HuggingEngine
from kani_lite.exceptions import EngineError
from kani_lite.messages import ChatMessage

HELLO = [ChatMessage.user("hello there")]


async def idle(engine: HuggingEngine) -> None:
    with anyio.fail_after(5):
        while engine.busy:  # noqa: ASYNC110  # the thread tells nobody
            await anyio.sleep(0.002)


async def test_breaking_off_stops_within_a_step(engine: HuggingEngine, counted: Callable[[], int]) -> None:
    async with aclosing(engine.stream(HELLO, max_tokens=1500, ignore_eos=True)) as stream:
        async for _ in stream:
            break
    seen = counted()
    await idle(engine)
    assert counted() - seen <= 1
    assert (await engine.predict(HELLO)).message.text is not None


async def test_a_cancelled_scope_stops_within_a_step(engine: HuggingEngine, counted: Callable[[], int]) -> None:
    with anyio.move_on_after(0.2) as scope:
        await engine.predict(HELLO, max_tokens=1900, ignore_eos=True)
    seen = counted()
    assert scope.cancelled_caught
    await idle(engine)
    assert counted() - seen <= 1


async def test_after_a_cancel_the_reply_is_the_same(engine: HuggingEngine) -> None:
    expected = (await engine.predict(HELLO, max_tokens=30)).message.text
    for seconds in (0.01, 0.03, 0.05):
        with anyio.move_on_after(seconds):
            await engine.predict(HELLO, max_tokens=500, ignore_eos=True)
    again = await engine.predict(HELLO, max_tokens=30)
    assert again.message.text == expected


async def test_a_request_that_waits_can_be_cancelled(engine: HuggingEngine, counted: Callable[[], int]) -> None:
    async with aclosing(engine.stream(HELLO, max_tokens=300, ignore_eos=True)) as first:
        await anext(first)
        with anyio.move_on_after(0.02):
            await engine.predict([ChatMessage.user("fox")])
        async for _ in first:
            pass
    await idle(engine)
    # at most one forward pass for each token of the first, none for the one that was given up
    assert counted() <= 300


async def test_an_error_reaches_the_caller_and_the_next_one_is_served(engine: HuggingEngine) -> None:
    expected = (await engine.predict(HELLO)).message.text
    threads = threading.active_count()

    def fail(*_: Any) -> None:
        raise RuntimeError("the model broke")

    for place in (engine.model, engine.model.model.layers[1]):  # before, and half way through the layers
        hook = place.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="the model broke"):
            await engine.predict(HELLO)
        hook.remove()
        assert (await engine.predict(HELLO)).message.text == expected
    assert threading.active_count() <= threads
    assert engine._worker.thread.is_alive()


async def test_requests_at_once_get_what_they_get_alone(engine: HuggingEngine) -> None:
    prompts = [[ChatMessage.user(text)] for text in ("hello", "fox", "one two three", "how are you?")]
    alone = [(await engine.predict(p)).message.text for p in prompts]
    together: dict[int, Any] = {}

    async def ask(place: int) -> None:
        together[place] = (await engine.predict(prompts[place])).message.text

    async with anyio.create_task_group() as group:
        for place in range(len(prompts)):
            group.start_soon(ask, place)
    assert [together[place] for place in range(len(prompts))] == alone


async def test_other_tasks_go_on_meanwhile(engine: HuggingEngine) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.001)
            ticks += 1

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await engine.predict(HELLO, max_tokens=200, ignore_eos=True)
        group.cancel_scope.cancel()
    assert ticks > 20


async def test_close_ends_all_and_frees_the_weights(load: Callable[..., Any]) -> None:
    engine = await load(temperature=0)
    weights = weakref.ref(engine.model)
    thread = engine._worker.thread
    outcomes: list[str] = []

    async def ask(started: anyio.Event) -> None:
        started.set()
        try:
            await engine.predict(HELLO, max_tokens=1900, ignore_eos=True)
        except EngineError as error:
            outcomes.append(str(error))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                started = anyio.Event()
                group.start_soon(ask, started)
                await started.wait()
            await anyio.sleep(0.05)
            await engine.close()
    assert len(outcomes) == 3
    assert all("closed" in text for text in outcomes)
    assert not thread.is_alive()
    gc.collect()
    assert weights() is None
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.predict(HELLO)
    with pytest.raises(EngineError, match="closed"):
        await anext(engine.stream([ChatMessage.user("another")]))


def test_an_engine_that_is_dropped_is_freed(model_dir: Path) -> None:
    engine = HuggingEngine(model_dir, device="cpu", max_tokens=3)
    anyio.run(engine.predict, HELLO)
    weights, itself, thread = weakref.ref(engine.model), weakref.ref(engine), engine._worker.thread
    del engine
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert itself() is None
    assert weights() is None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ended_does_no_harm(model_dir: Path, backend: str) -> None:
    engine = HuggingEngine(model_dir, device="cpu", temperature=0, max_tokens=5)

    async def leave() -> Any:
        stream = engine.stream(HELLO, max_tokens=1900, ignore_eos=True)
        await anext(stream)
        return stream  # suspended, and its loop ends

    stream = anyio.run(leave, backend=backend)
    for other in ("asyncio", "trio"):
        completion = anyio.run(engine.predict, HELLO, backend=other)
        assert completion.completion_tokens in range(1, 6)
    del stream
    anyio.run(engine.close)


async def test_a_stream_that_waits_does_not_keep_the_thread(engine: HuggingEngine) -> None:
    """A consumer that is slow, or gone for a while, costs the next request nothing."""
    async with aclosing(engine.stream(HELLO, max_tokens=40, ignore_eos=True)) as first:
        await anext(first)
        with anyio.fail_after(10):
            assert (await engine.predict([ChatMessage.user("fox")])).completion_tokens
        rest = [item async for item in first]
    assert rest[-1].completion_tokens == 40
