"""HuggingEngine: any causal language model of transformers, run in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio.to_thread
import torch

from kani_lite.engines.base import BaseCompletion, Completion
from kani_lite.engines.quantization import save_quantized
from kani_lite.engines.runtime.engine import RuntimeEngine
from kani_lite.engines.runtime.generator import RuntimeOptions
from kani_lite.engines.runtime.request import Streamer
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text_generation import Generation
from kani_lite.events import Delta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.exceptions import EngineError
from kani_lite.messages import ChatMessage, ChatRole, ToolCall
from kani_lite.prompts.calls import read_bare_json
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.formats import PLAIN, format_for_model, format_for_template, get_format
from kani_lite.prompts.parsing import Format, Parser

from . import loading
from .remember import Prompt, PromptMemo, ReplyIds

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

_CALL_DELTAS = (ToolCallStarted, ToolCallDelta, ToolCallFinished)
_GUESSED_OVERHEAD = 8  # tokens around a message, where the template doesn't let it be measured


class HuggingEngine(RuntimeEngine):
    """Runs a causal language model on a thread of its own.

    Override `build_prompt` to write the prompt in another way, and `message_len` to go with it. Requests of any number
    of chats run together, up to `max_batch_size` in one forward pass; cancelling one stops it within one step.

    What a prompt shares with an earlier one, of this chat or another, is not computed again. Keys and values, those of
    running requests and those kept for later, take at most `kv_cache_memory_gb` (2**30 bytes; by default a quarter of
    the memory that is free once the model is loaded), and the prompts used least recently go first; at most
    `max_cached_prompts` are kept, 0 keeps none. `cache` is the kind of their memory (docs/runtime.md). On a CPU,
    `pack_weights` lays the linear layers' weights out as its kernels read them: twice as fast for one chat; where the
    output layer shares its weight with the embedding it costs a copy of that.

    Sampling: the model's generation_config, `sampling` and `hyperparams` of the engine, and those of a call, each over
    the one before (see SamplingParams).

    Raises EngineError if the model can't be loaded, MissingModelDependencies if a package is missing.
    """

    reuses_prefix: ClassVar[bool] = True
    disable_function_calling_kwargs: ClassVar[dict[str, Any]] = {"tool_choice": "none"}

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
        sampling: SamplingParams | None = None,
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
        memory = None if kv_cache_memory_gb is None else int(kv_cache_memory_gb * 2**30)
        runtime = RuntimeOptions(cache, memory, max_cached_prompts, max_batch_size, pack_weights)
        options = loading.model_options(model_load_kwargs or {}, quantize, device)
        trusted = bool(options.pop("trust_remote_code", False))
        source = loading.find_source(model_id, token, trusted, options)
        self.model_id = source.name
        self.hyperparams = hyperparams
        self.token_reserve = token_reserve
        self.tokenizer = loading.load_tokenizer(source, tokenizer_cls, tokenizer_kwargs or {})
        template_kwargs = {"chat_template_reasoning_content_key": chat_template_reasoning_content_key}
        self.pipeline = prompt_pipeline or self._default_pipeline(template_kwargs | (chat_template_kwargs or {}))
        self.tool_format = get_format(tool_format) if tool_format else self._format_of(source.name)
        self.model = loading.load_model(source, model_cls, options, device)
        self.max_context_size = max_context_size or loading.context_length(self.model.config, self.tokenizer, source)
        self._start(runtime)

    def _default_pipeline(self, template_kwargs: dict[str, Any]) -> Callable[..., Any] | None:
        if type(self).build_prompt is not HuggingEngine.build_prompt:
            return None  # the subclass writes the prompt; it need not have a chat template
        return ChatTemplatePromptPipeline(self.tokenizer, **template_kwargs)

    def _format_of(self, name: str) -> Format:
        """The format that the chat template gives away, or else the model's name. A template that shows no calls gets
        them as plain JSON, and so does the model that answers it."""
        pipeline = self.pipeline if isinstance(self.pipeline, ChatTemplatePromptPipeline) else None
        found = format_for_template(pipeline.chat_template if pipeline else self.tokenizer.chat_template)
        if found is PLAIN:
            found = format_for_model(name) or found
        if pipeline and found.bare is None and not pipeline.capabilities().can("calls"):
            found = replace(found, bare=read_bare_json)
        return found

    def _start(self, options: RuntimeOptions) -> None:
        self._memo, self._replies = PromptMemo(), ReplyIds()
        self._overheads: dict[ChatRole, int] = {}
        ends = loading.end_ids(self.model, self.tokenizer)
        tokenizer = self.tokenizer
        self.start_runtime(self.model, lambda ids: _decode(tokenizer, ids), ends, options)

    # ==== prompts ====

    def build_prompt(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None = None
    ) -> str | list[int] | torch.Tensor:
        """The prompt for these messages, up to where the model's reply begins: the whole text with all its special
        tokens, or token ids. May run on another thread; must depend on nothing but its arguments, since prompts that
        were built are remembered."""
        if self.pipeline is None:
            raise EngineError("This engine has no prompt pipeline: pass prompt_pipeline= or override build_prompt.")
        built: str | list[int] | torch.Tensor = self.pipeline(messages, functions)
        return built

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included."""
        return _decode(self.tokenizer, ids)

    def message_len(self, message: ChatMessage) -> int:
        """About how many tokens this message adds to a prompt: its text, and what the template puts around it."""
        if (around := self._overheads.get(message.role)) is None:
            around = self._overheads[message.role] = self._measure_overhead(message.role)
        return len(self.encode(_shown(message))) + around

    def _measure_overhead(self, role: ChatRole) -> int:
        user, reply = ChatMessage.user("a"), ChatMessage.assistant("a")
        call = ToolCall.from_function("a", call_id_="a")
        asking = ChatMessage.assistant(None, tool_calls=[call])
        without, message, after = {
            ChatRole.SYSTEM: ([user], ChatMessage.system("a"), [user]),
            ChatRole.USER: ([user, reply], user, [user, reply]),
            ChatRole.ASSISTANT: ([user], reply, [user]),
            ChatRole.FUNCTION: ([user, asking], ChatMessage.function("a", "a", "a"), [user, asking]),
        }[role]
        with_it = [message, *after] if role is ChatRole.SYSTEM else [*after, message]
        try:
            more = len(self.token_ids(self.build_prompt(with_it))) - len(self.token_ids(self.build_prompt(without)))
        except Exception:  # a template, or a subclass's build_prompt, may refuse so short a chat in any way
            return _GUESSED_OVERHEAD
        return max(0, more - len(self.encode(_shown(message))))

    def prompt_len(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        """Exactly how many tokens the prompt has, and `token_reserve`. The prompt is remembered: running it next costs
        no second rendering."""
        return len(self._prompt(messages, functions).ids) + self.token_reserve

    def _prompt(self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None) -> Prompt:
        key = self._memo.key(messages, functions)
        if (known := self._memo.get(key)) is not None:
            return known
        built = self.build_prompt(messages, functions)
        if isinstance(built, str):
            prompt = Prompt(self._replies.splice(built, messages, self.encode, self.decode), built)
        else:
            prompt = Prompt(self.token_ids(built), None)
        self._memo.put(key, prompt)
        return prompt

    # ==== running ====

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        """The same as `stream`, all at once."""
        async with aclosing(self.stream(messages, functions, **hyperparams)) as stream:
            async for item in stream:
                if isinstance(item, BaseCompletion):
                    return item
        raise EngineError("The model's stream ended without a completion.")

    async def stream(
        self,
        messages: list[ChatMessage],
        functions: list[AIFunction] | None = None,
        *,
        tool_choice: str = "auto",
        sampling: SamplingParams | None = None,
        streamer: Streamer | None = None,
        **hyperparams: Any,
    ) -> AsyncGenerator[str | Delta | BaseCompletion]:
        """Yields visible text as `str`, other deltas as they are, and last the Completion, whose `completion_tokens`
        count the end token.

        `tool_choice="none"` shows the model the same prompt and refuses calls. Raises PromptTooLong if the prompt
        leaves no room for a reply, TypeError for an unknown hyperparameter, EngineError after `close`.
        """
        if tool_choice not in ("auto", "none"):
            raise EngineError(f"tool_choice={tool_choice!r} isn't supported here: give 'auto' or 'none'.")
        params = self.params(sampling, hyperparams)
        self._running_generator()
        prompt = await self._prompt_to_run(messages, functions)
        refused = tool_choice == "none"
        written = self.tool_format.after(prompt.text or "")
        # without functions JSON is an answer
        parser = Parser(written if functions else replace(written, bare=None), functions)
        banned = self._call_markers() if refused else []

        job = self.submit(prompt.ids, params, banned, streamer)
        done: Generation | None = None
        try:
            while done is None:
                for item in await job.receive():
                    if isinstance(item, Generation):
                        done = item
                    else:
                        for delta in _visible(parser.feed(item), refused):
                            yield delta
        finally:
            job.cancel()
        for delta in _visible(parser.finish(cut=done.finish_reason == "length"), refused):
            yield delta
        yield self._completion(parser, prompt, done, refused)

    async def _prompt_to_run(self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None) -> Prompt:
        prompt = self._memo.get(self._memo.key(messages, functions))
        if prompt is None:  # nobody counted it; a long one would hold the loop up
            prompt = await anyio.to_thread.run_sync(self._prompt, messages, functions)
        self.check(prompt.ids)
        return prompt

    def _call_markers(self) -> list[int]:
        """The token that opens a call, if it is one token; otherwise calls are only left out of the result."""
        ids = self.encode(self.tool_format.call_start) if self.tool_format.call_start else []
        return ids if len(ids) == 1 else []

    def _completion(self, parser: Parser, prompt: Prompt, done: Generation, refused: bool) -> Completion:
        message = parser.message()
        if refused and message.tool_calls:
            message = message.copy_with(tool_calls=None, content=message.content if message.content is not None else "")
        if prompt.text is not None:
            self._replies.note(message, prompt.text, self.decode(done.ids), done.ids)
        return Completion(
            message=message,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(done.ids),
            cached_tokens=done.cached_tokens,
            seconds=done.seconds,
            first_token_seconds=done.first_token_seconds,
            finish_reason=done.finish_reason,
            logprobs=done.logprobs,
        )

    def save_quantized(self, folder: str | PathLike[str]) -> Path:
        """Saves the quantised model and its tokenizer into a new folder, which loads as any other. Raises EngineError
        if the model isn't quantised, its format can't be saved, or the folder isn't empty."""
        self._running_generator()
        return save_quantized(self.model, self.tokenizer, folder)

    async def close(self) -> None:
        await super().close()
        self._memo.clear()


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _visible(deltas: list[Delta], refused: bool) -> list[str | Delta]:
    kept = [delta for delta in deltas if not (refused and isinstance(delta, _CALL_DELTAS))]
    return [delta.text if isinstance(delta, TextDelta) else delta for delta in kept]


def _shown(message: ChatMessage) -> str:
    """About what a template writes of a message."""
    calls = message.tool_calls or ()
    return "".join(
        [message.text or "", *(f'{{"name": "{c.function.name}", "arguments": {c.function.arguments}}}' for c in calls)]
    )
