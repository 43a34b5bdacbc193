"""Messages, their parts and the tool calls in them: the value types that every other module speaks."""

from __future__ import annotations

import enum
import json
import warnings
from abc import ABC
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self, TypeAlias
from uuid import uuid4

import pydantic
from pydantic import Field, SerializeAsAny

from .exceptions import MissingMessagePartType

MESSAGEPART_TYPE_KEY = "__kani_messagepart_type__"

# what both have is saved under kani's name, so that kani loads our files; we load it by either name
_KANI_NAMES = {
    "kani_lite.messages.TextPart": "kani.parts.text.TextPart",
    "kani_lite.messages.ReasoningPart": "kani.parts.reasoning.ReasoningPart",
}


class BaseModel(pydantic.BaseModel):
    """A pydantic model with a cheap copy."""

    def copy_with(self, **new_values: Any) -> Self:
        """A shallow copy with these fields replaced, not validated anew."""
        return self.model_copy(update=new_values)


class ChatRole(enum.Enum):
    """Who a message is from."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    FUNCTION = "function"


class FunctionCall(BaseModel):
    """A model's wish to call a function. `arguments` is JSON as the model wrote it, and may be broken."""

    name: str
    arguments: str

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """The arguments decoded. Raises json.JSONDecodeError if they are not JSON."""
        decoded: dict[str, Any] = json.loads(self.arguments)
        return decoded

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "arguments":
            self.__dict__.pop("kwargs", None)
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("kwargs", None)  # of the old arguments, and its dict would be shared
        return copied

    @classmethod
    def with_args(cls, name: str, /, **kwargs: Any) -> Self:
        return cls(name=name, arguments=json.dumps(kwargs))


class ToolCall(BaseModel):
    """One call in a model's message; its result refers to `id`."""

    id: str
    type: str
    function: FunctionCall

    @classmethod
    def from_function(cls, name: str, /, *, call_id_: str | None = None, **kwargs: Any) -> Self:
        return cls.from_function_call(FunctionCall.with_args(name, **kwargs), call_id_)

    @classmethod
    def from_function_call(cls, call: FunctionCall, call_id_: str | None = None) -> Self:
        return cls(id=call_id_ or str(uuid4()), type="function", function=call)


