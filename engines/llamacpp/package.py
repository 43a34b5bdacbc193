"""The packages of the extras `llamacpp` and `gguf`, imported when they are first needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kani_lite.exceptions import MissingModelDependencies


def llamacpp_package(name: str) -> Any:
    """A package of the extra `llamacpp`. Raises MissingModelDependencies if it isn't installed."""
    return _package(name, "LlamaCppEngine", "llamacpp")


def gguf_package(name: str) -> Any:
    """A package that converting a model needs. Raises MissingModelDependencies if it isn't installed."""
    return _package(name, "Converting a model to GGUF", "gguf")


def _package(name: str, who: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingModelDependencies(
            f"{who} needs the package {error.name!r}, which isn't installed: pip install 'kani-lite[{extra}]'"
        ) from error
