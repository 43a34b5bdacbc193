"""LimitEngine: places that are fair, and never lost."""

from __future__ import annotations

import threading
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from flaky import HI, WAYS, Flaky, heard

from kani_lite import AIFunction, ChatMessage
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.engines.wrappers import LimitEngine, Places
from kani_lite.exceptions import EngineError

pytestmark = pytest.mark.anyio


class Gated(BaseEngine):
    """Answers when it is let; says how many calls run, and in which order they began."""

    max_context_size = 100

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.running = self.most = 0
        self.order: list[str] = []

    def message_len(self, message: ChatMessage) -> int:
        return 1

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(messages[-1].text or "")
        try:
            await self.gate.wait()
            await anyio.sleep(0.001)
        finally:
            self.running -= 1
        return Completion(ChatMessage.assistant("ok"))


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


@WAYS
async def test_limit_holds_and_is_fair(stream: bool) -> None:
    inner = Gated()
    engine = LimitEngine(inner, 2)

    async def one(name: str) -> None:
        messages = [ChatMessage.user(name)]
        if stream:
            async for _ in engine.stream(messages):
                pass
        else:
            await engine.predict(messages)

    async with anyio.create_task_group() as group:
        for i in range(8):
            group.start_soon(one, str(i))
            await settle()
        assert (engine.places.in_use, engine.places.waiting) == (2, 6)
        inner.gate.set()
    assert inner.most == 2
    # two that get their places at the same moment may begin in either order
    assert all(abs(int(name) - place) <= 1 for place, name in enumerate(inner.order))
    assert (engine.places.in_use, engine.places.waiting) == (0, 0)


async def test_limit_gives_places_back_after_errors_and_cancellation() -> None:
    engine = LimitEngine(Flaky(EngineError("a"), EngineError("b"), says="Hm"), 1)
    with pytest.raises(EngineError):
        await engine.predict(HI)
    assert (await heard(engine))[0] == ["Hm"]
    inner = Gated()
    engine = LimitEngine(inner, 1)
    async with anyio.create_task_group() as group:
        group.start_soon(engine.predict, HI)
        await settle()
        with anyio.move_on_after(0.02):
            await engine.predict(HI)  # cancelled while it waits
        assert (engine.places.in_use, engine.places.waiting) == (1, 0)
        group.cancel_scope.cancel()  # cancelled while it runs
    assert engine.places.in_use == 0
    inner.gate.set()
    await engine.predict(HI)


async def test_limit_counts_a_stream_until_it_is_closed() -> None:
    engine = LimitEngine(Flaky(says="Hm"), 1)
    async with aclosing(engine.stream(HI)) as stream:
        assert await anext(stream) == "Hm"
        assert engine.places.in_use == 1
        with anyio.move_on_after(0.02) as scope:
            await engine.predict(HI)
        assert scope.cancelled_caught
    assert engine.places.in_use == 0
    await engine.predict(HI)


async def test_a_place_that_comes_with_a_cancellation_is_passed_on() -> None:
    places = Places(1)
    await places.take()
    got: list[str] = []

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await places.take()
            got.append(name)

    scopes = [anyio.CancelScope() for _ in range(2)]
    async with anyio.create_task_group() as group:
        for name, scope in zip("ab", scopes, strict=True):
            group.start_soon(wait, name, scope)
            await settle()
        places.give_back()  # it is a's
        scopes[0].cancel()  # who may be gone before it can take it
        await settle()
        assert got in (["a"], ["b"])  # up to the event loop, but the place is lost in neither case
        assert (places.in_use, places.waiting) == (1, 1 if got == ["a"] else 0)
        if got == ["a"]:
            places.give_back()
    assert got[-1] == "b"
    places.give_back()
    assert (places.in_use, places.waiting) == (0, 0)


async def test_wrappers_may_share_a_limit() -> None:
    inner = Gated()
    places = Places(1)
    engines = [LimitEngine(inner, places=places) for _ in range(2)]
    async with anyio.create_task_group() as group:
        for engine in engines:
            group.start_soon(engine.predict, HI)
        await settle()
        assert inner.running == 1
        inner.gate.set()
    assert inner.most == 1
    with pytest.raises(EngineError, match="max_concurrent=0"):
        LimitEngine(inner, 0)


def test_one_limit_in_two_event_loops() -> None:
    engine = LimitEngine(Flaky(), 1)
    for backend in ("asyncio", "trio", "asyncio"):
        completion = anyio.run(engine.predict, HI, backend=backend)
        assert completion.message.text == "ok"


def test_one_limit_for_several_event_loops() -> None:
    """In threads of their own, asyncio and trio: each waits for the places that the others take."""

    class Slow(Gated):
        async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
            self.running += 1
            self.most = max(self.most, self.running)
            await anyio.sleep(0.05)
            self.running -= 1
            return Completion(ChatMessage.assistant("ok"))

    inner = Slow()
    engine = LimitEngine(inner, 1)
    said: list[str | None] = []

    async def chat() -> None:
        with anyio.fail_after(30):
            said.extend([(await engine.predict(HI)).message.text for _ in range(3)])

    threads = [threading.Thread(target=anyio.run, args=(chat,), kwargs={"backend": b}) for b in ("asyncio", "trio") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["ok"] * 12
    assert inner.most == 1
    assert (engine.places.in_use, engine.places.waiting) == (0, 0)
