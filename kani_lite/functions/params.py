"""What is known about one parameter of a function that a model may call."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo


class AIParam:
    """Describes a parameter to the model: `city: Annotated[str, AIParam("The city to look up")]`."""

    __slots__ = ("desc", "title")

    def __init__(self, desc: str, *, title: str | None = None) -> None:
        self.desc = desc
        self.title = title

    def __repr__(self) -> str:
        return f"AIParam({self.desc!r}, title={self.title!r})"


def _metadata(annotation: Any) -> tuple[Any, ...]:
    """What `Annotated` holds beside the type."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def get_aiparam(annotation: Any) -> AIParam | None:
    """The AIParam of an `Annotated[...]` type; None if there is none."""
    return next((meta for meta in _metadata(annotation) if isinstance(meta, AIParam)), None)


class AIParamSchema:
    """One parameter. `type` is its annotation, resolved, with `Annotated` kept; `default` is `inspect.Parameter.empty`
    if there is none; `doc` is what the function's docstring says about it."""

    def __init__(
        self,
        name: str,
        t: Any,
        default: Any,
        aiparam: AIParam | None = None,
        inspect_param: inspect.Parameter | None = None,
        doc: str | None = None,
    ) -> None:
        self.name = name
        self.type = t
        self.default = default
        self.aiparam = aiparam
        self.inspect_param = inspect_param
        self.doc = doc
        self._infos = [meta for meta in _metadata(t) if isinstance(meta, FieldInfo)]
        if isinstance(default, FieldInfo):
            self._infos.append(default)

    def __repr__(self) -> str:
        return f"AIParamSchema({self.name!r}, {self.type!r}, required={self.required})"

    @property
    def has_plain_default(self) -> bool:
        """Whether the function itself supplies the default, as opposed to a pydantic Field."""
        return self.default is not inspect.Parameter.empty and not isinstance(self.default, FieldInfo)

    @property
    def positional(self) -> bool:
        """Whether it can be passed by position, too."""
        param = self.inspect_param
        return param is not None and param.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD

    @property
    def required(self) -> bool:
        return not self.has_plain_default and all(info.is_required() for info in self._infos)

    @property
    def wire_name(self) -> str:
        """The name that the model sees: the parameter's, unless a pydantic Field gives it an alias."""
        for info in reversed(self._infos):
            alias = info.validation_alias or info.alias
            if isinstance(alias, str):
                return alias
        return self.name

    @property
    def origin_type(self) -> Any:
        """The type without `Annotated` and without type arguments: `list` for `Annotated[list[int], ...]`."""
        bare = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        return get_origin(bare) or bare

    @property
    def description(self) -> str | None:
        """From AIParam, else from a pydantic Field, else from the docstring."""
        if self.aiparam is not None:
            return self.aiparam.desc
        return next((info.description for info in reversed(self._infos) if info.description), self.doc)

    @property
    def title(self) -> str | None:
        return self.aiparam.title if self.aiparam is not None else None
