"""The decorator that marks functions for a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from ..messages import ChatRole

F = TypeVar("F", bound=Callable[..., Any])


@overload
def ai_function(
    func: None = None,
    *,
    after: ChatRole = ...,
    name: str | None = ...,
    desc: str | None = ...,
    auto_retry: bool = ...,
    json_schema: dict[str, Any] | None = ...,
    auto_truncate: int | None = ...,
    enabled: bool = ...,
    risky: bool = ...,
    timeout: float | None = ...,
) -> Callable[[F], F]: ...


@overload
def ai_function(
    func: F,
    *,
    after: ChatRole = ...,
    name: str | None = ...,
    desc: str | None = ...,
    auto_retry: bool = ...,
    json_schema: dict[str, Any] | None = ...,
    auto_truncate: int | None = ...,
    enabled: bool = ...,
    risky: bool = ...,
    timeout: float | None = ...,
) -> F: ...


def ai_function(
    func: F | None = None,
    *,
    after: ChatRole = ChatRole.ASSISTANT,
    name: str | None = None,
    desc: str | None = None,
    auto_retry: bool = True,
    json_schema: dict[str, Any] | None = None,
    auto_truncate: int | None = None,
    enabled: bool = True,
    risky: bool = False,
    timeout: float | None = None,
) -> F | Callable[[F], F]:
    """Mark a function or method as callable by the model: `@ai_function` or `@ai_function(after=ChatRole.USER)`. The
    function itself stays as it is; the settings, which `AIFunction` explains, go into its `__ai_function__`."""
    settings = {
        "after": after,
        "name": name,
        "desc": desc,
        "auto_retry": auto_retry,
        "json_schema": json_schema,
        "auto_truncate": auto_truncate,
        "enabled": enabled,
        "risky": risky,
        "timeout": timeout,
    }

    def mark(f: F) -> F:
        # reading a static or class method from its class gives the function inside, so the mark belongs there
        marked: Any = f.__func__ if isinstance(f, staticmethod | classmethod) else f
        marked.__ai_function__ = dict(settings)
        return f

    return mark if func is None else mark(func)
