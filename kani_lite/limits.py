"""Bounds on what one round may use."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What a round may use at most. None: no bound."""

    tool_rounds: int | None = 32
    """How often the model may call functions and be called again; then it answers without them."""

    parallel_calls: int = 8
    """How many calls of one message run at a time."""

    tool_seconds: float | None = 120.0
    """Time for one async function. A sync function can't be stopped, and has a bound only by its own `timeout`."""

    result_chars: int | None = 100_000
    """Characters of one result that the model sees; the rest is cut off and said to be."""

    round_seconds: float | None = None
    """Time for a whole round, waiting for the model included."""

    total_tokens: int | None = None
    """Prompt and completion tokens of all completions of a round, as far as the engine tells them."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), f"Limits.{field.name}"
            kind = "number" if "seconds" in name else "integer"
            if value is None:
                continue
            if kind == "integer" and not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}: give a positive integer, or None for no bound.")
            least = 1 if field.name == "parallel_calls" else 0
            if not value >= least:  # a NaN isn't either
                raise ValueError(f"{name} is {value!r}: give a positive {kind}, or None for no bound.")
        if self.parallel_calls is None:
            raise ValueError("Limits.parallel_calls is None: give how many calls may run at a time.")
