"""What a round puts in the history, as a transaction: a round that is broken off leaves a history that is whole."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from .calls import CallOutcome, not_run
from .messages import ChatMessage, ChatRole, QueryType

if TYPE_CHECKING:
    from .kani import Kani

_log = logging.getLogger(__name__)

HOOK_SECONDS = 1.0
"""How long an overridden `add_to_history` may take to store the answers of a round that was broken off."""

BROKEN_OFF = "The round was broken off before this call had a result."


class Ledger:
    """One round's part of the history: what follows the message that was the last one when the round began.

    It is found again by looking at the history, not by noting what was added: hooks may store other messages than
    they were given, and may fail before or after storing them.
    """

    def __init__(self, kani: Kani) -> None:
        self._kani = kani
        self._length = len(kani.chat_history)
        self._before = kani.chat_history[-1] if kani.chat_history else None
        self.outcomes: dict[int, CallOutcome] = {}
        """The calls of the model's last message that have a result, by their place in it."""

    async def add(self, message: ChatMessage) -> None:
        await self._kani.add_to_history(message)

    async def ask(self, query: QueryType) -> None:
        """Puts the user's message in the history."""
        if query is not None:
            await self.add(ChatMessage.user(query))

    async def answer(self, why: str) -> None:
        """Answers the open calls of the model's last message: by what was found out, or by the error `why`."""
        history = self._kani.chat_history
        for position, message in self._answers(why):
            if position == len(history):
                await self.add(message)
            else:
                # something was put in the history meanwhile: the answer still comes right after the call
                history.insert(position, message)

    async def settle(self) -> None:
        """Makes the history whole after the round was broken off, as `on_broken` says."""
        history, start = self._kani.chat_history, self._start()
        if self._kani.on_broken == "rollback" and start is not None:
            del history[start:]
            return
        try:
            with anyio.move_on_after(HOOK_SECONDS):
                await self.answer(BROKEN_OFF)
        except Exception:
            _log.warning("add_to_history failed while a round was broken off; the answers are stored.", exc_info=True)
        finally:
            # whatever became of the hook that stores messages, the history has to be whole
            for position, message in self._answers(BROKEN_OFF):
                history.insert(position, message)
            if start is not None and len(history) == start + 1 and history[start].role is ChatRole.USER:
                history.pop()  # nobody answered

    def _start(self) -> int | None:
        """Where this round's messages begin; None if the history was replaced meanwhile."""
        history, before = self._kani.chat_history, self._before
        if before is None:
            return 0
        if self._length <= len(history) and history[self._length - 1] is before:
            return self._length
        return next((i + 1 for i in range(len(history) - 1, -1, -1) if history[i] is before), None)

    def _answers(self, why: str) -> list[tuple[int, ChatMessage]]:
        """The answers that the history lacks, and where each of them goes."""
        history = self._kani.chat_history
        newest_first = range(len(history) - 1, (self._start() or 0) - 1, -1)
        asked = next((i for i in newest_first if history[i].role is ChatRole.ASSISTANT), None)
        if asked is None or not (calls := history[asked].tool_calls):
            return []
        open_calls = dict(enumerate(calls))
        position = asked + 1
        while position < len(history) and history[position].role is ChatRole.FUNCTION:
            answered = history[position].tool_call_id
            index = next((i for i, call in open_calls.items() if answered in (call.id, None)), None)
            if index is not None:
                del open_calls[index]
            position += 1
        answers: list[tuple[int, ChatMessage]] = []
        for index, call in open_calls.items():
            outcome = self.outcomes.get(index)
            known = outcome is not None and outcome.call.id == call.id
            answers.append((position + len(answers), outcome.message if outcome and known else not_run(call, why)))
        return answers
