"""A model's text, in any chunking, to reasoning, visible text and tool calls.

One state machine for all formats: a format declares its markers and who reads its calls. A marker never shows up in
the text, not even in part: what may be the start of one is held back until it is decided. The work is linear in the
length of the text, however it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.messages import ChatMessage, MessagePart, ReasoningPart, ToolCall

from .calls import NO_CALL, CallText, read_json, unreadable

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction


class Kind(Enum):
    """What a part of a reply is."""

    TEXT = auto()
    REASONING = auto()
    CALL = auto()
    HEADER = auto()  # says what the part behind it is
    BARE = auto()  # a reply that began like a call without markers; what it is shows at its end


@dataclass(frozen=True)
class Region:
    """A part of a reply, between its markers. Without `ends` it goes on to the next region or the end of the reply."""

    kind: Kind
    start: str
    ends: tuple[str, ...] = ()
    until_next: bool = False  # another region's start ends it too


@dataclass(frozen=True)
class Format:
    """How a model family writes reasoning, text and calls."""

    name: str
    regions: tuple[Region, ...] = ()
    dropped: tuple[str, ...] = ()
    """Markers that say nothing: they are left out of the text."""
    read: Callable[[CallText], list[ToolCall]] = read_json
    """Reads the text of a call region, which may hold several calls."""
    bare: Callable[[CallText], list[ToolCall]] | None = None
    """Reads a reply that begins with `{` or `[`; no calls: it is text after all."""
    route: Callable[[str], tuple[Kind, str]] | None = None
    """What a header says of the part behind it, and the name of the function if that is a call."""
    body_ends: tuple[str, ...] = ()
    """Markers that end the part behind a header, as the start of a region does."""
    inside: Region | None = None
    """The region that the prompt has opened already: the model's text begins in it."""

    @property
    def reasoning_start(self) -> str | None:
        return next((r.start for r in self.regions if r.kind is Kind.REASONING), None)

    @property
    def call_start(self) -> str | None:
        return next((r.start for r in self.regions if r.kind is Kind.CALL), None)

    def after(self, prompt: str) -> Format:
        """This format, for a reply to a prompt that may end inside a region: some templates open the reasoning."""
        end = prompt.rstrip()
        for region in self.regions:
            if region.kind is Kind.HEADER:
                opened = end.rfind(region.start)
                if opened > max((end.rfind(m) for m in region.ends), default=-1):
                    return replace(self, inside=region)
            elif region.kind is Kind.REASONING and end.endswith(region.start):
                return replace(self, inside=region)
        return self


_TEXT = Region(Kind.TEXT, "")
_BARE = Region(Kind.BARE, "")
_HEAD = 300  # characters of a bare reply in which its first key has to show


def _is_special(marker: str) -> bool:
    """Whether a marker is a token of its own, and not something that people write."""
    return marker[0] in "<["


@dataclass(frozen=True)
class _Markers:
    """The markers that count in one region, ready to be looked for."""

    pattern: re.Pattern[str] | None
    prefixes: frozenset[str] = field(default=frozenset(), repr=False)  # what may become a marker
    longest: int = 0

    def held(self, text: str) -> int:
        """How many characters at the end of `text` may be the start of a marker."""
        for size in range(min(len(text), self.longest), 0, -1):
            if text[-size:] in self.prefixes:
                return size
        return 0


@lru_cache(maxsize=512)
def _markers(fmt: Format, region: Region) -> _Markers:
    found: Iterable[str] = region.ends
    if region.kind in (Kind.TEXT, Kind.BARE):
        # a closing marker that closes nothing, if it is one and nothing else: not a code fence
        ends = (end for r in fmt.regions for end in r.ends if _is_special(end))
        found = (*(r.start for r in fmt.regions), *ends, *fmt.dropped, *fmt.body_ends)
    elif region.kind is Kind.HEADER:
        found = (*region.ends, *fmt.body_ends)  # the latter: there was nothing behind it
    elif region.until_next:
        # what opens reasoning may stand in an argument
        found = (*region.ends, *(r.start for r in fmt.regions if r.kind is not Kind.REASONING))
    elif region.kind is Kind.REASONING:
        found = (*region.ends, region.start)  # a prompt may have opened it, and the model opens it again
    markers = sorted(set(found), key=lambda m: (-len(m), m))
    if not markers:
        return _Markers(None)
    prefixes = frozenset(m[:size] for m in markers for size in range(1, len(m)))
    return _Markers(re.compile("|".join(map(re.escape, markers))), prefixes, len(markers[0]) - 1)


