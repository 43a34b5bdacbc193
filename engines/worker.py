"""The one thread that owns a model, and how async code on any loop talks to it.

The thread knows its inbox, and the generator while that is busy, never the engine: an engine that is dropped is freed,
and its end stops the thread. The loop's side never blocks; the thread only posts, and never waits for a loop.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from kani_lite.exceptions import EngineError

from .request import Request
from .sampling import SamplingParams

CLOSED = "This engine was closed; build a new one to go on."


T = TypeVar("T")


def in_passing_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a thread that ends with it, and waits for it.

    torch keeps a pool of threads for each thread that has computed. Once pools together have more threads than the
    machine has cores, OpenMP (libgomp) lets all of them sleep between their pieces of work instead of spinning: a model
    that another thread loaded would decode at half its speed as long as that thread lives.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # the caller gets it, whatever it is
            failed.append(error)

    thread = threading.Thread(target=run, name="kani-lite loading", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed.pop()
    return done.pop()


class Generator(Protocol):
    """What a thread runs: requests that it was given, step by step. Called on the model's thread alone."""

    @property
    def busy(self) -> bool:
        """Whether a request is left."""

    def add(self, request: Request) -> None:
        """Takes a request; what is wrong with it goes to its sink."""

    def step(self) -> None:
        """A part of the work so short that a cancelled request may wait for its end."""

    def fail_all(self, error: BaseException) -> None:
        """Ends every request with this error."""


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

    def up_to_failure(self, items: list[Any]) -> list[Any]:
        """Raises what the first item failed with; keeps a later failure for the next call."""
        if isinstance(items[0], Failure):
            raise items[0].error
        for place, item in enumerate(items):
            if isinstance(item, Failure):  # first what came before it, then the error
                self._items.extendleft(reversed(items[place:]))
                return items[:place]
        return items


class WaitingQueue:
    """The same for a thread that may wait, where there is no loop."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, item: Any) -> bool:
        self._items.put(item)
        return True

    def receive(self) -> Any:
        return self._items.get()


class Job:
    """A request on its way through the thread, and the sink of its results: pieces of text, and last a Generation. An
    exception arrives as a Failure."""

    def __init__(
        self,
        generator: Generator,
        prompt: list[int],
        params: SamplingParams,
        results: Channel | WaitingQueue | None = None,
        **details: Any,
    ) -> None:
        """`details` are further fields of the Request."""
        self._generator: Generator | None = generator
        self._request: Request | None = Request(prompt, params, self, **details)
        self._cancelled = threading.Event()
        self.results = results or Channel()

    def emit(self, item: Any) -> None:
        if not self.results.put(item):
            self.cancel()

    def stopped(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody wants the result any more. Safe from any thread, and after the end."""
        self._cancelled.set()

    def fail(self, error: BaseException) -> None:
        self.drop()
        self.emit(Failure(error))

    def drop(self) -> None:
        """It won't be run, if it hasn't begun."""
        if self._request is not None:
            self._request.abandon()
        self._generator = self._request = None

    def begin(self) -> Generator:
        """Hands the request to its generator. A job that waits keeps the model alive; one that has begun does not, so
        a suspended stream keeps no weights after `close`."""
        generator, request = self._generator, self._request
        self._generator = self._request = None
        assert generator is not None
        assert request is not None
        generator.add(request)
        return generator

    async def receive(self) -> list[Any]:
        """What was emitted since the last call; raises what the request failed with."""
        assert isinstance(self.results, Channel)
        return self.results.up_to_failure(await self.results.receive())

    def wait(self) -> Any:
        """The same for a WaitingQueue, one item at a time."""
        assert isinstance(self.results, WaitingQueue)
        item = self.results.receive()
        if isinstance(item, Failure):
            raise item.error
        return item


class _State:
    """What the thread and its owner share."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.busy = False
        self.closed = threading.Event()

    def stop(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.inbox.put(None)


def _serve(state: _State) -> None:
    while (job := state.inbox.get()) is not None:
        state.busy = True
        generator = _begin(job)
        # an idle thread must not keep a job or a generator, and with it the engine, alive
        del job
        if generator is not None:
            _run(generator, state)
        del generator
        state.busy = False
    _refuse_waiting(state)


def _begin(job: Job) -> Generator | None:
    if job.stopped():
        job.drop()
        return None
    try:
        return job.begin()
    except BaseException as error:  # the caller gets it, whatever it is; this thread serves the next one
        job.fail(error)
        return None


def _run(generator: Generator, state: _State) -> None:
    """Until nothing is left to run; requests that come meanwhile join in."""
    while generator.busy and not state.closed.is_set():
        try:
            generator.step()
        except BaseException as error:  # as above
            generator.fail_all(error)
        while not (state.inbox.empty() or state.closed.is_set()):
            if (job := state.inbox.get()) is None:
                state.inbox.put(None)  # closed just now: the thread's own loop must see it too
            else:
                _begin(job)
            del job
    generator.fail_all(EngineError(CLOSED))


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
    """A daemon thread that runs jobs together, as their generator schedules them.

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

    @property
    def busy(self) -> bool:
        return self._state.busy or not self._state.inbox.empty()

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
