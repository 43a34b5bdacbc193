"""OnnxEngine: a model in ONNX format, run on the CPU by onnxruntime-genai."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

from kani_lite.engines.limits import check_least, memory_bytes, quarter_of_memory
from kani_lite.engines.prompted import PromptedEngine
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.worker_engine import WorkerEngine
from kani_lite.exceptions import EngineError
from kani_lite.prompts.parsing import Format

from .files import ModelFolder, read_folder
from .package import genai, onnx_package


class OnnxEngine(PromptedEngine, WorkerEngine):
    """Runs a model in ONNX format on a thread of its own, without torch or transformers. Needs the extra `onnx`.

    `model_id` is a folder with a genai_config.json, the tokenizer and the chat template, as
    `kani-lite convert onnx MODEL FOLDER --int4` makes it. Up to `max_batch_size` requests take turns, a token each;
    cancelling one stops it within one step. What a prompt shares with an earlier one that is still kept, of this chat
    or another, is not computed again. Keys and values take at most `kv_cache_memory_gb` (2**30 bytes; by default a
    quarter of the memory that there is), and at most `max_cached_prompts` ended requests are kept.

    `threads` compute a forward pass; None leaves it to the library: one for each core. Where other programs run too,
    fewer are faster. `chat_template`: as for ChatTemplatePromptPipeline. Calls are not decoded under a grammar here:
    `strict_tools=True` is refused. A streamer gets numpy arrays.

    Sampling: the folder's genai_config.json, `sampling` and `hyperparams` of the engine, and those of a call, each over
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
        sampling: SamplingParams | None = None,
        **hyperparams: Any,
    ) -> None:
        # arguments first: a typo must not cost the loading of a model
        self.sampling = (sampling or SamplingParams()).merged(SamplingParams.from_kwargs(**hyperparams))
        if strict_tools:
            raise EngineError(
                "strict_tools=True isn't possible here, OnnxEngine has no grammar for calls: leave it out."
            )
        check_least(
            max_context_size=(max_context_size, 1),
            threads=(threads, 1),
            max_cached_prompts=(max_cached_prompts, 0),
            max_batch_size=(max_batch_size, 1),
        )
        memory = memory_bytes(kv_cache_memory_gb)
        package = genai()
        onnx_package("numpy")  # what runs the model needs it
        folder = read_folder(model_id)
        self.model_id, self.hyperparams, self.token_reserve = str(folder.path), hyperparams, token_reserve
        self.max_context_size = _context(folder, max_context_size)
        self.vocabulary_size, self.model_sampling = folder.config.vocabulary_size, folder.config.recommended
        self.tokenizer = folder.tokenizer
        template = {
            "chat_template": chat_template,
            "chat_template_reasoning_content_key": chat_template_reasoning_content_key,
            **(chat_template_kwargs or {}),
        }
        self.start_prompts(folder.template, folder.path.name, prompt_pipeline, tool_format, **template)
        memory = quarter_of_memory() if memory is None else memory
        self._start(package, folder, threads, memory, max_batch_size, max_cached_prompts)

    def _start(
        self, package: Any, folder: ModelFolder, threads: int | None, memory: int, batch: int, kept: int
    ) -> None:
        from .generator import OnnxGenerator, OnnxOptions  # they need numpy

        config = folder.config
        most = max(1, memory // config.token_bytes)
        options = OnnxOptions(
            self.max_context_size, config.vocabulary_size, most, config.token_bytes, config.continues, batch, kept
        )
        model = _load(package, folder, threads)
        self.start_worker(OnnxGenerator(package, model, folder.tokenizer.decode, folder.ends, options))

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added. Raises PromptError for a text that
        has no UTF-8."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included."""
        return self.tokenizer.decode(ids)


def _context(folder: ModelFolder, asked: int | None) -> int:
    most = folder.config.context_length
    if asked is not None and asked > most:
        raise EngineError(f"max_context_size={asked} is more than this model can read here: give at most {most}.")
    return asked or most


def _load(package: Any, folder: ModelFolder, threads: int | None) -> Any:
    # threads that wait by spinning take the cores from everything else that runs, and slow the model down itself
    options = {"session.intra_op.allow_spinning": "0"} | folder.config.session
    if threads is not None:
        options["intra_op_num_threads"] = threads
    try:
        config = package.Config(str(folder.path))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        return package.Model(config)
    except RuntimeError as error:  # the only class that the library raises
        raise EngineError(f"The model in {str(folder.path)!r} can't be loaded: {error}".rstrip(".") + ".") from error
