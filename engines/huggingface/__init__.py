"""Local models of the Hugging Face kind, run by transformers. Nothing heavy is imported until a name is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from kani_lite._lazy import lazy
from kani_lite.exceptions import MissingModelDependencies

if TYPE_CHECKING:
    from .base import HuggingEngine
    from .llama import LlamaEngine

__all__ = ["HuggingEngine", "LlamaEngine"]

_MODULES = {"HuggingEngine": "base", "LlamaEngine": "llama"}

# here, not in the modules: every way to them leads through this package
for _package in ("torch", "transformers"):
    if find_spec(_package) is None:
        raise MissingModelDependencies(
            f"Local models need the package {_package!r}, which isn't installed: pip install 'kani-lite[huggingface]'"
        )


__getattr__ = lazy(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
