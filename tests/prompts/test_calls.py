"""Reading what a model wrote of a call: its spellings, what is repaired, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kani_lite.messages import ToolCall
from kani_lite.prompts.calls import (
    MOST_CALLS,
    MOST_TO_REPAIR,
    CallText,
    read_bare_json,
    read_deepseek,
    read_fenced,
    read_headed,
    read_json,
    read_mistral,
    read_python,
    read_tagged,
    read_xml,
)

CITY = {"f": {"properties": {"city": {"type": "string"}, "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}}


def told(calls: list[ToolCall]) -> list[tuple[str, str]]:
    return [(c.function.name, c.function.arguments) for c in calls]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"city": "Paris"}}',
        '{"name": "f", "parameters": {"city": "Paris"}}',
        '{"name": "f", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        '{"type": "function", "function": {"name": "f", "arguments": {"city": "Paris"}}}',
        '{"type": "function", "function": "f", "parameters": {"city": "Paris"}}',
        '[{"tool_name": "f", "parameters": {"city": "Paris"}}]',
        # what is repaired
        "{'name': 'f', 'arguments': {'city': 'Paris'}}",
        '{"name": "f", "arguments": {"city": "Paris",},}',
        '{"name": "f", "arguments": {"city": "Paris"}',
        '{"name": "f", "arguments": {"city": "Paris"',
        '{name: "f", "arguments": {city: "Paris"}}',
        '[{"name": "f", "arguments": {"city": "Paris"}}',
    ],
)
def test_spellings_of_one_call(text: str) -> None:
    assert told(read_json(CallText(text))) == [("f", '{"city": "Paris"}')]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "{",
        "[]",
        '{"name": "f", "arguments": {"city": "Par',  # the name of the city may go on
        '{"name": "f", "arguments": {"city":',
        '{"name": 3}',
        '{"arguments": {}}',
        "{" * 5000,
        '{"name": "f", "arguments": {',
        '{"name": "f", "arguments": {"a": 1,',
        "[/THINK]",
        '{"name": "f", "arguments": {"x": "' + "y" * MOST_TO_REPAIR,
    ],
)
def test_what_may_mean_several_things_is_not_repaired(text: str) -> None:
    [call] = read_json(CallText(text))
    assert call.function.name == ""
    assert call.function.arguments.replace(" ", "") == text.replace(" ", "") or text == "[]"


def test_a_number_that_may_go_on() -> None:
    text = '{"name": "f", "arguments": {"n": 12'
    assert told(read_json(CallText(text, closed=True))) == [("f", '{"n": 12}')]
    assert told(read_json(CallText(text, closed=False))) == [("", text)]
    assert told(read_json(CallText(text + "}", closed=False))) == [("f", '{"n": 12}')]
    assert told(read_json(CallText(text + "}", closed=False, cut=True))) == [("", text + "}")]


def test_arguments_that_never_came_are_not_made_up() -> None:
    for text in ('{"name": "f"', '{"name": "f", "arguments": {'):
        assert told(read_json(CallText(text, closed=False))) == [("", text)]
        assert read_bare_json(CallText(text, closed=False)) == []


def test_arguments_that_are_no_object_are_shown_to_the_model() -> None:
    assert told(read_json(CallText('{"name": "f", "arguments": [1]}'))) == [("f", "[1]")]


def test_ids_are_kept() -> None:
    ids = '[{"name": "f", "id": "abc"}, {"name": "g", "tool_call_id": 7}, {"name": "h", "id": ""}]'
    first, second, third = read_json(CallText(ids))
    assert (first.id, second.id) == ("abc", "7")
    assert len(third.id) == 36


def test_several_one_after_another() -> None:
    text = '{"name": "f"}; {"name": "g"}\n{"name": "h", "arguments": null}'
    assert told(read_json(CallText(text))) == [("f", "{}"), ("g", "{}"), ("h", "{}")]
    assert told(read_json(CallText('{"name": "f"} {"name": "g"'))) == [("f", "{}"), ("g", "{}")]
    assert told(read_json(CallText('[{"name": "f"}, 3]'))) == [("f", "{}"), ("", "3")]


@pytest.mark.parametrize(
    "text",
    ["hello", '{"name": "Ada"}', '{"name": "f", "arguments": "x"}', '[{"name": "f", "arguments": {}}, 3]', "[1]", "{}"],
)
def test_without_markers_only_a_plain_call_is_one(text: str) -> None:
    assert read_bare_json(CallText(text)) == []


def test_xml() -> None:
    text = "<function=f>\n<parameter=city>\nNew\nYork\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
    assert told(read_tagged(CallText(text, schemas=CITY))) == [("f", '{"city": "New\\nYork", "days": 3}')]
    assert told(read_xml(CallText(text))) == [("f", '{"city": "New\\nYork", "days": "3"}')]
    assert told(read_xml(CallText("<function=f></function><function=g>"))) == [("f", "{}"), ("g", "{}")]
    assert told(read_xml(CallText("<parameter=a>1"))) == [("", "<parameter=a>1")]
    cut = "<function=f>\n<parameter=city>\nNew Yo"
    assert told(read_xml(CallText(cut, closed=False))) == [("f", cut)]
    assert told(read_xml(CallText(cut))) == [("f", '{"city": "New Yo"}')]
    assert told(read_xml(CallText('<function=f><parameter=a>{"b": [1]}</parameter>'))) == [("f", '{"a": {"b": [1]}}')]
    assert told(read_xml(CallText("<function=f><parameter=a>{b</parameter>"))) == [("f", '{"a": "{b"}')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('f[ARGS]{"a": 1}', ("f", '{"a": 1}')),
        ('f{"a": 1}', ("f", '{"a": 1}')),
        ('f[ARGS]{"a": 1', ("f", '{"a": 1}')),
        ('f[ARGS]{"a": "x', ("f", '{"a": "x')),
        ('[{"name": "f", "arguments": {"a": 1}}]', ("f", '{"a": 1}')),
        ("nothing", ("", "nothing")),
    ],
)
def test_mistral(text: str, expected: tuple[str, str]) -> None:
    assert told(read_mistral(CallText(text))) == [expected]
    assert read_mistral(CallText("f[CALL_ID]abcdefghi[ARGS]{}"))[0].id == "abcdefghi"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```', ("f", '{"a": 1}')),
        ('f<｜tool▁sep｜>{"a": 1}', ("f", '{"a": 1}')),
        ("f<｜tool▁sep｜>", ("f", "{}")),
        ("function<｜tool▁sep｜>f", ("f", "{}")),
        ('{"name": "f", "arguments": {"a": 1}}', ("f", '{"a": 1}')),
    ],
)
def test_deepseek(text: str, expected: tuple[str, str]) -> None:
    assert told(read_deepseek(CallText(text))) == [expected]


def test_headed() -> None:
    assert told(read_headed(CallText('{"a": 1}', header="f"))) == [("f", '{"a": 1}')]
    assert told(read_headed(CallText(' {"a": "x', header="f"))) == [("f", '{"a": "x')]
    assert told(read_headed(CallText('{"name": "f"}'))) == [("f", "{}")]


def test_fenced() -> None:
    assert told(read_fenced(CallText('```json\n[{"tool_name": "f", "parameters": {}}]\n```'))) == [("f", "{}")]
    assert told(read_fenced(CallText('[{"tool_name": "f", "parameters": {}}]'))) == [("f", "{}")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f(city='Paris')", [("f", '{"city": "Paris"}')]),
        ('[f(city="Paris", days=-2), g()]', [("f", '{"city": "Paris", "days": -2}'), ("g", "{}")]),
        ("```python\nprint(f('Paris', days=[{}]))\n```", [("f", '{"city": "Paris", "days": [{}]}')]),
        ('weather.call(query="x")', [("weather", '{"query": "x"}')]),
        ("x = a.b(c=True)", [("a.b", '{"c": true}')]),
        ('{"name": "f", "parameters": {}}', [("f", "{}")]),
        ('[{"name": "f", "parameters": {}}]', [("f", "{}")]),
        ("f(1, 2, 3)", None),
        ("g(1)", None),
        ("f(**x)", None),
        ("f(city=open('x'))", None),
        ("f(", None),
        ("2 + 2", None),
        ("# nothing", None),
        ("(" * 3000, None),
        ("f(" + "1," * MOST_TO_REPAIR, None),
    ],
)
def test_python(text: str, expected: list[tuple[str, str]] | None) -> None:
    assert told(read_python(CallText(text, schemas=CITY))) == (expected or [("", text)])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"a": 1}, {"name": "g", "arguments": {"b": 2}}',
        '{"name": "pay", "arguments": {"amount": 10 00}}',
        '{"name": "pay", "arguments": {"amount": 10 apples}}',
        '{"name": "pay", "arguments": {"amount": 2+2}}',
        '{"name": "f", "arguments": {"a": "x" "y"}}',
        "{'name': 'f', 'arguments': {'a': 'it's, 'b': 'y'}}",
        '{"name": "f", "arguments": {"a": "\\d+\\n"}}',
        '{"name": "f", "arguments": {"a": "C:\\dir\\new"}}',
        '{"name": "f", "arguments": {"a": -}}',
    ],
)
def test_a_repair_drops_nothing_and_makes_nothing_up(text: str) -> None:
    assert [name for name, _ in told(read_json(CallText(text)))] == [""]


def test_a_value_that_looks_like_another_format() -> None:
    text = '{"name": "f", "arguments": {"code": "<function=x>"}}'
    assert told(read_tagged(CallText(text))) == [("f", '{"code": "<function=x>"}')]


def test_calls_that_were_cut_off_before_their_arguments() -> None:
    cut = {"closed": False, "cut": True}
    for call in (
        read_headed(CallText("", header="f", **cut)),
        read_deepseek(CallText("f<｜tool▁sep｜>", **cut)),
        read_deepseek(CallText("function<｜tool▁sep｜>delete_al", **cut)),
        read_xml(CallText("<function=f>\n", **cut)),
        read_xml(CallText("<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b", **cut)),
    ):
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(call[0].function.arguments)
        assert call[0].function.arguments, "a call without arguments would run with its defaults"


def test_more_calls_than_anybody_makes() -> None:
    assert len(read_json(CallText("{}" * (MOST_CALLS + 1)))) == 1
    assert len(read_json(CallText("{}" * 10))) == 10


@pytest.mark.parametrize(
    ("read", "head", "unit", "tail"),
    [
        (read_mistral, "f", " ", ""),
        (read_mistral, "f[CALL_ID]a", " ", ""),
        (read_fenced, "```json a", " ", "x"),
        (read_deepseek, "f<｜tool▁sep｜>```json a", " ", "x"),
        (read_json, '{"name": "f", "arguments": {', '{"a" ', ""),
        (read_python, "[", "f(", ""),
        (read_xml, "", "<function=", ""),
    ],
)
def test_half_a_megabyte_of_nonsense_is_read_once(read: Any, head: str, unit: str, tail: str) -> None:
    """With quadratic work this would take hours, and the test's own limit would end it."""
    text = head + unit * (500_000 // len(unit)) + tail
    assert all(c.function.name in ("", "f") for c in read(CallText(text)))
