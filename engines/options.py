"""Options from text: what a constructor takes, by its signature and types."""

from __future__ import annotations

import enum
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NoReturn

import pydantic

from kani_lite.exceptions import EngineError

from .sampling import SamplingParams

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_options(make: Any, options: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Values for the parameters of these names. Raises EngineError for a name that `make` doesn't take, and for a
    value that its parameter can't have."""
    known, hyperparams = _parameters(make)
    check_names(make, options)
    return {name: _read(name, texts, known.get(name, hyperparams.get(name, Any))) for name, texts in options.items()}


def check_names(make: Any, names: Mapping[str, Any]) -> None:
    if _takes_any_name(make):
        return
    known, hyperparams = _parameters(make)
    accepted = sorted({*known, *hyperparams})
    for name in names:
        if name not in accepted:
            near = get_close_matches(name, accepted, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(accepted)}."
            raise EngineError(f"{getattr(make, '__name__', make)} has no option {name!r}: {hint}")


def _parameters(make: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the annotation of each named parameter; of each hyperparameter, if it takes any). A class that passes keyword
    arguments on takes those of its base, too."""
    known: dict[str, Any] = {}
    for function in _constructors(make) if isinstance(make, type) else [make]:
        passes_on = False
        for parameter in inspect.signature(function).parameters.values():
            passes_on |= parameter.kind is parameter.VAR_KEYWORD
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "self":
                known.setdefault(parameter.name, _resolved(function, parameter.annotation))
        if not passes_on:
            return known, {}
    names = getattr(make, "hyperparam_names", SamplingParams.accepted_names)()
    fields = SamplingParams.model_fields
    annotations = {name: field.annotation for name, field in fields.items()} | {"do_sample": bool}
    return known, {name: annotations.get(name, Any) for name in names}


def _takes_any_name(make: Any) -> bool:
    """Whether it is a function of another package with options of its own, that nobody lists."""
    if isinstance(make, type) or hasattr(make, "hyperparam_names"):
        return False
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(make).parameters.values())


def _constructors(cls: type) -> Iterator[Callable[..., Any]]:
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            yield vars(base)["__init__"]


def _resolved(function: Any, annotation: Any) -> Any:
    """An annotation as a type; Any where it names what only type checkers import."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[function.__module__]))["it"]
    except NameError:
        return Any


def _read(name: str, texts: Sequence[str], annotation: Any) -> Any:
    """A value, as the first kind that its annotation allows and it can be read as: the narrowest first."""
    kinds = sorted(_kinds(annotation), key=_rank)
    if len(texts) > 1:
        if not any(_rank(kind) == _LIST for kind in kinds):
            raise EngineError(f"{name} is given {len(texts)} times: {', '.join(texts)}.")
        return list(texts)
    reason = ""
    for kind in kinds:
        try:
            return _as(kind, texts[0])
        except pydantic.ValidationError as error:  # of the fields of a model
            first = error.errors()[0]
            reason = f" ({'.'.join(map(str, first['loc']))}: {first['msg']})" if first["loc"] else ""
        except ValueError:
            continue
    if any(_rank(kind) == _LIST for kind in kinds) and not texts[0].lstrip().startswith(("[", "{")):
        return [texts[0]]  # a list of one text
    raise EngineError(f"{name}={texts[0]!r} can't be read as {' or '.join(map(_word, kinds))}{reason}.")


def _word(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))


_LIST, _UNREADABLE = 6, 9


def _kinds(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _kinds(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return [annotation]


def _rank(kind: Any) -> int:
    """Which kind is tried first."""
    plain = {type(None): 0, bool: 1, int: 2, float: 3, str: 7, Any: 8}
    if kind in plain:
        return plain[kind]
    origin = typing.get_origin(kind) or kind
    if origin is Literal or (isinstance(origin, type) and issubclass(origin, enum.Enum | pydantic.BaseModel)):
        return 4
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return 5
    if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset):
        return _LIST
    return _UNREADABLE


def _as(kind: Any, text: str) -> Any:
    """The text as a value of this kind. Raises ValueError if it is none."""
    rank, origin = _rank(kind), typing.get_origin(kind) or kind
    if rank == 0:
        return None if text.lower() in ("none", "null") else _no(text)
    if rank == 1:
        return _BOOLEANS[text.lower()] if text.lower() in _BOOLEANS else _no(text)
    if rank in (2, 3):
        return kind(text)
    if origin is Literal:
        return next((value for value in typing.get_args(kind) if str(value) == text), None) or _no(text)
    if rank == 4:
        return origin(text) if issubclass(origin, enum.Enum) else origin.model_validate_json(text)
    if rank in (5, _LIST):
        value = json.loads(text)
        return value if isinstance(value, dict if rank == 5 else list) else _no(text)
    if rank == 7:
        return text
    return _guessed(text) if rank == 8 else _no(text)


def _guessed(text: str) -> Any:
    """A value of unknown type: JSON if it is that, or else text."""
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _no(text: str) -> NoReturn:
    raise ValueError(text)
