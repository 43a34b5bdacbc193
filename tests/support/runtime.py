"""Running a Generator on the test's own thread, without an engine around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from kani_lite.engines import SamplingParams
from kani_lite.engines.request import Request
from kani_lite.engines.runtime.generator import Generator, RuntimeOptions
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


EDITS = st.lists(
    st.tuples(st.sampled_from(["more", "undo", "trim", "other"]), st.lists(st.integers(0, 299), max_size=30)),
    min_size=2,
    max_size=8,
)


def check_warm_is_cold(
    warm: Generator, cold: Generator, ids: list[int], edits: Sequence[tuple[str, list[int]]]
) -> None:
    """Edits a prompt step by step; what has a cache must give what has none, whose cache may be of another kind."""
    for kind, new in edits:
        if kind == "undo":
            ids = ids[: len(ids) // 2]
        elif kind == "trim":
            ids = [*ids[:10], *ids[20:]]
        elif kind == "other":
            ids = [*ids[:25], 7]
        ids = [*ids, *new][-180:] or [1]
        expected = run(cold, ids)
        assert expected.cached_tokens == 0
        found = run(warm, ids)
        assert found.ids == expected.ids
        ids = [*ids, *found.ids]
