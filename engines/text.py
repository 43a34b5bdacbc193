"""From token ids to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what decoders put where bytes don't make a character (yet)
_LONGEST = 3  # tokens, and replacement characters, that an unfinished character can take: it has up to 3 bytes
_WINDOW = 48  # tokens after which a run of broken bytes is cut, so that the cost stays linear

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Decodes token by token.

    Some decoders treat a text's beginning in a special way, so new tokens are decoded together with those of the last
    piece; only this window is decoded anew at each step.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text that were given out
        self._clean = 0  # tokens of the window up to the last whole character

    def add(self, token: int) -> str:
        """The text that is certain now that this token is known; often the token's own."""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._clean
        if not text.endswith(_UNFINISHED):
            new = text[self._sent :]
            self._window = self._window[self._clean :]
            self._clean = len(self._window)
            self._sent = len(self._decode(self._window))
            return new
        if pending <= _LONGEST:
            return ""
        # longer than any character: these bytes are broken, but the last of them may begin a good one
        end = max(self._sent, len(text) - _LONGEST)
        new, self._sent = text[self._sent : end], end
        if len(self._window) > _WINDOW:
            held = len(text) - end
            self._window = self._window[-_LONGEST - 1 :]
            self._clean = 0
            self._sent = max(0, len(self._decode(self._window)) - held)
        return new

    def finish(self) -> str:
        """What was held back, less a character that never got its last byte."""
        rest = self._decode(self._window)[self._sent :] if self._window else ""
        self._window, self._sent, self._clean = [], 0, 0
        return rest.rstrip(_UNFINISHED)


class StopStrings:
    """Ends a text before the first of these strings that is complete, however it is cut into pieces. Of two that are
    complete at the same character, the longer one counts."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.hit = False

    def add(self, piece: str) -> str:
        """The text that can't be part of a stop string any more."""
        if not self._stops:
            return piece
        if self.hit:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)[1]]
        keep = self._begun(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _begun(self, text: str) -> int:
        """How many characters at the end may be a stop string's beginning."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held
