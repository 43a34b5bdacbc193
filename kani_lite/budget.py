"""Which messages go into the next prompt.

What was counted is remembered, so that a round costs as much as its new messages: the tail of the history that was ever
in reach of the prompt has its token counts, checked against the text they were made from. They choose the cut; the
engine's count of the whole prompt then decides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

from .engines.base import BaseEngine
from .exceptions import FunctionSpecError, KaniException, MessageTooLong, PromptTooLong
from .messages import ChatMessage, ChatRole, longest_of

if TYPE_CHECKING:
    from .functions import AIFunction

BLOCK_SHARE = 0.75
"""An engine that reuses its prefix fills its context to this share when history is dropped, so that the start of the
prompt then stays the same for many rounds."""

NEAR = 8
"""Tokens that an engine's `message_len` may be wrong by, for a message: as much is found out by counting the prompt."""

_content, _tool_calls = attrgetter("content"), attrgetter("tool_calls")


class Tail:
    """Token counts of the newest messages of a history, from some point on to the end."""

    def __init__(self) -> None:
        self.start = 0  # history[start:] is counted
        self.sums: list[int] = [0]  # sums[i]: tokens of history[start : start + i]
        self._seen: list[ChatMessage] = []
        self._texts: list[Any] = []
        self._calls: list[Any] = []

    def sync(self, history: Sequence[ChatMessage], count: Callable[[ChatMessage], int]) -> None:
        """Makes the counts right for `history`: what is new is counted, what has changed is counted again."""
        self._forget_changed(history)
        for message in history[self.start + len(self._seen) :]:
            self._push(message, count(message))

    def reach(
        self, history: Sequence[ChatMessage], count: Callable[[ChatMessage], int], room: int, at_least: int
    ) -> None:
        """Counts further back, to `at_least` and on until there are more than `room` tokens."""
        if not self.start or (self.sums[-1] > room and self.start <= at_least):
            return
        back: list[tuple[ChatMessage, int]] = []
        total = self.sums[-1]
        while self.start and (total <= room or self.start > at_least):
            self.start -= 1
            message = history[self.start]
            back.append((message, count(message)))
            total += back[-1][1]
        counts = [b - a for a, b in zip(self.sums, self.sums[1:], strict=False)]
        newer = list(zip(self._seen, counts, strict=True))
        self._clear()
        for message, tokens in [*reversed(back), *newer]:
            self._push(message, tokens)

    def _forget_changed(self, history: Sequence[ChatMessage]) -> None:
        if not self._seen:
            self.start = len(history)
            return
        known = history[self.start : self.start + len(self._seen)]
        if known:  # what was taken off the end is forgotten; the rest may be as it was
            kept = len(known)
            del self._seen[kept:], self._texts[kept:], self._calls[kept:], self.sums[kept + 1 :]
        if (
            known
            and all(map(is_, known, self._seen))
            and list(map(_content, known)) == self._texts
            and self._calls_of(known) == self._calls
        ):
            return
        # keep what is unchanged at the front; if not even the first is, count anew from the end
        same = 0
        for message, seen, text, calls in zip(known, self._seen, self._texts, self._calls, strict=False):
            if message is not seen or message.content != text or _call_texts(message) != calls:
                break
            same += 1
        if same == 0:
            self._clear()
            self.start = len(history)
        else:
            del self._seen[same:], self._texts[same:], self._calls[same:], self.sums[same + 1 :]

    def _calls_of(self, known: Sequence[ChatMessage]) -> list[Any]:
        # few messages have calls, so the others cost as little as can be
        calls: list[Any] = list(map(_tool_calls, known))
        for index, message in enumerate(known) if any(calls) else ():
            if calls[index]:
                calls[index] = _call_texts(message)
        return calls

    def _clear(self) -> None:
        self._seen, self._texts, self._calls, self.sums = [], [], [], [0]

    def _push(self, message: ChatMessage, tokens: int) -> None:
        self._seen.append(message)
        # lists are copied, so that a change inside them is seen
        self._texts.append(list(message.content) if isinstance(message.content, list) else message.content)
        self._calls.append(_call_texts(message))
        self.sums.append(self.sums[-1] + tokens)

    def fits_from(self, room: int) -> int:
        """The smallest index from which all later messages together have at most `room` tokens."""
        return self.start + bisect_left(self.sums, self.sums[-1] - room)

    def tokens_from(self, index: int) -> int:
        return self.sums[-1] - self.sums[index - self.start]


