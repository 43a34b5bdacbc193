"""One reply of a wrapped engine as a parser streams it: what to show of it, and its completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kani_lite.engines.base import BaseCompletion, Completion
from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.messages import ChatMessage, ToolCall

from .parser_reading import Reading, was_cut, with_content
from .parsing import call_deltas

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

_GREY, _PLAIN = "\033[0;37m", "\033[0m"


class Shown:
    """Turns reasoning into visible text, if it is to be shown."""

    def __init__(self, show: bool, color: bool) -> None:
        self.show, self._color = show, color
        self._grey = False
        self._after_reasoning = False

    def texts(self, delta: TextDelta | ReasoningDelta) -> Iterator[str | Delta]:
        """The delta as it is seen: visible text as `str`."""
        if isinstance(delta, TextDelta):
            yield from self.end_grey()
            yield "\n" + delta.text if self._after_reasoning else delta.text
            self._after_reasoning = False
        elif not self.show:
            yield delta
        else:
            yield _GREY + delta.text if self._color and not self._grey else delta.text
            self._grey, self._after_reasoning = self._color, True

    def end_grey(self) -> Iterator[str]:
        """Something else than reasoning comes."""
        if self._grey:
            self._grey = False
            yield _PLAIN


class CallNumbers:
    """Counts the calls of one message, which may come from the engine and from the parser."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[bool, int], int] = {}
        self._ids: dict[str, int] = {}

    def numbered(self, delta: ToolCallStarted | ToolCallDelta | ToolCallFinished, *, ours: bool) -> Delta:
        """The delta with its call's number in the message."""
        number = self._numbers.setdefault((ours, delta.index), len(self._numbers))
        if isinstance(delta, ToolCallStarted):
            self._ids.setdefault(delta.id, number)
        return replace(delta, index=number)

    def in_order(self, calls: Iterable[ToolCall]) -> list[ToolCall]:
        """The calls in the order in which they were told; the others last."""
        return sorted(calls, key=lambda call: self._ids.get(call.id, len(self._ids)))

    def untold(self, calls: Sequence[ToolCall]) -> Iterator[Delta]:
        """The deltas of calls that had none so far."""
        for index, call in enumerate(calls):
            if call.id not in self._ids:
                yield from call_deltas(index, call)


class ReplyStream:
    """Reads what the engine streams, then its completion.

    Whether a reply begins in the reasoning may show only at its end. It is streamed as it is taken to be, and what was
    wrong in that is put right in the message.

    :param tell_calls: whether calls are told as they are read; what a subclass finds is known with its message only
    """

    def __init__(
        self, reading: Reading, functions: Sequence[AIFunction] | None, shown: Shown, *, tell_calls: bool
    ) -> None:
        self._reading, self._functions = reading, functions
        self._shown, self._tell_calls = shown, tell_calls
        self._inside = reading.assumed_inside
        self._parser = reading.parser(functions, self._inside)
        self._numbers = CallNumbers()

    def read(self, item: str | Delta) -> Iterator[str | Delta]:
        """What this item of the engine's stream decides."""
        if isinstance(item, str | TextDelta):
            text = item if isinstance(item, str) else item.text
            return self._told(self._parser.feed(text), ours=True)
        return self._told([item], ours=False)

    def completed(self, inner: BaseCompletion | None) -> BaseCompletion:
        """The engine's completion; without one, what it streamed is the message."""
        return inner or Completion(ChatMessage.assistant(self._parser.raw.strip()))

    def finish(self, inner: BaseCompletion) -> Iterator[str | Delta]:
        """What comes before the completion."""
        if not self._parser.raw and inner.message.text:  # the engine didn't stream its text
            yield from self.read(inner.message.text)
        cut = was_cut(inner)
        inside, last = self._reading.inside(self._parser.raw), self._parser.finish(cut=cut)
        if self._inside and not inside:  # calls and text that ended it are read again
            last = [delta for delta in last if isinstance(delta, ReasoningDelta)]
        yield from self._told(last, ours=True)
        self.message, self._calls = self._parser.message(), self._parser.calls
        if inside is not self._inside:
            yield from self._read_again(inside, cut)
        yield from self._shown.end_grey()
        if self._tell_calls:
            self._calls = self._numbers.in_order([*(inner.message.tool_calls or ()), *self._calls])
            yield from self._numbers.untold(self._calls)

    def completion(self, inner: BaseCompletion) -> BaseCompletion:
        """The completion, after `finish`."""
        return with_content(inner, self._parser.raw, self.message, self._calls)

    def _read_again(self, inside: bool, cut: bool) -> Iterator[str | Delta]:
        again = self._reading.parser(self._functions, inside)
        deltas = [*again.feed(self._parser.raw), *again.finish(cut=cut)]
        self.message = again.message()
        if self._inside:  # what was streamed as reasoning is the answer
            self._calls = again.calls
            seen = self._shown.show
            yield from self._told((d for d in deltas if not (seen and isinstance(d, TextDelta))), ours=True)

    def _told(self, deltas: Iterable[Delta], *, ours: bool) -> Iterator[str | Delta]:
        for delta in deltas:
            if isinstance(delta, TextDelta | ReasoningDelta):
                yield from self._shown.texts(delta)
            elif self._tell_calls or not ours:
                yield from self._shown.end_grey()
                yield self._numbers.numbered(delta, ours=ours)
