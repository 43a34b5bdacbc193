"""From parameters to a pydantic model that checks arguments, and from that model to a JSON schema."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, GetCoreSchemaHandler, ValidatorFunctionWrapHandler, WrapValidator, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import (
    GenerateJsonSchema,
    JsonSchemaMode,
    JsonSchemaValue,
    JsonSchemaWarningKind,
)
from pydantic_core import CoreSchema, PydanticSerializationError

from ..exceptions import FunctionSpecError
from .params import AIParamSchema

REF_TEMPLATE = "#/$defs/{model}"

# keys of a schema whose value is data, or maps names to schemas; everything else is a schema or a list of schemas
_DATA_KEYS = frozenset({"default", "const", "enum", "example", "examples", "required", "discriminator"})
_MAP_KEYS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})


class JSONSchemaBuilder(GenerateJsonSchema):
    """Leaves out what a model doesn't need: titles that repeat a name, and `$defs` of types that aren't recursive."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        encoded = super().encode_default(dft)
        try:
            json.dumps(encoded, allow_nan=False)
        except ValueError as e:  # infinities and NaN aren't JSON: leave the default out, as pydantic does for objects
            raise PydanticSerializationError(str(e)) from e
        return encoded

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        full = super().generate(schema, mode)
        defs: dict[str, Any] = full.pop("$defs", {})
        by_ref = {self.ref_template.format(model=name): name for name in defs}
        graph = {name: {by_ref[ref] for ref in _refs(body) if ref in by_ref} for name, body in defs.items()}
        recursive = {name for name in defs if _reaches(graph, name)}
        inlined = {ref: defs[name] for ref, name in by_ref.items() if name not in recursive}
        flat: JsonSchemaValue = _inline(full, inlined)
        if recursive:
            flat["$defs"] = {name: _inline(defs[name], inlined) for name in defs if name in recursive}
        return flat


def _map_subschemas(schema: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a schema (or list of schemas) in which each schema directly under it went through `change`."""
    if isinstance(schema, list):
        return [change(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key in _DATA_KEYS:
            made[key] = value
        elif key in _MAP_KEYS and isinstance(value, dict):
            made[key] = {name: change(sub) for name, sub in value.items()}
        else:
            made[key] = change(value)
    return made


def _refs(schema: Any) -> Iterator[str]:
    """Every reference in a schema."""
    found: list[str] = []

    def visit(node: Any) -> Any:
        if isinstance(node, dict) and isinstance(ref := node.get("$ref"), str):
            found.append(ref)
        return _map_subschemas(node, visit)

    visit(schema)
    yield from found


def _reaches(graph: dict[str, set[str]], start: str) -> bool:
    """Whether a definition can be reached from itself."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name == start:
            return True
        if name not in seen:
            seen.add(name)
            todo.extend(graph[name])
    return False


def _inline(schema: Any, bodies: dict[str, Any]) -> Any:
    """The schema with each reference that is in `bodies` replaced by its body; keys beside the reference win."""
    while isinstance(schema, dict) and schema.get("$ref") in bodies:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**bodies[schema["$ref"]], **beside}
    if isinstance(schema, dict) and isinstance(tag := schema.get("discriminator"), dict):
        # its mapping points to definitions that are no longer there
        schema = {**schema, "discriminator": {key: value for key, value in tag.items() if key != "mapping"}}
    return _map_subschemas(schema, lambda sub: _inline(sub, bodies))


class _Arguments(BaseModel):
    """Base of the models that check arguments: unknown ones are refused. A `model_config` would do that, too, but
    pydantic passes it on to every dataclass and TypedDict inside, where unknown keys should be ignored as usual."""

    @classmethod
    def _extra(cls) -> Literal["forbid", "allow"]:
        return "forbid"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        fields: Any = handler.resolve_ref_schema(schema)
        while fields["type"] != "model-fields":
            fields = fields["schema"]
        fields["extra_behavior"] = cls._extra()
        return schema


class _OpenArguments(_Arguments):
    """For a function with `**kwargs`: unknown arguments are kept."""

    @classmethod
    def _extra(cls) -> Literal["forbid", "allow"]:
        return "allow"


def _first_line(error: Exception) -> str:
    """What pydantic says, without its web addresses and advice."""
    return str(error).partition("\n")[0]


def _null_is_the_default(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return None if value is None else handler(value)


def _takes_none(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return any(map(_takes_none, get_args(annotation)))
    return annotation in (Any, None, type(None))


def _field_for(param: AIParamSchema) -> tuple[Any, FieldInfo]:
    """The type and the pydantic field for one parameter."""
    annotation = param.type
    given: dict[str, Any] = {"alias": param.wire_name, "validation_alias": param.wire_name}
    if isinstance(param.default, FieldInfo):
        annotation = Annotated[annotation, param.default]
    elif param.has_plain_default:
        given["default"] = param.default
        if param.default is None and not _takes_none(annotation):
            # models like to write null for "not given", and `x: int = None` says that they may
            annotation = Annotated[annotation, WrapValidator(_null_is_the_default)]
    if param.description is not None:
        given["description"] = param.description
    if param.title is not None:
        given["title"] = param.title
    return annotation, Field(**given)


def field_names(params: Sequence[AIParamSchema]) -> Iterable[tuple[str, AIParamSchema]]:
    """Each parameter with the name of its field. The names are made up, because a parameter may be called `json` or
    `_x`, which a pydantic model doesn't allow; the real name is the alias."""
    return ((f"p{i}", param) for i, param in enumerate(params))


def build_model(params: Sequence[AIParamSchema], name: str, *, extra: bool = False) -> type[BaseModel]:
    """A model whose fields are the parameters; `extra`: unknown arguments are kept instead of refused. Raises
    FunctionSpecError if pydantic has no idea how to check one of the types."""
    try:
        fields: dict[str, Any] = {field: _field_for(param) for field, param in field_names(params)}
        model: type[BaseModel] = create_model(name, __base__=_OpenArguments if extra else _Arguments, **fields)
        if not model.__pydantic_complete__:
            model.model_rebuild()
    except (PydanticUserError, PydanticUndefinedAnnotation, TypeError) as e:
        raise FunctionSpecError(f"The parameters of {name} can't be checked: {_first_line(e)}") from e
    return model


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model that `build_model` made. Raises FunctionSpecError if a type has none."""
    try:
        schema = model.model_json_schema(schema_generator=JSONSchemaBuilder, ref_template=REF_TEMPLATE)
    except (PydanticInvalidForJsonSchema, PydanticUserError) as e:
        raise FunctionSpecError(f"The parameters of {model.__name__} have no JSON schema: {_first_line(e)}") from e
    return schema


def create_json_schema(
    params: Sequence[AIParamSchema], name: str = "_FunctionSpec", desc: str | None = None
) -> dict[str, Any]:
    """The JSON schema of a function's parameters. Raises FunctionSpecError if a type has none."""
    schema = model_schema(build_model(params, name))
    if desc is not None:
        schema["description"] = desc
    return schema
