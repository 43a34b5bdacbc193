from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from kani_lite import ChatMessage, ChatRole, DummyStream, ReasoningPart, StreamManager
from kani_lite.engines import BaseCompletion, Completion

pytestmark = pytest.mark.anyio


class Items:
    """A plain async iterator: no generator, nothing to close. Raises what is an exception."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await anyio.lowlevel.checkpoint()
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item


class Closing(Items):
    """The same, and it notes that it was closed."""

    closed = 0

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


def stream(*items: Any, **kwargs: Any) -> StreamManager:
    return StreamManager(Items(*items), ChatRole.ASSISTANT, **kwargs)


DONE = Completion(ChatMessage.assistant("ab"), 3, 2)


async def test_tokens_then_message() -> None:
    made = stream("a", "b", DONE)
    assert made.role is ChatRole.ASSISTANT
    assert [token async for token in made] == ["a", "b"]
    assert await made is DONE.message
    assert await made.message() is DONE.message
    assert await made.completion() is DONE


async def test_message_without_iterating() -> None:
    assert await stream("a", "b", DONE) is DONE.message


async def test_message_then_tokens() -> None:
    made = stream("a", "b", DONE)
    assert (await made).text == "ab"
    assert [token async for token in made] == ["a", "b"]


async def test_message_in_the_middle_of_the_tokens() -> None:
    made = stream("a", "b", "c", DONE)
    tokens = []
    async for token in made:
        tokens.append(token)
        assert await made is DONE.message
    assert tokens == ["a", "b", "c"]


async def test_message_after_leaving_early() -> None:
    made = stream("a", "b", DONE)
    async for _ in made:
        break
    with anyio.fail_after(2):
        assert await made is DONE.message


async def test_tokens_are_iterated_once() -> None:
    made = stream("a", DONE)
    assert [token async for token in made] == ["a"]
    with pytest.raises(RuntimeError, match="iterated before"):
        made.__aiter__()


async def test_tokens_and_message_in_two_tasks() -> None:
    made = stream("a", "b", "c", "d", DONE)
    got: list[Any] = []

    async def wait() -> None:
        got.append(await made)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tokens = [token async for token in made]
        tasks.start_soon(wait)
    assert tokens == ["a", "b", "c", "d"], "who waits for the message takes no token away"
    assert got == [DONE.message] * 2


async def test_a_completion_is_made_where_there_is_none() -> None:
    made = StreamManager(Items(" a", "b \n"), ChatRole.FUNCTION)
    completion = await made.completion()
    assert completion.message == ChatMessage(role=ChatRole.FUNCTION, content="ab")
    assert (completion.prompt_tokens, completion.completion_tokens) == (None, None)
    assert (await stream()).text == ""


async def test_the_completion_is_last() -> None:
    made = stream("a", DONE, "b")
    with pytest.raises(RuntimeError, match="last element"):
        await made
    with pytest.raises(RuntimeError, match="last element"):
        await made.completion()


@pytest.mark.parametrize("item", [7, None, b"a", ChatMessage.assistant("a")])
async def test_other_types(item: Any) -> None:
    with pytest.raises(TypeError, match=type(item).__name__):
        await stream("a", item, DONE)


async def test_after_comes_before_anyone_gets_the_message() -> None:
    seen: list[Any] = []

    async def after(completion: BaseCompletion) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(completion)

    made = stream("a", DONE, after=after)
    assert [token async for token in made] == ["a"]
    assert seen == [DONE]
    await made
    assert seen == [DONE], "once"


async def test_an_error_in_after() -> None:
    calls = []

    async def after(completion: BaseCompletion) -> None:
        calls.append(completion)
        raise OSError("disk full")

    made = stream("a", DONE, after=after)
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            await made
    assert calls == [DONE]


async def test_an_error_reaches_all_who_wait() -> None:
    made = stream("a", "b", ValueError("broken"))
    errors: list[str] = []

    async def wait() -> None:
        try:
            await made
        except ValueError as e:
            errors.append(str(e))

    with anyio.fail_after(2):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
        await wait()
    assert errors == ["broken"] * 4


async def test_the_tokens_before_an_error_are_given() -> None:
    made = stream("a", "b", ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await made
    tokens = made.__aiter__()
    assert [await anext(tokens), await anext(tokens)] == ["a", "b"]
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await anext(tokens)


async def test_the_lock_is_held_from_the_first_token_to_the_end() -> None:
    lock = anyio.Lock()
    made = stream("a", "b", DONE, lock=lock)
    assert not lock.locked()
    async for _ in made:
        assert lock.locked()
    assert not lock.locked()


@pytest.mark.parametrize("items", [("a", ValueError("broken")), ("a", 7), ("a", DONE, "b")])
async def test_the_lock_is_let_go_on_an_error(items: tuple[Any, ...]) -> None:
    lock = anyio.Lock()
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        await stream(*items, lock=lock)
    assert not lock.locked()


async def test_streams_wait_for_the_lock() -> None:
    lock = anyio.Lock()
    order: list[str] = []

    async def read(name: str) -> None:
        async for token in stream(*"xyz", lock=lock):
            order.append(name + token)  # noqa: PERF401  # each when it comes

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, "1")
        tasks.start_soon(read, "2")
    assert [o[0] for o in order] in (["1"] * 3 + ["2"] * 3, ["2"] * 3 + ["1"] * 3)


async def test_a_semaphore_as_lock_for_several_tasks() -> None:
    lock = anyio.Semaphore(1)
    made = stream("a", "b", DONE, lock=lock)
    async for _ in made:
        break
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.message)
    assert lock.value == 1


async def test_leaving_the_context_closes() -> None:
    items = Closing("a", "b", DONE)
    lock = anyio.Lock()
    async with StreamManager(items, ChatRole.ASSISTANT, lock=lock) as made:
        async for _ in made:
            break
    assert (items.closed, lock.locked()) == (1, False)
    with pytest.raises(RuntimeError, match="closed before"):
        await made
    await made.aclose()
    assert items.closed == 1


async def test_closing_a_complete_stream_changes_nothing() -> None:
    async with stream("a", DONE) as made:
        await made
    assert await made is DONE.message


async def test_cancelling_the_reader_closes_and_does_not_cancel_others() -> None:
    class Hanging(Closing):
        async def __anext__(self) -> Any:
            await anyio.sleep_forever()

    items = Hanging()
    lock = anyio.Lock()
    made = StreamManager(items, ChatRole.ASSISTANT, lock=lock)
    with anyio.move_on_after(0.01) as scope:
        await made
    assert scope.cancelled_caught
    assert (items.closed, lock.locked()) == (1, False)
    with pytest.raises(RuntimeError, match="broken off"):
        await made


async def test_cancelling_one_who_waits_leaves_the_stream_whole() -> None:
    class Slow(Items):
        async def __anext__(self) -> Any:
            await anyio.sleep(0.02)
            return await super().__anext__()

    made = StreamManager(Slow("a", "b", DONE), ChatRole.ASSISTANT)
    tokens = []

    async def give_up() -> None:
        with anyio.move_on_after(0.001):
            await made

    async with anyio.create_task_group() as tasks:
        started = made.__aiter__()
        tasks.start_soon(give_up)
        # this task reads first: the other one is started at its first wait
        tokens = [token async for token in started]
    assert tokens == ["a", "b"]
    assert await made is DONE.message


async def test_dummy_stream() -> None:
    message = ChatMessage.function("f", "42")
    made = DummyStream(message)
    assert made.role is ChatRole.FUNCTION
    assert [token async for token in made] == ["42"]
    assert await made is message
    assert (await DummyStream(message).completion()).completion_tokens is None


async def test_dummy_stream_of_no_text() -> None:
    silent = ChatMessage.assistant(None)
    made = DummyStream(silent)
    assert [token async for token in made] == []
    assert await made is silent
    reasoned = ChatMessage.assistant([ReasoningPart(content="Hm"), "a"])
    assert [token async for token in DummyStream(reasoned)] == ["a"]
