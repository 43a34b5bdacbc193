"""The one thread that owns a model, and how async code on any loop talks to it.

The thread knows its inbox and the job at hand, never the engine: an engine that is dropped is freed, and its end
stops the thread. The loop's side never blocks; the thread only posts, and never waits for a loop.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from kani_lite.exceptions import EngineError

CLOSED = "This engine was closed; build a new one to go on."


class Failure:
    """An exception on its way from the thread to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Channel:
    """Items from one thread to one task of the loop that made the channel, asyncio or trio."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._ready = anyio.Event()
        self._posted = False
        token: Any = anyio.lowlevel.current_token()
        native = getattr(token, "native_token", token)  # anyio before 4.11 returned the loop's own token
        self._soon: Callable[..., Any] = getattr(native, "run_sync_soon", None) or native.call_soon_threadsafe

    def put(self, item: Any) -> bool:
        """Called by the thread; returns False if the loop is gone. One wake-up serves all items until it runs."""
        self._items.append(item)
        if self._posted:
            return True
        self._posted = True
        try:
            self._soon(self._wake)
        except RuntimeError:  # both libraries say so when their loop has ended
            return False
        return True

    def _wake(self) -> None:
        self._posted = False  # before the reader looks, so that no later item is missed
        self._ready.set()

    async def receive(self) -> list[Any]:
        """Everything that has arrived since the last call: at least one item."""
        while not self._items:
            await self._ready.wait()
            self._ready = anyio.Event()
        # a fast model must not starve the other tasks
        await anyio.lowlevel.checkpoint()
        return [self._items.popleft() for _ in range(len(self._items))]


class Job:
    """A piece of work for the thread. `work` gets the job itself, to `emit` items and to ask whether it is `stopped`.
    Its return value is the last item; an exception arrives as a Failure."""

    def __init__(self, work: Callable[[Job], Any]) -> None:
        self._work: Callable[[Job], Any] | None = work
        self._cancelled = threading.Event()
        self._channel = Channel()

    def emit(self, item: Any) -> None:
        if not self._channel.put(item):
            self.cancel()

    def stopped(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody wants the result any more. Safe from any thread, and after the end."""
        self._cancelled.set()

    def fail(self, error: BaseException) -> None:
        self._work = None
        self.emit(Failure(error))

    async def receive(self) -> list[Any]:
        """What the work has emitted; raises what it raised."""
        items = await self._channel.receive()
        if isinstance(items[0], Failure):
            raise items[0].error
        for place, item in enumerate(items):
            if isinstance(item, Failure):  # first what came before it, then the error
                self._channel._items.extendleft(reversed(items[place:]))
                return items[:place]
        return items

    def run(self) -> None:
        work, self._work = self._work, None  # what the work refers to is freed with it
        assert work is not None
        self.emit(work(self))


class _State:
    """What the thread and its owner share."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.current: Job | None = None
        self.closed = threading.Event()

    def stop(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.inbox.put(None)
        if (job := self.current) is not None:
            job.cancel()


def _serve(state: _State) -> None:
    while (job := state.inbox.get()) is not None:
        state.current = job
        try:
            if not (state.closed.is_set() or job.stopped()):
                job.run()
        except BaseException as error:  # the caller gets it, whatever it is; this thread serves the next one
            job.fail(error)
        if state.closed.is_set():
            job.fail(EngineError(CLOSED))
        # an idle thread must not keep a job, and with it the engine, alive
        state.current = None
        del job
    _refuse_waiting(state)


def _refuse_waiting(state: _State) -> None:
    while True:
        try:
            job = state.inbox.get_nowait()
        except queue.Empty:
            return
        if job is not None:
            job.fail(EngineError(CLOSED))


def _end(state: weakref.ref[_State], thread: weakref.ref[threading.Thread]) -> None:
    """At the interpreter's end: a daemon thread killed inside native code can take the process down with it."""
    found, running = state(), thread()
    if found is not None and running is not None:
        found.stop()
        running.join(5.0)


class Worker:
    """A daemon thread that runs jobs one after the other, in the order of their arrival.

    It ends with `close`, or when `owner` is freed.
    """

    def __init__(self, owner: object, name: str) -> None:
        self._state = _State()
        self.thread = threading.Thread(target=_serve, args=(self._state,), name=name, daemon=True)
        self._at_exit = partial(_end, weakref.ref(self._state), weakref.ref(self.thread))
        atexit.register(self._at_exit)
        weakref.finalize(owner, _let_go, self._state, self._at_exit).atexit = False
        self.thread.start()

    @property
    def closed(self) -> bool:
        return self._state.closed.is_set()

    def submit(self, job: Job) -> None:
        """Raises EngineError if the worker is closed."""
        if self._state.closed.is_set():
            raise EngineError(CLOSED)
        self._state.inbox.put(job)
        if self._state.closed.is_set():  # it closed in between, perhaps too late for the thread to see the job
            job.fail(EngineError(CLOSED))

    async def close(self) -> None:
        """Ends running and waiting jobs with EngineError, and the thread. The thread is waited for without blocking
        the loop, at most until the model's step at hand is done."""
        _let_go(self._state, self._at_exit)
        if self.thread.is_alive():
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.thread.join)


def _let_go(state: _State, at_exit: Callable[[], None]) -> None:
    atexit.unregister(at_exit)
    state.stop()
