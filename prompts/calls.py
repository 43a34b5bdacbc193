"""From the text of a call, as a model wrote it, to the call.

What is malformed is repaired where only one meaning is possible: a missing bracket, single quotes, a trailing comma.
What can't be read becomes a call whose running fails: the model is told of it, and nothing is lost.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kani_lite.messages import FunctionCall, ToolCall

from .json_values import MOST_TO_REPAIR as MOST_TO_REPAIR
from .json_values import json_values

MOST_CALLS = 1_000
"""Calls in one region, and in one reply: more of them are no reply, and the rest becomes one unreadable call."""

MOST_TO_PARSE = 100_000
"""Characters of calls in Python."""

_NO_CALL = re.compile(
    r"""\s* (?: (?!`{0,2}\Z | ```(?:j|js|jso)?\Z | ```(?:json)?\s*(?:\Z|[\[{])) `  # a fence around something else
      | (?:```(?:json)?\s*)? (?:
          [\[{]\s*(?:\{\s*)? "(?!(?:name|arguments|parameters|type|function|id|tool_name|tool_call_id)")[^"]*"
        | (?:\{|[\[{]\s*\{) \s*[^"'\s{\[]
        | \[ (?!\s*[A-Za-z_][\w.]*\s*(?:\(|\Z)) \s*[^"'\s{\[] ) )  # but for [f(
    """,
    re.VERBOSE,
)
_NAMED = re.compile(r'\A[\s\[,]*([A-Za-z_][\w.]*)\s*\(|"(?:name|tool_name)"\s*:\s*"([^"]*)"')


def is_no_call(head: str, schemas: Mapping[str, dict[str, Any]] | None = None) -> bool:
    """Whether this is the beginning of JSON or of a list that is no call: its first key is none that calls have, or
    its function is not in `schemas`, if they are given."""
    return bool(_NO_CALL.match(head)) or (schemas is not None and _name(head) not in (None, *schemas))


def _name(text: str) -> str | None:
    """The name of the function in a part of a call; None if it is not there yet."""
    found = _NAMED.search(text)
    return found and (found[1] or found[2])


@dataclass(frozen=True)
class CallText:
    """What a model wrote of one call, or of several."""

    text: str
    closed: bool = True  # its end marker came
    cut: bool = False  # the reply was cut off by a limit
    header: str = ""  # the function's name, in formats that write it before the call
    schemas: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # of the functions on offer


def new_call(name: str, arguments: Any, id_: object = None) -> ToolCall:
    """A call with arguments of any JSON type; text is taken for JSON already."""
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    call_id = str(id_) if isinstance(id_, str | int) and id_ != "" else str(uuid4())
    return ToolCall(id=call_id, type="function", function=FunctionCall(name=name, arguments=arguments))


def unreadable(text: str, name: str = "") -> ToolCall:
    """A call that fails when it is run, and shows the model what it wrote. Arguments are never empty: the
    function would run with its defaults."""
    return new_call(name, text.strip() or ("{" if name else ""))


def read_json(call: CallText) -> list[ToolCall]:
    """Calls as JSON: `{"name": ..., "arguments": {...}}`, a list of them, or several one after another."""
    values, rest = json_values(call.text, call.closed, call.cut)
    if len(values) > MOST_CALLS:
        return [unreadable(call.text)]
    calls = [_from_json(value) or unreadable(json.dumps(value, ensure_ascii=False)) for value in values]
    return calls if calls and not rest else [*calls, _open(call, rest)]


def _open(call: CallText, rest: str) -> ToolCall:
    """The call that a text ends in, which is broken; it has a name if that of a function on offer is known."""
    name = _name(rest) if call.cut or not call.closed else None
    return unreadable(rest, name if name is not None and name in call.schemas else "")


def read_bare_json(call: CallText) -> list[ToolCall]:
    """The same in a reply without markers, or in a code fence: none of it is a call unless all of it is. One that was
    cut off is a call if its function is on offer."""
    values, rest = json_values(_whole(call.text), call.closed, call.cut)
    calls = [found for value in values if (found := _from_json(value, strict=True)) is not None]
    if len(calls) < len(values):
        return []
    if not rest:
        return calls
    last, is_json = _open(call, rest), rest.lstrip("[ \t\n").startswith("{")
    begun = last.function.name or (calls and not is_no_call(rest, call.schemas or None))
    return [*calls, last] if call.cut and is_json and begun else []


_PYTHON_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")


def read_bare_list(call: CallText) -> list[ToolCall]:
    """The same, or a list of calls as Python writes them, `[f(a=1)]`, of functions that are on offer."""
    found, text = read_bare_json(call), _whole(call.text)
    if found or not _PYTHON_LIST.match(text) or text.endswith("`"):
        return found
    calls = read_python(call)
    return calls if all_offered(calls, call.schemas, call.cut) else []


def all_offered(calls: list[ToolCall], schemas: Mapping[str, dict[str, Any]], cut: bool) -> bool:
    """Whether all calls are of functions on offer; of one that was cut off, after others, the name may be missing."""
    *others, last = [call.function.name for call in calls] or [""]
    return all(name in schemas for name in others) and (last in schemas or (cut and bool(others) and not last))


def read_tagged(call: CallText) -> list[ToolCall]:
    """What stands between `<tool_call>` tags: JSON, or Qwen's `<function=name><parameter=key>value</parameter>`."""
    return read_xml(call) if call.text.lstrip().startswith("<function=") else read_json(call)


_FUNCTION = re.compile(r"<function=([^<>\n]+)>")
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>")


def read_xml(call: CallText) -> list[ToolCall]:
    """Calls as Qwen3-Coder and Qwen 3.5 write them. Values have no types: those of the function's schema hold."""
    calls: list[ToolCall] = []
    _, *found = _FUNCTION.split(call.text)
    for name, body in zip(found[::2], found[1::2], strict=True):
        name = name.strip()
        types = call.schemas.get(name, {}).get("properties", {})
        _, *pairs = _PARAMETER.split(body)
        arguments, ended = {}, "</function>" in body
        for key, text in zip(pairs[::2], pairs[1::2], strict=True):
            value, ended = _value(text)
            arguments[key.strip()] = _typed(value.removeprefix("\n").removesuffix("\n"), types.get(key.strip()))
        if not ended and not call.closed:
            return [*calls, unreadable(call.text, name)]  # more parameters may have been to come
        calls.append(new_call(name, arguments))
    return calls or [unreadable(call.text)]


_VALUE_END = re.compile(r"</parameter>\s*(?:(</function>)|\Z)")


def _value(text: str) -> tuple[str, bool]:
    """The value that this begins with, and whether the end of the function comes behind it. Its end is where nothing
    but the function's end, or the next parameter, follows; else, what comes first of the two end tags."""
    if found := _VALUE_END.search(text):
        return text[: found.start()], found[1] is not None
    value, _, rest = text.partition("</parameter>")
    return value.partition("</function>")[0], "</function>" in rest or text.rstrip().endswith("</function>")


def _typed(value: str, schema: dict[str, Any] | None) -> Any:
    """A value without quotes, by its schema: text stays text; without a schema only JSON objects and lists are read."""
    kinds = _kinds(schema)
    if "string" in kinds or (not kinds and not value.lstrip().startswith(("{", "["))):
        return value
    try:
        return json.loads(value.lower() if kinds == {"boolean"} else value)
    except (ValueError, RecursionError):
        return value  # the function's own check says what is wrong with it


def _kinds(schema: dict[str, Any] | None) -> set[str]:
    if not schema:
        return set()
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    for option in schema.get("anyOf", []):
        found |= _kinds(option)
    if any(isinstance(choice, str) for choice in schema.get("enum", [])):
        found.add("string")
    return found


_NAME, _CALL_ID = re.compile(r"[\w.-]+"), re.compile(r"\[CALL_ID\]\s*(\w+)")


def read_mistral(call: CallText) -> list[ToolCall]:
    """A list of JSON calls (v0.3), or `name[CALL_ID]id[ARGS]{...}` (from 2025 on)."""
    text = call.text.strip()
    name = _NAME.match(text)
    if name is None:
        return read_json(call)
    rest = text[name.end() :].lstrip()
    if (id_ := _CALL_ID.match(rest)) is not None:
        rest = rest[id_.end() :].lstrip()
    arguments = rest.removeprefix("[ARGS]").lstrip()
    return [_with_name(call, name[0], arguments, id_ and id_[1])] if arguments[:1] == "{" else [unreadable(text)]


def read_deepseek(call: CallText) -> list[ToolCall]:
    """`function<sep>name` and a fenced JSON block (V3, R1), or `name<sep>{...}` (V3.1)."""
    name, separator, arguments = call.text.partition("<｜tool▁sep｜>")
    if not separator:
        return read_json(call)
    if name.strip() == "function":
        name, _, arguments = arguments.partition("\n")
    return [_with_name(call, name.strip(), _unfenced(arguments))]


_FENCE = re.compile(r"```(?:json|tool_code|python)?")


def _unfenced(text: str) -> str:
    """A text without the code fence around it, if there is one; its end may be cut off."""
    text = text.strip()
    opened = _FENCE.match(text)
    return text[opened.end() if opened else 0 :].rstrip("`").strip()


def _whole(text: str) -> str:
    """The same for a text whose fence, if it has one, is around all of it."""
    return _unfenced(text) if text.lstrip().startswith("`") else text.strip()


def read_functools(call: CallText) -> list[ToolCall]:
    """A JSON list of calls, whose opening brackets may be part of the marker: `functools[{...}]`."""
    whole = call.text.lstrip()[:1] in ("[", "{", "")
    return read_json(call if whole else _replaced(call, "[{" + call.text))


def read_headed(call: CallText) -> list[ToolCall]:
    """Arguments alone: the function's name was in the header."""
    return [_with_name(call, call.header, call.text)] if call.header else read_json(call)


def read_fenced(call: CallText) -> list[ToolCall]:
    """JSON calls in a fenced block, with or without the fences."""
    return read_json(_replaced(call, _unfenced(call.text)))


def read_python(call: CallText) -> list[ToolCall]:
    """Calls as Python writes them: `f(a=1)`, `[f(a=1), g()]`, `print(f(a=1))`; or JSON. Nothing is executed."""
    text = _unfenced(call.text)
    if text.startswith("{") or (text.startswith("[") and text[1:].lstrip().startswith("{")):
        return read_json(_replaced(call, text))
    if len(text) > MOST_TO_PARSE:
        return [unreadable(call.text)]
    try:
        statements = [s.value for s in ast.parse(text).body if isinstance(s, ast.Expr | ast.Assign)]
        nodes = [n for s in statements for n in (s.elts if isinstance(s, ast.List | ast.Tuple) else [s])]
        return [_from_python(node, call.schemas) for node in nodes] or [unreadable(call.text)]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return _cut_python(call, text) if call.cut else [unreadable(call.text)]


_PYTHON_TOKEN = re.compile(r"""([\[({])|([\])}])|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(["'])""", re.DOTALL)


def _cut_python(call: CallText, text: str) -> list[ToolCall]:
    """The calls that are complete, and the one that was cut off."""
    around = text.startswith("[")
    depth = end = 0
    for token in _PYTHON_TOKEN.finditer(text):
        if token[3]:
            break  # a string that never ends
        depth += bool(token[1]) - bool(token[2])
        if token[0] == ")" and depth == around:
            end = token.end()
    calls = read_python(CallText(text[:end] + "]" * around, schemas=call.schemas)) if end else []
    if not all(complete.function.name for complete in calls):
        return [unreadable(call.text)]
    rest = text[end:].lstrip(" \t\n,;")
    return [*calls, _open(call, rest)] if rest else calls


def _from_python(node: ast.expr, schemas: Mapping[str, dict[str, Any]]) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    name = ast.unparse(node.func)
    if name == "print" and len(node.args) == 1 and isinstance(node.args[0], ast.Call) and "print" not in schemas:
        return _from_python(node.args[0], schemas)
    if name.endswith(".call") and name not in schemas:  # Llama's built-in tools
        name = name.removesuffix(".call")
    names = list(schemas.get(name, {}).get("properties", {}))
    if len(node.args) > len(names):
        raise ValueError("arguments without names")
    arguments = {key: ast.literal_eval(value) for key, value in zip(names, node.args, strict=False)}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("arguments without names")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return new_call(name, arguments)


def _with_name(call: CallText, name: str, arguments: str, id_: object = None) -> ToolCall:
    if not arguments.strip() and (call.cut or not call.closed):
        return unreadable(call.text, name)  # its arguments may have been to come
    values, rest = json_values(arguments, call.closed, call.cut) if arguments.strip() else ([{}], "")
    if rest or len(values) != 1 or not isinstance(values[0], dict):
        return new_call(name, arguments.strip(), id_)  # running it tells the model what is wrong with them
    return new_call(name, values[0], id_)


def _from_json(value: Any, strict: bool = False) -> ToolCall | None:
    """A call from one JSON value; `strict`: nothing says that it is a call but itself."""
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    spec = inner if isinstance(inner, dict) else value
    name = spec.get("name", spec.get("tool_name", inner))
    if not isinstance(name, str) or not name:
        return None
    key = next((k for k in ("arguments", "parameters", "args") if k in spec), None)
    arguments = spec[key] if key is not None else {}
    if strict and not isinstance(arguments if key is not None else None, dict):
        return None
    if not isinstance(arguments, dict | str | None):
        arguments = json.dumps(arguments)  # running it tells the model that this is no object
    return new_call(name, arguments, value.get("id", value.get("tool_call_id", value.get("call_id"))))


def _replaced(call: CallText, text: str) -> CallText:
    return CallText(text, call.closed, call.cut, call.header, call.schemas)