def _call_texts(message: ChatMessage) -> Any:
    return message.tool_calls and [(call.function.name, call.function.arguments) for call in message.tool_calls]


def group_start(history: Sequence[ChatMessage], index: int) -> int:
    """The first index from `index` on at which a prompt may begin: not among the results of a call that was cut off."""
    while 0 < index < len(history) and history[index].role is ChatRole.FUNCTION:
        index += 1
    return index


class _Measure:
    """The engine's counts of prompts that begin at some message. A prompt that the engine refuses (templates do) is
    passed over like one that is too long, and the first refusal is remembered: that of the longest prompt."""

    def __init__(
        self,
        engine: BaseEngine,
        always: list[ChatMessage],
        history: list[ChatMessage],
        tail: Tail,
        rest: tuple[Any, Any],
    ) -> None:
        self.engine, self.always, self.history, self.tail = engine, always, history, tail
        self.functions, self.kwargs = rest
        self.refusal: Exception | None = None
        # the default count is the sum of what the tail already knows
        self.additive = type(engine).prompt_len is BaseEngine.prompt_len

    async def __call__(self, start: int) -> int | None:
        if self.additive:
            return sum(map(self.engine.message_len, self.always)) + self.tail.tokens_from(start)
        try:
            count = self.engine.prompt_len([*self.always, *self.history[start:]], self.functions, **self.kwargs)
            return await count if isinstance(count, Awaitable) else count
        except FunctionSpecError:
            raise  # no prompt can have this function
        except Exception as e:
            self.refusal = self.refusal or e
            return None


