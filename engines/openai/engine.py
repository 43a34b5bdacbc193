"""OpenAIEngine: chat completions of any server that speaks OpenAI's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from kani_lite.engines.base import BaseCompletion, BaseEngine, Completion
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.wrappers import Backoff
from kani_lite.events import Delta
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage

from . import parameters, server, wire
from .connection import DONE, Connection
from .counting import LocalPrompts, PromptKey, TokenCounts, load_tokenizer, shape_of, template_fields, text_counter
from .errors import ServerError, longest
from .package import openai_module
from .reply import ReplyReader

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class OpenAIEngine(BaseEngine):
    """A model behind a server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, OpenAI itself, ...

    `api_base`: the server's address, which mostly ends in /v1; without it, or OPENAI_BASE_URL, OpenAI's own. The key
    is `api_key`, or else OPENAI_API_KEY; a server of your own mostly needs none. `model`: by default the only one that
    the server has. `client`: an AsyncOpenAI of your own in place of those; you close it.

    `max_context_size`: by default what the server's list of models says. That is asked here, which takes a moment and
    blocks: inside an event loop, make the engine with `anyio.to_thread.run_sync`, or pass the size.

    Counting is exact where the server has vLLM's tokenize route, or with a `tokenizer` of transformers (or the name of
    one) that has the server's chat template. Otherwise it is an estimate, by the tokenizer's tokens if there is one,
    that the usage in the server's replies corrects; `counts_exactly` says which.

    A request that fails before any of its reply was yielded is repeated `retry` times where that may help (no
    connection, a reply cut off, 408, 409, 429, 5xx), after waiting by `backoff` or as the server asks (Retry-After).
    `timeout`: the most seconds between two pieces of a reply, and for connecting.

    Sampling parameters that OpenAI's API doesn't have (top_k, min_p, repetition_penalty, min_tokens, ignore_eos,
    eos_token_ids) are sent to vLLM, and to other servers with `extra_sampling=True`; elsewhere they are refused.
    `hyperparams` may also be other fields of the API, such as reasoning_effort, response_format or extra_body.

    `reasoning_key`: the field under which a message's reasoning is sent back; by default it isn't. `strict_tools` asks
    the server to hold calls to the schemas. `stream_usage=False` is for servers that refuse stream_options.
    `max_tokens_key`: how the server calls the limit of a reply.

    Runs under asyncio and trio. Raises MissingModelDependencies without the package openai, EngineError if the server
    must be asked and doesn't answer, or the context's length is known to nobody.
    """

    reuses_prefix: ClassVar[bool] = True  # servers keep what prompts begin with
    disable_function_calling_kwargs: ClassVar[dict[str, Any]] = {"tool_choice": "none"}

    def __init__(
        self,
        api_key: str | None = None,
        model: str | None = None,
        max_context_size: int | None = None,
        *,
        api_type: str | None = None,
        organization: str | None = None,
        retry: int = 5,
        api_base: str | None = None,
        headers: dict[str, str] | None = None,
        client: AsyncOpenAI | None = None,
        tokenizer: Any = None,
        timeout: float | None = 600.0,
        backoff: Backoff | None = None,
        extra_sampling: bool | None = None,
        reasoning_key: str | None = None,
        strict_tools: bool = False,
        stream_usage: bool = True,
        max_tokens_key: str | None = None,
        sampling: SamplingParams | None = None,
        **hyperparams: Any,
    ) -> None:
        _check_arguments(api_type, max_context_size, retry, timeout)
        self._options = parameters.request_options(openai_module().resources.chat.AsyncCompletions.create)
        given, self._passed = parameters.split(hyperparams, self._options)
        self.sampling = (sampling or SamplingParams()).merged(given)
        self.hyperparams = hyperparams
        self.extra_sampling, self.reasoning_key = extra_sampling, reasoning_key
        self.strict_tools, self.stream_usage = strict_tools, stream_usage
        options = None if client else server.client_options(api_key, api_base, organization, headers)
        self._connection = Connection(options, client, retry, backoff or Backoff(), timeout)
        openai = self._connection.is_openai
        self.max_tokens_key = max_tokens_key or ("max_completion_tokens" if openai else "max_tokens")
        self._is_vllm: bool | None = False if openai else None  # None: not asked yet
        self.model, self.max_context_size = self._find_model(model, max_context_size)
        self._start_counting(tokenizer)

    @staticmethod
    def hyperparam_names() -> list[str]:
        """Every name that `hyperparams` may have."""
        options = parameters.request_options(openai_module().resources.chat.AsyncCompletions.create)
        return sorted({*options, *SamplingParams.accepted_names(), "top_logprobs"})

    # ==== the server ====

    @property
    def client(self) -> AsyncOpenAI:
        """The client of the openai package."""
        client: AsyncOpenAI = self._connection.client
        return client

    def _find_model(self, model: str | None, size: int | None) -> tuple[str, int]:
        """(its name, its context in tokens); asks the server if one of them is missing."""
        openai, own = self._connection.is_openai, self._connection.has_own_client
        if model is None and openai:
            model = server.DEFAULT_MODEL
        size = size or (server.known_context(model) if model and (openai or not own) else None)
        if model is not None and size is not None:
            return model, size
        if openai:
            raise server.context_unknown(str(model), self._connection.url)
        found = server.chosen_model(self._connection.models_now(), model, self._connection.url)
        self._is_vllm = found.vllm
        if (size := size or found.context) is None:
            raise server.context_unknown(found.name, self._connection.url)
        return found.name, size

    async def _speaks_vllm(self) -> bool:
        """Whether the server is vLLM, by its list of models. Raises what asking for it raises."""
        if self._is_vllm is None:
            self._is_vllm = any(model.vllm for model in await self._connection.models())
        return self._is_vllm

    # ==== counting ====

    def _start_counting(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, str | PathLike):
            tokenizer = load_tokenizer(str(tokenizer))
        self.tokenizer = tokenizer
        self._counts = TokenCounts(None if tokenizer is None else text_counter(tokenizer))
        self._local = LocalPrompts(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        # None: not known before it was asked for
        self._tokenizes: bool | None = False if self._connection.is_openai or tokenizer is not None else None

    @property
    def counts_exactly(self) -> bool:  # type: ignore[override]  # a property in place of the attribute
        """Whether `prompt_len` is what the server will count, as far as is known: a server that was not asked yet may
        still turn out to tell."""
        return self._local is not None or (self._is_vllm is True if self._tokenizes is None else self._tokenizes)

    def message_len(self, message: ChatMessage) -> int:
        """About how many tokens this message adds to a prompt. Raises PromptError for a part without a text form."""
        return self._counts.message(wire.wire_message(message, self.reasoning_key))

    async def prompt_len(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        """Tokens of the whole prompt, exact or estimated: see the class. `kwargs`: a call's hyperparameters, whose
        extra_body may have the template write another prompt. Raises PromptError for messages that the server's API
        can't take, or its template refuses."""
        sent, tools = self.translate_messages(messages), self.translate_functions(functions)
        prompt = PromptKey(sent, tools, shape_of(kwargs))
        if (known := self._counts.known(prompt)) is not None:
            return known
        fields = template_fields(self._passed, kwargs)
        if self._local is not None:
            count: int | None = self._local.count(messages, functions, fields)
        else:
            count = await self._ask_count({"messages": sent} | ({"tools": tools} if tools else {}) | fields)
        if count is None:
            return self._counts.estimate(prompt)
        self._counts.learn(prompt, count)
        return count

    async def _ask_count(self, prompt: dict[str, Any]) -> int | None:
        """What the server's tokenize route says; None if it has none, or can't answer now."""
        if self._tokenizes is False:
            return None
        connection, body = self._connection, {"model": self.model, **wire.sendable(prompt)}
        try:
            answer = await connection.usable().post(server.tokenize_url(connection.url), cast_to=object, body=body)
        except connection.failures as error:
            failed = connection.error(error, self.model, prompt["messages"])
            if getattr(failed, "temporary", False):
                return None  # the request itself will say what is wrong
            if self._tokenizes or (self._is_vllm and getattr(failed, "status", None) not in (404, 405)):
                raise failed from error
            self._tokenizes = False
            return None
        count = server.token_count(answer)
        self._tokenizes = count is not None
        return count

    # ==== requests ====

    def translate_messages(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """The messages as the API takes them. Raises PromptError for a part without a text form, and for calls
        without a result."""
        return wire.wire_messages(messages, self.reasoning_key)

    def translate_functions(self, functions: Sequence[AIFunction] | None) -> list[dict[str, Any]]:
        """The functions as the API's tools."""
        return wire.wire_tools(functions, self.strict_tools)

    async def _request(
        self,
        messages: Sequence[ChatMessage],
        functions: Sequence[AIFunction] | None,
        tool_choice: Any,
        sampling: SamplingParams | None,
        hyperparams: Mapping[str, Any],
    ) -> tuple[dict[str, Any], PromptKey]:
        """(the fields of one request, its prompt). Raises PromptTooLong if that is known to leave no room for a
        reply."""
        given, passed = parameters.split(hyperparams, self._options)
        params = self.sampling.merged(sampling).merged(given)
        extra = bool(self.extra_sampling)
        if self.extra_sampling is None and parameters.needs_extra(params):
            extra = await self._speaks_vllm()
        request: dict[str, Any] = {"model": self.model, "messages": self.translate_messages(messages)}
        if tools := self.translate_functions(functions):
            request["tools"] = tools
            if tool_choice != "auto":
                request["tool_choice"] = wire.wire_tool_choice(tool_choice, functions)
        prompt = PromptKey(request["messages"], tools, shape_of(passed))

        async def count() -> int:
            return await self.prompt_len(messages, functions, **passed)

        params = await self._fitted(params, prompt, request["messages"], count)
        fields = parameters.request_fields(params, self.max_tokens_key, extra)
        body = {
            **fields.pop("extra_body", {}),
            **(self._passed.get("extra_body") or {}),
            **(passed.get("extra_body") or {}),
        }
        more = {**self._passed, **passed, **fields, **({"extra_body": body} if body else {})}
        return request | {name: wire.sendable(value) for name, value in more.items()}, prompt

    async def _fitted(
        self,
        params: SamplingParams,
        prompt: PromptKey,
        sent: Sequence[Mapping[str, Any]],
        count: Callable[[], Awaitable[int]],
    ) -> SamplingParams:
        """The parameters with no more tokens than there is room for: servers refuse a request that asks for more."""
        known = self._counts.known(prompt)
        if known is None and params.max_tokens is not None and self.counts_exactly:
            may_be_close = 2 * self._counts.estimate(prompt) + params.max_tokens > self.max_context_size
            known = await count() if may_be_close else None
        if known is None:
            return params
        room = self.max_context_size - known
        if room < 1:
            raise PromptTooLong(
                f"The prompt has {known} tokens and the context {self.max_context_size}: it is {1 - room} too long "
                f"for a reply.{longest(sent)}"
            )
        fits = params.max_tokens is None or params.max_tokens <= room
        return params if fits else params.model_copy(update={"max_tokens": room})

    # ==== running ====

    async def predict(
        self,
        messages: list[ChatMessage],
        functions: list[AIFunction] | None = None,
        *,
        tool_choice: Any = "auto",
        sampling: SamplingParams | None = None,
        **hyperparams: Any,
    ) -> BaseCompletion:
        """The model's next message, in one answer. Raises what `stream` does."""
        request, prompt = await self._request(messages, functions, tool_choice, sampling, hyperparams)
        connection = self._connection

        async def once() -> Completion:
            reader = ReplyReader(refused=tool_choice == "none")
            answer = await connection.completion(request)
            connection.check(answer, self.model, request["messages"])
            if not answer.get("choices"):
                raise connection.unfinished(answer, begun=False)
            for _ in reader.feed(answer):
                pass
            for _ in reader.finish():
                pass
            return self._completion(reader, prompt)

        return await connection.attempts(once, self.model, request["messages"])

    async def stream(
        self,
        messages: list[ChatMessage],
        functions: list[AIFunction] | None = None,
        *,
        tool_choice: Any = "auto",
        sampling: SamplingParams | None = None,
        **hyperparams: Any,
    ) -> AsyncGenerator[str | Delta | BaseCompletion]:
        """Yields visible text as `str`, other deltas as they are, and last the Completion.

        `tool_choice`: "auto", "none", "required", or the name of a function that must be called. Raises PromptTooLong,
        PromptError for messages or choices that the API can't take, ServerError (an EngineError) for what the server
        refuses or breaks off, TypeError for an unknown hyperparameter, EngineError for one that the server can't do.
        """
        request, prompt = await self._request(messages, functions, tool_choice, sampling, hyperparams)
        request |= {"stream": True} | ({"stream_options": {"include_usage": True}} if self.stream_usage else {})
        failures, begun = 0, False
        while True:
            reader = ReplyReader(refused=tool_choice == "none")
            try:
                async with aclosing(self._pieces(request, reader)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                break
            except ServerError as error:
                failures += 1
                if begun:  # who listens would hear it twice
                    raise
                failed = error
            await self._connection.wait_or_raise(failed, failures)
        for delta in reader.finish():
            yield delta
        yield self._completion(reader, prompt)

    async def _pieces(self, request: dict[str, Any], reader: ReplyReader) -> AsyncGenerator[str | Delta]:
        """What one attempt streams. However it ends, the connection is closed, and so the model stops."""
        connection, chunk = self._connection, None
        try:
            async with aclosing(connection.chunks(request)) as chunks:
                async for chunk in chunks:
                    if chunk is DONE:
                        reader.done = True
                        continue
                    connection.check(chunk, self.model, request["messages"])
                    for piece in reader.feed(chunk):
                        yield piece
        except connection.failures as error:
            if not reader.complete:  # a server may go away once it has said everything
                raise connection.error(error, self.model, request["messages"]) from error
        if not reader.complete:
            raise connection.unfinished(None if chunk is DONE else chunk, reader.begun)

    def _completion(self, reader: ReplyReader, prompt: PromptKey) -> Completion:
        completion = reader.completion()
        if completion.prompt_tokens:
            self._counts.learn(prompt, completion.prompt_tokens)
        return completion

    async def close(self) -> None:
        """Closes the connections; a client of your own stays open."""
        await self._connection.close()


def _check_arguments(api_type: str | None, size: int | None, retry: int, timeout: float | None) -> None:
    if api_type not in (None, "chat_completions"):
        raise EngineError(f"api_type={api_type!r} isn't supported here: give 'chat_completions', or leave it out.")
    if size is not None and size < 1:
        raise EngineError(f"max_context_size={size} leaves no room: give a positive number of tokens.")
    if retry < 0:
        raise EngineError(f"retry={retry} is no number of repetitions: give 0 or more.")
    if timeout is not None and not timeout > 0:
        raise EngineError(f"timeout={timeout} is no number of seconds: give more than 0, or None for no limit.")
