"""Cases about cancelling, closing, and running beside other things."""

from __future__ import annotations

import multiprocessing.resource_tracker
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from kani_lite.engines.base import BaseCompletion
from kani_lite.exceptions import EngineError
from kani_lite.model_stream import close as close_stream

from .cases import case, closing_case
from .probe import Probe, Said, named
from .profile import CaseFailed, CaseSkipped

_NAMES = ("Ada", "Ben", "Clara", "Dimitri", "Eve", "Fatima", "Giovanna", "Henrietta Maximiliana")
_PIECES = 40  # of a long reply, enough to see whether the loop runs meanwhile
# a machine may stand still itself, for seconds where memory is short; an engine that blocks the loop does so every time
_TRIES, _PAUSE = 6, 0.5  # seconds
# threads that belong to the event loop, and wait there for the next work
_OF_THE_LOOP = ("AnyIO worker thread", "Trio ", "trio.", "asyncio_", "tqdm", "Thread-tqdm")


@case
async def cancelled_stream_ends(probe: Probe) -> str:
    """A stream that is cancelled half way ends at once, and the engine goes on as before."""
    before = await probe.said()
    stream = probe.long_stream()
    cancelled_at: float | None = None
    try:
        with anyio.CancelScope() as scope:
            async for item in stream:
                if cancelled_at is None and not isinstance(item, BaseCompletion):
                    cancelled_at = anyio.current_time()
                    scope.cancel()
    finally:
        await close_stream(stream)
    if cancelled_at is None:
        raise CaseSkipped("The reply was over before it could be cancelled: give the profile a longer one.")
    seconds = anyio.current_time() - cancelled_at
    _in_time(probe, seconds, "A cancelled stream")
    await probe.still_says(before)
    return f"ended after {seconds:.3f} s"


@case
async def cancelled_predict_ends(probe: Probe) -> str:
    """A `predict` that is cancelled ends at once, and the engine goes on as before."""
    before = await probe.said()
    with anyio.move_on_after(0.05) as scope:
        await probe.long_predict()
    if not scope.cancelled_caught:
        raise CaseSkipped("The reply was over before it could be cancelled: give the profile a longer one.")
    seconds = anyio.current_time() - scope.deadline
    _in_time(probe, seconds, "A cancelled predict")
    await probe.still_says(before)
    return f"ended after {seconds:.3f} s"


def _in_time(probe: Probe, seconds: float, what: str) -> None:
    if seconds > probe.profile.end_seconds:
        raise CaseFailed(f"{what} went on for {seconds:.2f} s: the profile allows {probe.profile.end_seconds}.")


@case
async def stream_can_be_closed_early(probe: Probe) -> None:
    """A stream can be closed after its first item, or before it, and the engine goes on as before."""
    before = await probe.said()
    for items in (0, 1):
        stream = probe.long_stream()
        if not hasattr(stream, "aclose"):
            raise CaseSkipped("Its streams have no aclose.")
        for _ in range(items):
            await anext(stream)
        start = anyio.current_time()
        await close_stream(stream)
        _in_time(probe, anyio.current_time() - start, "A closed stream")
        if [item async for item in stream]:
            raise CaseFailed("A stream that was closed goes on.")
    await probe.still_says(before)


@case
async def eight_at_once(probe: Probe) -> None:
    """Eight requests at once get what each gets alone."""
    queries = [f"My name is {name}. " * (1 + place % 3) + "What is my name?" for place, name in enumerate(_NAMES)]
    alone = [await probe.said(query) for query in queries]
    together = await _at_once([partial(probe.said, query) for query in queries])
    for query, one, other in zip(queries, alone, together, strict=True):
        if one != other:
            raise CaseFailed(f"{query!r} is answered {one!r:.200} alone, and {other!r:.200} beside seven others.")


async def _at_once(asks: Sequence[Callable[[], Any]]) -> list[Said]:
    found: dict[int, Said] = {}
    failed: list[Exception] = []

    async def one(place: int) -> None:
        try:
            found[place] = await asks[place]()
        except Exception as error:  # raised below, not as a group
            failed.append(error)

    async with anyio.create_task_group() as group:
        for place in range(len(asks)):
            group.start_soon(one, place)
    if failed:
        raise CaseFailed(f"{len(failed)} of {len(asks)} requests at once failed: {named(failed[0])}.") from failed[0]
    return [found[place] for place in range(len(asks))]


@case
async def cancelling_one_leaves_the_others(probe: Probe) -> None:
    """Of two requests at once one is cancelled, and the other gets what it gets alone."""
    before = await probe.said()

    async def broken_off() -> None:
        with anyio.CancelScope() as scope:
            stream = probe.long_stream()
            try:
                async for _ in stream:
                    scope.cancel()
            finally:
                await close_stream(stream)

    async with anyio.create_task_group() as group:
        group.start_soon(broken_off)
        await anyio.lowlevel.checkpoint()
        await probe.still_says(before)


