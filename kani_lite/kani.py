"""`Kani`: the state of a chat, and the ways of running a round on it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio

from .budget import Budget
from .calls import ExceptionHandleResult, FunctionCallResult, in_time, inside_rounds
from .engines.base import BaseCompletion, BaseEngine
from .events import Delta, Event
from .exceptions import FunctionCallException, NoSuchFunction, WrappedCallException
from .formatters import assistant_message_contents
from .functions import AIFunction, result_to_content, truncate_text
from .functions.arguments import unreadable_call
from .limits import Limits
from .messages import ChatMessage, ChatRole, FunctionCall, QueryType, ToolCall
from .model_stream import ModelStream
from .rounds import OnBroken, Round, RoundOptions
from .streaming import StreamManager
from .views import Reader, StreamsView, View, as_event, as_message, message_stream, reply, text_of

if TYPE_CHECKING:
    from .saving import PathLike, SaveFormat

Approve = Callable[[AIFunction, dict[str, Any]], bool | str | Awaitable[bool | str]]
"""Asked before a function runs, with its validated arguments: True to run it; False, or the reason, to refuse."""

_methods: WeakKeyDictionary[type, list[str]] = WeakKeyDictionary()


def _function_methods(cls: type) -> list[str]:
    """The names of a class's methods that are marked with @ai_function, found without running any property."""
    if cls not in _methods:
        found = [n for n in dir(cls) if hasattr(inspect.getattr_static(cls, n), "__ai_function__")]
        _methods[cls] = [n for n in found if callable(getattr(cls, n))]
    return _methods[cls]


