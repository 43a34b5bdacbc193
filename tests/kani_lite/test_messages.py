from __future__ import annotations

import copy
import pickle
from typing import Any

import pydantic
import pytest

from kani_lite import ChatMessage, ChatRole, FunctionCall, MessagePart, ReasoningPart, TextPart, ToolCall
from kani_lite.exceptions import (
    FunctionCallException,
    FunctionSpecError,
    KaniException,
    MessageTooLong,
    MissingMessagePartType,
    MissingModelDependencies,
    NoSuchFunction,
    PromptError,
    PromptTooLong,
    WrappedCallException,
)
from kani_lite.messages import MESSAGEPART_TYPE_KEY


class Pixels(MessagePart):
    """Bytes in the JSON."""

    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Short(MessagePart):
    """Written in a form of its own."""

    word: str

    @pydantic.model_serializer(mode="wrap")
    def _short(self, handler: Any, info: pydantic.SerializationInfo) -> dict[str, Any]:
        return {"w": self.word, **self._get_typekey_dict()}

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _long(cls, value: Any, handler: Any, info: pydantic.ValidationInfo) -> Any:
        if isinstance(value, dict) and "w" in value:
            value = {"word": value["w"], "extra": {"context": info.context}}
        return handler(value)


class MyReasoning(ReasoningPart):
    """A class of a user's own."""


# === roles and calls =================================================================================================


def test_roles_are_a_plain_enum() -> None:
    assert [r.value for r in ChatRole] == ["system", "user", "assistant", "function"]
    assert not isinstance(ChatRole.USER, str)


def test_a_role_is_coerced() -> None:
    assert ChatMessage(role="user", content="Hi").role is ChatRole.USER  # type: ignore[arg-type]  # that is the test
    with pytest.raises(pydantic.ValidationError):
        ChatMessage(role="narrator", content="Hi")  # type: ignore[arg-type]  # that is the test


def test_call_with_arguments() -> None:
    call = FunctionCall.with_args("f", name="g", city="Zürich", n=[1, None])
    assert call.kwargs == {"name": "g", "city": "Zürich", "n": [1, None]}
    assert call.kwargs is call.kwargs
    assert FunctionCall(name="f", arguments=call.arguments) == call


def test_broken_arguments_are_kept() -> None:
    call = FunctionCall(name="f", arguments="{'a': ")
    with pytest.raises(ValueError, match="Expecting"):
        _ = call.kwargs
    assert call.arguments == "{'a': "


def test_kwargs_follow_the_arguments() -> None:
    call = FunctionCall.with_args("f", a=1)
    assert call.kwargs == {"a": 1}
    assert call.copy_with(arguments='{"a": 2}').kwargs == {"a": 2}
    assert call.model_copy(update={"arguments": '{"a": 3}'}).kwargs == {"a": 3}
    copied = call.model_copy()
    copied.kwargs["a"] = 9
    assert call.kwargs == {"a": 1}
    call.arguments = '{"a": 4}'
    assert call.kwargs == {"a": 4}
    call.name = "g"
    assert call.kwargs == {"a": 4}


def test_reading_kwargs_changes_nothing() -> None:
    fresh, read = FunctionCall.with_args("f", a=1), FunctionCall.with_args("f", a=1)
    assert read.kwargs == {"a": 1}
    assert fresh == read
    assert fresh.model_dump() == read.model_dump() == {"name": "f", "arguments": '{"a": 1}'}
    assert repr(fresh) == repr(read)


def test_tool_calls() -> None:
    call = ToolCall.from_function("f", call_id_="7", call_id="an argument")
    assert call == ToolCall(
        id="7", type="function", function=FunctionCall(name="f", arguments='{"call_id": "an argument"}')
    )
    first, second = (ToolCall.from_function_call(call.function) for _ in range(2))
    assert first.id != second.id
    assert len(first.id) == 36
    assert first.function is call.function


# === messages ========================================================================================================


def test_constructors() -> None:
    assert ChatMessage.system("s") == ChatMessage(role=ChatRole.SYSTEM, content="s")
    assert ChatMessage.user("u", name="Ada") == ChatMessage(role=ChatRole.USER, content="u", name="Ada")
    assert ChatMessage.assistant(None) == ChatMessage(role=ChatRole.ASSISTANT, content=None)
    result = ChatMessage.function("f", "42", "id1", is_tool_call_error=True)
    assert result.model_dump(mode="json") == {
        "role": "function",
        "content": "42",
        "name": "f",
        "tool_call_id": "id1",
        "tool_calls": None,
        "is_tool_call_error": True,
        "extra": {},
    }


