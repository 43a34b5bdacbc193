"""A model's text, in any chunking, to reasoning, visible text and tool calls.

One state machine for all formats: a format declares its markers and who reads its calls. A marker never shows up in
the text, not even in part: what may be the start of one is held back until it is decided. The work is linear in the
length of the text, however it is cut.

What shows only later is read twice, the second time with what came of it:

- A marker inside a string of a call belongs to the string (see nesting.py). If the string never ends, or something
  follows it that JSON doesn't have, the marker ended the call after all. In a reply that a limit cut off, a string
  that is open at the end is one that was being written: no marker in it counts, and the call is reported as broken.
- A call in the reasoning is a thought if the reasoning ends later. If it doesn't, and the call is one of a function on
  offer, the call ended the reasoning.
- A reply that begins like a call without markers is text after all if not all of it is calls. With functions on offer
  calls may also follow the text, from the beginning of a line to the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.messages import ChatMessage, MessagePart, ReasoningPart, ToolCall

from .calls import MOST_CALLS, CallText, all_offered, is_no_call, unreadable
from .nesting import Nesting
from .regions import Format, Kind, Markers, Region, is_special, markers_in

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

__all__ = ["Format", "Kind", "Parser", "Region", "call_deltas", "parse"]

_TEXT = Region(Kind.TEXT, "")
_BARE = Region(Kind.BARE, "")
_HEAD = 300  # characters of a bare reply in which its first key has to show
_PIECE = 4_096  # characters read at a time: what is read again is not copied with all that follows it
_LINE = re.compile(r"\n[ \t]*(?=[\[{])")


def _pieces(text: str) -> list[str]:
    """Pieces to be read, the first one last."""
    return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)][::-1]


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
        self._functions = functions
        self._schemas: Mapping[str, dict[str, Any]] = {f.name: f.json_schema for f in functions or ()}
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._raw: list[str] = []
        self._spaces: list[str] = []  # whitespace that is text only if more text follows
        self._pending = ""  # what may be the start of a marker
        self._held: list[str] = []  # of a call, a header or a bare reply, which are read as a whole
        self._header = ""
        self._bare = fmt.bare  # None when the reply has turned out to be text
        self._head_seen = 0  # of a bare reply
        self._refused = False  # what comes next began like a call without markers, and is none
        self._calls_count = bool(self._schemas)  # a call in the reasoning may end it
        self._endless = False  # reasoning that is open now is known not to be closed
        self._thinking = self._region = fmt.inside or _TEXT
        self._found_markers: dict[tuple[Region, bool], Markers] = {}
        self._excess: list[str] = []  # calls behind the first MOST_CALLS, which are no reply: told as one, unread
        self._switch(self._region)

    @property
    def raw(self) -> str:
        """All that the model said, markers included."""
        return "".join(self._raw)

    def feed(self, text: str) -> list[Delta]:
        """What this piece of the model's text decides."""
        self._raw.append(text)
        out: list[Delta] = []
        self._scan(text, out)
        return out

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """The model has said its last: an open call is closed, and what was held back is decided.

        :param cut: the reply was cut off by a limit, so that an open call may lack arguments: it isn't repaired
        """
        out: list[Delta] = []
        again: str | None = ""
        while again is not None:
            self._scan(again, out)
            rest, self._pending = self._pending, ""
            # one character may be anything; more of a special marker is no text that anybody meant
            kept = rest if len(rest) == 1 or not is_special(rest or " ") else ""
            again = self._take(kept, out)
            if again is None:
                again = self._unsettled(out, cut)
            if again is not None:
                again += rest[len(kept) :]
        self._leave(out, closed=False, cut=cut)
        self._region = _TEXT
        if self._excess:
            self._tell([unreadable("\n".join(self._excess))], out)
            self._excess = []
        return out

    def message(self) -> ChatMessage:
        """The reply as a message: content None where there are calls and no text."""
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        content: str | list[MessagePart | str] | None = text or (None if self.calls else "")
        if reasoning and self.keep_reasoning:
            content = [ReasoningPart(content=reasoning), *([text] if text else [])]
        return ChatMessage.assistant(content, tool_calls=self.calls or None)

    # ==== scanning: a step may give back text to be read again, before all that follows ====

    def _scan(self, text: str, out: list[Delta]) -> None:
        todo = _pieces(text)
        while todo:
            text, at = self._pending + todo.pop(), 0
            self._pending = ""
            again: str | None = None
            while again is None:
                found = self._markers.pattern.search(text, at) if self._markers.pattern else None
                end = found.start() if found else len(text) - self._markers.held(text, at)
                again = self._take(text[at:end], out)
                at = end
                if again is None and found:
                    at = found.end()
                    again = self._meet(found[0], out)
                elif again is None:
                    self._pending = text[end:]
                    break
            else:
                todo += [text[at:], *_pieces(again)]

    def _take(self, text: str, out: list[Delta]) -> str | None:
        """Text that has no marker in it, into the region that it is in."""
        if not text:
            return None
        kind = self._region.kind
        if kind is Kind.TEXT and self._bare is not None and (begun := self._bare_begins(text)) >= 0:
            self._emit(text[:begun], out)
            self._switch(_BARE)
            return self._hold(text[begun:], out)
        if kind not in (Kind.TEXT, Kind.REASONING):
            return self._hold(text, out)
        self._emit(text, out)
        return None

    def _bare_begins(self, text: str) -> int:
        """Where calls without markers may begin in this piece of the text; -1 if nowhere."""
        begun = len(text) - len(text.lstrip())
        first, self._refused = not self._refused, False
        if first and not self._text and text[begun : begun + 1] in ("{", "[", "`"):
            return begun
        if not self._schemas:
            return -1
        if first and self._text and text[begun : begun + 1] in ("{", "["):
            before = "".join([*self._spaces, text[:begun]])
            if before.rstrip(" \t").endswith("\n"):
                return begun
        lines = (line.end() for line in _LINE.finditer(text, begun))
        return next((at for at in lines if not is_no_call(text[at : at + _HEAD], self._schemas)), -1)

    def _hold(self, text: str, out: list[Delta]) -> str | None:
        """Text of what is read as a whole."""
        self._held.append(text)
        kind, nesting = self._region.kind, self._nesting
        if kind is Kind.BARE and self._head_seen < _HEAD:
            head = "".join(self._held)[:_HEAD]
            self._head_seen = len(head)
            if is_no_call(head, self._schemas if self._text else None):
                return self._no_bare()  # JSON that is an answer: it need not wait for its end
        if kind in (Kind.CALL, Kind.BARE):
            nesting.read(text)
            if nesting.broken and nesting.doubt is not None:
                return self._end_at(nesting.doubt, out)
        return None

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

    def _meet(self, marker: str, out: list[Delta]) -> str | None:
        """A marker, which may belong to what stands around it."""
        region = self._region
        if region.kind in (Kind.CALL, Kind.BARE) and self._nesting.inside:
            if self._nesting.doubt is None:
                self._nesting.doubt = len(self._held)
            return self._hold(marker, out)
        if region.kind is Kind.THOUGHT:
            return self._no_call_in_reasoning() + marker
        if region.kind is Kind.REASONING and not self._endless and self._may_call(region, marker):
            self._thinking = region
            self._switch(Region(Kind.THOUGHT, "", region.ends))
            return self._hold(marker, out)
        return self._pass(marker, out)

    def _may_call(self, reasoning: Region, marker: str) -> bool:
        """Whether a marker in the reasoning is there only because calls may end it."""
        return marker not in (*reasoning.ends, reasoning.start) and not reasoning.until_next

    def _pass(self, marker: str, out: list[Delta]) -> str | None:
        """Goes over a marker, into the region behind it."""
        region = self._region
        if region.kind is Kind.HEADER and marker in region.ends:
            kind, self._header = self._routed("".join(self._held))
            self._held = []
            self._enter(Region(kind, "", self.format.body_ends, until_next=True))
            return None
        if region.kind is Kind.BARE:
            if not self._read_bare(out, closed=True):
                return self._no_bare(for_good=True) + marker
        elif marker in self.format.dropped and marker not in region.ends:
            return None  # it says nothing, and ends nothing
        elif region.kind is Kind.CALL and marker not in region.ends and not self._header and not any(self._held):
            self._held = []  # a call's start said twice
        else:
            self._leave(out, closed=True)
        self._enter(next((r for r in self.format.regions if r.start == marker), _TEXT))
        return None

    def _enter(self, region: Region) -> None:
        if region is not self._region:
            self._spaces, self._calls_count = [], bool(self._schemas)
        self._switch(region)

    def _switch(self, region: Region) -> None:
        """The same without an end to what was before."""
        key = (region, self._calls_count)
        if key not in self._found_markers:
            self._found_markers[key] = markers_in(self.format, region, self._calls_count)
        self._region, self._markers = region, self._found_markers[key]
        self._head_seen = 0
        self._nesting = Nesting(region.start[len(region.start.rstrip("[{(")) :])

    # ==== what is read as a whole ====

    def _leave(self, out: list[Delta], *, closed: bool, cut: bool = False) -> None:
        """Reads the call or the header that ends."""
        held, region, header = self._release(), self._region, self._header
        self._header = ""
        if region.kind is Kind.CALL and len(self.calls) >= MOST_CALLS:
            self._excess.append(f"{header} {held}".strip())
        elif region.kind is Kind.CALL:
            self._tell(self.format.read(CallText(held, closed, cut, header, self._schemas)), out)
        elif region.kind is Kind.HEADER and not closed:
            kind, name = self._routed(held)
            if kind is Kind.CALL:
                self._tell([unreadable(held, name)], out)
            elif region is self.format.inside:
                self._region = _TEXT  # a reply that has no header at all
                self._emit(held if self._raw_is(held) else "", out)

    def _release(self) -> str:
        held, self._held = "".join(self._held), []
        return held

    def _end_at(self, index: int, out: list[Delta]) -> str:
        """Ends the call at a marker that seemed to be in a string of it; what stood behind is read again."""
        marker, rest = self._held[index], "".join(self._held[index + 1 :])
        del self._held[index:]
        return (self._pass(marker, out) or "") + rest

    def _read_bare(self, out: list[Delta], *, closed: bool, cut: bool = False) -> bool:
        """Whether what has no markers is calls."""
        call = CallText("".join(self._held), closed, cut, "", self._schemas)
        calls = self._bare(call) if self._bare is not None else []
        if self._text and not all_offered(calls, self._schemas, cut):
            return False
        if calls:
            self._held = []
            self._tell(calls, out)
        return bool(calls)

    def _no_bare(self, *, for_good: bool = False) -> str:
        """It was text."""
        if for_good:
            self._bare = None
        self._refused = True
        self._switch(_TEXT)
        return self._release()

    def _no_call_in_reasoning(self) -> str:
        """It was a thought."""
        self._calls_count = False
        self._switch(self._thinking)
        return self._release()

    def _unsettled(self, out: list[Delta], cut: bool) -> str | None:
        """At the end of the reply: what is to be read again, now that nothing follows."""
        kind, doubt = self._region.kind, self._nesting.doubt
        if self._nesting.inside and doubt is not None and not cut:
            return self._end_at(doubt, out)
        if kind is Kind.BARE:
            if not self._read_bare(out, closed=False, cut=cut):
                return self._no_bare(for_good=True)
            self._switch(_TEXT)
        if kind is Kind.THOUGHT:
            if not self._calls_on_offer("".join(self._held), cut):
                return self._no_call_in_reasoning()
            self._endless = True
            self._enter(_TEXT)
            return self._release()
        return None

    def _calls_on_offer(self, text: str, cut: bool) -> bool:
        """Whether a call of a function on offer is in this text."""
        parser = Parser(replace(self.format, inside=None, bare=None), self._functions)
        parser._endless = True
        parser.feed(text)
        parser.finish(cut=cut)
        return any(call.function.name in self._schemas for call in parser.calls)

    def _routed(self, header: str) -> tuple[Kind, str]:
        """What a header says of the part behind it."""
        return self.format.route(header) if self.format.route is not None else (Kind.TEXT, "")

    def _raw_is(self, text: str) -> bool:
        """Whether this is all that the model said, with no marker in it."""
        pattern = markers_in(self.format, _TEXT, False).pattern
        return self.raw == text and not (pattern and pattern.search(text))

    def _tell(self, calls: list[ToolCall], out: list[Delta]) -> None:
        for call in calls:
            out += call_deltas(len(self.calls), call)
            self.calls.append(call)


def call_deltas(index: int, call: ToolCall) -> list[Delta]:
    """What tells of a call that is known as a whole."""
    return [
        ToolCallStarted(index, call.id, call.function.name),
        ToolCallDelta(index, call.function.arguments),
        ToolCallFinished(index, call),
    ]


def parse(fmt: Format, text: str, functions: Sequence[AIFunction] | None = None) -> ChatMessage:
    """A whole reply as a message."""
    parser = Parser(fmt, functions)
    parser.feed(text)
    parser.finish()
    return parser.message()
