"""A chat that is dropped is freed, whatever became of its last round."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from faults import WAYS, PointedKani, Points, pointed, settled, tasks_alive
from scripted import ScriptedEngine

from kani_lite import AIFunction

pytestmark = pytest.mark.anyio

Use = Callable[[PointedKani], Awaitable[Any]]


async def freed(use: Use, backend: str, functions: bool = True, fault: Any = None, at: int = 0) -> None:
    """Uses a chat and what `use` returns, drops both, and sees that nothing stays. A warning or an error while it is
    collected fails the test (pytest reports unraisable ones)."""
    tasks = tasks_alive(backend)
    ai = pointed(Points(at, fault), functions=functions)
    engine, chat = weakref.ref(ai.engine), weakref.ref(ai)
    kept = await use(ai)
    del ai, kept
    # engines close their streams in the background: collecting starts it, the turns let it end
    for _ in range(3):
        gc.collect()
        await settled(backend, tasks)
    assert chat() is None
    assert engine() is None


@pytest.mark.parametrize("way", WAYS)
async def test_after_a_round(way: str, anyio_backend: str) -> None:
    await freed(WAYS[way], anyio_backend, functions="full" in way or way == "events")


async def test_unused(anyio_backend: str) -> None:
    async def nothing(ai: PointedKani) -> list[Any]:
        stream = ai.chat_round_stream("go", include_functions=False)
        return [ai.full_round("go"), ai.full_round_stream("go"), stream, ai.events()]

    await freed(nothing, anyio_backend)


@pytest.mark.parametrize("at", [1, 4, 9, 14, 20])
@pytest.mark.parametrize("way", WAYS)
async def test_after_a_cancelled_round(way: str, at: int, anyio_backend: str) -> None:
    async def fault() -> None:
        scope.cancel()
        await anyio.sleep_forever()

    async def use(ai: PointedKani) -> None:
        with scope:
            await WAYS[way](ai)

    scope = anyio.CancelScope()
    await freed(use, anyio_backend, "full" in way or way == "events", fault, at)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
@pytest.mark.parametrize("way", ["full_round", "full_round_stream", "events", "chat_round_stream"])
async def test_after_an_abandoned_round(way: str, at: int, anyio_backend: str) -> None:
    async def use(ai: PointedKani) -> Any:
        kwargs = {"include_functions": False} if way == "chat_round_stream" else {}
        view = getattr(ai, way)("go", **kwargs)
        items = aiter(view)
        kept = [await anext(items, None) for _ in range(min(at, 3) if way == "full_round_stream" else at)]
        if way == "full_round_stream" and at % 2:
            kept.append(await anext(aiter(kept[0]), None) if at == 1 else None)
        return view, items, kept

    await freed(use, anyio_backend, functions=way != "chat_round_stream")


async def test_abandoned_model_stream(anyio_backend: str) -> None:
    async def use(ai: PointedKani) -> Any:
        stream = aiter(ai.get_model_stream())
        await anext(stream)
        return stream

    await freed(use, anyio_backend)


def test_functions_do_not_keep_their_chat() -> None:
    chats = [PointedKani(ScriptedEngine()) for _ in range(5)]  # type: ignore[arg-type]  # no round is run
    for chat in chats:
        for function in chat.functions.values():
            function.create_json_schema()
            function.create_json_schema(include_desc=True)
    seen = [weakref.ref(chat) for chat in chats]
    functions = [weakref.ref(f) for chat in chats for f in chat.functions.values() if isinstance(f, AIFunction)]
    del chats, chat, function
    gc.collect()
    assert [ref() for ref in seen + functions] == [None] * 20
