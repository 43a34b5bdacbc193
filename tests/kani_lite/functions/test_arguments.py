"""Arguments that a model wrote: decoded, checked, and refused with a useful message."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from kani_lite.functions import AIFunction, ArgumentsError


class Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    field: str
    values: list[int] = []


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime.date


class Picky(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def _never(cls, value: int) -> int:
        raise ValueError("Pick another one")


def get_weather(city: str, days: int = 3) -> None:
    """Weather."""


WEATHER = AIFunction(get_weather)
EXPECTED = "Expected: city (string, required), days (integer)."


@pytest.mark.parametrize(
    ("text", "kwargs"),
    [
        ('{"city": "Oslo"}', {"city": "Oslo"}),
        (' {"city": "Oslo", "days": "3"}\n', {"city": "Oslo", "days": 3}),
        ('{"city": "Oslo", "days": 4.0}', {"city": "Oslo", "days": 4}),
    ],
)
def test_good_arguments(text: str, kwargs: dict[str, Any]) -> None:
    assert WEATHER.parse_arguments(text) == kwargs


@pytest.mark.parametrize("text", ["", "  ", "null", "{}"])
def test_no_arguments(text: str) -> None:
    def f(a: int = 1) -> None: ...

    assert AIFunction(f, desc="d").parse_arguments(text) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"city": "Oslo", "days": "x", "foo": 1}',
            "`days`: input should be a valid integer (got 'x'); `foo`: unexpected argument.",
        ),
        ("{}", "`city`: missing argument."),
        ("null", "`city`: missing argument."),
        ('["Oslo"]', "they must be one JSON object (got ['Oslo'])."),
        ('"Oslo"', "they must be one JSON object (got 'Oslo')."),
        ('{"city": }', "not valid JSON (expected value at line 1 column 10)."),
        ('{"city": "\ud800"}', "the text holds an unpaired surrogate, which is not valid Unicode."),
        ('{"p0": "Oslo", "city": "a"}', "`p0`: unexpected argument."),
    ],
)
def test_messages(text: str, problem: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        WEATHER.parse_arguments(text)
    assert str(caught.value) == f"Invalid arguments for get_weather: {problem} {EXPECTED}"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("text", ["[" * 500, "{" * 500, '{"city": "x"'])
def test_broken_json(text: str) -> None:
    with pytest.raises(ArgumentsError, match="not valid JSON"):
        WEATHER.parse_arguments(text)


def message_for(func: Any, arguments: Any) -> str:
    with pytest.raises(ArgumentsError) as caught:
        AIFunction(func, desc="d").parse_arguments(json.dumps(arguments))
    return str(caught.value)


def test_nested_places_are_named() -> None:
    def f(where: Filter) -> None: ...

    said = message_for(f, {"where": {"values": [1, "x"], "other": 1}})
    assert "`where.field`: missing field" in said
    assert "`where.values[1]`: input should be a valid integer (got 'x')" in said
    assert "`where.other`: unexpected field" in said
    assert said.endswith("Expected: where (object, required).")


def test_a_union_complains_once() -> None:
    def f(x: int | list[str]) -> None: ...

    assert message_for(f, {"x": "q"}) == (
        "Invalid arguments for f: `x`: input should be a valid integer or input should be a valid array (got 'q'). "
        "Expected: x (integer or array of string, required)."
    )


def test_a_missing_field_in_a_tagged_place() -> None:
    def f(x: int | Filter) -> None: ...

    said = message_for(f, {"x": {}})
    assert "`x.field`: missing field" in said


def test_a_list_that_is_too_short() -> None:
    def f(x: tuple[int, int]) -> None: ...

    assert "`x[1]`: missing field" in message_for(f, {"x": [1]})


def test_same_complaint_of_two_members_is_said_once() -> None:
    def f(x: Annotated[int, Field(ge=1)] | Annotated[int, Field(le=-1)]) -> None: ...

    assert message_for(f, {"x": "q"}).count("valid integer") == 1


def test_messages_of_validators_lose_their_prefix() -> None:
    def f(x: Picky) -> None: ...

    assert "`x.a`: pick another one (got 1)" in message_for(f, {"x": {"a": 1}})


def test_messages_stay_short() -> None:
    def f(x: int) -> None: ...

    said = message_for(f, {"x": "y" * 10_000, **{f"{i}{'k' * 500}": 1 for i in range(50)}})
    assert len(said) < 1200
    assert "; and 43 more. Expected" in said
    assert "pydantic" not in said
    assert "('y" not in said
    assert "(got 'yyy" in said


def test_every_kind_of_expectation() -> None:
    def f(
        a: Literal["x", "y"],
        b: Literal["only"],
        c: Any,
        d: list[Any],
        e: dict[str, int] | None,
        node: "Node",  # noqa: UP037
    ) -> None: ...

    assert message_for(f, {}).endswith(
        "Expected: a (one of 'x', 'y', required), b ('only', required), c (any, required), d (array, required), "
        "e (object or null, required), node (object, required)."
    )

    def nothing() -> None: ...

    assert message_for(nothing, {"a": 1}).endswith("`a`: unexpected argument. Expected: no arguments.")


class Node(BaseModel):
    next: Node | None = None


def test_a_given_schema_is_what_the_error_tells() -> None:
    def f(**kwargs: Any) -> None: ...

    function = AIFunction(f, desc="d", json_schema={"properties": {"q": True}, "required": ["q"]})
    assert function.parse_arguments('{"q": 1, "p0": [2]}') == {"q": 1, "p0": [2]}
    with pytest.raises(ArgumentsError, match=r"Expected: q \(any, required\)\."):
        function.parse_arguments("[]")


def test_constraints_are_enforced() -> None:
    def f(a: Annotated[int, Field(ge=1)], b: int = Field(2, le=5)) -> None: ...

    function = AIFunction(f, desc="d")
    assert function.parse_arguments('{"a": 1}') == {"a": 1, "b": 2}
    with pytest.raises(ArgumentsError, match="`a`: input should be greater than or equal to 1"):
        function.parse_arguments('{"a": 0}')
    with pytest.raises(ArgumentsError, match="`b`: input should be less than or equal to 5"):
        function.parse_arguments('{"a": 1, "b": 6}')


def test_null_for_a_default_of_none() -> None:
    def f(
        a: int = None,  # type: ignore[assignment]  # noqa: RUF013
        b: int | None = None,
        c: Any = None,
        d: Annotated[str, "x"] = None,  # type: ignore[assignment]  # noqa: RUF013
        e: Annotated[int | None, "x"] = None,
    ) -> None: ...

    function = AIFunction(f, desc="d")
    nothing = {"a": None, "b": None, "c": None, "d": None, "e": None}
    assert function.parse_arguments(json.dumps(nothing)) == nothing
    assert function.parse_arguments('{"a": "3"}') == {"a": 3}
    assert function.create_json_schema()["properties"]["a"] == {"default": None, "type": "integer"}


def test_strict_models_are_read_as_json() -> None:
    def f(x: Strict) -> None: ...

    parsed = AIFunction(f, desc="d").parse_arguments('{"x": {"day": "2024-02-29"}}')
    assert parsed == {"x": Strict(day=datetime.date(2024, 2, 29))}


def test_aliases_are_what_the_model_sees() -> None:
    def f(from_: Annotated[int, Field(alias="from")]) -> None: ...

    function = AIFunction(f, desc="d")
    assert list(function.json_schema["properties"]) == ["from"]
    assert function.parse_arguments('{"from": 1}') == {"from_": 1}


class Address(TypedDict):
    street: str


@dataclasses.dataclass
class Point:
    x: int


def test_unknown_keys_inside_are_the_types_own_business() -> None:
    def f(a: Address, p: Point) -> None: ...

    text = '{"a": {"street": "s", "more": 1}, "p": {"x": 1, "more": 2}}'
    assert AIFunction(f, desc="d").parse_arguments(text) == {"a": {"street": "s"}, "p": Point(1)}
    open_function = AIFunction(lambda a, **kwargs: None, desc="d", json_schema={})
    assert open_function.parse_arguments('{"a": 1, "b": 2}') == {"a": 1, "b": 2}


def test_awkward_names() -> None:
    def f(json: int, schema: int, model_config: int, copy: int, _x: int, p0: int) -> None: ...

    given_kwargs = {"json": 1, "schema": 2, "model_config": 3, "copy": 4, "_x": 5, "p0": 6}
    assert AIFunction(f, desc="d").parse_arguments(json.dumps(given_kwargs)) == given_kwargs


def takes_much(n: int, x: float, s: str, b: bool, many: list[int], table: dict[str, str | None]) -> None:
    """Takes much."""


MUCH = AIFunction(takes_much)


@given(
    st.fixed_dictionaries(
        {
            "n": st.integers(),
            "x": st.floats(allow_nan=False),
            "s": st.text(),
            "b": st.booleans(),
            "many": st.lists(st.integers()),
            "table": st.dictionaries(st.text(), st.none() | st.text()),
        }
    )
)
def test_what_is_written_is_what_is_read(kwargs: dict[str, Any]) -> None:
    assert MUCH.parse_arguments(json.dumps(kwargs)) == kwargs


@given(st.text() | st.recursive(st.none() | st.text(), lambda x: st.dictionaries(st.text(), x)).map(json.dumps))
def test_nothing_else_escapes(text: str) -> None:
    said = ""
    kwargs: dict[str, Any] = {}
    try:
        kwargs = WEATHER.parse_arguments(text)
    except ArgumentsError as e:
        said = str(e)
    assert set(kwargs) <= {"city", "days"}
    assert bool(kwargs) != said.startswith("Invalid arguments for get_weather: ")
    assert len(said) < 1200
