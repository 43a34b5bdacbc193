"""Running a Generator on the test's own thread, without an engine around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kani_lite.engines import SamplingParams
from kani_lite.engines.runtime.generator import Generator, RuntimeOptions
from kani_lite.engines.runtime.request import Request
from kani_lite.engines.text_generation import Generation

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error: BaseException | None = None
        self.cancelled = False

    def emit(self, item: Any) -> None:
        self.items.append(item)

    def stopped(self) -> bool:
        return self.cancelled

    def fail(self, error: BaseException) -> None:
        self.error = error

    @property
    def done(self) -> Generation:
        if self.error is not None:
            raise self.error
        assert isinstance(self.items[-1], Generation)
        return self.items[-1]


def make_generator(model: Any, context: int = 200, ends: Sequence[int] = (), **options: Any) -> Generator:
    """A generator whose text is the ids themselves, like "3 4 5 "."""
    return Generator(model, lambda ids: "".join(f"{i} " for i in ids), ends, context, RuntimeOptions(**options))


def add(generator: Generator, prompt: Sequence[int], params: SamplingParams = GREEDY, **more: Any) -> Collected:
    sink = Collected()
    generator.add(Request(list(prompt), params, sink, **more))
    return sink


def drain(generator: Generator, most: int = 10_000) -> None:
    """Steps until nothing is left to do."""
    for _ in range(most):
        if not generator.busy:
            return
        generator.step()
    raise AssertionError(f"still busy after {most} steps")


def run(generator: Generator, prompt: Sequence[int], params: SamplingParams = GREEDY, **more: Any) -> Generation:
    sink = add(generator, prompt, params, **more)
    drain(generator)
    return sink.done
