"""Say what was wrong with a call's arguments, briefly and in words that help a model to fix them."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic_core import ErrorDetails, from_json

_VALUE_CHARS = 60
_MAX_PROBLEMS = 8


class ArgumentsError(ValueError):
    """A call's arguments don't fit the function. The message is meant for the model that made the call."""


def shorten(text: str, max_len: int = _VALUE_CHARS) -> str:
    return text if len(text) <= max_len else text[: max_len - 3] + "..."


def unreadable_call(text: str) -> ArgumentsError:
    """The error for a call that could not be read at all."""
    return ArgumentsError(
        f"This call could not be read, and nothing was run: {shorten(text)!r}. Write it again, with the function's "
        "name and its arguments as a JSON object."
    )


def arguments_error(name: str, problems: list[str], schema: dict[str, Any]) -> ArgumentsError:
    """The error for these problems, with what the function expects."""
    shown = problems[:_MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return ArgumentsError(f"Invalid arguments for {name}: {'; '.join(shown)}. {_expected(schema)}")


def problems_of(error: pydantic.ValidationError, given: Any) -> list[str]:
    """One line per wrong argument. `given` is the JSON text or the dict that was validated."""
    details = error.errors(include_url=False, include_context=False)
    if not details[0]["loc"]:
        return [_whole_problem(details[0])]
    decoded = from_json(given) if isinstance(given, str) else given
    complaints: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for detail in details:
        path = _path(detail, decoded)
        message, shows_value = _message(detail)
        said = complaints.setdefault(path, [])
        if message not in said:
            said.append(message)
        if shows_value:
            values.setdefault(path, f" (got {shorten(repr(detail['input']))})")
    # a union complains once per member, all about the same argument
    return [f"`{path}`: {shorten(' or '.join(said), 240)}{values.get(path, '')}" for path, said in complaints.items()]


def _whole_problem(detail: ErrorDetails) -> str:
    if detail["type"] == "json_invalid":
        return f"not valid JSON ({detail['msg'].removeprefix('Invalid JSON: ')})"
    if detail["type"] == "string_unicode":
        return "the text holds an unpaired surrogate, which is not valid Unicode"
    return f"they must be one JSON object (got {shorten(repr(detail['input']))})"


def _message(detail: ErrorDetails) -> tuple[str, bool]:
    """What is wrong, and whether the value helps to see it."""
    nested = len(detail["loc"]) > 1
    if detail["type"] == "extra_forbidden":
        return ("unexpected field" if nested else "unexpected argument"), False
    if detail["type"] == "missing":
        return ("missing field" if nested else "missing argument"), False
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").split(", unable to ")[0]
    return text[:1].lower() + text[1:], True


def _path(detail: ErrorDetails, decoded: Any) -> str:
    """Where in the arguments the error is. Pydantic's location also names members of unions and steps of validation;
    those aren't in the arguments, and a model could take them for fields."""
    path = ""
    location = detail["loc"]
    for i, step in enumerate(location):
        last = i == len(location) - 1
        if isinstance(decoded, list | tuple) and isinstance(step, int):
            path += f"[{step}]"
            decoded = decoded[step] if step < len(decoded) else None
        elif isinstance(decoded, dict) and step in decoded:
            path += f".{shorten(str(step))}"
            decoded = decoded[step]
        elif not path or (last and detail["type"] == "missing"):
            path += f".{shorten(str(step))}"
    return path.removeprefix(".")


def _expected(schema: dict[str, Any]) -> str:
    properties = schema.get("properties") or {}
    required = schema.get("required") or ()
    if not properties:
        return "Expected: no arguments."
    each = (f"{name} ({_type_of(prop)}{', required' if name in required else ''})" for name, prop in properties.items())
    return f"Expected: {', '.join(each)}."


def _type_of(prop: Any) -> str:
    """A few words for the type that a schema describes."""
    if not isinstance(prop, dict):
        return "any"
    if isinstance(choices := prop.get("enum"), list):
        return shorten("one of " + ", ".join(map(repr, choices)))
    if "const" in prop:
        return shorten(repr(prop["const"]))
    kind = prop.get("type")
    if kind == "array":
        item = _type_of(prop.get("items"))
        return "array" if item == "any" else f"array of {item}"
    if isinstance(kind, str):
        return kind
    members = prop.get("anyOf") or prop.get("oneOf") or ()
    if members:
        return " or ".join(dict.fromkeys(map(_type_of, members)))
    return "object" if "$ref" in prop else "any"
