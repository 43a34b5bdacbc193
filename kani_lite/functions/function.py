"""A Python function, wrapped so that a model can call it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.to_thread
import pydantic

from ..messages import ChatRole
from .arguments import ArgumentsError, arguments_error, problems_of
from .params import AIParamSchema
from .spec import spec_of


class AIFunction:
    """A function that is offered to a model.

    `inner`: a function, method, partial or other callable, sync (run in a thread) or async.
    `after`: who speaks after the call, the model (ASSISTANT) or the user.
    `name`, `desc`: what the model sees; by default the function's name and docstring. `desc` is without the docstring's
    section on parameters, whose texts describe the parameters in the schema.
    `auto_retry`: whether the model may try again after an error.
    `json_schema`: a schema of the parameters to send instead of the one made from the signature.
    `auto_truncate`: the most characters of a result that the model gets to see.
    `enabled`: whether the function is offered at all.
    `risky`: whether a person should approve each call.
    `timeout`: seconds that a call may take; None for no limit. Whoever runs the call enforces it.

    Raises FunctionSpecError if the signature can't be described to a model; warns if there is no description.
    """

    def __init__(
        self,
        inner: Callable[..., Any],
        after: ChatRole = ChatRole.ASSISTANT,
        name: str | None = None,
        desc: str | None = None,
        auto_retry: bool = True,
        json_schema: dict[str, Any] | None = None,
        auto_truncate: int | None = None,
        enabled: bool = True,
        risky: bool = False,
        timeout: float | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}, but must be a positive number of seconds, or None for no limit.")
        self._spec = spec = spec_of(inner, lenient=json_schema is not None)
        self.inner = inner
        self.after = after
        self.name = name or spec.name
        self.desc = desc or spec.desc
        self.auto_retry = auto_retry
        self.auto_truncate = auto_truncate
        self.enabled = enabled
        self.risky = risky
        self.timeout = timeout
        self._json_schema = json_schema
        self.__name__ = spec.name
        self.__qualname__: str = getattr(inner, "__qualname__", spec.name)
        self.__annotations__ = getattr(inner, "__annotations__", {})
        self.__module__ = getattr(inner, "__module__", None) or type(inner).__module__
        self.__doc__ = spec.desc if inner.__doc__ is None else inner.__doc__
        if not self.desc:
            warnings.warn(
                f"The function {self.name!r} has no description, so a model can only guess what it does: write a "
                "docstring or pass `desc`.",
                UserWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"<AIFunction {self.name}({', '.join(param.name for param in self._spec.params)})>"

    @property
    def is_async(self) -> bool:
        """Whether calling it runs in the event loop, where it can be stopped; a sync function runs in a thread."""
        return self._spec.is_async

    @property
    def never_waits(self) -> bool:
        """Whether it is async and awaits nothing: it needs no time limit, and nothing can run beside it."""
        return self._spec.never_waits and type(self).run is AIFunction.run

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema of the parameters that is sent to the model. Always the same object: treat it as read-only."""
        if self._json_schema is None:
            self._json_schema = self.create_json_schema()
        return self._json_schema

    @json_schema.setter
    def json_schema(self, schema: dict[str, Any]) -> None:
        self._json_schema = schema

    def get_params(self) -> list[AIParamSchema]:
        """The parameters in the order of the signature."""
        return list(self._spec.params)

    def create_json_schema(self, include_desc: bool = False) -> dict[str, Any]:
        """A fresh schema made from the signature; `include_desc` adds the function's description to it. Raises
        FunctionSpecError if a parameter's type has no JSON schema."""
        schema = self._spec.schema(title=self.name)
        if include_desc and self.desc:
            schema["description"] = self.desc
        return schema

    def parse_arguments(self, arguments: str) -> dict[str, Any]:
        """The keyword arguments that a model wrote as JSON, converted to the annotated types. No text, or "null", means
        no arguments. Raises ArgumentsError, whose message is meant for the model."""
        text = arguments.strip()
        if not text or text == "null":
            text = "{}"
        try:
            return self._spec.parse(text)
        except pydantic.ValidationError as e:
            # the ValidationError would add pages of its own to a traceback
            raise arguments_error(self.name, problems_of(e, text), self.json_schema) from None

    async def run(self, kwargs: dict[str, Any]) -> Any:
        """Call the function with arguments that were checked before. Whatever it raises is passed on. A cancelled sync
        function goes on in its thread, but nobody waits for it."""
        if self._spec.is_async:
            return await self.inner(**kwargs)
        # a limiter of its own: a function that never returns would keep its place in a shared one
        (result,) = await anyio.to_thread.run_sync(
            partial(_call, self.inner, kwargs), abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
        return await result if inspect.isawaitable(result) else result

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Check the arguments, then call the function. Raises ArgumentsError if they don't fit."""
        return await self.run(self._check(args, kwargs))

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        params = self._spec.params
        positional = [param.name for param in params if param.positional]
        if len(args) > len(positional):
            problem = f"takes at most {len(positional)} positional arguments (got {len(args)})"
            raise arguments_error(self.name, [problem], self.json_schema)
        given = dict(zip(positional, args, strict=False))
        if twice := [f"`{name}`: given twice" for name in given if name in kwargs]:
            raise arguments_error(self.name, twice, self.json_schema)
        wire_names = {param.name: param.wire_name for param in params}
        named = {wire_names.get(name, name): value for name, value in (given | kwargs).items()}
        try:
            return self._spec.check(named)
        except pydantic.ValidationError as e:
            raise arguments_error(self.name, problems_of(e, named), self.json_schema) from None


def _call(func: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Any]:
    """Call a function in a thread. The result is wrapped, because trio refuses a bare coroutine; a StopIteration is
    converted, because neither a future nor a coroutine can carry it."""
    try:
        return (func(**kwargs),)
    except StopIteration as e:
        raise RuntimeError(f"The function raised StopIteration: {e!r}") from e


__all__ = ["AIFunction", "ArgumentsError"]
