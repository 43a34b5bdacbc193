"""Example chats, which `PromptPipeline.explain` runs through a pipeline.

A chat comes in groups of messages, one for each thing that it shows. It is the same at each call, ids included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from kani_lite.functions import AIFunction, AIParam
from kani_lite.messages import ChatMessage, ToolCall

ALL_EXAMPLE_KWARGS = [
    "function_call",
    "consecutive_user",
    "consecutive_assistant",
    "consecutive_system",
    "multi_function_call",
    "end_on_assistant",
]
"""The names of what `build_conversation` can show."""


def _function_call() -> list[ChatMessage]:
    """Calls without and with text beside them; the results don't say which call they are of."""
    tide = ToolCall.from_function("get_tide", harbour="Hakodate", call_id_="call_1")
    in_feet = ToolCall.from_function("get_tide", harbour="Hakodate", unit="feet", call_id_="call_2")
    return [
        ChatMessage.user("How high is the tide in Hakodate?"),
        ChatMessage.assistant(None, tool_calls=[tide]),
        ChatMessage.function("get_tide", "0.9 metres, rising"),
        ChatMessage.assistant("It is at 0.9 metres and rising."),
        ChatMessage.user("And in feet?"),
        ChatMessage.assistant("I'll look that up.", tool_calls=[in_feet]),
        ChatMessage.function("get_tide", "3 feet, rising"),
        ChatMessage.assistant("About 3 feet, and rising."),
    ]


def _multi_function_call() -> list[ChatMessage]:
    calls = [
        ToolCall.from_function("feed", animal="hermit crab", call_id_="call_3"),
        ToolCall.from_function("feed", animal="octopus", call_id_="call_4"),
    ]
    return [
        ChatMessage.user("Feed the hermit crab and the octopus, please."),
        ChatMessage.assistant(None, tool_calls=calls),
        ChatMessage.function("feed", "The hermit crab has eaten.", "call_3"),
        ChatMessage.function("feed", "Error: the octopus has left its tank.", "call_4"),
        ChatMessage.assistant("The crab is fed. The octopus is not where it should be."),
    ]


def _consecutive_user() -> list[ChatMessage]:
    return [
        ChatMessage.user("How many legs has a crab?"),
        ChatMessage.user("The claws count."),
        ChatMessage.assistant("Ten."),
    ]


def _consecutive_assistant() -> list[ChatMessage]:
    return [
        ChatMessage.user("Tell me about the sea."),
        ChatMessage.assistant("The sea is wide,"),
        ChatMessage.assistant("and it is deep."),
    ]


def build_conversation(
    *,
    function_call: bool = False,
    consecutive_user: bool = False,
    consecutive_assistant: bool = False,
    consecutive_system: bool = False,
    multi_function_call: bool = False,
    end_on_assistant: bool = False,
) -> list[list[ChatMessage]]:
    """A chat in groups of messages: a greeting, a group for each thing asked for, and a question to be answered.

    `end_on_assistant` begins the answer; `consecutive_system` puts a second system message before the first.
    """
    groups = [
        [
            *([ChatMessage.system("Obey the house rules.")] if consecutive_system else []),
            ChatMessage.system("You are the keeper of an aquarium."),
            ChatMessage.user("Good morning!"),
            ChatMessage.assistant("Good morning. What shall I do?"),
        ],
        _function_call() if function_call else [],
        _multi_function_call() if multi_function_call else [],
        _consecutive_user() if consecutive_user else [],
        _consecutive_assistant() if consecutive_assistant else [],
        [ChatMessage.user("Why do crabs walk sideways?")],
    ]
    if end_on_assistant:
        groups[-1].append(ChatMessage.assistant("Because their knees"))
    return [group for group in groups if group]


def build_functions(*, function_call: bool = False, multi_function_call: bool = False, **_: Any) -> list[AIFunction]:
    """The functions that the chat of `build_conversation` with the same arguments calls."""

    def get_tide(harbour: Annotated[str, AIParam(desc="The town")], unit: str = "metres") -> str:
        """How high the water stands."""
        return f"0 {unit} in {harbour}"

    def feed(animal: Annotated[str, AIParam(desc="Which one")]) -> str:
        """Give an animal its food."""
        return f"{animal} has eaten."

    wanted: list[Callable[..., str]] = [get_tide] if function_call else []
    if multi_function_call:
        wanted.append(feed)
    return [AIFunction(function) for function in wanted]
