"""What every engine on the local runtime shares: how requests get to the model's thread and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import torch

from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text_generation import Generation, Prompt, TextGenerationEngine, one_prompt
from kani_lite.exceptions import EngineError, PromptError, PromptTooLong

from .generator import Generator, RuntimeOptions
from .request import Streamer
from .sampler import params_of_model, with_defaults
from .worker import CLOSED, Job, WaitingQueue, Worker


class RuntimeEngine(TextGenerationEngine):
    """An engine whose model runs on the local runtime. A subclass sets `sampling` and `max_context_size`, calls
    `start_runtime` with its model, and has `encode` and `decode`."""

    sampling: SamplingParams
    model: Any
    device: torch.device

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added."""
        raise NotImplementedError

    def start_runtime(
        self, model: Any, decode: Callable[[Sequence[int]], str], ends: Sequence[int], options: RuntimeOptions
    ) -> None:
        """Takes the model into its own thread. Raises EngineError if it can't be run as `options` say."""
        self.model, self.device = model, model.device
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._model_defaults = params_of_model(getattr(model, "generation_config", None))
        self._generator: Generator | None = Generator(model, decode, ends, self.max_context_size, options)
        self._worker = Worker(self, f"kani-lite {getattr(self, 'model_id', type(self).__name__)}")

    @property
    def attention(self) -> str:
        """Which implementation of attention runs, and why not a faster one."""
        return self._running_generator().runner.attention

    @property
    def busy(self) -> bool:
        """Whether the model is at work or has been asked to be."""
        return self._worker.busy

    def _running_generator(self) -> Generator:
        if self._generator is None:
            raise EngineError(CLOSED)
        return self._generator

    def params(self, sampling: SamplingParams | None, hyperparams: Mapping[str, Any]) -> SamplingParams:
        """The model's own values, the engine's and these, each over the one before. Raises TypeError for a name that
        is unknown."""
        given = self.sampling.merged(sampling).merged(SamplingParams.from_kwargs(**hyperparams))
        return with_defaults(self._model_defaults, given)

    def token_ids(self, prompt: Prompt) -> list[int]:
        text_or_ids = one_prompt(prompt)
        return self.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids

    def check(self, ids: Sequence[int]) -> None:
        """Raises PromptError for an empty prompt or unknown ids, PromptTooLong if there is no room for a reply."""
        if not ids:
            raise PromptError("The prompt is empty: a model needs at least one token to go on from.")
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            wrong = next(i for i in ids if not 0 <= i < self._vocabulary)
            raise PromptError(f"The prompt has the token id {wrong}: this model knows 0 to {self._vocabulary - 1}.")
        over = len(ids) + 1 - self.max_context_size
        if over > 0:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens: with one for a reply that is {over} more than the context "
                f"of {self.max_context_size}."
            )

    def submit(
        self,
        ids: list[int],
        params: SamplingParams,
        banned: Sequence[int] = (),
        streamer: Streamer | None = None,
        results: WaitingQueue | None = None,
    ) -> Job:
        """Hands a request to the model's thread; its results arrive at the job. Raises EngineError after `close`."""
        job = Job(self._running_generator(), ids, params, banned, streamer, results)
        self._worker.submit(job)
        return job

    async def generations(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        streamer: Streamer | None = None,
        **hyperparams: Any,
    ) -> AsyncGenerator[str | Generation]:
        params = self.params(sampling, hyperparams)
        ids = self.token_ids(prompt)
        self.check(ids)
        job = self.submit(ids, params, streamer=streamer)
        try:
            while True:
                for item in await job.receive():
                    yield item
                    if isinstance(item, Generation):
                        return
        finally:
            job.cancel()

    def generate_now(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        streamer: Streamer | None = None,
        **hyperparams: Any,
    ) -> Generation:
        """One reply, for code that isn't async; must not be called from an event loop, which it would block."""
        ids = self.token_ids(prompt)
        self.check(ids)
        job = self.submit(ids, self.params(sampling, hyperparams), streamer=streamer, results=WaitingQueue())
        try:
            while not isinstance(item := job.wait(), Generation):
                pass
            return item
        finally:
            job.cancel()

    async def close(self) -> None:
        """Ends running requests with EngineError and frees the model and its caches. May be called again."""
        await self._worker.close()
        if self._generator is not None:
            self._generator = None
            self.model = None
            if str(self.device).startswith("cuda"):
                torch.cuda.empty_cache()