class Kani:
    """A chat with a model: its history, its functions, and the rounds on it.

    One round runs at a time. A round that waits to be read is ended by the next one; a round that is running is
    waited for.
    """

    def __init__(
        self,
        engine: BaseEngine,
        system_prompt: str | None = None,
        always_included_messages: list[ChatMessage] | None = None,
        desired_response_tokens: int | None = None,
        chat_history: list[ChatMessage] | None = None,
        functions: list[AIFunction] | None = None,
        retry_attempts: int = 1,
        *,
        limits: Limits | None = None,
        approve: Approve | None = None,
        on_broken: OnBroken = "answer",
    ) -> None:
        """
        :param engine: what runs the model
        :param system_prompt: the first of the always-included messages
        :param always_included_messages: messages that are part of every prompt, and not of the history
        :param desired_response_tokens: how many tokens of the context to keep free for the reply; a tenth by default,
            8,192 at most
        :param chat_history: messages to start with; the list is copied
        :param functions: beside the methods marked with @ai_function
        :param retry_attempts: how many tool rounds in a row the model may try again after errors
        :param limits: bounds on one round
        :param approve: asked before each call; without it, functions marked risky are refused
        :param on_broken: what becomes of a round that was cancelled, closed or failed: "answer" or "rollback"
        """
        if on_broken not in ("answer", "rollback"):
            raise ValueError(f"on_broken is {on_broken!r}: give 'answer' or 'rollback'.")
        self.engine = engine
        self.system_prompt = system_prompt.strip() if system_prompt is not None else None
        self.max_context_size: int = engine.max_context_size
        if desired_response_tokens is None:
            desired_response_tokens = min(self.max_context_size // 10, 8192)
        self.desired_response_tokens = desired_response_tokens
        self.always_included_messages = list(always_included_messages or ())
        if self.system_prompt:
            self.always_included_messages.insert(0, ChatMessage.system(self.system_prompt))
        self.chat_history = list(chat_history or ())
        self.retry_attempts = retry_attempts
        self.limits = limits or Limits()
        self.approve = approve
        self.on_broken = on_broken
        self.lock = anyio.Lock(fast_acquire=True)
        self.functions: dict[str, AIFunction] = {}
        self.functions |= {function.name: function for function in functions or ()}  # the last of a name, as in kani
        methods = (getattr(self, name) for name in _function_methods(type(self)))
        for function in (AIFunction(m, **m.__ai_function__) for m in methods):
            if function.name in self.functions:
                raise ValueError(f"AIFunction {function.name!r} is already registered: give one of them another name=.")
            self.functions[function.name] = function
        self._budget = Budget()
        self._round: Round | None = None

    # === rounds ====================================================================================================

    def events(self, query: QueryType = None, *, max_function_rounds: int | None = None, **kwargs: Any) -> View[Event]:
        """A full round as typed events (see kani_lite.events). `async with` ends the round when it is left."""
        return View(self._new_round(query, True, True, max_function_rounds, kwargs), as_event)

    async def chat_round(self, query: QueryType, **kwargs: Any) -> ChatMessage:
        """One message of the user, one of the model, no functions. `kwargs` go to the engine."""
        self._warn_unused_functions(kwargs)
        message = await reply(self._new_round(query, False, False, None, kwargs))
        if message is None:
            raise TimeoutError(f"The model did not answer within {self.limits.round_seconds} seconds.")
        return message

    async def chat_round_str(self, query: QueryType, **kwargs: Any) -> str:
        """The text of `chat_round`'s message."""
        return (await self.chat_round(query, **kwargs)).text or ""

    def chat_round_stream(self, query: QueryType, **kwargs: Any) -> StreamManager:
        """`chat_round` as a stream: iterate it for the tokens, await it for the message."""
        self._warn_unused_functions(kwargs)
        return message_stream(Reader(self._new_round(query, True, False, None, kwargs)), to_end=True)

    def full_round(
        self, query: QueryType, *, max_function_rounds: int | None = None, **kwargs: Any
    ) -> View[ChatMessage]:
        """One message of the user, then the model's and the functions' messages until the model is done."""
        return View(self._new_round(query, False, True, max_function_rounds, kwargs), as_message)

    def full_round_str(
        self,
        query: QueryType,
        message_formatter: Callable[[ChatMessage], str | None] = assistant_message_contents,
        *,
        max_function_rounds: int | None = None,
        **kwargs: Any,
    ) -> View[str]:
        """`full_round` as text; messages that the formatter gives no text for are left out."""
        return View(self._new_round(query, False, True, max_function_rounds, kwargs), text_of(message_formatter))

    def full_round_stream(
        self, query: QueryType, *, max_function_rounds: int | None = None, **kwargs: Any
    ) -> StreamsView:
        """`full_round` as a stream for each message."""
        return StreamsView(self._new_round(query, True, True, max_function_rounds, kwargs))

    def _new_round(
        self, query: QueryType, stream: bool, functions: bool, max_function_rounds: int | None, kwargs: dict[str, Any]
    ) -> Round:
        if max_function_rounds is not None and max_function_rounds < 0:
            raise ValueError(
                f"max_function_rounds is {max_function_rounds}: give 0 or more, or None for the limit's default."
            )
        return Round(self, query, RoundOptions(stream, functions, max_function_rounds, kwargs))

    def _warn_unused_functions(self, kwargs: dict[str, Any]) -> None:
        if self.functions and "include_functions" not in kwargs:
            warnings.warn(
                "This chat has functions, and chat_round uses none: use full_round, or pass include_functions=False.",
                UserWarning,
                stacklevel=3,
            )

    # === the model =================================================================================================

    async def prompt_token_len(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        """Tokens of a prompt of these messages and functions."""
        count = self.engine.prompt_len(messages, functions, **kwargs)
        return await count if inspect.isawaitable(count) else count

    async def get_model_completion(self, include_functions: bool = True, **kwargs: Any) -> BaseCompletion:
        """What the model says next. Does not change the history."""
        messages = await self.get_prompt(include_functions=include_functions, **kwargs)
        functions = self.get_enabled_functions() if include_functions else None
        return await self.engine.predict(messages, functions or None, **kwargs)

    def get_model_stream(
        self, include_functions: bool = True, **kwargs: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        """What the model says next, piece by piece, and its completion last. Does not change the history."""

        async def begin() -> AsyncIterator[str | Delta | BaseCompletion]:
            messages = await self.get_prompt(include_functions=include_functions, **kwargs)
            functions = self.get_enabled_functions() if include_functions else None
            return self.engine.stream(messages, functions or None, **kwargs)

        return ModelStream(begin)

    async def get_prompt(self, include_functions: bool = True, **kwargs: Any) -> list[ChatMessage]:
        """The messages of the next prompt: the always-included ones, and as many of the newest as fit. Override it to
        choose otherwise."""
        return await self._budget.fit(
            self.engine,
            self.always_included_messages,
            self.chat_history,
            (self.get_enabled_functions() or None) if include_functions else None,
            self.max_context_size - self.desired_response_tokens,
            kwargs,
        )

    def get_enabled_functions(self) -> list[AIFunction]:
        """The functions that are offered to the model."""
        return [f for f in self.functions.values() if f.enabled]

    # === functions =================================================================================================

    async def do_function_call(self, call: FunctionCall, tool_call_id: str | None = None) -> FunctionCallResult:
        """Runs the function that the model asked for. Override it to run calls otherwise.

        Raises a FunctionCallException if there is no such function, its arguments are wrong, or it failed.
        """
        function = self._offered().get(call.name)
        if function is None:
            if not call.name:  # the parser's, for what it couldn't read
                raise WrappedCallException(True, unreadable_call(call.arguments))
            raise NoSuchFunction(call.name)
        try:
            arguments = function.parse_arguments(call.arguments)
            refusal = await self._refusal(function, arguments)
            if refusal is not None:
                message = ChatMessage.function(call.name, refusal, tool_call_id, is_tool_call_error=True)
                return FunctionCallResult(is_model_turn=True, message=message)
            value = await self._run_function(function, arguments)
        except Exception as e:
            raise WrappedCallException(function.auto_retry, e) from e
        if isinstance(value, ChatMessage):
            message = value.copy_with(tool_call_id=tool_call_id)
        else:
            content = result_to_content(value)
            message = ChatMessage.function(call.name, content, tool_call_id, is_tool_call_error=False)
        if function.auto_truncate is not None:
            message = self._auto_truncate_message(message, function.auto_truncate)
        return FunctionCallResult(is_model_turn=function.after is ChatRole.ASSISTANT, message=message)

    def _offered(self) -> dict[str, AIFunction]:
        """In a round, the functions of the prompt that the model answered; else all."""
        for round_ in reversed(inside_rounds.get()):
            if round_.kani is self:
                return round_.offered
        return self.functions

    def _run_at_once(self, calls: list[ToolCall]) -> bool:
        """Whether none of these calls can have to wait, so that running them together is no different."""
        cls, offered = type(self), self._offered()
        hooks = (cls.do_function_call, cls.handle_function_call_exception)
        if self.approve is not None or hooks != _RUN_BY or not vars(self).keys().isdisjoint(f.__name__ for f in hooks):
            return False
        return all((f := offered.get(call.function.name)) is None or f.never_waits for call in calls)

    async def _refusal(self, function: AIFunction, arguments: dict[str, Any]) -> str | None:
        """What to tell the model if this call may not run."""
        if self.approve is None:
            return (
                f"{function.name} needs the user's approval, and nobody is there to give it."
                if function.risky
                else None
            )
        answer = self.approve(function, arguments)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is True:
            return None
        if isinstance(answer, str) and answer:
            return answer
        return f"The user did not approve this call of {function.name}."

    async def _run_function(self, function: AIFunction, arguments: dict[str, Any]) -> Any:
        seconds = function.timeout
        if seconds is None and function.is_async:
            seconds = self.limits.tool_seconds
        if seconds is None or function.never_waits:
            return await function.run(arguments)
        return await in_time(function.run(arguments), seconds, function.name)

    def _auto_truncate_message(self, msg: ChatMessage, max_len: int) -> ChatMessage:
        text = msg.text
        if text is None or len(text) <= max_len:
            return msg
        return msg.copy_with(text=truncate_text(text, max_len))

    async def handle_function_call_exception(
        self, call: FunctionCall, err: FunctionCallException, attempt: int, tool_call_id: str | None = None
    ) -> ExceptionHandleResult:
        """What the model is told of a failed call, and whether it may try again. `attempt` counts the rounds with
        errors before this one. Override it to handle errors otherwise."""
        name = None if isinstance(err, NoSuchFunction) else call.name or None
        message = ChatMessage.function(name, str(err), tool_call_id, is_tool_call_error=True)
        return ExceptionHandleResult(should_retry=attempt < self.retry_attempts and err.retry, message=message)

    # === the history ===============================================================================================

    async def add_completion_to_history(self, completion: BaseCompletion) -> ChatMessage:
        """Puts a message of the model in the history and returns it."""
        message = completion.message
        await self.add_to_history(message)
        return message

    async def add_to_history(self, message: ChatMessage) -> None:
        """Puts any message in the history: the place to override for logging or storing."""
        self.chat_history.append(message)

    def save(self, fp: PathLike, *, save_format: SaveFormat | None = None, **kwargs: Any) -> None:
        """Writes the always-included messages and the history to a file: all of them, or the file stays as it was.

        :param fp: an existing file is replaced
        :param save_format: "json", or "kani", a ZIP that also has the bytes of images and the like; by default "json"
            if the name ends in .json, otherwise "kani"
        :param kwargs: for pydantic's `model_dump_json`
        """
        from .saving import save

        save(fp, self, save_format=save_format, **kwargs)

    def load(self, fp: PathLike, **kwargs: Any) -> None:
        """Replaces the always-included messages and the history by those of a file that `save`, or kani, wrote.

        :param fp: the file; what is in it decides how it is read
        :param kwargs: `max_bytes` (1 GiB: the most that a file may hold); the rest is for pydantic's
            `model_validate_json`
        :raises KaniException: it can't be loaded; the chat is then as it was
        """
        from .saving import load

        saved = load(fp, **kwargs)
        self.always_included_messages = saved.always_included_messages
        self.chat_history = saved.chat_history

    def __repr__(self) -> str:
        return f"{type(self).__name__}(engine={type(self.engine).__name__}, {len(self.chat_history)} messages)"


_RUN_BY = (Kani.do_function_call, Kani.handle_function_call_exception)
