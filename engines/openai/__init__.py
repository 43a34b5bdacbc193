"""OpenAIEngine: a model behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .engine import OpenAIEngine
    from .errors import ServerError
    from .reply import TextLogprob

_MODULES = {"OpenAIEngine": "engine", "ServerError": "errors", "TextLogprob": "reply"}

__all__ = ["OpenAIEngine", "ServerError", "TextLogprob"]


__getattr__ = lazy(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
