"""The packages of the extra `onnx`, imported when they are first needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kani_lite.exceptions import MissingModelDependencies


def onnx_package(name: str) -> Any:
    """A package of the extra. Raises MissingModelDependencies if it isn't installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingModelDependencies(
            f"OnnxEngine needs the package {error.name!r}, which isn't installed: pip install 'kani-lite[onnx]'"
        ) from error


def genai() -> Any:
    """The package onnxruntime_genai, with its telemetry off: nothing goes to the network unasked."""
    package = onnx_package("onnxruntime_genai")
    package.disable_telemetry_events()
    return package
