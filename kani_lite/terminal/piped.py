"""The chat without a terminal: each line of the input is a message, and only the answers are printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from anyio.from_thread import start_blocking_portal

from kani_lite.events import Event, TextDelta, ToolResult

from .errors import describe
from .replies import Reply, run_round
from .sanitize import sanitize
from .screen import ReplyView, Screen, call_text

if TYPE_CHECKING:
    from kani_lite.engines.base import BaseEngine
    from kani_lite.kani import Kani

    from .interactive import ChatSetup


class PipedChat:
    """Answers lines on `out`; errors, and with `verbose` the calls of tools, go to `err`."""

    def __init__(self, ai: Kani, out: TextIO, err: TextIO, options: dict[str, Any], *, verbose: bool = False) -> None:
        self._ai = ai
        self._screen = Screen(out, escapes=False)
        self._err = err
        self._options = options
        self._verbose = verbose

    async def answer(self, query: str) -> bool:
        """Prints the answer; False, with a line on `err`, if there was none."""
        view = ReplyView(self._screen)

        def show(event: Event) -> None:
            if isinstance(event, ToolResult):
                view.finish()
                if self._verbose:
                    print(sanitize(f"{call_text(event.call)} -> {event.message.text}"), file=self._err, flush=True)
            elif isinstance(event, TextDelta):
                view.show(event)

        try:
            await run_round(self._ai, query, show, Reply(), self._options)
        except BrokenPipeError:
            raise
        except Exception as error:
            print(f"kani-lite: the reply failed: {sanitize(describe(error))}", file=self._err, flush=True)
            return False
        finally:
            view.finish()
        return True


def chat_piped(
    engine: BaseEngine, setup: ChatSetup, lines: Iterable[str], out: TextIO, err: TextIO, *, verbose: bool = False
) -> int:
    """Answers each line that isn't blank; the exit status. The lines are read in this thread, the event loop runs in
    another one, so that Ctrl-C works at any time."""
    chat = PipedChat(setup.kani(engine), out, err, setup.options, verbose=verbose)
    answered = True
    with start_blocking_portal() as portal:
        try:
            for line in lines:
                if query := line.strip():
                    future = portal.start_task_soon(chat.answer, query)
                    try:
                        answered = future.result() and answered
                    except BaseException:
                        future.cancel()
                        raise
        finally:
            portal.call(engine.close)
    return 0 if answered else 1
