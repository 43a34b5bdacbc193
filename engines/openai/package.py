"""The package `openai`, imported when an engine is made."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kani_lite.exceptions import MissingModelDependencies


def openai_module() -> Any:
    """The package. Raises MissingModelDependencies if it isn't installed."""
    try:
        return import_module("openai")
    except ModuleNotFoundError as error:
        missing = (error.name or "openai").split(".")[0]
        raise MissingModelDependencies(
            f"OpenAIEngine needs the package {missing!r}, which isn't installed: pip install 'kani-lite[openai]'"
        ) from error
