"""Engines for the conformance suite to find out: the embedded model, broken in one place each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from threading import Event, Thread
from typing import Any

import anyio

from kani_lite import ChatMessage
from kani_lite.engines import BaseCompletion, Completion, NanoEngine, WrapperEngine
from kani_lite.events import Delta
from kani_lite.testing import EngineProfile

PROFILE = EngineProfile(
    tool_query="get the price of honey", tool_arguments={"product": "honey"}, query="Hello", end_seconds=60
)
Items = AsyncIterator[str | Delta | BaseCompletion]
BROKEN: dict[str, list[tuple[type[WrapperEngine], str]]] = {}


def breaks(case: str, problem: str) -> Callable[[type[WrapperEngine]], type[WrapperEngine]]:
    """The case fails for this engine, with these words."""

    def add(engine: type[WrapperEngine]) -> type[WrapperEngine]:
        BROKEN.setdefault(case, []).append((engine, problem))
        return engine

    return add


class Sound(WrapperEngine):
    """Nothing is broken yet; can be closed without its model."""

    closed = False

    async def predict(self, messages: Any, functions: Any = None, **kwargs: Any) -> BaseCompletion:
        stream: Any = self.stream(messages, functions, **kwargs)
        async with aclosing(stream):
            async for item in stream:
                if isinstance(item, BaseCompletion):
                    return item
        raise RuntimeError("no completion")

    async def stream(self, messages: Any, functions: Any = None, **kwargs: Any) -> Items:
        stream: Any = self.engine.stream(messages, functions, **self.changed(kwargs))
        try:
            async for item in stream:
                yield item
        finally:
            await stream.aclose()

    def changed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs

    async def close(self) -> None:
        self.closed = True


def with_message(completion: Any, **fields: Any) -> Completion:
    message = completion.message.copy_with(**fields)
    return Completion(message, completion.prompt_tokens, completion.completion_tokens)


# ==== counting ====


@breaks("counting_equals_the_prompt", r"prompt_len is \d+, and the model was given")
class MiscountsByOne(Sound):
    def prompt_len(self, *args: Any, **kwargs: Any) -> Any:
        counted: Any = self.engine.prompt_len(*args, **kwargs)
        return counted - 1


@breaks("counts_grow_with_the_chat", "message_len of a short message")
class CountsEachMessageAlike(Sound):
    def message_len(self, message: ChatMessage) -> int:
        return 5


@breaks("counts_grow_with_the_chat", "prompt_len of 2 messages")
class CountsTheLastMessage(Sound):
    def prompt_len(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self.engine.prompt_len(messages[-1:], *args, **kwargs) - 3 * len(messages)  # type: ignore[operator]  # not async


@breaks("edits_are_counted", "was made longer in place")
class RemembersByIdentity(Sound):
    def prompt_len(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        known: dict[Any, Any] = self.__dict__.setdefault("known", {})
        key = tuple(map(id, messages))
        if key not in known:
            known[key] = (self.engine.prompt_len(messages, *args, **kwargs), list(messages))
        return known[key][0]


# ==== streaming ====


@breaks("stream_equals_predict", "predict says")
class StreamsAnotherMessage(Sound):
    async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
        return with_message(await super().predict(*args, **kwargs), content="else")


@breaks("deltas_join_to_the_message", "The stream's text is")
class LosesAPiece(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        pieces = 0
        async for item in super().stream(*args, **kwargs):
            pieces += isinstance(item, str)
            if pieces != 2 or not isinstance(item, str):
                yield item


@breaks("deltas_join_to_the_message", "The stream finished")
class LosesACall(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        async for item in super().stream(*args, **kwargs):
            yield with_message(item, tool_calls=None) if isinstance(item, BaseCompletion) else item


@breaks("deltas_join_to_the_message", "A stream yields str")
class YieldsBytes(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Any:
        async for item in super().stream(*args, **kwargs):
            if isinstance(item, str):
                yield b""
            yield item


@breaks("completion_comes_last", "not one at the end")
class GoesOnAfterTheCompletion(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        async for item in super().stream(*args, **kwargs):
            yield item
        yield "."


@breaks("characters_are_whole", "broken characters")
class SplitsCharacters(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        async for item in super().stream(*args, **kwargs):
            if isinstance(item, str):
                raw = f"é{item}".encode()  # the embedded model speaks ASCII
                yield raw[:1].decode(errors="replace")
                yield raw[1:].decode(errors="replace")
            else:
                yield item


@breaks("usage_is_told", "completion_tokens is 0")
class CountsNoReply(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        async for item in super().stream(*args, **kwargs):
            yield Completion(item.message, item.prompt_tokens, 0) if isinstance(item, BaseCompletion) else item


# ==== cancelling and running together ====


async def shielded_second() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(1)


@breaks("cancelled_stream_ends", "A cancelled stream went on")
@breaks("cancelled_predict_ends", "A cancelled predict went on")
@breaks("stream_can_be_closed_early", "A closed stream went on")
class GoesOnWhenCancelled(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        done = False
        try:
            async for item in super().stream(*args, **kwargs):
                done = isinstance(item, BaseCompletion)
                yield item
        finally:
            if not done:
                await shielded_second()


@breaks("cancelled_stream_ends", "no longer answers: RuntimeError: 'busy for ever'")
@breaks("cancelled_predict_ends", "no longer answers")
@breaks("stream_can_be_closed_early", "no longer answers")
@breaks("cancelling_one_leaves_the_others", "no longer answers")
class StaysBusyAfterACancel(Sound):
    busy = 0

    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        if self.busy > 1 or (self.busy and kwargs.get("max_tokens") != 1000):
            raise RuntimeError("busy for ever")
        self.busy += 1
        async for item in super().stream(*args, **kwargs):
            if isinstance(item, BaseCompletion):
                self.busy -= 1
            yield item


@breaks("eight_at_once", "beside seven others")
class MixesRequestsUp(Sound):
    async def stream(self, messages: Any, *args: Any, **kwargs: Any) -> Items:
        self.last = messages
        await anyio.sleep(0.01)
        async for item in super().stream(self.last, *args, **kwargs):
            yield item


@breaks("eight_at_once", "7 of 8 requests at once failed")
class TakesOneAtATime(Sound):
    busy = False

    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        try:
            async for item in super().stream(*args, **kwargs):
                yield item
        finally:
            self.busy = False


@breaks("event_loop_goes_on", "The event loop stood still")
class BlocksTheLoop(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            pass
        for _ in range(50):
            yield "word "
        yield Completion(ChatMessage.assistant("word " * 50))


# ==== closing ====


@breaks("close_may_be_called_again", "closed twice")
class ClosesOnce(Sound):
    async def close(self) -> None:
        if self.closed:
            self.closed = False  # the check itself closes it once more
            raise ValueError("closed twice")
        self.closed = True


@breaks("closed_engine_refuses", "predict still works after close")
class WorksAfterClose(Sound):
    pass


@breaks("closed_engine_refuses", "raises no EngineError, but AttributeError")
class BreaksAfterClose(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        if self.closed:
            raise AttributeError("model")
        async for item in super().stream(*args, **kwargs):
            yield item


@breaks("close_ends_what_runs", "3 of 3 requests still waited")
class ForgetsWhoWaits(Sound):
    async def stream(self, *args: Any, **kwargs: Any) -> Items:
        yield "a"
        await anyio.sleep_forever()


@breaks("close_ends_what_runs", "close took more than 0.5 s")
class NeverCloses(Sound):
    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await anyio.sleep_forever()


STOP = Event()


@breaks("close_leaves_nothing_behind", "the thread 'left behind'")
class LeavesAThread(Sound):
    def __init__(self, engine: NanoEngine) -> None:
        super().__init__(engine)
        Thread(target=STOP.wait, name="left behind", daemon=True).start()