class Parser:
    """Reads one reply. `feed` it text as it comes, then `finish`; `message` is the reply so far.

    :param functions: the functions on offer; formats that write arguments without types take those of their schemas
    :param keep_reasoning: whether the message has the reasoning as a ReasoningPart; its deltas come in any case
    """

    def __init__(
        self, fmt: Format, functions: Sequence[AIFunction] | None = None, *, keep_reasoning: bool = True
    ) -> None:
        self.format = fmt
        self.keep_reasoning = keep_reasoning
        self.calls: list[ToolCall] = []
        self._schemas: Mapping[str, dict[str, Any]] = {f.name: f.json_schema for f in functions or ()}
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._raw: list[str] = []
        self._spaces: list[str] = []  # whitespace that is text only if more text follows
        self._pending = ""  # what may be the start of a marker
        self._held: list[str] = []  # of a call, a header or a bare reply, which are read as a whole
        self._header = ""
        self._head_seen = 0  # of a bare reply
        self._region = fmt.inside or _TEXT
        self._markers = _markers(fmt, self._region)

    @property
    def raw(self) -> str:
        """All that the model said, markers included."""
        return "".join(self._raw)

    def feed(self, text: str) -> list[Delta]:
        """What this piece of the model's text decides."""
        self._raw.append(text)
        out: list[Delta] = []
        text, at = self._pending + text, 0
        self._pending = ""
        while self._markers.pattern is not None and (found := self._markers.pattern.search(text, at)):
            self._take(text[at : found.start()], out)
            at = found.end()
            self._pass(found[0], out)
        sure = len(text) - self._markers.held(text[max(at, len(text) - self._markers.longest) :])
        self._take(text[at:sure], out)
        self._pending = text[sure:]
        return out

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """The model has said its last: an open call is closed, and what was held back is decided.

        :param cut: the reply was cut off by a limit, so that an open call may lack arguments: it isn't repaired
        """
        out: list[Delta] = []
        # one character may be anything; more of a special marker is no text that anybody meant
        if len(self._pending) == 1 or not _is_special(self._pending or " "):
            self._take(self._pending, out)
        self._pending = ""
        self._leave(out, closed=False, cut=cut)
        self._region = _TEXT
        return out

    def message(self) -> ChatMessage:
        """The reply as a message: content None where there are calls and no text."""
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        content: str | list[MessagePart | str] | None = text or (None if self.calls else "")
        if reasoning and self.keep_reasoning:
            content = [ReasoningPart(content=reasoning), *([text] if text else [])]
        return ChatMessage.assistant(content, tool_calls=self.calls or None)

    def _take(self, text: str, out: list[Delta]) -> None:
        """Text that has no marker in it, into the region that it is in."""
        if not text:
            return None
        kind = self._region.kind
        if kind is Kind.TEXT and not self._text and self.format.bare is not None and text.lstrip()[:1] in ("{", "["):
            self._enter(_BARE)
            kind, text = Kind.BARE, text.lstrip()
        if kind in (Kind.TEXT, Kind.REASONING):
            return self._emit(text, out)
        self._held.append(text)
        if kind is Kind.BARE and self._head_seen < _HEAD:
            head = "".join(self._held)[:_HEAD]
            self._head_seen = len(head)
            if NO_CALL.match(head):  # JSON that is an answer: it need not wait for its end
                self._enter(_TEXT)
                held, self._held = "".join(self._held), []
                self._emit(held, out)

    def _emit(self, text: str, out: list[Delta]) -> None:
        """Text or reasoning without the whitespace at its two ends."""
        visible = self._region.kind is Kind.TEXT
        kept = self._text if visible else self._reasoning
        if not kept:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            piece = "".join([*self._spaces, body])
            self._spaces = []
            kept.append(piece)
            out.append(TextDelta(piece) if visible else ReasoningDelta(piece))
        if len(body) < len(text):
            self._spaces.append(text[len(body) :])

    def _pass(self, marker: str, out: list[Delta]) -> None:
        """Goes over a marker, into the region behind it."""
        opened = next((r for r in self.format.regions if r.start == marker), None)
        region = self._region
        if region.kind is Kind.HEADER and marker in region.ends and self.format.route is not None:
            kind, self._header = self.format.route("".join(self._held))
            self._held = []
            return self._enter(Region(kind, "", self.format.body_ends, until_next=True))
        if marker in self.format.dropped and marker not in region.ends and region.kind is not Kind.BARE:
            return None  # it says nothing, and ends nothing
        if region.kind is Kind.CALL and marker not in region.ends and not self._header and not any(self._held):
            self._held = []  # a call's start said twice
        else:
            self._leave(out, closed=True, cut=False)
        self._enter(opened or _TEXT)

    def _enter(self, region: Region) -> None:
        if region is not self._region:
            self._spaces, self._head_seen = [], 0
            self._region, self._markers = region, _markers(self.format, region)

    def _leave(self, out: list[Delta], *, closed: bool, cut: bool) -> None:
        """Reads what the region that ends has held back."""
        held, self._held = "".join(self._held), []
        region, header, self._header = self._region, self._header, ""
        if region.kind is Kind.CALL:
            self._tell(self.format.read(CallText(held, closed, cut, header, self._schemas)), out)
        elif region.kind is Kind.BARE and self.format.bare is not None:
            calls = self.format.bare(CallText(held, closed, cut, "", self._schemas))
            self._tell(calls, out)
            if not calls:
                self._region = _TEXT
                self._emit(held, out)
        elif region.kind is Kind.HEADER and not closed and self._routes_to_call(held):
            self._tell([unreadable(held, self._routes_to_call(held))], out)
        elif region.kind is Kind.HEADER and region is self.format.inside and not closed:
            self._region = _TEXT  # a reply that has no header at all
            self._emit(held if self._raw_is(held) else "", out)

    def _routes_to_call(self, header: str) -> str:
        """The function that a header names, if it does."""
        kind, name = self.format.route(header) if self.format.route is not None else (Kind.TEXT, "")
        return name if kind is Kind.CALL else ""

    def _raw_is(self, text: str) -> bool:
        """Whether this is all that the model said, with no marker in it."""
        pattern = _markers(self.format, _TEXT).pattern
        return self.raw == text and not (pattern and pattern.search(text))

    def _tell(self, calls: list[ToolCall], out: list[Delta]) -> None:
        for call in calls:
            index = len(self.calls)
            self.calls.append(call)
            out.append(ToolCallStarted(index, call.id, call.function.name))
            out.append(ToolCallDelta(index, call.function.arguments))
            out.append(ToolCallFinished(index, call))


def parse(fmt: Format, text: str, functions: Sequence[AIFunction] | None = None) -> ChatMessage:
    """A whole reply as a message."""
    parser = Parser(fmt, functions)
    parser.feed(text)
    parser.finish()
    return parser.message()
