"""Chatting with any Kani from a program or a notebook, through `input()` and `print()` alone."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from kani_lite.formatters import assistant_message_contents_thinking, assistant_message_thinking
from kani_lite.messages import ChatRole

from .formatting import print_stream, print_width

if TYPE_CHECKING:
    from kani_lite.kani import Kani

T = TypeVar("T")


async def chat_in_terminal_async(
    kani: Kani,
    *,
    rounds: int = 0,
    stopword: str | None = None,
    echo: bool = False,
    ai_first: bool = False,
    width: int | None = None,
    show_function_args: bool = False,
    show_function_returns: bool = False,
    verbose: bool = False,
    stream: bool = True,
) -> None:
    """Chats in a loop of `input()` and the replies, printed; for use where an event loop runs already.

    The chat ends after `rounds` rounds, at a line that is the stopword, at the end of input or by Ctrl-C.

    :param rounds: how many rounds to chat; 0 for no end
    :param stopword: a message that ends the chat instead of being sent
    :param echo: print the user's messages again (a notebook then keeps them with its output)
    :param ai_first: let the model speak first, without a message of the user; counts as a round
    :param width: columns of the output; None for any
    :param show_function_args: print calls with their arguments
    :param show_function_returns: print what functions return
    :param verbose: all three of `echo`, `show_function_args` and `show_function_returns`
    :param stream: print text as it is generated
    """
    _set_up_logging()
    printer = _Printer(width, show_function_args or verbose, show_function_returns or verbose)
    played = 0
    with suppress(EOFError):
        while played < rounds or not rounds:
            query = None
            if played or not ai_first:
                query = (await _in_daemon_thread(lambda: input("USER: "))).strip()
                if stopword and query == stopword:
                    break
                if echo or verbose:
                    print_width(query, width, "USER: ")
            played += 1
            await (printer.stream(kani, query) if stream else printer.whole(kani, query))


def chat_in_terminal(kani: Kani, **kwargs: Any) -> None:
    """`chat_in_terminal_async`, with the same arguments, in an event loop of its own.

    Where a loop runs already (a notebook), nest-asyncio is used if it is installed; otherwise this raises RuntimeError.
    """
    if _loop_is_running():
        try:
            importlib.import_module("nest_asyncio").apply()
        except ImportError:
            raise RuntimeError(
                "An event loop runs already: use `await chat_in_terminal_async(...)` here, or install nest-asyncio."
            ) from None
    with suppress(KeyboardInterrupt):
        asyncio.run(chat_in_terminal_async(kani, **kwargs))


class _Printer:
    def __init__(self, width: int | None, show_args: bool, show_returns: bool) -> None:
        self.width = width
        self.show_args = show_args
        self.show_returns = show_returns

    async def stream(self, kani: Kani, query: str | None) -> None:
        async with kani.full_round_stream(query) as streams:
            async for stream in streams:
                if stream.role is ChatRole.ASSISTANT:
                    await print_stream(stream, self.width, "AI: ")
                    calls = assistant_message_thinking(await stream.message(), self.show_args)
                    self.line(calls, "AI: ")
                elif self.show_returns:
                    self.line((await stream.message()).text, "FUNC: ")

    async def whole(self, kani: Kani, query: str | None) -> None:
        async with kani.full_round(query) as messages:
            async for message in messages:
                if message.role is ChatRole.ASSISTANT:
                    self.line(assistant_message_contents_thinking(message, self.show_args, color=False), "AI: ")
                elif self.show_returns:
                    self.line(message.text, "FUNC: ")

    def line(self, text: str | None, prefix: str) -> None:
        if text:
            print_width(text, self.width, prefix)


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Its result, computed in a thread that neither a cancelled task nor the end of the program waits for."""
    outcome: Future[T] = Future()
    done = anyio.Event()

    async with BlockingPortal() as portal:

        def work() -> None:
            try:
                outcome.set_result(function())
            except BaseException as e:
                outcome.set_exception(e)
            with suppress(RuntimeError):  # nobody waits any more
                portal.start_task_soon(done.set)

        threading.Thread(target=work, name="kani_lite input", daemon=True).start()
        await done.wait()
    return outcome.result()


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _set_up_logging() -> None:
    if "KANI_DEBUG" in os.environ:
        logging.basicConfig(level=logging.DEBUG)
    elif names := os.environ.get("KANI_DEBUG_LOGGERS"):
        logging.basicConfig(level=logging.INFO)
        for name in names.split(","):
            logging.getLogger(name.strip()).setLevel(logging.DEBUG)
