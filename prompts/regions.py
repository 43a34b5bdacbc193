"""What a format declares: the regions of a reply, and the markers that count in each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import lru_cache

from kani_lite.messages import ToolCall

from .calls import CallText, read_json


class Kind(Enum):
    """What a part of a reply is."""

    TEXT = auto()
    REASONING = auto()
    CALL = auto()
    HEADER = auto()  # says what the part behind it is
    BARE = auto()  # what began like a call without markers; what it is shows at its end
    THOUGHT = auto()  # what began like a call in the reasoning; what it is shows at the end of the reasoning


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
    """Reads a reply, or the last lines of one, that begins with `{`, `[` or a code fence; no calls: it is text."""
    route: Callable[[str], tuple[Kind, str]] | None = None
    """What a header says of the part behind it, and the name of the function if that is a call."""
    body_ends: tuple[str, ...] = ()
    """Markers that end the part behind a header, as the start of a region does."""
    inside: Region | None = None
    """The region that the prompt has opened already: the model's text begins in it."""

    def region(self, kind: Kind) -> Region | None:
        """The first region of this kind."""
        return next((region for region in self.regions if region.kind is kind), None)

    @property
    def reasoning_start(self) -> str | None:
        region = self.region(Kind.REASONING)
        return region.start if region else None

    @property
    def call_start(self) -> str | None:
        region = self.region(Kind.CALL)
        return region.start if region else None

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


def is_special(marker: str) -> bool:
    """Whether a marker is a token of its own, and not something that people write."""
    return marker[0] in "<["


@dataclass(frozen=True)
class Markers:
    """The markers that count in one region, ready to be looked for."""

    pattern: re.Pattern[str] | None
    prefixes: frozenset[str] = field(default=frozenset(), repr=False)  # what may become a marker
    longest: int = 0

    def held(self, text: str, at: int) -> int:
        """How many characters at the end of `text`, which is read to `at`, may be the start of a marker."""
        for size in range(min(len(text) - at, self.longest), 0, -1):
            if text[-size:] in self.prefixes:
                return size
        return 0


@lru_cache(maxsize=512)
def markers_in(fmt: Format, region: Region, with_calls: bool) -> Markers:
    """:param with_calls: calls in the reasoning count"""
    found: Iterable[str] = region.ends
    if region.kind in (Kind.TEXT, Kind.BARE):
        # a closing marker that closes nothing, if it is one and nothing else: not a code fence
        ends = (end for r in fmt.regions for end in r.ends if is_special(end))
        found = (*(r.start for r in fmt.regions), *ends, *fmt.dropped, *fmt.body_ends)
    elif region.kind is Kind.HEADER:
        found = (*region.ends, *fmt.body_ends)  # the latter: there was nothing behind it
    elif region.until_next:
        # what opens reasoning may stand in an argument
        found = (*region.ends, *(r.start for r in fmt.regions if r.kind is not Kind.REASONING))
    elif region.kind is Kind.REASONING:
        found = (*region.ends, region.start)  # a prompt may have opened it, and the model opens it again
        if with_calls:
            found = (*found, *(r.start for r in fmt.regions if r.kind is Kind.CALL), *fmt.dropped)
    markers = sorted(set(found), key=lambda m: (-len(m), m))
    if not markers:
        return Markers(None)
    prefixes = frozenset(m[:size] for m in markers for size in range(1, len(m)))
    return Markers(re.compile("|".join(map(re.escape, markers))), prefixes, len(markers[0]) - 1)
