"""vLLM's AsyncLLM on an event loop of its own, in a thread: so it serves any loop of the caller's, one after another
or several at once, and what it does never holds one of them up."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import multiprocessing
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from kani_lite.engines.worker import CLOSED, Channel, Failure
from kani_lite.exceptions import EngineError

from .package import vllm_module
from .process import ProcessGuard

_SECONDS_TO_END = 20.0  # for vLLM's processes; it kills them itself before
_LOOK = 0.1  # seconds between two looks for processes that vLLM has started
_IMPORTING = "_inheriting"  # of a process that multiprocessing has spawned, while it imports the main module


class Core:
    """One running vLLM. Raises EngineError if it can't be started. It knows nothing of its engine, so that the end of
    that can end it."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        check_not_importing()
        self.llm: Any = None
        self._arguments = arguments
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: list[BaseException] = []
        self._numbers = itertools.count()
        self._guard = ProcessGuard()
        self._requests: set[Future[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()  # of the requests that have begun
        self._processes: set[multiprocessing.process.BaseProcess] = set()
        self._thread = threading.Thread(target=self._run, name="kani-lite vLLM", daemon=True)
        before = {process.pid for process in multiprocessing.active_children()}
        self._thread.start()
        while not self._ready.wait(_LOOK):
            self._watch_new(before)
        self._watch_new(before)
        if self._failure:
            self._thread.join()
            self._guard.close()
            raise start_error(self._failure[0])
        atexit.register(self.close)

    def _watch_new(self, before: set[int | None]) -> None:
        # vLLM's processes outlive a process that is killed by SIGKILL
        self._processes |= {one for one in multiprocessing.active_children() if one.pid not in before}
        self._guard.watch(process.pid for process in self._processes if process.pid is not None)

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and self._stop is not None and not self._stop.is_set()

    @property
    def unfinished(self) -> int:
        """Requests that vLLM has not ended or forgotten."""
        return int(self.llm.get_num_unfinished_requests())

    def _run(self) -> None:
        try:
            self.llm = self._start()
        except BaseException as error:  # vLLM ends with SystemExit, too; told to the caller
            self._failure.append(error)
            self._ready.set()
            return
        try:
            asyncio.run(self._serve())
        finally:
            self._cancel_requests()  # one that came too late to be run at all
            self.llm.shutdown()
            self.llm = None

    def _cancel_requests(self) -> None:
        for request in list(self._requests):
            request.cancel()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        self._cancel_requests()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> Any:
        engine_args = vllm_module("engine.arg_utils").AsyncEngineArgs
        return vllm_module("v1.engine.async_llm").AsyncLLM.from_engine_args(engine_args(**self._arguments))

    def submit(self, ids: Sequence[int], params: Any, adapter: Any, results: Channel) -> Future[None]:
        """Runs a prompt: `results` gets vLLM's outputs, and a Failure if there can't be one. Cancelling the future
        takes the request out of vLLM. Raises EngineError after `close`."""
        if not self.running or self._loop is None:
            raise EngineError(CLOSED)
        work = self._request(f"kani-lite {next(self._numbers)}", list(ids), params, adapter, results)
        try:
            request = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has just ended
            work.close()
            raise EngineError(CLOSED) from None
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        # read only if nothing else told of the end, so that nobody waits for ever
        request.add_done_callback(lambda _: results.put(Failure(EngineError(CLOSED))))
        if not self._thread.is_alive():  # which has already cancelled those that it knew
            request.cancel()
        return request

    async def _request(self, name: str, ids: list[int], params: Any, adapter: Any, results: Channel) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        outputs = self.llm.generate({"prompt_token_ids": ids}, params, name, lora_request=adapter)
        try:
            async for output in outputs:
                results.put(output)
        except Exception as error:  # vLLM's own, of any kind: the caller's to see
            results.put(Failure(run_error(error)))
        finally:
            await outputs.aclose()
            self._tasks.discard(task)

    def close(self) -> None:
        """Ends running requests with EngineError, and vLLM with its processes. May be called again."""
        atexit.unregister(self.close)
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:
                pass  # it has just ended
        self._thread.join(_SECONDS_TO_END)
        self._guard.close()
        for process in self._processes:  # those that it has killed are there until somebody waits for them
            process.join(_SECONDS_TO_END)
        self._processes.clear()


def check_not_importing() -> None:
    """Raises EngineError in a process that vLLM has spawned and that imports the program again."""
    if getattr(multiprocessing.current_process(), _IMPORTING, False):
        raise EngineError(
            "VLLMEngine starts processes that import the program's main module, which must not start one itself: put "
            "the program under `if __name__ == '__main__':`."
        )


def start_error(error: BaseException) -> BaseException:
    """Why vLLM can't be started, as an EngineError; interrupts stay as they are."""
    if isinstance(error, (EngineError, KeyboardInterrupt)):
        return error
    said = first_line(error)
    if "core initialization failed" in said:
        said = "its engine process has failed, and has written to stderr why"
    return made_from(error, EngineError(f"vLLM can't run this model as asked: {said}."))


def run_error(error: BaseException) -> EngineError:
    """Why vLLM can't run a request."""
    if isinstance(error, EngineError):
        return error
    if type(error).__name__ == "EngineDeadError":
        said = "vLLM's engine process has died; what it wrote to stderr says why. Build a new engine to go on."
    else:
        said = f"vLLM refuses or failed this request: {first_line(error)}"
    return made_from(error, EngineError(said))


def made_from(cause: BaseException, error: EngineError) -> EngineError:
    error.__cause__ = cause
    return error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; that of pydantic says the field in the first and the reason in the third."""
    while error.__cause__ is not None and not str(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "validation error" in (lines[0] if lines else "") and len(lines) > 1:
        lines = [" ".join(lines[:3])]
    return lines[0][:600] if lines else type(error).__name__
