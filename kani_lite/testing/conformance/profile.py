"""What a check has to know of an engine and its model."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kani_lite.functions import AIFunction


class CaseFailed(AssertionError):
    """The engine doesn't do what an engine should; the text says what it did."""


class CaseSkipped(unittest.SkipTest):
    """The case says nothing about this engine; pytest shows it as skipped."""


def get_price(product: str) -> str:
    """Get the price of a product."""
    return f"The price of {product} is 6 euros."


@dataclass(frozen=True, kw_only=True)
class EngineProfile:
    """What to ask an engine, and with which hyperparameters. The defaults suit an engine that takes SamplingParams."""

    query: str = "Hello, how are you?"
    """Any text that the model answers with some words."""
    greedy: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 24})
    """Hyperparameters that make replies short, and the same each time."""
    long: Mapping[str, Any] = field(
        default_factory=lambda: {"temperature": 0.0, "max_tokens": 1000, "ignore_eos": True}
    )
    """Hyperparameters that make a reply to `long_query` far too long to wait for."""
    long_query: str = "Count from one to one thousand, in words."
    sampling: bool = True
    """Whether hyperparameters are those of SamplingParams. Otherwise the cases about them are skipped."""
    tool: AIFunction = field(default_factory=lambda: AIFunction(get_price))
    """A function to offer the model."""
    tool_query: str | None = None
    """A request that makes this model call `tool`. None, for a model that can't: what needs a call is skipped."""
    tool_arguments: Mapping[str, Any] | None = None
    """The arguments that it should call it with; None: any that are valid."""
    end_seconds: float = 10.0
    """The most that a cancelled or closed request, and `close` itself, may take to end."""
