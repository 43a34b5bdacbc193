"""Exceptions as one line for a person."""

from __future__ import annotations

import os

from kani_lite.exceptions import KaniException

DEBUG_VARIABLE = "KANI_LITE_DEBUG"


def debugging() -> bool:
    """Whether the user wants tracebacks."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def describe(error: BaseException) -> str:
    """What went wrong, on one line; the type is named unless the text was written for a user."""
    text = " ".join(str(error).split())
    if isinstance(error, KaniException) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
