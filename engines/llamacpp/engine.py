"""LlamaCppEngine: a GGUF file, run by llama.cpp."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from kani_lite.engines.call_styles import CallStyle, MustCall, call_style, strict_names
from kani_lite.engines.limits import check_least, memory_bytes, quarter_of_memory
from kani_lite.engines.prompted import PromptedEngine
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.worker_engine import WorkerEngine
from kani_lite.exceptions import EngineError
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.parsing import Format

from .package import llamacpp_package

if TYPE_CHECKING:
    from kani_lite.engines.base import BaseCompletion
    from kani_lite.events import Delta
    from kani_lite.functions import AIFunction
    from kani_lite.messages import ChatMessage

    from .library import Model
    from .options import LoadOptions


class LlamaCppEngine(PromptedEngine, WorkerEngine):
    """Runs a GGUF file by llama.cpp on a thread of its own, without torch or transformers. Needs the extra `llamacpp`.

    The file is `model_path`, or that of the hub's `repo_id` whose name fits `filename`, such as "*q4_0.gguf"; the hub
    is asked only for what isn't on this disk. Up to `max_batch_size` requests share each forward pass; cancelling one
    stops it within one. What a prompt shares with an earlier one, of this chat or another, is not computed again.

    `max_context_size` 0 or None is the file's own. Memory for keys and values is taken at once: enough for
    `max_batch_size` full contexts, but at most `kv_cache_memory_gb` (2**30 bytes; by default a quarter of the memory
    that there is); at most `max_cached_prompts` ended requests are kept in it. `threads` compute a forward pass; None:
    half of the cores.

    `model_load_kwargs`: fields of llama_model_params and llama_context_params by their names (n_gpu_layers, n_batch,
    type_k, rope_freq_base, ...), and use_mmap, use_mlock, flash_attn, tensor_split, lora_path and lora_scale as for
    llama_cpp.Llama. `chat_template`: as for ChatTemplatePromptPipeline; by default the file's own. `strict_tools`: a
    grammar makes each call one of a function on offer, with arguments that fit its schema, but for limits of numbers;
    then `tool_choice="required"`, or a function's name, makes a reply one call.
    `verbose` shows what llama.cpp says on stderr, in the whole process. A streamer gets numpy arrays.

    Sampling: what the file recommends, `sampling` and `hyperparams` of the engine, and those of a call, each over the
    one before (see SamplingParams).

    Raises EngineError if the model can't be loaded, MissingModelDependencies if a package is missing.
    """

    reuses_prefix: ClassVar[bool] = True

    def __init__(
        self,
        repo_id: str | None = None,
        filename: str | None = None,
        model_path: str | PathLike[str] | None = None,
        max_context_size: int | None = 0,
        prompt_pipeline: Callable[..., Any] | None = None,
        *,
        token: str | bool | None = None,
        model_load_kwargs: Mapping[str, Any] | None = None,
        threads: int | None = None,
        chat_template: str | PathLike[str] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        chat_template_reasoning_content_key: str | None = None,
        tool_format: Format | str | None = None,
        strict_tools: bool = False,
        token_reserve: int = 0,
        kv_cache_memory_gb: float | None = None,
        max_cached_prompts: int = 8,
        max_batch_size: int = 8,
        verbose: bool = False,
        sampling: SamplingParams | None = None,
        **hyperparams: Any,
    ) -> None:
        # arguments first: a typo must not cost the loading of a model
        self.sampling = (sampling or SamplingParams()).merged(SamplingParams.from_kwargs(**hyperparams))
        check_least(
            max_context_size=(max_context_size, 0),
            threads=(threads, 1),
            max_cached_prompts=(max_cached_prompts, 0),
            max_batch_size=(max_batch_size, 1),
        )
        memory = memory_bytes(kv_cache_memory_gb)
        for name in ("numpy", "llama_cpp"):  # what is imported below needs them
            llamacpp_package(name)
        from .files import ends_of, find_file, recommended, template_of
        from .library import Model, library
        from .options import model_params, read_options
        from .tokenizer import tokenizer_of

        path = find_file(repo_id, filename, model_path, token)
        library()[1].verbose = verbose
        options = read_options(model_load_kwargs or {}, threads)
        model = Model(str(path), model_params(options))
        self.model_id, self.hyperparams, self.token_reserve = repo_id or str(path), hyperparams, token_reserve
        self.metadata, self.vocabulary_size = model.metadata, model.vocabulary_size
        self.tokenizer, self.model_sampling = tokenizer_of(model), recommended(model.metadata)
        template = {
            "chat_template": chat_template,
            "chat_template_reasoning_content_key": chat_template_reasoning_content_key,
            **(chat_template_kwargs or {}),
        }
        name = model.metadata.get("general.name", path.stem)
        self.start_prompts(template_of(model, path), name, prompt_pipeline, tool_format, **template)
        self._strict = strict_tools
        style = self._call_style() if strict_tools else None
        cells = self._cells(model, options, max_context_size or None, memory, max_batch_size)
        self._start(model, options, ends_of(model), style, (cells, max_batch_size, max_cached_prompts))

    def _call_style(self) -> CallStyle:
        from .gbnf import trigger_of

        template = self.pipeline.chat_template if isinstance(self.pipeline, ChatTemplatePromptPipeline) else ""
        style = call_style(self.tool_format, template)
        if style is None or trigger_of(style) is None:
            raise EngineError(
                f"strict_tools=True isn't possible for the format {self.tool_format.name!r}: its calls have no grammar "
                f"here (most of {', '.join(strict_names())} have one); leave it out, or give tool_format."
            )
        return style

    def _cells(
        self, model: Model, options: LoadOptions, asked: int | None, memory: int | None, max_batch_size: int
    ) -> int:
        """Sets `max_context_size`; returns for how many tokens there are keys and values."""
        from .options import bytes_per_token

        each = bytes_per_token(model, options)
        trained = int(model.lib.llama_model_n_ctx_train(model.pointer))
        if asked is None and trained < 1:
            raise EngineError(f"The context length of {self.model_id!r} isn't known: pass max_context_size=.")
        scaled = any(name.startswith(("rope_", "yarn_")) for name in options.context)
        if asked is not None and 0 < trained < asked and not scaled:
            raise EngineError(
                f"max_context_size={asked} is more than the {trained} tokens that this model was trained for: give "
                "less, or model_load_kwargs that scale its positions, such as rope_freq_scale."
            )
        if asked is not None and memory is not None and asked * each > memory:
            raise EngineError(
                f"max_context_size={asked} needs {asked * each / 2**30:.3g} GB for its keys and values: give at least "
                "as much kv_cache_memory_gb, or a smaller context."
            )
        room = (quarter_of_memory() if memory is None else memory) // each
        self.max_context_size = asked or min(trained, room)
        if self.max_context_size < 1:
            raise EngineError(f"kv_cache_memory_gb has no room for a token, which needs {each:,} bytes: give more.")
        return max(self.max_context_size, min(room, self.max_context_size * max_batch_size))

    def _start(
        self,
        model: Model,
        options: LoadOptions,
        ends: Sequence[int],
        style: CallStyle | None,
        sizes: tuple[int, int, int],
    ) -> None:
        """`sizes`: cells, requests at once, prompts kept."""
        from .generator import LlamaGenerator, LlamaOptions
        from .grammar import CallGrammars
        from .library import Context
        from .options import context_params, is_divisible

        cells, running, kept = sizes
        context = Context(model, context_params(options, cells, running + kept), options.adapters)
        divisible = is_divisible(model, options)
        limits = LlamaOptions(self.max_context_size, model.vocabulary_size, cells, divisible, running, kept)
        grammars = CallGrammars(model, style) if style is not None else None
        self.start_worker(LlamaGenerator(context, self.tokenizer.decode, ends, limits, grammars))

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included."""
        return self.tokenizer.decode(ids)

    async def stream(
        self,
        messages: list[ChatMessage],
        functions: list[AIFunction] | None = None,
        *,
        tool_choice: str = "auto",
        sampling: SamplingParams | None = None,
        streamer: Any = None,
        **hyperparams: Any,
    ) -> AsyncGenerator[str | Delta | BaseCompletion]:
        """As for every PromptedEngine; with `strict_tools`, `tool_choice` may also be "required" or a function's name,
        which makes the reply one call. Raises EngineError if that function is not on offer."""
        if tool_choice not in ("auto", "none"):
            if not self._strict:
                raise EngineError(
                    f"tool_choice={tool_choice!r} isn't possible here without a grammar: build the engine with "
                    "strict_tools=True, or give 'auto' or 'none'."
                )
            functions = MustCall(functions or (), None if tool_choice == "required" else tool_choice)
            tool_choice = "auto"
        more = {"tool_choice": tool_choice, "sampling": sampling, "streamer": streamer, **hyperparams}
        async with aclosing(super().stream(messages, functions, **more)) as items:
            async for item in items:
                yield item

    async def close(self) -> None:
        await super().close()
        self.tokenizer.close()