class Budget:
    """Chooses the messages of one chat's prompts."""

    def __init__(self) -> None:
        self._tail = Tail()
        self._overhead = 0  # tokens of a prompt beside those of its history, as last found
        self._cut: ChatMessage | None = None  # the first message kept, for an engine that reuses its prefix

    async def fit(
        self,
        engine: BaseEngine,
        always: list[ChatMessage],
        history: list[ChatMessage],
        functions: list[AIFunction] | None,
        size: int,
        kwargs: dict[str, Any],
    ) -> list[ChatMessage]:
        """The always-included messages and the largest part of the history, from some message to its end, that fit in
        `size` tokens; tool calls stay with their results.

        Raises PromptTooLong or MessageTooLong if there is no such part, and if the engine refuses them all its own
        KaniException, or ValueError for another exception.
        """
        tail, count = self._tail, engine.message_len
        try:
            tail.sync(history, count)
            if tail.start:
                tail.reach(history, count, size - self._overhead, last_group(history))
        except NotImplementedError:
            measure = _Measure(engine, always, history, tail, (functions, kwargs))
            measure.additive = False
            start = await _search(history, measure, size)
        else:
            if not tail.start and type(engine).prompt_len is BaseEngine.prompt_len:
                self._overhead = sum(map(count, always)) if always else 0
                if self._overhead + tail.sums[-1] <= size:  # all of it: the common case
                    self._cut = None
                    return [*always, *history]
            measure = _Measure(engine, always, history, tail, (functions, kwargs))
            start = await self._choose(history, measure, size)
        if start is None:
            return await _nothing_fits(history, measure, size)
        self._cut = history[start] if start else None
        return [*always, *history[start:]]

    async def _choose(self, history: list[ChatMessage], measure: _Measure, size: int) -> int | None:
        """Where the prompt begins, by the counts and then by the engine's own count of the whole; None: nowhere."""
        if not history:
            total = await measure(0)
            return 0 if total is not None and total <= size else None
        start, blocks = self._proposal(history, measure.engine.reuses_prefix, size)
        too_long, refused, best = -1, set(), len(history)
        while start < best:
            total = await measure(start)
            if total is None:
                refused.add(start)
                start = group_start(history, start + 1)
                continue
            self._overhead = total - self._tail.tokens_from(start)
            if total <= size:
                best = start
                if blocks:
                    break
                self._tail.reach(history, measure.engine.message_len, size - self._overhead, start)
                start = self._earlier(history, best, too_long, refused, size)
                continue
            too_long = start
            if best < len(history):
                start = group_start(history, (start + 1 + best) // 2)
            else:
                # the counts now say where it fits; move on by one group at least
                room = (int(size * BLOCK_SHARE) if blocks else size) - self._overhead
                newest = max(start + 1, last_group(history))
                start = group_start(history, min(newest, max(start + 1, self._tail.fits_from(room))))
        if best < len(history):
            return best
        # what was passed over may fit all the same, where a template refuses some starts and counts are estimates
        return None if measure.additive else await _search(history, measure, size)

    def _earlier(self, history: list[ChatMessage], best: int, too_long: int, refused: set[int], size: int) -> int:
        """The start to try after `best`, which fits: the earliest that fits by the counts, and if that is none, the
        one before `best` if it is only just too long by them, since they may be estimates."""
        start = max(self._tail.fits_from(size - self._overhead), self._tail.start, too_long + 1)
        start = group_start(history, start)
        while start in refused:
            start = group_start(history, start + 1)
        if start < best:
            return start
        before = best - 1
        while before > 0 and group_start(history, before) != before:
            before -= 1
        if before in refused or before < max(self._tail.start, too_long + 1):
            return best
        over = self._overhead + self._tail.tokens_from(before) - size
        return before if over <= NEAR * (best - before) else best

    def _proposal(self, history: list[ChatMessage], blocks: bool, size: int) -> tuple[int, bool]:
        """(a first choice of the start, whether history is dropped in blocks)."""
        last = max(0, len(history) - 1)
        whole = min(last_group(history), self._tail.fits_from(size - self._overhead))
        whole = group_start(history, whole)
        if whole == 0 or not blocks:
            return whole, blocks and whole > 0
        for i in range(whole, len(history)):
            if history[i] is self._cut:
                return i, True
        block = min(last, self._tail.fits_from(int(size * BLOCK_SHARE) - self._overhead))
        return min(last_group(history), group_start(history, max(whole, block))), True


def last_group(history: Sequence[ChatMessage]) -> int:
    """Where the newest message begins, or the call that it is a result of."""
    start = max(0, len(history) - 1)
    while start > 0 and history[start].role is ChatRole.FUNCTION:
        start -= 1
    return start


async def _search(history: list[ChatMessage], measure: _Measure, size: int) -> int | None:
    """The start for an engine that can only count whole prompts: bisection over the legal starts."""
    starts = [i for i in range(len(history)) if group_start(history, i) == i] if history else [0]
    low, high, answer = 0, len(starts), None
    middle = 0  # all of it first: that is the common case
    while low < high:
        probe, total = middle, None
        while probe < high and (total := await measure(starts[probe])) is None:
            probe += 1
        if total is not None and total > size:
            low = probe + 1
        else:
            answer = starts[probe] if total is not None else answer
            high = middle
        middle = (low + high) // 2
    return answer


async def _nothing_fits(history: list[ChatMessage], measure: _Measure, size: int) -> list[ChatMessage]:
    """Raises what says best why no message of the history fits."""
    start = last_group(history)
    newest = await measure(start) if history else None
    least = await measure(len(history))
    if least is not None and least > size:
        longest = f"; the longest is {longest_of(measure.always)}" if measure.always else ""
        raise PromptTooLong(
            f"The always-included messages and functions take {least} tokens, {least - size} more than the {size} that "
            f"are free for the prompt{longest}: shorten them, offer fewer functions, or lower desired_response_tokens."
        )
    if newest is not None:
        group = history[start:]
        longest = f" Of it and its call, {longest_of(group, start)} is the longest." if len(group) > 1 else ""
        raise MessageTooLong(
            f"The newest message makes a prompt of {newest} tokens, {newest - size} more than the {size} that are "
            f"free: shorten it, or lower desired_response_tokens.{longest}"
        )
    if isinstance(measure.refusal, KaniException):
        raise measure.refusal
    raise ValueError(f"The engine refuses every prompt from this history: {measure.refusal}") from measure.refusal
