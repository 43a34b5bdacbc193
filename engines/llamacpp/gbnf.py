"""The calls that a reply may make, as a grammar of llama.cpp (GBNF)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kani_lite.engines.call_styles import CallStyle, MustCall
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction

from .package import llamacpp_package

# of a string; that of the bindings takes line breaks and other control characters too, which JSON does not
_CHARACTER = r"""char ::= [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})"""


def trigger_of(style: CallStyle) -> str | None:
    """The text after which the grammar holds; None if calls in this style can't be written as one."""
    if len(style.triggers) != 1:
        return None
    begins = style.open or style.start
    return style.triggers[0] if begins.startswith(style.triggers[0]) else None


def call_grammar(style: CallStyle, functions: Sequence[AIFunction]) -> str:
    """What follows the trigger, up to the end of the call: one of these functions, and arguments that fit its JSON
    schema. Where a family writes its calls as one list, all of the list. For MustCall all of the reply, which is one
    call. Limits of numbers are not in the grammar.

    Raises EngineError for a function whose schema can't be written as a grammar.
    """
    trigger = trigger_of(style)
    assert trigger is not None
    must = functions if isinstance(functions, MustCall) else None
    if must is not None:
        trigger, functions = "", must.allowed
    package: Any = llamacpp_package("llama_cpp.llama_grammar")
    converter = package.SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    calls = []
    for number, function in enumerate(functions):
        arguments = _arguments(converter, function, f"arguments{number}")
        begin = style.begin(json.dumps(function.name)[1:-1])
        begin = begin if style.open else begin.removeprefix(trigger)
        calls.append(f"call{number} ::= {_literal(begin)} {arguments} {_literal(style.end)}")
    any_call = " | ".join(f"call{number}" for number in range(len(functions)))
    root = "anycall"
    if style.open:
        more = "" if must is not None else f"({_literal(style.separator)} anycall)*"
        root = f"{_literal(style.open.removeprefix(trigger))} anycall {more} {_literal(style.close)}"
    rules = [_CHARACTER if rule.startswith("char ::=") else rule for rule in converter.format_grammar().splitlines()]
    return "\n".join([f"root ::= {root}", f"anycall ::= {any_call}", *calls, *rules])


def _arguments(converter: Any, function: AIFunction, name: str) -> str:
    """The rule of a function's arguments."""
    # rules are named after definitions, and two functions may have different ones of the same name
    schema = _renamed(json.loads(json.dumps(function.json_schema)), name)
    try:
        rule: str = converter.visit(converter.resolve_refs(schema, name), name)
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise EngineError(
            f"The arguments of {function.name!r} can't be written as a grammar ({error}): change its parameters, or "
            "leave out strict_tools."
        ) from error
    return rule


def _renamed(schema: Any, name: str) -> Any:
    """The same schema with this name before that of each definition."""
    if isinstance(schema, list):
        return [_renamed(each, name) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$defs" and isinstance(value, Mapping):
            found[key] = {f"{name}-{each}": _renamed(inner, name) for each, inner in value.items()}
        elif key == "$ref" and isinstance(value, str):
            found[key] = value.replace("#/$defs/", f"#/$defs/{name}-", 1)
        else:
            found[key] = _renamed(value, name)
    return found


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
