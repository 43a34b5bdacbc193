from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from scripted import ScriptedEngine

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.engines import BaseCompletion, BaseEngine, Completion, WrapperEngine

pytestmark = pytest.mark.anyio

HI = [ChatMessage.user("Hi there")]


class Inner(ScriptedEngine):
    """Differs from the defaults wherever a wrapper could hide it."""

    disable_function_calling_kwargs = {"tool_choice": "none"}  # noqa: RUF012  # declared a ClassVar by its base
    reuses_prefix = True
    flavour = "vanilla"
    closed = False

    def __init__(self, *steps: Any) -> None:
        super().__init__(*steps, max_context_size=1234)
        self.counted: list[Any] = []

    async def prompt_len(  # type: ignore[override]  # engines may count asynchronously
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        await anyio.lowlevel.checkpoint()
        self.counted.append((messages, functions, kwargs))
        return 77

    async def close(self) -> None:
        self.closed = True


class Shouting(WrapperEngine):
    """Changes one method."""

    async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
        completion = await super().predict(*args, **kwargs)
        return Completion(ChatMessage.assistant((completion.message.text or "").upper()))


async def test_every_method_is_forwarded() -> None:
    inner = Inner("one", "two")
    engine = WrapperEngine(inner)
    functions = [AIFunction(lambda: "x", name="f", desc="d")]
    assert engine.message_len(HI[0]) == inner.message_len(HI[0])
    count = engine.prompt_len(HI, functions, tool_choice="none")
    assert not isinstance(count, int)
    assert await count == 77
    assert inner.counted == [(HI, functions, {"tool_choice": "none"})]
    assert (await engine.predict(HI, functions, temperature=0)).message.text == "one"
    items = [item async for item in engine.stream(HI, None, seed=7)]
    assert items[:-1] == ["two"]
    assert isinstance(items[-1], BaseCompletion)
    assert inner.prompts == [HI, HI]
    assert inner.functions == [functions, None]
    assert inner.kwargs == [{"temperature": 0}, {"seed": 7}]
    await engine.close()
    assert inner.closed


async def test_what_the_class_says_is_forwarded() -> None:
    inner = Inner()
    engine = WrapperEngine(WrapperEngine(inner))
    assert engine.max_context_size == 1234
    assert engine.disable_function_calling_kwargs == {"tool_choice": "none"}
    assert engine.reuses_prefix is True
    inner.max_context_size = 99
    assert engine.max_context_size == 99


async def test_unknown_attributes_pass_through() -> None:
    engine = WrapperEngine(Inner())
    assert engine.flavour == "vanilla"
    assert engine.streams_closed == 0
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = engine.no_such_thing
    assert not hasattr(engine, "__no_such_protocol__")


async def test_copies_and_pickles() -> None:
    inner = Inner()
    engine = Shouting(inner)
    copied = copy.copy(engine)
    assert type(copied) is Shouting
    assert copied.engine is inner
    deep = copy.deepcopy(engine)
    assert deep.engine is not inner
    assert deep.flavour == "vanilla"
    assert pickle.loads(pickle.dumps(engine)).max_context_size == 1234


async def test_a_wrapper_without_its_engine_does_not_recurse() -> None:
    with pytest.raises(AttributeError, match="engine"):
        _ = WrapperEngine.__new__(WrapperEngine).flavour


async def test_one_method_changed() -> None:
    ai = Kani(Shouting(Inner("hello")))
    assert ai.max_context_size == 1234
    assert await ai.chat_round_str("Hi") == "HELLO"


async def test_leaving_the_stream_closes_the_inner_one() -> None:
    inner = Inner("a long text in pieces")
    stream = WrapperEngine(inner).stream(HI)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    assert inner.streams_closed == 1


async def test_a_stream_that_can_not_be_closed() -> None:
    class Plain:
        def __init__(self) -> None:
            self.items: list[Any] = ["a", Completion(ChatMessage.assistant("a"))]

        def __aiter__(self) -> AsyncIterator[Any]:
            return self

        async def __anext__(self) -> Any:
            if not self.items:
                raise StopAsyncIteration
            return self.items.pop(0)

    class Engine(ScriptedEngine):
        def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return Plain()

    items = [item async for item in WrapperEngine(Engine()).stream(HI)]
    assert items[0] == "a"


async def test_an_engine_that_only_predicts() -> None:
    class Bare(BaseEngine):
        max_context_size = 10

        def message_len(self, message: ChatMessage) -> int:
            return 1

        async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
            return Completion(ChatMessage.assistant(None))

    engine = WrapperEngine(Bare())
    assert engine.prompt_len(HI) == 1
    assert engine.disable_function_calling_kwargs == {"include_functions": False}
    assert engine.reuses_prefix is False
    (only,) = [item async for item in engine.stream(HI)]
    assert isinstance(only, BaseCompletion)
