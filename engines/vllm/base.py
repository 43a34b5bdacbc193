"""What vLLM's two engines share: the model's files, prompts, adapters, tool calls, and what a request says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from os import PathLike
from typing import Any, ClassVar

from kani_lite.engines.base import BaseCompletion
from kani_lite.engines.call_styles import MustCall, call_style, strict_names
from kani_lite.engines.prompted import PromptedEngine
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text_generation import GeneratedText, Prompt
from kani_lite.events import Delta
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.parsing import Format

from .arguments import Arguments, adapter_folders, check_parallel, context_asked_for, merged
from .sampling import VLLMSamplingParams, sampling_fields, with_adapter
from .tools import call_grammar


class VLLMPromptedEngine(PromptedEngine):
    """A model that vLLM runs, with prompts of our own: token ids in, text out.

    `model` is another name of `model_id`, `max_model_len` of `max_context_size`, `model_load_kwargs` of `engine_args`:
    vLLM's engine arguments that have no name here. `gpu_memory_reserved`: MB of each GPU, or on a CPU of the machine's
    memory. `adapters`: folders of LoRA adapters by name; a request chooses one with `adapter="name"`, the model as it
    is with `adapter=None`, and `adapter` here is the choice of those that don't. `chat_template`: as for
    ChatTemplatePromptPipeline.

    With `strict_tools` a grammar makes every call one of a function on offer, with arguments that fit its schema; None
    does it where the model's way to write calls is known (see tools.py). `tool_choice="required"`, or a function's
    name, always does it: the reply is one call.

    Sampling: the model's generation_config, `default_sampling_params`, `sampling` and `hyperparams` of the engine, and
    those of a call, each over the one before (see SamplingParams).
    """

    reuses_prefix: ClassVar[bool] = True

    def __init__(
        self,
        model_id: str | PathLike[str] | None = None,
        max_context_size: int | None = None,
        prompt_pipeline: Callable[..., Any] | None = None,
        *,
        model: str | PathLike[str] | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        gpu_memory_reserved: float | None = None,
        max_model_len: int | None = None,
        enforce_eager: bool = False,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        adapters: Mapping[str, str | PathLike[str]] | None = None,
        adapter: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
        model_load_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        token: str | bool | None = None,
        chat_template: str | PathLike[str] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        chat_template_reasoning_content_key: str | None = None,
        tool_format: Format | str | None = None,
        strict_tools: bool | None = None,
        token_reserve: int = 0,
        default_sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        sampling: SamplingParams | None = None,
        **hyperparams: Any,
    ) -> None:
        # arguments first: a typo must not cost the start of a server
        self.hyperparams, self.token_reserve = hyperparams, token_reserve
        self.adapters = adapter_folders(adapters)
        self.sampling = _defaults(default_sampling_params, sampling, hyperparams)
        check_parallel(tensor_parallel_size, pipeline_parallel_size)
        arguments = Arguments(
            _one_name(model_id, model),
            dtype,
            quantization,
            gpu_memory_reserved,
            context_asked_for(max_context_size, max_model_len),
            enforce_eager,
            tensor_parallel_size,
            pipeline_parallel_size,
            trust_remote_code,
            token,
            self.adapters,
            merged(engine_args, model_load_kwargs),
        )
        template = {
            "chat_template": chat_template,
            "chat_template_reasoning_content_key": chat_template_reasoning_content_key,
            **(chat_template_kwargs or {}),
        }
        name = self.load(arguments)
        self.start_prompts(self.tokenizer, name, prompt_pipeline, tool_format, **template)
        self._style = self._strictness(strict_tools)
        self._strict = strict_tools is not False
        self.start(arguments)
        self._choose_adapter(adapter)

    def load(self, arguments: Arguments) -> str:
        """Reads the model's files but its weights: the tokenizer, the end tokens, what its authors recommend. Returns
        its name. Raises EngineError if there is no such model, or it has no tokenizer."""

        from .files import read_files

        files = read_files(arguments)
        self.model_id, self.tokenizer, self.ends = files.name, files.tokenizer, files.ends
        self.vocabulary_size, self.model_sampling = files.vocabulary_size, files.recommended
        return files.name

    @abstractmethod
    def start(self, arguments: Arguments) -> None:
        """Starts vLLM, or finds it running, and sets `max_context_size`. Raises EngineError."""

    def _strictness(self, strict_tools: bool | None) -> Any:
        template = self.pipeline.chat_template if isinstance(self.pipeline, ChatTemplatePromptPipeline) else ""
        style = call_style(self.tool_format, template)
        if style is None and strict_tools:
            raise EngineError(
                f"strict_tools=True isn't possible for the format {self.tool_format.name!r}: its calls have no grammar "
                f"here (there is one for {', '.join(strict_names())}); leave it out, or give tool_format."
            )
        return style

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added. Half a surrogate pair, which no
        tokenizer takes, becomes U+FFFD."""
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    # ==== adapters ====

    def _choose_adapter(self, adapter: str | None) -> None:
        if adapter is None:
            adapter = getattr(self.sampling, "adapter", None)
        self._check_adapter(adapter)
        self.sampling = with_adapter(self.sampling, adapter)

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self.adapters:
            there = ", ".join(map(repr, self.adapters)) or "none"
            raise EngineError(f"There is no adapter {adapter!r}: this engine has {there} (see adapters=).")

    def params(self, sampling: SamplingParams | None, hyperparams: Mapping[str, Any]) -> VLLMSamplingParams:
        """As for every engine; `adapter` is a hyperparameter too, with None as a choice. Raises EngineError for an
        adapter that is unknown."""
        more = dict(hyperparams)
        chosen = _take_adapter(sampling, more)
        given = chosen is not None and "adapter" in chosen.model_fields_set
        adapter = getattr(chosen if given else self.sampling, "adapter", None)
        self._check_adapter(adapter)
        return with_adapter(super().params(sampling, more), adapter)

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams | None = None, streamer: Any = None, **hyperparams: Any
    ) -> GeneratedText:
        """Continues a prompt `n` times; `adapter` chooses a LoRA adapter. Raises what it does on every engine."""
        chosen = _take_adapter(sampling, hyperparams)
        return await super().generate(prompt, chosen, streamer, **hyperparams)

    async def generate_stream(
        self, prompt: Prompt, sampling: SamplingParams | None = None, **hyperparams: Any
    ) -> AsyncGenerator[str]:
        """The text of one reply piece by piece. Raises what `generate` does."""
        chosen = _take_adapter(sampling, hyperparams)
        async with aclosing(super().generate_stream(prompt, chosen, **hyperparams)) as pieces:
            async for piece in pieces:
                yield piece

    # ==== requests ====

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
        """As for every PromptedEngine; `tool_choice` may also be "required" or a function's name, which makes the reply
        one call. Raises EngineError if that function is not on offer or calls have no grammar here."""
        if tool_choice not in ("auto", "none"):
            functions = MustCall(functions or (), None if tool_choice == "required" else tool_choice)
            tool_choice = "auto"
            if self._style is None:
                raise EngineError(
                    f"A call can't be required in the format {self.tool_format.name!r}: its calls have no grammar here."
                )
        more = {"tool_choice": tool_choice, "sampling": sampling, "streamer": streamer, **hyperparams}
        async with aclosing(super().stream(messages, functions, **more)) as items:
            async for item in items:
                yield item

    def request(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        banned: Sequence[int],
        functions: Sequence[AIFunction],
        streamer: Any,
    ) -> tuple[dict[str, Any], str | None]:
        """The fields of vllm.SamplingParams for this run, and the grammar of its calls (a structural tag). Raises
        EngineError for what vLLM can't do."""
        if streamer is not None:
            raise EngineError(f"{type(self).__name__} has no streamer=: read stream or generate_stream instead.")
        fields = sampling_fields(
            params,
            room=self.max_context_size - len(ids),
            ends=self.ends,
            banned=banned,
            vocabulary=self.vocabulary_size,
        )
        strict = self._strict or isinstance(functions, MustCall)
        grammar = call_grammar(self._style, functions) if functions and self._style and strict else None
        return fields, grammar


def _one_name(model_id: str | PathLike[str] | None, model: str | PathLike[str] | None) -> str:
    given = [str(name) for name in (model_id, model) if name is not None]
    if len(set(given)) != 1:
        raise EngineError(f"model_id={model_id!r} and model={model!r} mean the same: give one of them.")
    return given[0]


def _defaults(
    default: SamplingParams | Mapping[str, Any] | None, sampling: SamplingParams | None, hyperparams: Mapping[str, Any]
) -> SamplingParams:
    given = SamplingParams.from_kwargs(**default) if isinstance(default, Mapping) else default or SamplingParams()
    return given.merged(sampling).merged(SamplingParams.from_kwargs(**hyperparams))


def _take_adapter(sampling: SamplingParams | None, hyperparams: dict[str, Any]) -> SamplingParams | None:
    """The values of a call with the adapter that it chooses among its hyperparameters, if it does."""
    if "adapter" not in hyperparams:
        return sampling
    return with_adapter(sampling or SamplingParams(), hyperparams.pop("adapter"))
