"""What an engine with a thread of its own is asked for, and where the results go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .sampling import SamplingParams

if TYPE_CHECKING:
    import torch

    from kani_lite.functions import AIFunction


class Streamer(Protocol):
    """A streamer as transformers has them: gets the prompt's ids, then each token's, then the end. Called on the
    model's thread."""

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


class Sink(Protocol):
    """Where a request's results go. Called on the model's thread; must not block."""

    def emit(self, item: Any) -> None:
        """A piece of text (str), or last the Generation."""

    def stopped(self) -> bool:
        """Whether nobody wants the results any more."""

    def fail(self, error: BaseException) -> None:
        """There will be no Generation."""


@dataclass(frozen=True)
class Request:
    """One prompt to run. `banned` tokens are never chosen; `functions` are those that a reply may call."""

    prompt: list[int]
    params: SamplingParams
    sink: Sink
    banned: Sequence[int] = ()
    streamer: Streamer | None = None
    functions: Sequence[AIFunction] = ()
    submitted: float = field(default_factory=time.perf_counter)

    def abandon(self) -> None:
        """It ends without a result. Whoever reads from the streamer in another thread must not wait for ever."""
        if self.streamer is not None:
            with suppress(Exception):  # it may be the streamer that failed, and that error is told already
                self.streamer.end()

    def fail(self, error: BaseException) -> None:
        """It ends with this error."""
        self.abandon()
        self.sink.fail(error)
