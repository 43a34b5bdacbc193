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

MOST_TO_REPAIR = 4_000
"""Characters of a malformed call that are worth a repair, whose time is quadratic."""

MOST_CALLS = 1_000
"""Calls in one region: more of them are no reply."""

MOST_TO_PARSE = 100_000
"""Characters of calls in Python."""

NO_CALL = re.compile(
    r"""\s*[\[{]\s*(?:\{\s*)?
    (?: "(?!(?:name|arguments|parameters|type|function|id|tool_name|tool_call_id)")[^"]*"
      | (?! (?<=\[) [A-Za-z_][\w.]* (?:\(|\Z) ) [^"'\s{\[]  # but for [f(
    )""",
    re.VERBOSE,
)
"""The beginning of JSON that is no call, since its first key is none that calls have; and of a list that is no call."""


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
    """A call that fails when it is run, and shows the model what it wrote."""
    return new_call(name, text.strip())


def read_json(call: CallText) -> list[ToolCall]:
    """Calls as JSON: `{"name": ..., "arguments": {...}}`, a list of them, or several one after another."""
    values = _json_values(call)
    if values is None or len(values) > MOST_CALLS:
        return [unreadable(call.text)]
    return [_from_json(value) or unreadable(json.dumps(value, ensure_ascii=False)) for value in values]


def read_bare_json(call: CallText) -> list[ToolCall]:
    """The same in a reply without markers: none of it is a call unless all of it is."""
    values = _json_values(call) or []
    calls = [found for value in values if (found := _from_json(value, strict=True)) is not None]
    return calls if len(calls) == len(values) else []


_PYTHON_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")


def read_bare_list(call: CallText) -> list[ToolCall]:
    """The same, or a list of calls as Python writes them, `[f(a=1)]`, of functions that are on offer."""
    if (found := read_bare_json(call)) or not _PYTHON_LIST.match(call.text.strip()):
        return found
    calls = read_python(call)
    return calls if all(c.function.name in call.schemas for c in calls) else []


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
        body, end, _ = body.partition("</function>")
        if not end and not call.closed:
            return [*calls, unreadable(call.text, name)]  # more parameters may have been to come
        types = call.schemas.get(name, {}).get("properties", {})
        arguments = {}
        _, *pairs = _PARAMETER.split(body)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            value = value.partition("</parameter>")[0]
            arguments[key.strip()] = _typed(value.removeprefix("\n").removesuffix("\n"), types.get(key.strip()))
        calls.append(new_call(name, arguments))
    return calls or [unreadable(call.text)]


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
    parts = call.text.split("<｜tool▁sep｜>")
    if len(parts) == 1:
        return read_json(call)
    name, _, arguments = parts[-1].partition("\n") if parts[0].strip() == "function" else (*parts[:1], "", parts[-1])
    return [_with_name(call, name.strip(), _unfenced(arguments))]


_FENCE = re.compile(r"```(?:json|tool_code|python)?")


def _unfenced(text: str) -> str:
    """A text without the code fence around it, if there is one."""
    text = text.strip()
    opened = _FENCE.match(text)
    return text[opened.end() if opened else 0 :].removesuffix("```").strip()


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
        return [unreadable(call.text)]


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
    values = _json_values(_replaced(call, arguments)) if arguments.strip() else [{}]
    if values is None or len(values) != 1 or not isinstance(values[0], dict):
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


_DECODER = json.JSONDecoder(strict=False)
_BETWEEN = re.compile(r"[\s;,]*")


def _json_values(call: CallText) -> list[Any] | None:
    """The JSON values in a text, a list's items among them; None if it is not JSON and can't be made so."""
    text, at, values = call.text.strip(), 0, []
    try:
        while at < len(text):
            value, at = _DECODER.raw_decode(text, at)
            values += value if isinstance(value, list) else [value]
            separated = _BETWEEN.match(text, at)
            at = separated.end() if separated else at
    except (ValueError, RecursionError):
        rest = None if call.cut else _repaired(text[at:], call.closed)
        if rest is None:
            return None
        values += rest if isinstance(rest, list) else [rest]
    return values or None


def _repaired(text: str, closed: bool) -> Any:
    """The JSON object or list that the text must mean; None if it may mean several. Source of the repair: json_repair.

    A text that ends in a string, or in a number if its end marker is missing, may lack some of that value; one that
    ends in a comma, or has no arguments yet, may lack all of them.
    """
    if len(text) > MOST_TO_REPAIR or text[:1] not in ("{", "["):
        return None
    last = _last_outside_strings(text)
    if last is None or last in ":,{[" or (not closed and (last.isdigit() or "{" not in text[1:])):
        return None
    import json_repair

    try:
        value = json_repair.loads(text, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    items = value if isinstance(value, list) else [value]
    usable = items and all(isinstance(item, dict) and item for item in items) and _same_words(value, text)
    return value if usable else None


def _last_outside_strings(text: str) -> str | None:
    """The last character of the text that is no space; None if it ends within a string."""
    quote, skip = "", False
    for character in text:
        if skip:
            skip = False
        elif quote:
            skip = character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
    return None if quote else text.rstrip()[-1:]


_WORDS = re.compile(r"\w+")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_BAD_ESCAPE = re.compile(r'\\(?!["\\/bfnrtu])')


def _same_words(value: Any, text: str) -> bool:
    """Whether the repaired value says all that the text says, in that order, and nothing else."""
    if _BAD_ESCAPE.search(text):
        return False  # what was meant by it is anybody's guess
    made = json.dumps(value, ensure_ascii=False)
    if '""' in made and not ('""' in text or "''" in text):
        return False  # a value was missing
    return [_PYTHON_WORDS.get(w, w) for w in _WORDS.findall(text)] == _WORDS.findall(made)