def test_a_tuple_as_content_becomes_a_list() -> None:
    part = TextPart(content="b")
    message = ChatMessage.user(("a", part))
    assert message.content == ["a", part]
    assert isinstance(message.content, list)


def test_text_and_parts() -> None:
    assert (ChatMessage.assistant(None).text, ChatMessage.assistant(None).parts) == (None, [])
    assert (ChatMessage.user("").text, ChatMessage.user("").parts) == ("", [""])
    message = ChatMessage.assistant([ReasoningPart(content="hm"), "a", TextPart(content="b")])
    assert message.text == "ab"
    assert message.parts is message.content
    message.parts.append("c")
    assert message.text == "abc"


def test_parts_are_the_ones_given() -> None:
    part = Pixels(data=b"x")
    assert ChatMessage.user([part]).parts[0] is part


def test_a_part_without_text_warns() -> None:
    message = ChatMessage.user(["a", Pixels(data=b"x")])
    with pytest.warns(UserWarning, match="Pixels has no text form"):
        assert message.text == "a<Pixels extra={} data=b'x'>"


def test_messages_are_mutable() -> None:
    message = ChatMessage.user("a")
    message.content = "b"
    message.extra["seen"] = True
    assert message.text == "b"
    assert ChatMessage.user("c").extra == {}, "the default is not shared"


def test_function_call_is_the_first_call() -> None:
    assert ChatMessage.assistant("x").function_call is None
    assert ChatMessage.assistant("x", tool_calls=[]).function_call is None
    calls = [ToolCall.from_function("f"), ToolCall.from_function("g")]
    assert ChatMessage.assistant(None, tool_calls=calls[:1]).function_call is calls[0].function
    with pytest.warns(UserWarning, match="several tool calls"):
        assert ChatMessage.assistant(None, tool_calls=calls).function_call is calls[0].function


def test_function_call_is_taken_as_a_tool_call() -> None:
    call = FunctionCall.with_args("f", a=1)
    message = ChatMessage.assistant(None, function_call=call)
    assert message.tool_calls is not None
    assert [(c.type, c.function) for c in message.tool_calls] == [("function", call)]
    assert ChatMessage.assistant("x", function_call=None).tool_calls is None
    with pytest.raises(ValueError, match="not both"):
        ChatMessage.assistant(None, function_call=call, tool_calls=[ToolCall.from_function_call(call)])


def test_validating_leaves_the_callers_dict_alone() -> None:
    data = {
        "role": "assistant",
        "content": [{"content": "hm", MESSAGEPART_TYPE_KEY: "kani.parts.reasoning.ReasoningPart"}],
        "function_call": {"name": "f", "arguments": "{}"},
    }
    before = copy.deepcopy(data)
    first, second = ChatMessage.model_validate(data), ChatMessage.model_validate(data)
    assert data == before
    assert first.content == second.content == [ReasoningPart(content="hm")]
    assert first.function_call == FunctionCall(name="f", arguments="{}")


def test_copy_with_is_shallow() -> None:
    message = ChatMessage.user(["a"], name="Ada")
    copied = message.copy_with(name="Bob")
    assert (copied.name, message.name) == ("Bob", "Ada")
    assert copied.content is message.content


def test_copy_with_other_names_of_fields() -> None:
    message = ChatMessage.user("a")
    parts = [TextPart(content="b")]
    assert message.copy_with(text="b").content == "b"
    assert message.copy_with(parts=parts).content is parts
    assert message.copy_with(text=None).content is None
    call = FunctionCall.with_args("f")
    (made,) = message.copy_with(function_call=call).tool_calls or []
    assert made.function is call
    assert message.copy_with(function_call=call).copy_with(function_call=None).tool_calls is None
    assert isinstance(message.copy_with(function_call=call).tool_calls, list)


@pytest.mark.parametrize(
    "values",
    [
        {"text": "a", "content": "b"},
        {"text": "a", "parts": ["b"]},
        {"content": None, "parts": []},
        {"function_call": None, "tool_calls": None},
    ],
)
def test_copy_with_contradictions(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"only one of|not both"):
        ChatMessage.user("a").copy_with(**values)


