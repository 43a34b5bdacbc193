"""The JSON schema of a function's parameters."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar, Union

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from kani_lite.exceptions import FunctionSpecError
from kani_lite.functions import (
    REF_TEMPLATE,
    AIFunction,
    AIParam,
    AIParamSchema,
    create_json_schema,
    get_aiparam,
)

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    S = 1
    L = 2


class Inner(BaseModel):
    i: int


class Middle(BaseModel):
    """Has models in it."""

    one: Inner
    many: list[Inner] = []


class Tree(BaseModel):
    value: Inner
    children: list[Tree] = []


class Even(BaseModel):
    odd: Odd | None = None


class Odd(BaseModel):
    even: Even | None = None


class Box(BaseModel, Generic[T]):
    content: T


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Movie(TypedDict):
    name: str


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


INNER = {"properties": {"i": {"type": "integer"}}, "required": ["i"], "title": "Inner", "type": "object"}


def schema_of(func: Callable[..., Any], **kwargs: Any) -> dict[str, Any]:
    schema = AIFunction(func, desc="d", **kwargs).create_json_schema()
    json.dumps(schema, allow_nan=False)
    return schema


def property_of(annotation: Any, default: Any = inspect.Parameter.empty) -> Any:
    return create_json_schema([AIParamSchema("x", annotation, default, get_aiparam(annotation))])["properties"]["x"]


def test_a_simple_function() -> None:
    def f(a: int, b: str = "x") -> None: ...

    assert schema_of(f) == {
        "properties": {"a": {"type": "integer"}, "b": {"default": "x", "type": "string"}},
        "required": ["a"],
        "title": "f",
        "type": "object",
    }
    assert schema_of(f, name="other")["title"] == "other"
    assert schema_of(f)["title"] == "f"


def test_no_parameters() -> None:
    def f() -> None: ...

    assert schema_of(f) == {"properties": {}, "title": "f", "type": "object"}


def test_description_only_on_request() -> None:
    def f() -> None: ...

    function = AIFunction(f, desc="Does it.")
    assert "description" not in function.create_json_schema()
    assert function.create_json_schema(include_desc=True)["description"] == "Does it."
    assert create_json_schema([], "n", "Does it.")["description"] == "Does it."
    assert create_json_schema([])["title"] == "_FunctionSpec"


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, {"type": "integer"}),
        (None, {"type": "null"}),
        (Any, {}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        (Color, {"enum": ["red", "blue"], "title": "Color", "type": "string"}),
        (Size, {"enum": [1, 2], "title": "Size", "type": "integer"}),
        (Literal["a", "b"], {"enum": ["a", "b"], "type": "string"}),
        (Inner, INNER),
        (
            Movie,
            {"properties": {"name": {"type": "string"}}, "required": ["name"], "title": "Movie", "type": "object"},
        ),
        (
            Point,
            {
                "properties": {"x": {"type": "integer"}, "y": {"default": 0, "type": "integer"}},
                "required": ["x"],
                "title": "Point",
                "type": "object",
            },
        ),
        (
            Middle,
            {
                "description": "Has models in it.",
                "properties": {"one": INNER, "many": {"default": [], "items": INNER, "type": "array"}},
                "required": ["one"],
                "title": "Middle",
                "type": "object",
            },
        ),
        (
            Box[Inner],
            {"properties": {"content": INNER}, "required": ["content"], "title": "Box[Inner]", "type": "object"},
        ),
    ],
)
def test_types(annotation: Any, expected: dict[str, Any]) -> None:
    assert property_of(annotation) == expected


def test_keys_beside_a_reference_win() -> None:
    assert property_of(Annotated[Inner, AIParam("mine", title="T")]) == INNER | {"description": "mine", "title": "T"}
    assert property_of(Size, Size.L)["default"] == 2
    assert property_of(Inner, Inner(i=3)) == INNER | {"default": {"i": 3}}


def test_recursive_models_keep_their_definition() -> None:
    schema = create_json_schema([AIParamSchema("tree", Tree, inspect.Parameter.empty)])
    ref = REF_TEMPLATE.format(model="Tree")
    assert schema["properties"] == {"tree": {"$ref": ref}}
    assert list(schema["$defs"]) == ["Tree"]
    assert schema["$defs"]["Tree"]["properties"] == {
        "value": INNER,
        "children": {"default": [], "items": {"$ref": ref}, "type": "array"},
    }


def test_mutual_recursion() -> None:
    schema = create_json_schema([AIParamSchema("n", Even, inspect.Parameter.empty)])
    assert sorted(schema["$defs"]) == ["Even", "Odd"]


def test_a_discriminator_loses_its_mapping_to_what_is_inlined() -> None:
    found = property_of(Annotated[Cat | Dog, Field(discriminator="kind")])
    assert found["discriminator"] == {"propertyName": "kind"}
    assert [member["title"] for member in found["oneOf"]] == ["Cat", "Dog"]


def test_data_that_looks_like_a_reference_is_left_alone() -> None:
    default = {"$ref": "https://example.org", "title": "x"}
    schema = create_json_schema([AIParamSchema("a", Inner, inspect.Parameter.empty), AIParamSchema("x", dict, default)])
    assert schema["properties"]["x"]["default"] == default


def test_constraints_of_fields_are_kept() -> None:
    def f(
        a: Annotated[int, Field(ge=1, description="field")],
        b: Annotated[str, AIParam("mine"), Field(max_length=3, description="field")],
        c: int = Field(5, le=9, description="default"),
        d: list[int] = Field(default_factory=list),  # noqa: B008
        e: Annotated[int, Field(default=4)] = 6,
    ) -> None: ...

    schema = schema_of(f)
    assert schema["properties"] == {
        "a": {"minimum": 1, "description": "field", "type": "integer"},
        "b": {"maxLength": 3, "description": "mine", "type": "string"},
        "c": {"default": 5, "maximum": 9, "description": "default", "type": "integer"},
        "d": {"items": {"type": "integer"}, "type": "array"},
        "e": {"default": 6, "type": "integer"},
    }
    assert schema["required"] == ["a", "b"]


@pytest.mark.parametrize("default", [float("nan"), float("inf"), object()])
def test_a_default_that_is_not_json_is_left_out(default: Any) -> None:
    schema = create_json_schema([AIParamSchema("x", Any, default)])
    assert schema == {"properties": {"x": {}}, "title": "_FunctionSpec", "type": "object"}


def test_awkward_names() -> None:
    def f(json: int, schema: int, model_config: int, copy: int, _x: int, p0: int, model_fields: int = 1) -> None: ...

    assert list(schema_of(f)["properties"]) == ["json", "schema", "model_config", "copy", "_x", "p0", "model_fields"]


def test_a_copy_may_be_changed() -> None:
    def f(a: Middle) -> None: ...

    function = AIFunction(f, desc="d")
    first = function.create_json_schema()
    first["properties"]["a"]["properties"].clear()
    first["required"].append("z")
    assert function.create_json_schema() != first
    assert AIFunction(f, desc="d").json_schema["required"] == ["a"]
    assert function.json_schema is function.json_schema


def test_a_given_schema_is_sent_as_it_is() -> None:
    given = {"type": "object", "properties": {"q": {"type": "string"}}}

    def f(a: int) -> None: ...

    function = AIFunction(f, desc="d", json_schema=given)
    assert function.json_schema is given
    assert function.create_json_schema()["required"] == ["a"]
    other = {"type": "object"}
    function.json_schema = other
    assert function.json_schema is other


def test_types_without_a_schema_are_refused() -> None:
    class Opaque: ...

    def unknown(a: Opaque) -> None: ...

    def no_json(a: Callable[[int], int]) -> None: ...

    with pytest.raises(FunctionSpecError, match="unknown"):
        schema_of(unknown)
    with pytest.raises(FunctionSpecError, match="no_json"):
        schema_of(no_json)


def test_get_aiparam() -> None:
    param = AIParam("a", title="t")
    assert get_aiparam(Annotated[int, "x", param]) is param
    assert get_aiparam(Annotated[int, "x"]) is None
    assert get_aiparam(int) is None
    assert repr(param) == "AIParam('a', title='t')"


def test_param_schema_properties() -> None:
    empty = inspect.Parameter.empty
    plain = AIParamSchema("a", list[int], empty)
    assert (plain.required, plain.origin_type, plain.description, plain.title) == (True, list, None, None)
    assert not plain.positional
    annotation = Annotated[dict[str, int], AIParam("d", title="t")]
    full = AIParamSchema("b", annotation, None, get_aiparam(annotation))
    assert (full.required, full.origin_type, full.description, full.title) == (False, dict, "d", "t")
    assert AIParamSchema("c", int, empty).origin_type is int
    assert AIParamSchema("c", int, empty, doc="from the docstring").description == "from the docstring"
    assert repr(full).startswith("AIParamSchema('b'")
    aliased = AIParamSchema("from_", Annotated[int, Field(ge=1), Field(alias="from")], empty)
    assert aliased.wire_name == "from"


def test_a_model_that_waits_for_a_later_type() -> None:
    class Waiting(BaseModel):
        later: Later  # type: ignore[name-defined]  # noqa: F821

    def f(a: Waiting) -> None: ...

    with pytest.raises(FunctionSpecError, match="Later"):
        schema_of(f)
