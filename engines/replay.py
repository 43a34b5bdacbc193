"""Recording what an engine says, and playing it back without the model."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import anyio
import anyio.to_thread

from kani_lite.events import Delta
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage
from kani_lite.model_stream import close as close_stream

from .base import BaseCompletion, BaseEngine, Completion
from .recording import (
    FORMAT,
    VERSION,
    Record,
    RecordedCall,
    difference,
    message_key,
    message_record,
    read_recording,
    request_key,
    request_of,
    with_plain_ids,
    write_recording,
)
from .wrapper import WrapperEngine


class UnexpectedCall(EngineError, AssertionError):
    """A strict engine was asked for what it has no reply to, or was not asked for all that it has."""


class StrictEngine(BaseEngine):
    """An engine that knows beforehand what it will be asked. `with engine:` or `assert_done()` checks that it was.

    A call that it has no reply to raises UnexpectedCall, and is remembered: a test fails by it at the end also if the
    code under test swallowed the error.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []

    @abstractmethod
    def unused(self) -> list[str]:
        """What is still to be asked for, each in a few words."""

    def refuse(self, problem: str) -> NoReturn:
        """Raises UnexpectedCall, now and in `assert_done`."""
        self.problems.append(problem)
        raise UnexpectedCall(problem)

    def assert_done(self) -> None:
        """Raises UnexpectedCall if a call had no reply, or a reply was never asked for."""
        if self.problems:
            raise UnexpectedCall(self.problems[0])
        if left := self.unused():
            raise UnexpectedCall(
                f"{len(left)} of the engine's replies were never asked for, the first is {left[0]}: "
                "remove them, or make the code under test ask."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:  # otherwise that error is what the test should show
            self.assert_done()


class RecordingEngine(WrapperEngine):
    """Passes everything on to `engine`, and writes it to a file for ReplayEngine when it is closed or `save` is called.

    Of a call's hyperparameters those are recorded that JSON can hold; logprobs of a reply are not. The file is replaced
    as a whole: it is the old recording or the new one. It holds the chat in plain text.
    """

    def __init__(self, engine: BaseEngine, path: str | PathLike[str]) -> None:
        super().__init__(engine)
        self.path = Path(path)
        self._records: list[Record] = []
        self._counts: dict[str, int] = {}

    def message_len(self, message: ChatMessage) -> int:
        counted = self._counts[message_key(message)] = super().message_len(message)
        return counted

    def prompt_len(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int | Awaitable[int]:
        counted = super().prompt_len(messages, functions, **kwargs)
        key = request_key(request_of(messages, functions, kwargs))
        if isinstance(counted, int):
            self._counts[key] = counted
            return counted
        return self._noted(key, counted)

    async def _noted(self, key: str, counting: Awaitable[int]) -> int:
        counted = self._counts[key] = await counting
        return counted

    def _begin(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None, hyperparams: Mapping[str, Any]
    ) -> Record:
        record = Record(request_of(messages, functions, hyperparams))
        self._records.append(record)
        return record

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        record = self._begin(messages, functions, hyperparams)
        try:
            completion = await super().predict(messages, functions, **hyperparams)
        except Exception as error:
            record.fail(error)
            raise
        record.add(completion)
        return completion

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        record = self._begin(messages, functions, hyperparams)
        stream = self.engine.stream(messages, functions, **hyperparams)
        try:
            async for item in stream:
                record.add(item)
                yield item
            record.end = "done"
        except Exception as error:
            record.fail(error)
            raise
        finally:
            await close_stream(stream)

    async def save(self) -> None:
        """Writes what was recorded so far. Raises EngineError if the file's folder doesn't exist, OSError."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "max_context_size": self.max_context_size,
            "reuses_prefix": self.reuses_prefix,
            "counts_exactly": bool(getattr(self.engine, "counts_exactly", True)),
            "disable_function_calling_kwargs": self.disable_function_calling_kwargs,
            "counts": self._counts,
        }
        text = "".join(json.dumps(one) + "\n" for one in [header, *map(vars, self._records)])
        await anyio.to_thread.run_sync(write_recording, self.path, text)

    async def close(self) -> None:
        try:
            with anyio.CancelScope(shield=True):  # what was recorded is not lost by a cancelled test
                await self.save()
        finally:  # a file that can't be written must not keep the model
            await super().close()


class ReplayEngine(StrictEngine):
    """Says what a RecordingEngine recorded, to exactly the requests that it recorded.

    A request is its messages (ids of tool calls may differ), the names, descriptions and schemas of its functions, and
    those of its hyperparameters that JSON can hold. Each recorded call answers once, whether it was streamed or not; of
    equal ones the first comes first. Any other request raises UnexpectedCall with the first difference. What was not
    counted in the recording is estimated: four characters a token.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Reads the whole file. Raises EngineError if it can't be read, is damaged, or of another version."""
        super().__init__()
        self.path = Path(path)
        header, self._calls = read_recording(self.path)
        self.max_context_size: int = header["max_context_size"]
        self._counts_exactly: bool = header["counts_exactly"]
        self._reuses_prefix: bool = header["reuses_prefix"]
        self._disable: dict[str, Any] = header["disable_function_calling_kwargs"]
        self._counts: dict[str, int] = header["counts"]
        self._left = list(self._calls)
        self._closed = False

    @property
    def disable_function_calling_kwargs(self) -> dict[str, Any]:  # type: ignore[override]  # as it was recorded
        return self._disable

    @property
    def counts_exactly(self) -> bool:  # type: ignore[override]  # as it was recorded
        return self._counts_exactly

    @property
    def reuses_prefix(self) -> bool:  # type: ignore[override]  # as it was recorded
        return self._reuses_prefix

    def unused(self) -> list[str]:
        return [f"the call in line {call.line} of {self.path.name}" for call in self._left]

    def message_len(self, message: ChatMessage) -> int:
        known = self._counts.get(message_key(message))
        return len(json.dumps(message_record(message))) // 4 + 1 if known is None else known

    def prompt_len(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int | Awaitable[int]:
        request = request_of(messages, functions, kwargs)
        if (known := self._counts.get(request_key(request))) is not None:
            return known
        return sum(map(self.message_len, messages)) + len(json.dumps(request["functions"])) // 4

    def _take(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None, hyperparams: Mapping[str, Any]
    ) -> RecordedCall:
        if self._closed:
            raise EngineError("This engine was closed; build a new one to go on.")
        request = with_plain_ids(request_of(messages, functions, hyperparams))
        for place, call in enumerate(self._left):
            if call.request == request:
                return self._left.pop(place)
        if not self._left:
            self.refuse(
                f"All {len(self._calls)} calls of {self.path.name} are used up, and one more was made: record anew."
            )
        call = self._left[0]
        self.refuse(
            f"This request was not recorded in {self.path.name}; beside its line {call.line}, the next one, the first "
            f"difference is {difference(call.request, request)}: record anew, or make the same request."
        )

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        call = self._take(messages, functions, hyperparams)
        await anyio.lowlevel.checkpoint()
        call.check_end()
        if call.completion is not None:
            return call.completion
        text = "".join(item if isinstance(item, str) else getattr(item, "text", "") for item in call.items)
        return Completion(ChatMessage.assistant(text))

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        call = self._take(messages, functions, hyperparams)
        items = call.items
        if not items and call.completion is not None and call.completion.message.text:
            items = [call.completion.message.text]  # it was not streamed when it was recorded
        for item in items:
            await anyio.lowlevel.checkpoint()
            yield item
        call.check_end()
        if call.completion is not None:
            yield call.completion

    async def close(self) -> None:
        self._closed = True
