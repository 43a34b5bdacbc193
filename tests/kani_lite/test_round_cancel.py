"""A fault at every await and every yield of a round, in turn: the history stays whole, and the next round works."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from faults import WAYS, PointedKani, Points, check_history, pointed, settled, tasks_alive
from scripted import ScriptedEngine, call, calling

from kani_lite import AIFunction, ChatMessage, ChatRole, Kani
from kani_lite.exceptions import RoundEnded

pytestmark = pytest.mark.anyio

POLICIES = pytest.mark.parametrize("policy", ["answer", "rollback"])


@pytest.fixture(scope="module", autouse=True)
def collecting_takes_no_time() -> Iterator[None]:
    """What other tests have imported isn't looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def next_round_works(ai: PointedKani, backend: str, tasks: int) -> None:
    """A round after the fault, on the history that it left."""
    ai.engine.point.fault = None
    ai.engine.steps = [ChatMessage.assistant("ok")]
    assert await ai.chat_round_str("next", include_functions=False) == "ok"
    check_history(ai.chat_history)
    assert [m.text for m in ai.chat_history[:2]] == ["before", "yes"]
    assert [m.text for m in ai.chat_history[-2:]] == ["next", "ok"]
    await settled(backend, tasks)
    assert ai.engine.open == 0
    assert not ai.lock.statistics().locked


@POLICIES
@pytest.mark.parametrize("kind", ["cancel", "deadline", "error"])
@pytest.mark.parametrize("way", WAYS)
async def test_fault_at_every_await(way: str, kind: str, policy: Any, anyio_backend: str) -> None:
    tasks = tasks_alive(anyio_backend)
    at = 0
    while True:
        at += 1
        scope = anyio.CancelScope()

        async def fault(scope: anyio.CancelScope = scope) -> None:
            if kind == "error":
                raise ConnectionError("injected")
            if kind == "cancel":
                scope.cancel()
            else:
                scope.deadline = anyio.current_time()
            await anyio.sleep_forever()

        point = Points(at, fault)
        ai = pointed(point, functions="full" in way or way == "events", on_broken=policy)
        broken = False
        with anyio.fail_after(5):
            with scope:
                try:
                    await WAYS[way](ai)
                except ConnectionError:
                    broken = True
            broken = broken or scope.cancelled_caught
            check_history(ai.chat_history)
            if broken:
                assert ai.chat_history[-1].role is not ChatRole.USER
                assert policy == "answer" or len(ai.chat_history) == 2
            await next_round_works(ai, anyio_backend, tasks)
        if point.passed < at:
            break
    assert at > (40 if "full" in way else 8)  # it did go through all of them


@POLICIES
@pytest.mark.parametrize("how", ["break", "keep", "aclose", "with", "raise"])
@pytest.mark.parametrize("way", ["full_round", "full_round_stream", "events", "chat_round_stream"])
async def test_reader_leaves_at_every_yield(way: str, how: str, policy: Any, anyio_backend: str) -> None:
    tasks = tasks_alive(anyio_backend)
    at, left = 0, True
    while left:
        at += 1
        ai = pointed(Points(), functions=way != "chat_round_stream", on_broken=policy)
        with anyio.fail_after(5):
            view = make_view(ai, way)
            left = await leave(view, at, how)
            if left and how in ("aclose", "with", "raise"):
                check_history(ai.chat_history)
                assert ai.engine.open == 0
            if how != "keep":
                del view
                gc.collect()
                await settled(anyio_backend, tasks)
                assert ai.engine.open == 0  # the model stops when nobody can read on
            await next_round_works(ai, anyio_backend, tasks)
            if how == "keep" and left:
                with pytest.raises((RoundEnded, StopAsyncIteration)):  # noqa: PT012
                    while True:  # what had happened may still be told
                        await (view.message() if way == "chat_round_stream" else anext(view))
    assert at > 3


def make_view(ai: Kani, way: str) -> Any:
    return ai.chat_round_stream("go", include_functions=False) if way == "chat_round_stream" else getattr(ai, way)("go")


