"""An engine around an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

from kani_lite.events import Delta
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage
from kani_lite.model_stream import close as close_stream

from .base import BaseCompletion, BaseEngine


class WrapperEngine(BaseEngine):
    """Passes everything on to `engine`. Subclass it to change what one method does."""

    def __init__(self, engine: BaseEngine, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = engine

    _size: int | None = None  # set on the wrapper, in place of the engine's

    # what BaseEngine defines on the class is forwarded here, the rest by __getattr__
    @property
    def max_context_size(self) -> int:
        return self.engine.max_context_size if self._size is None else self._size

    @max_context_size.setter
    def max_context_size(self, size: int) -> None:
        self._size = size

    @property
    def disable_function_calling_kwargs(self) -> dict[str, Any]:  # type: ignore[override]  # a property in place of the attribute
        return self.engine.disable_function_calling_kwargs

    @property
    def counts_exactly(self) -> bool:  # type: ignore[override]  # a property in place of the attribute
        return self.engine.counts_exactly

    @property
    def reuses_prefix(self) -> bool:  # type: ignore[override]  # a property in place of the attribute
        return self.engine.reuses_prefix

    def message_len(self, message: ChatMessage) -> int:
        return self.engine.message_len(message)

    def prompt_len(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int | Awaitable[int]:
        return self.engine.prompt_len(messages, functions, **kwargs)

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        return await self.engine.predict(messages, functions, **hyperparams)

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        stream = self.engine.stream(messages, functions, **hyperparams)
        try:
            async for item in stream:
                yield item
        finally:
            await close_stream(stream)

    async def close(self) -> None:
        await self.engine.close()

    def __getattr__(self, name: str) -> Any:
        # `engine` itself is missing while a copy is being built: looking it up here would recurse for ever
        if name == "engine" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.engine, name)
