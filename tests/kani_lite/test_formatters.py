from __future__ import annotations

import pytest

from kani_lite import ChatMessage, FunctionCall, ReasoningPart, TextPart, ToolCall
from kani_lite.formatters import (
    all_message_contents,
    assistant_message_contents,
    assistant_message_contents_thinking,
    assistant_message_thinking,
)

CALLS = [ToolCall.from_function("get_weather", location="SF", days=2), ToolCall.from_function("other")]
REASONED = ChatMessage.assistant([ReasoningPart(content="Hm"), ReasoningPart(content="!"), "It is ", "42."])


def test_all_contents() -> None:
    assert all_message_contents(ChatMessage.user("Hi")) == "Hi"
    assert all_message_contents(ChatMessage.function("f", "42")) == "42"
    assert all_message_contents(ChatMessage.assistant(None)) is None
    assert all_message_contents(REASONED) == "It is 42."


@pytest.mark.parametrize("message", [ChatMessage.user("Hi"), ChatMessage.system("Hi"), ChatMessage.function("f", "Hi")])
def test_only_the_model_speaks(message: ChatMessage) -> None:
    assert assistant_message_contents(message) is None
    assert assistant_message_thinking(message) is None
    assert assistant_message_contents_thinking(message) is None


def test_reasoning_is_grey_and_comes_before() -> None:
    assert assistant_message_contents(REASONED) == "\x1b[0;37mHm!\x1b[0m\nIt is 42."
    assert assistant_message_contents(REASONED, color=False) == "Hm!\nIt is 42."
    assert assistant_message_contents(REASONED, show_reasoning=False) == "It is 42."


def test_reasoning_stays_where_it_is() -> None:
    message = ChatMessage.assistant([TextPart(content="a"), ReasoningPart(content="b"), "c"])
    assert assistant_message_contents(message, color=False) == "a\nb\nc"


def test_reasoning_alone_and_none() -> None:
    alone = ChatMessage.assistant([ReasoningPart(content="Hm")])
    assert assistant_message_contents(alone, color=False) == "Hm"
    assert assistant_message_contents(ChatMessage.assistant([ReasoningPart(content=""), "a"])) == "a"
    assert not assistant_message_contents(ChatMessage.assistant(None))
    assert assistant_message_contents(ChatMessage.assistant("a")) == "a"


def test_thinking() -> None:
    message = ChatMessage.assistant("Let me see.", tool_calls=CALLS)
    assert assistant_message_thinking(message) == "Thinking... [get_weather; other]"
    assert assistant_message_thinking(message, show_args=True) == (
        "Thinking... [get_weather(location='SF', days=2); other()]"
    )
    assert assistant_message_thinking(ChatMessage.assistant("a")) is None
    assert assistant_message_thinking(ChatMessage.assistant("a", tool_calls=[])) is None


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "7", ""])
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments: str) -> None:
    message = ChatMessage.assistant(None, function_call=FunctionCall(name="f", arguments=arguments))
    assert assistant_message_thinking(message, show_args=True) == f"Thinking... [f({arguments})]"


def test_contents_and_thinking() -> None:
    message = ChatMessage.assistant("Let me see.", tool_calls=CALLS[1:])
    assert assistant_message_contents_thinking(message) == "Let me see.\nThinking... [other]"
    assert assistant_message_contents_thinking(message, show_args=True) == "Let me see.\nThinking... [other()]"
    silent = message.copy_with(content=None)
    assert assistant_message_contents_thinking(silent) == "Thinking... [other]"
    assert assistant_message_contents_thinking(ChatMessage.assistant("a")) == "a"
    assert assistant_message_contents_thinking(ChatMessage.assistant(None)) is None
    reasoned = REASONED.copy_with(tool_calls=CALLS[1:])
    assert assistant_message_contents_thinking(reasoned) == "\x1b[0;37mHm!\x1b[0m\nIt is 42.\nThinking... [other]"
    assert assistant_message_contents_thinking(reasoned, show_reasoning=False) == "It is 42.\nThinking... [other]"
    assert assistant_message_contents_thinking(reasoned, color=False) == "Hm!\nIt is 42.\nThinking... [other]"