async def leave(view: Any, at: int, how: str) -> bool:
    """Reads `at` items and leaves; False if there are not so many."""

    async def read() -> bool:
        seen = 0
        async for item in view:
            seen += 1
            if seen == at:
                if hasattr(item, "message") and seen % 2 and hasattr(item, "role"):
                    async for _token in item:  # in the middle of a stream, too
                        break
                return True
        return False

    if how in ("break", "keep"):
        return await read()
    if how == "aclose":
        left = await read()
        await view.aclose()
        return left
    if how == "with":
        async with view:
            return await read()
    left = False
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with view:
            left = await read()
            raise ZeroDivisionError
    return left


@POLICIES
async def test_waiters_of_a_broken_stream_get_the_error(policy: Any) -> None:
    async def fault() -> None:
        raise ConnectionError("injected")

    at, passed = 0, 1
    while passed >= at:
        at += 1
        point = Points(at, fault)
        ai = pointed(point, functions=False, on_broken=policy)
        stream = ai.chat_round_stream("go", include_functions=False)
        errors: list[Exception] = []

        async def wait(stream: Any = stream, errors: list[Exception] = errors) -> None:
            try:
                await stream.message()
            except ConnectionError as e:
                errors.append(e)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(wait)
            await wait()
        passed = point.passed
        assert len(errors) == (4 if passed >= at else 0)


async def test_waiter_of_a_stream_whose_reader_was_cancelled_gets_an_error() -> None:
    async def fault() -> None:
        scope.cancel()
        await anyio.sleep_forever()

    scope = anyio.CancelScope()
    ai = pointed(Points(8, fault), functions=False)
    stream = ai.chat_round_stream("go", include_functions=False)
    caught: list[Exception] = []

    async def read() -> None:
        with scope:
            async for _token in stream:
                pass

    async def wait() -> None:
        try:
            await stream.message()
        except RuntimeError as e:
            caught.append(e)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.lowlevel.checkpoint()
            group.start_soon(wait)
    assert scope.cancelled_caught
    assert len(caught) == 1


@POLICIES
@pytest.mark.parametrize("calls", [1, 3])
async def test_a_sync_tool_that_runs_is_abandoned(policy: Any, calls: int) -> None:
    started, release = threading.Semaphore(0), threading.Event()
    ended: list[int] = []

    def slow() -> str:
        """Waits until the test lets it go."""
        started.release()
        release.wait(20)
        ended.append(1)
        return "late"

    step = calling(*(call("slow", str(i)) for i in range(calls)))
    ai = Kani(ScriptedEngine(step, "ok"), functions=[AIFunction(slow)], on_broken=policy)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            async def run() -> None:
                with scope:
                    async for _message in ai.full_round("go"):
                        pass

            group.start_soon(run)
            for _ in range(calls):
                await anyio.to_thread.run_sync(started.acquire)
            scope.cancel()
        assert not ended  # the round is over, and the functions still run
        check_history(ai.chat_history)
        assert len(ai.chat_history) == (2 + calls if policy == "answer" else 0)
        assert await ai.chat_round_str("next", include_functions=False) == "ok"
        release.set()
        while len(ended) < calls:  # noqa: ASYNC110  # threads set no anyio.Event
            await anyio.sleep(0.001)
    assert "late" not in [m.text for m in ai.chat_history]


async def test_a_hook_that_always_fails_leaves_a_whole_history() -> None:
    class Broken(PointedKani):
        async def add_to_history(self, message: ChatMessage) -> None:
            if message.role is ChatRole.FUNCTION:
                raise ConnectionError("the database is gone")
            await super().add_to_history(message)

    ai = Broken(pointed(Points()).engine)
    with pytest.raises(ConnectionError):
        async for _message in ai.full_round("go"):
            pass
    check_history(ai.chat_history)
    # what the functions gave is not lost
    assert [m.text for m in ai.chat_history if m.role is ChatRole.FUNCTION] == ["It is red.", "Hm."]


async def test_two_tasks_can_not_read_one_round() -> None:
    async def fault() -> None:
        await release.wait()

    release = anyio.Event()
    ai = pointed(Points(4, fault))
    view = ai.full_round("go")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(view.__anext__)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="another task"):
                await anext(view)
            with pytest.raises(RuntimeError, match="another task"):
                await view.aclose()
            release.set()
        await view.aclose()
    check_history(ai.chat_history)