async def _longest_gap(probe: Probe) -> tuple[float, float]:
    """Seconds that the loop stood still at most while a reply came, and seconds that the reply took."""
    turns = [anyio.current_time()]

    async def tick() -> None:
        while True:
            await anyio.sleep(0.005)
            turns.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await anyio.sleep(0.02)
        start = anyio.current_time()
        stream = probe.long_stream()
        try:
            seen = 0
            async for _ in stream:
                seen += 1
                if seen >= _PIECES:
                    break
        finally:
            await close_stream(stream)
        end = anyio.current_time()
        group.cancel_scope.cancel()
    during = [start, *(turn for turn in turns if start < turn < end), end]
    return max(after - before for before, after in pairwise(during)), end - start


@case
async def event_loop_goes_on(probe: Probe) -> str:
    """Other tasks run while the model generates: the loop is not blocked for the whole reply."""
    for _ in range(_TRIES):
        gap, whole = await _longest_gap(probe)
        if gap <= 0.1 or gap <= 0.8 * whole:
            return f"longest gap {gap * 1000:.0f} ms in {whole:.2f} s"
        await anyio.sleep(_PAUSE)
    raise CaseFailed(
        f"The event loop stood still for {gap:.2f} s of the {whole:.2f} s that a reply took: run the model "
        "in a thread or a process of its own."
    )


# ==== closing ====


@closing_case
async def close_may_be_called_again(probe: Probe) -> None:
    """`close` works on an engine that was never used, on one that was, and twice."""
    async with probe.fresh() as unused:
        await unused.engine.close()
    async with probe.fresh() as used:
        await used.predict()
        await used.engine.close()
        await used.engine.close()


@closing_case
async def closed_engine_refuses(probe: Probe) -> None:
    """After `close`, `predict` and `stream` raise EngineError."""
    async with probe.fresh() as closed:
        await closed.predict()
        await closed.engine.close()
        for ask in (closed.predict, closed.stream):
            try:
                with anyio.fail_after(probe.profile.end_seconds):
                    await ask()
            except EngineError:
                continue
            except Exception as error:
                raise CaseFailed(f"{ask.__name__} after close raises no EngineError, but {named(error)}.") from error
            raise CaseFailed(f"{ask.__name__} still works after close: raise EngineError.")


@closing_case
async def close_ends_what_runs(probe: Probe) -> str:
    """`close` ends requests that run or wait, with EngineError; none hangs."""
    outcomes: list[str] = []
    async with probe.fresh() as busy:
        begun = anyio.Event()

        async def ask() -> None:
            stream = busy.long_stream()
            try:
                async for _ in stream:
                    begun.set()
                outcomes.append("completed")
            except EngineError:
                outcomes.append("EngineError")
            except Exception as error:
                outcomes.append(named(error))
            finally:
                begun.set()
                await close_stream(stream)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            await begun.wait()
            with anyio.move_on_after(probe.profile.end_seconds) as closing:
                await busy.engine.close()
            if closing.cancelled_caught:
                raise CaseFailed(f"close took more than {probe.profile.end_seconds} s while requests ran.")
            group.cancel_scope.deadline = anyio.current_time() + probe.profile.end_seconds
    if len(outcomes) < 3:
        raise CaseFailed(f"{3 - len(outcomes)} of 3 requests still waited {probe.profile.end_seconds} s after close.")
    if wrong := set(outcomes) - {"completed", "EngineError"}:
        raise CaseFailed(f"A request that close ended raised no EngineError, but {wrong.pop()}.")
    return ", ".join(outcomes)


@closing_case
async def close_leaves_nothing_behind(probe: Probe) -> None:
    """After `close` no thread, task or process of the engine is left."""
    before = await _running()
    async with probe.fresh() as used:
        await used.predict()
        stream = used.long_stream()
        await anext(stream)
        await close_stream(stream)
    deadline = anyio.current_time() + probe.profile.end_seconds
    while left := [name for key, name in (await _running()).items() if key not in before]:
        if anyio.current_time() > deadline:
            raise CaseFailed(f"{probe.profile.end_seconds} s after close there is still: {', '.join(sorted(left))}.")
        await anyio.sleep(0.02)


async def _running() -> dict[tuple[str, int], str]:
    """What runs now, with the names to tell."""
    found = {
        ("thread", id(thread)): f"the thread {thread.name!r}"
        for thread in threading.enumerate()
        if not thread.name.startswith(_OF_THE_LOOP)
    }
    found |= {("task", task.id): f"the task {task.name!r}" for task in anyio.get_running_tasks()}
    found |= {("process", pid): f"the process {pid}" for pid in await anyio.to_thread.run_sync(_children)}
    return found


def _children() -> Collection[int]:
    try:
        import psutil
    except ImportError:
        return [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    tracker = getattr(multiprocessing.resource_tracker, "_resource_tracker", None)  # the interpreter's own, and stays
    own = {getattr(tracker, "_pid", None)}
    return [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in own]
