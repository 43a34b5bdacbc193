"""How far each request is."""

from __future__ import annotations

from kani_lite.engines.running_numpy import NumpyRunning
from kani_lite.exceptions import EngineError

from .slots import Slot


class Running(NumpyRunning[Slot]):
    """One request on its way."""

    def read(self, count: int) -> None:
        """The model reads the next so many tokens."""
        slot, at = self.slot, self.known
        assert slot is not None
        part = self.tokens[at : at + count]
        slot.append(part)
        if not self.wants_prompt_logprobs:
            return
        rows = slot.all_logits()
        if len(rows) != len(part):
            raise EngineError(
                "prompt_logprobs aren't possible with this model: it keeps the logits of the last token only, so leave "
                "them out or convert it again without pruning its output layer."
            )
        self.note_prompt(at, len(part), lambda number: rows[number])

    def choose(self) -> str | None:
        """Takes the reply's next token and emits the text that is certain now. Returns why the reply ends here, or
        None."""
        assert self.slot is not None
        logits = self.slot.logits()
        return self.add(self._sampler.choose(logits), logits)