def test_pickles_and_copies() -> None:
    message = ChatMessage.assistant(
        ["a", ReasoningPart(content="b", extra={"k": 1}), Pixels(data=b"\xff")],
        function_call=FunctionCall.with_args("f", a=1),
    )
    assert message.function_call is not None
    assert message.function_call.kwargs == {"a": 1}
    for made in (pickle.loads(pickle.dumps(message)), copy.deepcopy(message), message.model_copy(deep=True)):
        assert made == message
        assert made.function_call.kwargs == {"a": 1}
        assert made.parts is not message.parts
    assert copy.copy(message).parts is message.parts


# === parts in JSON ===================================================================================================


def test_parts_say_what_they_are() -> None:
    message = ChatMessage.user([TextPart(content="a"), ReasoningPart(content="b"), MyReasoning(content="c"), "d"])
    assert message.model_dump(mode="json")["content"] == [
        {"extra": {}, "content": "a", MESSAGEPART_TYPE_KEY: "kani.parts.text.TextPart"},
        {"extra": {}, "content": "b", MESSAGEPART_TYPE_KEY: "kani.parts.reasoning.ReasoningPart"},
        {"extra": {}, "content": "c", MESSAGEPART_TYPE_KEY: f"{__name__}.MyReasoning"},
        "d",
    ]


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage.user(["x", TextPart(content="a"), ReasoningPart(content="b"), MyReasoning(content="c")]),
        ChatMessage.user([Pixels(data=b"\xff\x00"), Pixels(data=b"")]),
        ChatMessage.assistant(None, tool_calls=[ToolCall.from_function("f", a=1)], is_tool_call_error=False),
    ],
)
def test_round_trips(message: ChatMessage) -> None:
    assert ChatMessage.model_validate_json(message.model_dump_json()) == message
    assert ChatMessage.model_validate(message.model_dump()) == message


@pytest.mark.parametrize("part_type", [TextPart, ReasoningPart])
def test_parts_load_by_both_names(part_type: type[MessagePart]) -> None:
    names = [name for name, cls in MessagePart.registry.items() if cls is part_type]
    assert sorted(name.split(".")[0] for name in names) == ["kani", "kani_lite"]
    for name in names:
        (part,) = ChatMessage.model_validate(
            {"role": "user", "content": [{"content": "a", MESSAGEPART_TYPE_KEY: name}]}
        ).parts
        assert type(part) is part_type


def test_a_part_with_its_own_form() -> None:
    dumped = ChatMessage.user([Short(word="hi")]).model_dump(mode="json")
    assert dumped["content"] == [{"w": "hi", MESSAGEPART_TYPE_KEY: f"{__name__}.Short"}]
    (part,) = ChatMessage.model_validate(dumped, context={"of": "the load"}).parts
    assert part == Short(word="hi", extra={"context": {"of": "the load"}}), "the context reaches the part"
    assert Short.model_validate(dumped["content"][0]).word == "hi"


@pytest.mark.parametrize("key", ["elsewhere.Part", "os.system", 7, None, ["list"], {}])
def test_an_unknown_part(key: Any) -> None:
    with pytest.raises(MissingMessagePartType, match="Import its module") as e:
        ChatMessage.model_validate({"role": "user", "content": [{MESSAGEPART_TYPE_KEY: key}]})
    assert e.value.fqn == str(key)
    assert e.value.msg == str(e.value)


def test_parts_are_not_guessed() -> None:
    with pytest.raises(pydantic.ValidationError):
        ChatMessage.model_validate({"role": "user", "content": [7]})


# === exceptions ======================================================================================================


def test_exceptions() -> None:
    for cls in (PromptTooLong, MessageTooLong, FunctionCallException, FunctionSpecError, PromptError):
        assert issubclass(cls, KaniException)
    assert issubclass(MissingModelDependencies, KaniException)
    assert issubclass(MissingMessagePartType, KaniException)
    original = ValueError("broken pipe")
    wrapped = WrappedCallException(False, original)
    assert isinstance(wrapped, FunctionCallException)
    assert (wrapped.retry, wrapped.original, str(wrapped)) == (False, original, "broken pipe")
    assert str(WrappedCallException(True, KeyError())) == "KeyError", "never an empty message"
    missing = NoSuchFunction("fly")
    assert isinstance(missing, FunctionCallException)
    assert (missing.retry, missing.name) == (True, "fly")
    assert str(missing) == "The function 'fly' is not defined. Only use the provided functions."
