"""VLLMEngine: vLLM in this process."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio
import anyio.to_thread

from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text_generation import Generation, TokenLogprobs
from kani_lite.engines.worker import CLOSED, Channel
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction

from .arguments import Arguments
from .base import VLLMPromptedEngine
from .core import Core, run_error
from .package import require_vllm, vllm_module
from .reply import Reply, of_vllm


class VLLMEngine(VLLMPromptedEngine):
    """Runs a model with vLLM's AsyncLLM, which keeps the model in processes of its own. Arguments are those of
    VLLMPromptedEngine. Needs the extra `vllm`.

    The program's main module is imported again by these processes, so it has to be under `if __name__ == "__main__":`.
    They end with the engine, and with this process, however that ends. Building it takes from 20 seconds to minutes:
    from async code do that in a thread. Works on asyncio and on trio, and on several event loops.

    Raises EngineError if the model can't be loaded or run, MissingModelDependencies if a package is missing.
    """

    _core: Core | None = None

    def load(self, arguments: Arguments) -> str:
        require_vllm("VLLMEngine")
        return super().load(arguments)

    def start(self, arguments: Arguments) -> None:
        core = Core(arguments.for_vllm(_device_bytes) | {"model": self.model_id} | _quiet(arguments))
        self._core = core
        self._end = weakref.finalize(self, core.close)
        self._end.atexit = False  # it has one of its own
        self.max_context_size = int(core.llm.model_config.max_model_len)
        self.vocabulary_size = int(core.llm.model_config.get_vocab_size())
        self._sampling_params = vllm_module("sampling_params")
        request = vllm_module("lora.request").LoRARequest
        self._adapters = {name: request(name, i, path) for i, (name, path) in enumerate(self.adapters.items(), 1)}

    def check_open(self) -> None:
        self._running()

    def _running(self) -> Core:
        if self._core is None:
            raise EngineError(CLOSED)
        return self._core

    async def run(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        banned: Sequence[int] = (),
        functions: Sequence[AIFunction] = (),
        streamer: Any = None,
    ) -> AsyncGenerator[str | Generation]:
        core = self._running()
        fields, grammar = self.request(ids, params, banned, functions, streamer)
        reply, results = Reply(), Channel()
        adapter = self._adapters.get(getattr(params, "adapter", None) or "")
        request = core.submit(ids, self._vllm_params(fields, grammar), adapter, results)
        try:
            while reply.finish_reason is None:
                for output in results.up_to_failure(await results.receive()):
                    if text := _taken(reply, output, ids, params):
                        yield text
            yield reply.generation()
        finally:
            request.cancel()

    def _vllm_params(self, fields: dict[str, Any], grammar: str | None) -> Any:
        module = self._sampling_params
        if grammar is not None:
            fields["structured_outputs"] = module.StructuredOutputsParams(structural_tag=grammar)
        try:
            return module.SamplingParams(output_kind=module.RequestOutputKind.DELTA, **fields)
        except Exception as error:  # of vLLM's own kinds
            raise run_error(error) from error

    async def close(self) -> None:
        """Ends running requests with EngineError, and vLLM's processes. May be called again."""
        await super().close()
        core, self._core = self._core, None
        if core is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(core.close)


def _taken(reply: Reply, output: Any, prompt: Sequence[int], params: SamplingParams) -> str:
    """The text of vLLM's next output for this reply."""
    part = output.outputs[0]
    if output.num_cached_tokens:
        reply.cached_tokens = output.num_cached_tokens
    if params.prompt_logprobs is not None and output.prompt_logprobs:
        reply.prompt_logprobs = of_vllm(prompt, output.prompt_logprobs, params.prompt_logprobs)
    logprobs: list[TokenLogprobs] | None = None
    if params.logprobs is not None:
        found = of_vllm(part.token_ids, part.logprobs or (), params.logprobs)
        logprobs = [each for each in found if each is not None]
    reply.finish_reason = part.finish_reason
    return reply.add(part.token_ids, part.text, logprobs)


def _device_bytes() -> int:
    """The memory of a GPU, without starting CUDA in this process, or on a CPU that of the machine."""
    return int(vllm_module("platforms").current_platform.get_device_total_memory())


def _quiet(arguments: Arguments) -> dict[str, Any]:
    return {} if "disable_log_stats" in arguments.more else {"disable_log_stats": True}
