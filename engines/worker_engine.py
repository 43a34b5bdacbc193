"""What every engine shares whose model runs on a thread of its own: how requests get there and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import EngineError

from .sampling import SamplingParams
from .text_generation import Generation, Prompt, TextGenerationEngine
from .worker import CLOSED, Generator, Job, WaitingQueue, Worker

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction


class WorkerEngine(TextGenerationEngine):
    """An engine whose model runs on a thread of its own. A subclass calls `start_worker`."""

    _generator: Generator | None = None

    def start_worker(self, generator: Generator) -> None:
        """Takes the generator, and the model in it, into the thread. The generator must not know the engine: the
        thread ends when that is freed."""
        self._generator = generator
        self._worker = Worker(self, f"kani-lite {getattr(self, 'model_id', type(self).__name__)}")

    @property
    def busy(self) -> bool:
        """Whether the model is at work or has been asked to be."""
        return self._worker.busy

    def check_open(self) -> None:
        self._running_generator()

    def _running_generator(self) -> Generator:
        if self._generator is None:
            raise EngineError(CLOSED)
        return self._generator

    def submit(
        self,
        ids: list[int],
        params: SamplingParams,
        results: WaitingQueue | None = None,
        **details: Any,
    ) -> Job:
        """Hands a request to the model's thread; its results arrive at the job. `details` are further fields of the
        Request. Raises EngineError after `close`."""
        job = Job(self._running_generator(), ids, params, results, **details)
        self._worker.submit(job)
        return job

    async def run(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        banned: Sequence[int] = (),
        functions: Sequence[AIFunction] = (),
        streamer: Any = None,
    ) -> AsyncGenerator[str | Generation]:
        job = self.submit(ids, params, banned=banned, functions=functions, streamer=streamer)
        try:
            while True:
                for item in await job.receive():
                    yield item
                    if isinstance(item, Generation):
                        return
        finally:
            job.cancel()

    def generate_now(
        self, prompt: Prompt, sampling: SamplingParams | None = None, streamer: Any = None, **hyperparams: Any
    ) -> Generation:
        """One reply, for code that isn't async; must not be called from an event loop, which it would block."""
        params = self.params_of_one(sampling, hyperparams)
        ids = self.token_ids(prompt)
        self.check(ids)
        job = self.submit(ids, params, WaitingQueue(), streamer=streamer)
        try:
            while not isinstance(item := job.wait(), Generation):
                pass
            return item
        finally:
            job.cancel()

    async def close(self) -> None:
        """Ends running requests with EngineError and frees the model and its caches. May be called again."""
        await self._worker.close()
        self._generator = None
