"""The package `vllm`, imported when it is first needed."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kani_lite.exceptions import MissingModelDependencies

QUIET = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing goes to the network that the user didn't ask for
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Environment variables that vLLM gets, where they aren't set."""


def quiet_environment() -> dict[str, str]:
    """Those that aren't set."""
    return {name: value for name, value in QUIET.items() if name not in os.environ}


def require_vllm(engine: str) -> None:
    """Raises MissingModelDependencies if vLLM isn't installed."""
    if find_spec("vllm") is None:
        raise MissingModelDependencies(
            f"{engine} needs the package 'vllm', which isn't installed: pip install 'kani-lite[vllm]'"
        )


def vllm_module(name: str, engine: str = "VLLMEngine") -> Any:
    """A module of vLLM. Sets `QUIET` in this process's environment: vLLM and the processes that it starts read it
    there. Raises MissingModelDependencies if the package isn't installed or one that it needs is missing."""
    require_vllm(engine)
    os.environ.update(quiet_environment())
    try:
        return import_module(f"vllm.{name}")
    except ModuleNotFoundError as error:
        raise MissingModelDependencies(
            f"{engine} can't import vLLM, the package {error.name!r} is missing: pip install 'kani-lite[vllm]'"
        ) from error


def http_client(engine: str) -> Any:
    """The package httpx2. Raises MissingModelDependencies if it isn't installed."""
    try:
        return import_module("httpx2")
    except ModuleNotFoundError as error:
        raise MissingModelDependencies(
            f"{engine} needs the package 'httpx2', which isn't installed: pip install 'kani-lite[vllm-server]'"
        ) from error
