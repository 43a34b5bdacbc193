"""What is known about a function itself, worked out once and shared by every AIFunction that wraps it."""

from __future__ import annotations

import dis
import functools
import inspect
import types
import weakref
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from typing import Any

import pydantic

from .docstrings import split_docstring
from .params import AIParamSchema
from .schema import build_model, field_names, model_schema
from .signature import display_name, read_params

_CACHE_KEY = "__kani_lite_specs__"


class FunctionSpec:
    """The parameters, description, validator and schema of one function. Holds no instance of any class."""

    def __init__(self, func: Callable[..., Any], *, lenient: bool) -> None:
        self.desc, docs = split_docstring(_own_doc(func) or "")
        params, self.extra = read_params(func, docs, lenient=lenient)
        self.params: tuple[AIParamSchema, ...] = tuple(params)
        self.name = display_name(func)
        self.is_async = inspect.iscoroutinefunction(func)
        self.never_waits = self.is_async and _never_waits(func)

    @cached_property
    def model(self) -> type[pydantic.BaseModel]:
        return build_model(self.params, self.name, extra=self.extra)

    @cached_property
    def _schema(self) -> dict[str, Any]:
        return model_schema(self.model)

    def schema(self, title: str) -> dict[str, Any]:
        """A fresh copy of the JSON schema of the parameters."""
        return deepcopy(self._schema) | {"title": title}

    def parse(self, arguments: str) -> dict[str, Any]:
        """Keyword arguments from JSON text. Raises pydantic.ValidationError."""
        return self._kwargs(self.model.__pydantic_validator__.validate_json(arguments))

    def check(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments from Python values by name. Raises pydantic.ValidationError."""
        return self._kwargs(self.model.__pydantic_validator__.validate_python(arguments))

    @cached_property
    def _fields(self) -> list[tuple[str, str, bool]]:
        """(field of the model, name of the parameter, whether its value is passed on also if it was not given)."""
        return [
            (field, param.name, not (param.required or param.has_plain_default))
            for field, param in field_names(self.params)
        ]

    def _kwargs(self, checked: pydantic.BaseModel) -> dict[str, Any]:
        """Only what was given, and defaults of pydantic Fields: the function itself supplies its other defaults."""
        values = vars(checked)
        given = checked.model_fields_set
        made = {name: values[field] for field, name, always in self._fields if always or field in given}
        return made | extra if (extra := checked.model_extra) else made


_AWAITING = frozenset(["GET_AWAITABLE", "GET_AITER", "GET_ANEXT", "BEFORE_ASYNC_WITH"])


def _never_waits(func: Any) -> bool:
    """Whether an async function has no `await`, `async for` or `async with`: it is done as soon as it is called."""
    code = getattr(func, "__code__", None)
    if code is None or not code.co_flags & inspect.CO_COROUTINE:
        return False  # what is behind it is not known
    return not any(instruction.opname in _AWAITING for instruction in dis.get_instructions(code))


def _own_doc(func: Any) -> str | None:
    """The docstring of the function under partials; that of a callable object's class if its `__call__` has none."""
    while isinstance(func, functools.partial):
        if "__doc__" in vars(func):
            break
        func = func.func
    func = _as_function(func)
    if isinstance(func, types.MethodType) and func.__name__ == "__call__":
        # without a docstring of its own, getdoc would find the one that every `__call__` inherits from `type`
        return inspect.cleandoc(func.__doc__) if func.__doc__ else inspect.getdoc(type(func.__self__))
    return inspect.getdoc(func)


class _SpecCache:
    """Specs of one function, kept in its `__dict__`. A weak dictionary would leak: a spec holds the parameters' types,
    and one of them may be the class that holds the function; as an attribute that is an ordinary cycle."""

    __slots__ = ("owner", "specs")

    def __init__(self, owner: Any) -> None:
        # functools.wraps copies the whole __dict__ to another function, which this cache says nothing about
        self.owner = weakref.ref(owner)
        self.specs: dict[tuple[bool, bool], FunctionSpec] = {}

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A copied or pickled partial takes its `__dict__` along, but not this."""
        return _no_cache, ()


def _no_cache() -> None:
    return None


def _cache_of(holder: Any) -> _SpecCache | None:
    """The cache of a function or partial; None where there is nowhere to keep one."""
    if not isinstance(holder, types.FunctionType | functools.partial):
        return None
    attributes = vars(holder)
    cache = attributes.get(_CACHE_KEY)
    if not isinstance(cache, _SpecCache) or cache.owner() is not holder:
        cache = attributes[_CACHE_KEY] = _SpecCache(holder)
    return cache


def _as_function(inner: Any) -> Any:
    """A callable object stands for its bound `__call__`; functions, methods, classes and partials for themselves."""
    if inspect.isroutine(inner) or isinstance(inner, type | functools.partial) or hasattr(inner, "__wrapped__"):
        return inner
    call = getattr(inner, "__call__", None)  # noqa: B004  # the method itself is wanted
    return call if isinstance(call, types.MethodType) else inner


def spec_of(inner: Callable[..., Any], *, lenient: bool = False) -> FunctionSpec:
    """The spec of any callable. Raises FunctionSpecError if a model couldn't call it. `lenient`: see `read_params`."""
    func = _as_function(inner)
    bound = isinstance(func, types.MethodType)
    cache = _cache_of(func.__func__ if bound else func)
    if cache is None:
        return _made(func, inner, lenient)
    # a method read from its class has one more parameter than a bound one
    key = (bound, lenient)
    spec = cache.specs.get(key)
    if spec is None:
        spec = cache.specs[key] = _made(func, inner, lenient)
    return spec


def _made(func: Any, inner: Any, lenient: bool) -> FunctionSpec:
    spec = FunctionSpec(func, lenient=lenient)
    if func is not inner:
        spec.name = display_name(inner)
    return spec
