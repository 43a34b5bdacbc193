"""HuggingEngine: any causal language model of transformers, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from kani_lite.engines.limits import memory_bytes
from kani_lite.engines.prompted import PromptedEngine
from kani_lite.engines.quantization import save_quantized
from kani_lite.engines.runtime.engine import RuntimeEngine
from kani_lite.engines.runtime.generator import RuntimeOptions
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.worker import in_passing_thread
from kani_lite.exceptions import EngineError
from kani_lite.prompts.parsing import Format

from . import loading
from .adapters import Adapters, Switch


class HuggingEngine(PromptedEngine, RuntimeEngine):
    """Runs a causal language model on a thread of its own.

    Override `build_prompt` to write the prompt in another way, and `message_len` to go with it. Requests of any number
    of chats run together, up to `max_batch_size` in one forward pass; cancelling one stops it within one step.

    What a prompt shares with an earlier one, of this chat or another, is not computed again. Keys and values, those of
    running requests and those kept for later, take at most `kv_cache_memory_gb` (2**30 bytes; by default a quarter of
    the memory that is free once the model is loaded), and the prompts used least recently go first; at most
    `max_cached_prompts` are kept, 0 keeps none. `cache` is the kind of their memory (docs/runtime.md). On a CPU,
    `pack_weights` lays the linear layers' weights out as its kernels read them: twice as fast for one chat; where the
    output layer shares its weight with the embedding it costs a copy of that.

    `adapters`: LoRA adapters by name, each a folder that peft saved or its name on the hub, of which `adapter` is
    active (by default the first); they go on quantised layers too. `use_adapter` changes it. `chat_template`: as for
    ChatTemplatePromptPipeline; by default the tokenizer's.

    Sampling: the model's generation_config, `sampling` and `hyperparams` of the engine, and those of a call, each over
    the one before (see SamplingParams).

    Raises EngineError if the model can't be loaded, MissingModelDependencies if a package is missing.
    """

    reuses_prefix: ClassVar[bool] = True

    def __init__(
        self,
        model_id: str | PathLike[str],
        max_context_size: int | None = None,
        prompt_pipeline: Callable[..., Any] | None = None,
        *,
        token: str | bool | None = None,
        device: str | None = None,
        tokenizer_cls: Any = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        model_cls: Any = None,
        model_load_kwargs: dict[str, Any] | None = None,
        quantize: Any = None,
        adapters: Mapping[str, str | PathLike[str]] | None = None,
        adapter: str | None = None,
        sampling: SamplingParams | None = None,
        chat_template: str | PathLike[str] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        chat_template_reasoning_content_key: str | None = None,
        token_reserve: int = 0,
        tool_format: Format | str | None = None,
        cache: str = "bmc",
        kv_cache_memory_gb: float | None = None,
        max_cached_prompts: int | None = None,
        max_batch_size: int = 64,
        pack_weights: bool = True,
        **hyperparams: Any,
    ) -> None:
        # arguments first: a typo must not cost the loading of a model
        self.sampling = (sampling or SamplingParams()).merged(SamplingParams.from_kwargs(**hyperparams))
        if max_context_size is not None and max_context_size < 1:
            raise EngineError(f"max_context_size={max_context_size} leaves no room: give a positive number of tokens.")
        memory = memory_bytes(kv_cache_memory_gb)
        runtime = RuntimeOptions(cache, memory, max_cached_prompts, max_batch_size, pack_weights)
        self.adapters = Adapters(adapters or {}, adapter, token)
        options = loading.model_options(model_load_kwargs or {}, quantize, device)
        trusted = bool(options.pop("trust_remote_code", False))
        source = loading.find_source(model_id, token, trusted, options)
        self.model_id = source.name
        self.hyperparams = hyperparams
        self.token_reserve = token_reserve
        self.tokenizer = loading.load_tokenizer(source, tokenizer_cls, tokenizer_kwargs or {})
        template = {
            "chat_template": chat_template,
            "chat_template_reasoning_content_key": chat_template_reasoning_content_key,
            **(chat_template_kwargs or {}),
        }
        self.start_prompts(self.tokenizer, source.name, prompt_pipeline, tool_format, **template)
        in_passing_thread(lambda: self._load(source, model_cls, options, device, max_context_size, runtime))

    def _load(
        self,
        source: loading.Source,
        model_cls: Any,
        options: dict[str, Any],
        device: str | None,
        max_context_size: int | None,
        runtime: RuntimeOptions,
    ) -> None:
        self.model = loading.load_model(source, model_cls, options, device)
        self.adapters.put_on(self.model)
        self.max_context_size = max_context_size or loading.context_length(self.model.config, self.tokenizer, source)
        ends = loading.end_ids(self.model, self.tokenizer)
        tokenizer = self.tokenizer
        self.start_runtime(self.model, lambda ids: _decode(tokenizer, ids), ends, runtime)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added. Half a surrogate pair, which no
        tokenizer takes, becomes U+FFFD."""
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included."""
        return _decode(self.tokenizer, ids)

    async def use_adapter(self, name: str | None) -> None:
        """Makes another of the engine's adapters the active one, or none; what was cached of prompts goes. Raises
        EngineError for a name that it doesn't have, and while a request runs."""
        job = Switch(self._running_generator(), self.adapters, name)
        self._worker.submit(job)
        await job.receive()

    def save_quantized(self, folder: str | PathLike[str]) -> Path:
        """Saves the quantised model and its tokenizer into a new folder, which loads as any other. Raises EngineError
        if the model isn't quantised, its format can't be saved, or the folder isn't empty."""
        self.check_open()
        return save_quantized(self.model, self.tokenizer, folder)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
