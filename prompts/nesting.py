"""Whether a call's text, which comes in pieces, stands inside a string or a parameter: a marker there is no marker."""

from __future__ import annotations

import re
from enum import Enum, auto

_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_FIRST = re.compile(r'[\[{("]')
_TOKEN = re.compile(
    r"""(?P<open>[\[{(]+) | (?P<close>[\]})]+) | (?P<comma>[,:=]) | (?P<quote>")
      | (?P<word>[\w.+-]+) | (?P<space>\s+)""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_VALUE_END = re.compile(r"</parameter>|<function=")
_FUNCTION, _PARAMETER, _VALUE_CLOSED, _FUNCTION_CLOSED = "<function=", "<parameter=", "</parameter>", "</function>"


def _begins(text: str, *tags: str) -> bool:
    """Whether this is a part of one of the tags, whose rest may be to come."""
    return any(tag.startswith(text) and text != tag for tag in tags)


class _Before(Enum):
    """What stands before the next token between brackets."""

    COMMA = auto()  # or a colon, or an opening bracket: a value may come
    WORD = auto()  # which may go on
    VALUE = auto()  # no other value may come


class Nesting:
    """Follows the strings of JSON (and of Python, if their quotes are double), and the parameters of Qwen's XML.

    JSON counts from its first bracket on, XML where the call begins with `<function=`. What is neither makes it
    `broken`: from there on nothing is inside. A backslash and a quote flip or end every reading of a text alike, so
    that however often it is read from a later marker on, no character is read more than a few times.

    :param opened: the brackets that the call's marker ends in
    """

    def __init__(self, opened: str = "") -> None:
        self.inside = False  # a string, or the value of a parameter
        self.broken = False
        self.doubt: int | None = None
        """For the parser: where a marker stood inside; None again when the JSON value or the parameter is complete."""
        self._is_xml: bool | None = None
        self._depth = 0
        self._before = _Before.COMMA
        self._closing = False  # `</parameter>` came: what comes next says whether it was the end of the value
        self._tail = ""  # what can't be read without what follows
        self.read(opened)

    def read(self, text: str) -> None:
        """The next piece of the text."""
        if self.broken or not text:
            return
        text, self._tail = self._tail + text, ""
        if self._is_xml is None:
            text = text.lstrip()
            if _begins(text, _FUNCTION):
                self._tail = text
                return
            self._is_xml = text.startswith(_FUNCTION)
        (self._read_xml if self._is_xml else self._read_json)(text)
        self.inside = self.inside and not self.broken

    def _read_json(self, text: str) -> None:
        at = 0
        while at < len(text) and not self.broken:
            if self.inside:
                at = self._string(text, at)
            elif not self._depth:
                first = _FIRST.search(text, at)
                if first is None:
                    return
                at = first.end()
                self._depth, self._before = 1, _Before.COMMA
                self.broken = first[0] == '"'
            elif token := _TOKEN.match(text, at):
                at = token.end()
                self._token(token.lastgroup or "", len(token[0]))
            else:
                self.broken = True

    def _string(self, text: str, at: int) -> int:
        """Reads on in a string; where it stops."""
        found = _STRING.match(text, at)
        end = found.end() if found else at
        if text[end : end + 1] == '"':
            self.inside, self._before = False, _Before.VALUE
        else:
            self._tail = text[end:]  # a backslash, if anything
        return end + 1

    def _token(self, kind: str, size: int) -> None:
        before, self._before = self._before, _Before.COMMA
        if kind == "open":
            self.broken = before is _Before.VALUE
            self._depth += size
        elif kind == "close":
            self._before = _Before.VALUE
            self._depth = max(0, self._depth - size)
            if not self._depth:
                self.doubt = None
        elif kind == "word":
            self._before = _Before.WORD
            self.broken = before is _Before.VALUE
        elif kind == "space":
            self._before = _Before.VALUE if before is _Before.WORD else before
        elif kind == "quote":
            self.inside = before is _Before.COMMA
            self.broken = not self.inside

    def _read_xml(self, text: str) -> None:
        at: int | None = 0
        read_to = 0
        while at is not None and not self.broken:
            read_to = at
            if self._closing:
                at = self._after_value(text, at)
            elif self.inside:
                at = self._value(text, at)
            else:
                start = text.find(_PARAMETER, at)
                self.inside = start >= 0
                at = start + len(_PARAMETER) if self.inside else None
        begun = text.rfind("<", max(read_to, len(text) - len(_VALUE_CLOSED)))
        if begun >= 0 and _begins(text[begun:], _PARAMETER, _VALUE_CLOSED, _FUNCTION, _FUNCTION_CLOSED):
            self._tail = text[begun:]

    def _value(self, text: str, at: int) -> int | None:
        """Reads on in a parameter's value; where it may end."""
        end = _VALUE_END.search(text, at)
        if end is None:
            return None
        self.inside, self._closing = False, True
        self.broken = end[0] == _FUNCTION  # the value was never closed, and the next call is here
        return end.end()

    def _after_value(self, text: str, at: int) -> int | None:
        """Whether that was the end of the value; None if what follows must come first."""
        space = _SPACE.match(text, at)
        at = space.end() if space else at
        if _begins(text[at : at + len(_PARAMETER)], _PARAMETER, _FUNCTION_CLOSED):
            return None
        self._closing = False
        self.inside = not text.startswith((_PARAMETER, _FUNCTION_CLOSED), at)
        if not self.inside:
            self.doubt = None
        return at
