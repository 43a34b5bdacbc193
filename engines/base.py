"""The interface of all engines, and the completion that they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, ClassVar

from kani_lite.events import Delta
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage


class BaseCompletion(ABC):
    """What a model returned for one prompt."""

    @property
    @abstractmethod
    def message(self) -> ChatMessage: ...

    @property
    @abstractmethod
    def prompt_tokens(self) -> int | None: ...

    @property
    @abstractmethod
    def completion_tokens(self) -> int | None: ...


class Completion(BaseCompletion):
    """A completion as plain values. `cached_tokens` of the prompt were reused; `seconds` is the time of generating, and
    `first_token_seconds` that from the request to its first token, waiting included; `seconds_per_token` is the mean
    of those after it; `finish_reason` is "stop" or
    "length" where the engine knows it; `logprobs` one entry a token, if they were asked for."""

    def __init__(
        self,
        message: ChatMessage,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        *,
        cached_tokens: int | None = None,
        seconds: float | None = None,
        first_token_seconds: float | None = None,
        seconds_per_token: float | None = None,
        finish_reason: str | None = None,
        logprobs: Sequence[Any] | None = None,
    ) -> None:
        self._message = message
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens
        self.seconds = seconds
        self.first_token_seconds = first_token_seconds
        self.seconds_per_token = seconds_per_token
        self.finish_reason = finish_reason
        self.logprobs = logprobs

    @property
    def message(self) -> ChatMessage:
        return self._message

    @property
    def prompt_tokens(self) -> int | None:
        return self._prompt_tokens

    @property
    def completion_tokens(self) -> int | None:
        return self._completion_tokens

    def __repr__(self) -> str:
        return f"Completion({self._message!r}, {self._prompt_tokens} + {self._completion_tokens} tokens)"


class BaseEngine(ABC):
    """A model behind an interface that a chat can use.

    A subclass needs `max_context_size`, `predict`, and one of `message_len` and `prompt_len`; `super().__init__()` need
    not be called.
    """

    max_context_size: int
    """How many tokens a prompt and its reply may have together."""

    disable_function_calling_kwargs: ClassVar[dict[str, Any]] = {"include_functions": False}
    """Merged into the call of the model when it may not call functions. An engine that keeps its prompt's prefix
    sets `{"tool_choice": "none"}` instead: it still gets the functions, and refuses calls."""

    counts_exactly: ClassVar[bool] = True
    """Whether `prompt_len` is exactly what the model is given; otherwise it is an estimate."""

    reuses_prefix: ClassVar[bool] = False
    """Whether keeping the start of the prompt the same saves work: history is then dropped in blocks."""

    def message_len(self, message: ChatMessage) -> int:
        """Tokens that this message adds to a prompt: what fits is chosen by it. Exact, unless `prompt_len` is."""
        raise NotImplementedError(f"{type(self).__name__} defines neither message_len nor prompt_len")

    def prompt_len(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int | Awaitable[int]:
        """Tokens of the whole prompt. By default the sum of `message_len`; may be async."""
        return sum(self.message_len(message) for message in messages)

    @abstractmethod
    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        """The model's next message after these."""

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        """The same piece by piece: text as `str`, other deltas, and last the completion. By default all at once."""
        completion = await self.predict(messages, functions, **hyperparams)
        if completion.message.text:
            yield completion.message.text
        yield completion

    async def close(self) -> None:
        """Frees what the engine holds. It can't be used afterwards."""
        return
