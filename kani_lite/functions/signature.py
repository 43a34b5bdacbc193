"""Read a function's signature: its parameters with their annotations resolved."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from ..exceptions import FunctionSpecError
from .params import AIParamSchema, get_aiparam

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def display_name(func: Any) -> str:
    """A name for any callable: that of the function under partials, or of the class of a callable object."""
    while isinstance(func, functools.partial) and "__name__" not in vars(func):
        func = func.func
    return str(getattr(func, "__name__", type(func).__name__))


def read_params(
    func: Callable[..., Any], docs: dict[str, str], *, lenient: bool = False
) -> tuple[list[AIParamSchema], bool]:
    """The parameters, and whether the function takes others as well. `lenient` is for a function whose JSON schema was
    written by hand: variadic parameters and missing annotations are fine then. Raises FunctionSpecError for a signature
    that can't be described to a model."""
    where = display_name(func)
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError) as e:
        raise FunctionSpecError(f"{where} can't be offered to a model, its signature is unknown: {e}") from e
    names = _Names(func)
    params: list[AIParamSchema] = []
    extra = False
    for name, param in signature.parameters.items():
        if param.kind not in _BY_NAME:
            if not lenient or param.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise FunctionSpecError(
                    f"Parameter {name!r} of {where} is {param.kind.description}; a model passes arguments by name, "
                    "so make it an ordinary parameter (or, if variadic, give a `json_schema`)."
                )
            extra = extra or param.kind is inspect.Parameter.VAR_KEYWORD
            continue
        if param.annotation is inspect.Parameter.empty and not lenient:
            raise FunctionSpecError(f"Parameter {name!r} of {where} has no type annotation: add one.")
        empty = param.annotation is inspect.Parameter.empty
        hint = Any if empty else names.resolve(param, where)
        params.append(AIParamSchema(name, hint, param.default, get_aiparam(hint), param, docs.get(name)))
    return params, extra


class _Names:
    """The names that a function's annotations may use. Local ones are looked up only when they are needed."""

    def __init__(self, func: Any) -> None:
        self.owner: type | None = None
        while True:
            if isinstance(func, functools.partial):
                func = func.func
            elif isinstance(func, types.MethodType):
                self.owner = func.__self__ if isinstance(func.__self__, type) else type(func.__self__)
                func = func.__func__
            elif hasattr(func, "__wrapped__"):
                func = func.__wrapped__
            else:
                break
        self.func = func
        module = sys.modules.get(getattr(func, "__module__", None) or "")
        self.globals: dict[str, Any] = getattr(func, "__globals__", None) or vars(module or types)

    def resolve(self, param: inspect.Parameter, where: str) -> Any:
        annotation = param.annotation
        if isinstance(annotation, type):
            return annotation
        # get_type_hints wants an object with annotations; one at a time, so that the error can name the parameter
        # and an unknown return type does no harm
        holder = types.SimpleNamespace(__annotations__={param.name: annotation})
        try:
            try:
                return typing.get_type_hints(holder, self.globals, include_extras=True)[param.name]
            except NameError:
                return typing.get_type_hints(holder, self.globals, self._locals(), include_extras=True)[param.name]
        except Exception as e:
            raise FunctionSpecError(
                f"The annotation {annotation!r} of parameter {param.name!r} of {where} can't be resolved: {e}. "
                "Define its names at module level, before the function is registered."
            ) from e

    def _locals(self) -> dict[str, Any]:
        """Names of the classes and running functions around the definition, innermost last."""
        found: dict[str, Any] = {}
        scopes = getattr(self.func, "__qualname__", "").split(".")[:-1]
        for i, scope in enumerate(scopes):
            if scope == "<locals>":
                found |= self._frame_locals(".".join(scopes[:i]))
            elif isinstance(cls := found.get(scope, self.globals.get(scope)), type):
                found |= vars(cls)
        for base in self.owner.__mro__ if self.owner else ():
            if base.__qualname__ == ".".join(scopes):
                found |= {**vars(base), base.__name__: base}
        if isinstance(self.func, types.FunctionType):
            found |= inspect.getclosurevars(self.func).nonlocals
            found |= {t.__name__: t for t in getattr(self.func, "__type_params__", ())}
        return found

    def _frame_locals(self, qualname: str) -> dict[str, Any]:
        """The variables of the function that defined this one, if it is still running somewhere up the stack."""
        code = getattr(self.func, "__code__", None)
        frame: types.FrameType | None = sys._getframe()
        while code and frame:
            if frame.f_code.co_qualname == qualname and frame.f_code.co_filename == code.co_filename:
                return dict(frame.f_locals)
            frame = frame.f_back
        return {}
