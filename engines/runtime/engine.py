"""What every engine on the local runtime shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kani_lite.engines.sampling import params_of_model
from kani_lite.engines.worker_engine import WorkerEngine

from .generator import Generator, RuntimeOptions


class RuntimeEngine(WorkerEngine):
    """An engine whose model runs on the local runtime. A subclass sets `sampling` and `max_context_size`, calls
    `start_runtime` with its model, and has `encode`."""

    model: Any
    device: torch.device
    _generator: Generator | None

    def start_runtime(
        self, model: Any, decode: Callable[[Sequence[int]], str], ends: Sequence[int], options: RuntimeOptions
    ) -> None:
        """Takes the model into its own thread. Raises EngineError if it can't be run as `options` say."""
        self.model, self.device = model, model.device
        self.vocabulary_size = int(model.get_input_embeddings().weight.shape[0])
        self.model_sampling = params_of_model(getattr(model, "generation_config", None))
        self.start_worker(Generator(model, decode, ends, self.max_context_size, options))

    @property
    def attention(self) -> str:
        """Which implementation of attention runs, and why not a faster one."""
        return self._running_generator().runner.attention

    def _running_generator(self) -> Generator:
        super()._running_generator()
        assert self._generator is not None
        return self._generator

    async def close(self) -> None:
        was_open = self._generator is not None
        await super().close()
        if was_open:
            self.model = None
            if str(self.device).startswith("cuda"):
                torch.cuda.empty_cache()
