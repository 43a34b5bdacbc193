"""How far each request is."""

from __future__ import annotations

from kani_lite.engines.request import Request
from kani_lite.engines.running_numpy import Logits, NumpyRunning
from kani_lite.engines.text import Decode

from .grammar import CallGuide
from .slots import Slot


class Running(NumpyRunning[Slot]):
    """One request on its way, whose calls `guide` keeps valid if there is one."""

    def __init__(
        self, request: Request, decode: Decode, ends: frozenset[int], limit: int, guide: CallGuide | None
    ) -> None:
        super().__init__(request, decode, ends, limit)
        self._guide = guide

    def choose(self, logits: Logits) -> str | None:
        """Takes the reply's next token and emits the text that is certain now. Returns why the reply ends here, or
        None."""
        allowed = logits if self._guide is None else self._guide.allowed(logits, self._sampler.takes_the_likeliest)
        token = self._sampler.choose(allowed)
        if self._guide is not None:
            self._guide.note(token)
        reason = self.add(token, logits)
        return "stop" if self._guide is not None and self._guide.over else reason