class MessagePart(BaseModel, ABC):
    """Base of everything but plain text that a message can hold. A subclass is registered by its qualified name, so
    that saved chats can be loaded again; override `__str__` to say what a text-only model sees of it."""

    extra: dict[str, Any] = Field(default_factory=dict)  # a default of {} would be copied deeply each time

    registry: ClassVar[dict[str, type[MessagePart]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        MessagePart.registry[cls._type_key()] = MessagePart.registry[cls._qualified_name()] = cls

    @classmethod
    def _qualified_name(cls) -> str:
        return f"{cls.__module__}.{cls.__qualname__}"

    @classmethod
    def _type_key(cls) -> str:
        return _KANI_NAMES.get(cls._qualified_name(), cls._qualified_name())

    def _get_typekey_dict(self) -> dict[str, str]:
        return {MESSAGEPART_TYPE_KEY: self._type_key()}

    @pydantic.model_serializer(mode="wrap")
    def _with_type_key(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **self._get_typekey_dict()}

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _by_type_key(
        cls, value: Any, handler: pydantic.ModelWrapValidatorHandler[Self], info: pydantic.ValidationInfo
    ) -> Any:
        if not isinstance(value, dict) or MESSAGEPART_TYPE_KEY not in value:
            return handler(value)
        rest = dict(value)
        key = rest.pop(MESSAGEPART_TYPE_KEY)
        part_type = MessagePart.registry.get(key) if isinstance(key, str) else None
        if part_type is None:
            raise MissingMessagePartType(
                str(key),
                f"A part of type {key!r} was saved here, but no such class is defined. Import its module, then load.",
            )
        return handler(rest) if part_type is cls else part_type.model_validate(rest, context=info.context)

    def __str__(self) -> str:
        warnings.warn(
            f"{type(self).__name__} has no text form, and this model takes text only: define __str__ on it.",
            UserWarning,
            stacklevel=2,
        )
        return f"<{type(self).__name__} {super().__str__()}>"


class TextPart(MessagePart):
    """Plain text as a part."""

    content: str

    def __str__(self) -> str:
        return self.content


class ReasoningPart(MessagePart):
    """What a model thought before it answered; not part of the message's text."""

    content: str

    def __str__(self) -> str:
        return ""


MessagePartType: TypeAlias = MessagePart | str
QueryType: TypeAlias = str | Sequence[MessagePart | str] | None
_Content = str | list[Annotated[SerializeAsAny[MessagePart], Field()] | str] | None


class ChatMessage(BaseModel):
    """One message of a chat. Mutable; `copy_with` makes a changed copy."""

    role: ChatRole
    content: _Content
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    is_tool_call_error: bool | None = None
    extra: dict[str, Any] = Field(default_factory=dict)  # a default of {} would be copied deeply each time

    @pydantic.model_validator(mode="before")
    @classmethod
    def _function_call_to_tool_calls(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "function_call" not in data:
            return data
        data = dict(data)
        call = data.pop("function_call")
        if call is None:
            return data
        if data.get("tool_calls") is not None:
            raise ValueError("Give `function_call` or `tool_calls`, not both.")
        call = call if isinstance(call, FunctionCall) else FunctionCall.model_validate(call)
        return data | {"tool_calls": [ToolCall.from_function_call(call)]}

    @property
    def text(self) -> str | None:
        """The content as text: parts joined by nothing; None if there is no content."""
        content = self.content
        return content if content is None or isinstance(content, str) else "".join(map(str, content))

    @property
    def parts(self) -> list[MessagePart | str]:
        """The content as a list of parts: the very list, if it is one."""
        if self.content is None:
            return []
        return [self.content] if isinstance(self.content, str) else self.content

    @property
    def function_call(self) -> FunctionCall | None:
        """The first call, if any. Warns when there are more, since they would be overlooked."""
        if not self.tool_calls:
            return None
        if len(self.tool_calls) > 1:
            warnings.warn("This message has several tool calls: read `tool_calls`.", UserWarning, stacklevel=2)
        return self.tool_calls[0].function

    @classmethod
    def system(cls, content: _Content | Sequence[MessagePart | str], **kwargs: Any) -> Self:
        return cls(role=ChatRole.SYSTEM, content=content, **kwargs)  # type: ignore[arg-type]  # a tuple is coerced

    @classmethod
    def user(cls, content: _Content | Sequence[MessagePart | str], **kwargs: Any) -> Self:
        return cls(role=ChatRole.USER, content=content, **kwargs)  # type: ignore[arg-type]  # a tuple is coerced

    @classmethod
    def assistant(cls, content: _Content | Sequence[MessagePart | str], **kwargs: Any) -> Self:
        return cls(role=ChatRole.ASSISTANT, content=content, **kwargs)  # type: ignore[arg-type]  # a tuple is coerced

    @classmethod
    def function(
        cls,
        name: str | None,
        content: _Content | Sequence[MessagePart | str],
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> Self:
        made = {"name": name, "content": content, "tool_call_id": tool_call_id, **kwargs}
        return cls(role=ChatRole.FUNCTION, **made)

    def copy_with(self, **new_values: Any) -> Self:
        """A shallow copy with these fields replaced; `text=` or `parts=` stand for `content=`, `function_call=` for
        `tool_calls=`. Raises ValueError where two of them contradict each other."""
        contents = [k for k in ("content", "text", "parts") if k in new_values]
        if len(contents) > 1:
            raise ValueError(f"Give only one of {', '.join(contents)}: they all set the content.")
        if contents:
            new_values["content"] = new_values.pop(contents[0])
        if "function_call" in new_values:
            if "tool_calls" in new_values:
                raise ValueError("Give `function_call` or `tool_calls`, not both.")
            call = new_values.pop("function_call")
            new_values["tool_calls"] = None if call is None else [ToolCall.from_function_call(call)]
        return super().copy_with(**new_values)


def longest_of(messages: Sequence[ChatMessage], before: int = 0) -> str:
    """The longest message as an error names it: "message 3 (user, 12,000 characters)"; `before`: how many stand before
    these. There must be one."""

    def size(message: ChatMessage) -> int:
        return len(message.text or "") + sum(len(call.function.arguments) for call in message.tool_calls or ())

    at, longest = max(enumerate(messages), key=lambda pair: size(pair[1]))
    return f"message {before + at + 1} ({longest.role.value}, {size(longest):,} characters)"
