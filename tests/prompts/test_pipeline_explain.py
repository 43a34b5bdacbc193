from __future__ import annotations

from typing import Any

import pytest

from kani_lite import ChatMessage, ChatRole, ToolCall
from kani_lite.prompts.examples import ALL_EXAMPLE_KWARGS, build_conversation, build_functions
from kani_lite.prompts.pipeline import PromptPipeline
from kani_lite.prompts.steps import PipelineStep

SYSTEM, USER, ASSISTANT, FUNCTION = ChatRole


def explained(capsys: pytest.CaptureFixture[str], pipeline: PromptPipeline[Any], **kwargs: Any) -> str:
    pipeline.explain(**kwargs)
    return capsys.readouterr().out


WHOLE = r"""Prompt pipeline: 3 steps
========================
1. Put '<<SYS>>\n' before and '\n<</SYS>>\n' after each system message.
2. Merge consecutive user messages into one user message with '\n' between
   them.
3. Write all messages as one text, the prompt.

Example
-------
  system     'You are the keeper of an aquarium.'
  user       'Good morning!'
  assistant  'Good morning. What shall I do?'

  user       'How many legs has a crab?'
  user       'The claws count.'
  assistant  'Ten.'

  user       'Why do crabs walk sideways?'

1. Put '<<SYS>>\n' before and '\n<</SYS>>\n' after each system message.
- system     'You are the keeper of an aquarium.'
+ system     '<<SYS>>\nYou are the keeper of an aquarium.\n<</SYS>>\n'

2. Merge consecutive user messages into one user message with '\n' between
   them.
- user       'How many legs has a crab?'
- user       'The claws count.'
+ user       'How many legs has a crab?\nThe claws count.'

3. Write all messages as one text, the prompt.
   What comes out is of type str.

Result
------
<<SYS>>
You are the keeper of an aquarium.
<</SYS>>
Good morning!Good morning. What shall I do?How many legs has a crab?
The claws count.Ten.Why do crabs walk sideways?

Not in this example: function_call, consecutive_assistant, consecutive_system,
multi_function_call, end_on_assistant. See one with
explain(function_call=True), all with explain(all_cases=True), and a chat of
your own with explain(example=[...]).
"""


def test_the_whole_text(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = (
        PromptPipeline()
        .wrap(role=SYSTEM, prefix="<<SYS>>\n", suffix="\n<</SYS>>\n")
        .merge_consecutive(role=USER, sep="\n")
        .conversation_fmt()
    )
    assert explained(capsys, pipeline) == WHOLE
    assert len(pipeline) == 3


def test_an_example_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    calls = [ToolCall.from_function("f", call_id_=i) for i in "12"]
    chat = [
        ChatMessage.assistant(None, tool_calls=calls),
        ChatMessage.function("f", "a", "2"),
        ChatMessage.function("f", "b"),
    ]
    pipeline = PromptPipeline().ensure_bound_function_calls().ensure_start(role=ASSISTANT)
    out = explained(capsys, pipeline, example=chat)
    assert out[out.index("Example") :] == (
        "Example\n-------\n"
        "  assistant  no content; 1 calls f({}); 2 calls f({})\n"
        "  function   'a'; answers 2\n"
        "  function   'b'\n"
        "\n"
        "1. Give each function result the id of the call that it answers, remove results\n"
        "   whose call isn't there, refuse calls without a result.\n"
        "- function   'b'\n"
        "+ function   'b'; answers 1\n"
        "\n"
        "2. Remove what comes before the first assistant message.\n"
        "   It changes nothing here.\n"
        "\n"
        "Result\n------\n"
        "  assistant  no content; 1 calls f({}); 2 calls f({})\n"
        "  function   'a'; answers 2\n"
        "  function   'b'; answers 1\n"
    )
    assert chat[2].tool_call_id is None


def test_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    out = explained(capsys, PromptPipeline().remove(role=USER), example=[ChatMessage.user("a")])
    assert out.endswith("\n1. Remove all user messages.\n- user       'a'\n\nResult\n------\n[]\n")


def test_dicts_come_out(capsys: pytest.CaptureFixture[str]) -> None:
    out = explained(capsys, PromptPipeline().conversation_dict(), example=[ChatMessage.user("a")])
    assert "\n   What comes out is of type list.\n" in out
    assert out.endswith("\nResult\n------\n[{'role': 'user', 'content': 'a'}]\n")


def test_functions_are_those_of_the_example_or_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = PromptPipeline().macro_apply(lambda msgs, functions: [f.name for f in functions])
    assert explained(capsys, pipeline, all_cases=True).endswith("\n['get_tide', 'feed']\n")
    assert "\n['get_tide']\n" in explained(capsys, pipeline, function_call=True)
    assert "\n[]\n" in explained(capsys, pipeline, function_call=True, functions=[])


def test_all_cases(capsys: pytest.CaptureFixture[str]) -> None:
    out = explained(capsys, PromptPipeline(), all_cases=True)
    for group in build_conversation(**dict.fromkeys(ALL_EXAMPLE_KWARGS, True)):
        for msg in group:
            assert f"  {msg.role.value:<11}{'no content' if msg.content is None else repr(msg.content)}" in out
    assert "Not in this example" not in out
    assert max(map(len, out.splitlines())) < 80


def test_what_was_asked_for_by_name_decides(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = PromptPipeline().ensure_bound_function_calls()
    assert "Hakodate" in explained(capsys, pipeline)
    assert "Hakodate" not in explained(capsys, pipeline, function_call=False)
    assert "crab walk" not in explained(capsys, pipeline, all_cases=True, consecutive_user=False)
    with pytest.raises(ValueError, match="funktion=True is no example: give any of function_call, "):
        pipeline.explain(funktion=True)


def shouted(msg: Any) -> Any:
    return msg.text.upper()


class Nothing(PipelineStep):
    """A step of a user's own."""


@pytest.mark.parametrize(
    ("pipeline", "sentence", "examples"),
    [
        (
            PromptPipeline().translate_role(role=[SYSTEM, USER], to=USER),
            "Turn all system and user messages into user messages.",
            "",
        ),
        (PromptPipeline().translate_role(to=USER), "Turn all messages into user messages.", "function_call"),
        (
            PromptPipeline().wrap(prefix="a", role=list(ChatRole)[:3]),
            "Put 'a' before each system, user or assistant message.",
            "",
        ),
        (
            PromptPipeline().wrap(suffix="a", predicate=shouted),
            "Put 'a' after each message that matches the predicate.",
            "function_call",
        ),
        (
            PromptPipeline().wrap(role=USER),
            "Add nothing to any message: this step has neither a prefix nor a suffix.",
            "",
        ),
        (
            PromptPipeline().merge_consecutive(joiner=shouted, role=[USER, FUNCTION], out_role=SYSTEM),
            "Merge consecutive user or function messages into one system message with the given function.",
            "function_call consecutive_user multi_function_call",
        ),
        (
            PromptPipeline().merge_consecutive(sep=" ", predicate=bool, out_role=USER),
            "Merge consecutive messages that match the predicate into one user message with ' ' between them.",
            "function_call consecutive_user consecutive_assistant consecutive_system multi_function_call",
        ),
        (
            PromptPipeline().function_call_fmt(str, sep=",", suffix="."),
            r"Append each message's tool calls to its content, written by the given function, "
            r"with '\n' before them, ',' between them, '.' after them.",
            "function_call multi_function_call",
        ),
        (
            PromptPipeline().function_call_fmt(str, prefix=""),
            "Append each message's tool calls to its content, written by the given function.",
            "function_call",
        ),
        (PromptPipeline().remove(role=FUNCTION), "Remove all function messages.", "function_call"),
        (
            PromptPipeline().ensure_bound_function_calls(str),
            "Give each function result the id of the call that it answers, remove results "
            "whose call isn't there, refuse calls without a result, and translate the ids with the given function.",
            "function_call",
        ),
        (PromptPipeline().apply(shouted, role=USER), "Replace each user message by what shouted() makes of it.", ""),
        (
            PromptPipeline().macro_apply(lambda m, f: m),
            "Replace the list of messages by what the given function makes of it.",
            "",
        ),
        (
            PromptPipeline().conversation_fmt(function_prefix="a", assistant_suffix_if_last=""),
            "Write all messages as one text, the prompt.",
            "function_call end_on_assistant",
        ),
        (
            PromptPipeline().conversation_dict(),
            "Write each message as a dict with its role and content.",
            "function_call",
        ),
        (PromptPipeline([Nothing()]), "Run the step Nothing.", ""),
    ],
)
def test_each_step_says_what_it_does(pipeline: PromptPipeline[Any], sentence: str, examples: str) -> None:
    assert pipeline[0].explain() == sentence
    assert [k for k in ALL_EXAMPLE_KWARGS if pipeline[0].explain_example_kwargs().get(k)] == [
        k for k in ALL_EXAMPLE_KWARGS if k in examples.split()
    ]


# === the examples ====================================================================================================


def roles(**kwargs: bool) -> list[str]:
    return ["".join(m.role.value[0] for m in group) for group in build_conversation(**kwargs)]


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("function_call", ["sua", "uafauafa", "u"]),
        ("multi_function_call", ["sua", "uaffa", "u"]),
        ("consecutive_user", ["sua", "uua", "u"]),
        ("consecutive_assistant", ["sua", "uaa", "u"]),
        ("consecutive_system", ["ssua", "u"]),
        ("end_on_assistant", ["sua", "ua"]),
    ],
)
def test_each_example_adds_its_messages(name: str, groups: list[str]) -> None:
    assert roles() == ["sua", "u"]
    assert roles(**{name: True}) == groups
    assert name in ALL_EXAMPLE_KWARGS


def test_the_examples_are_valid_chats_and_the_same_each_time() -> None:
    cases = dict.fromkeys(ALL_EXAMPLE_KWARGS, True)
    chat = [msg for group in build_conversation(**cases) for msg in group]
    assert chat == [msg for group in build_conversation(**cases) for msg in group]
    bound = PromptPipeline().ensure_bound_function_calls()(chat)
    assert len(bound) == len(chat)
    called = {call.function.name for msg in chat for call in msg.tool_calls or ()}
    assert called == {f.name for f in build_functions(**cases)}
    assert build_functions(consecutive_user=True) == []


@pytest.mark.anyio
async def test_the_functions_of_the_examples_can_be_called() -> None:
    get_tide, feed = build_functions(function_call=True, multi_function_call=True)
    assert await get_tide(harbour="Hakodate") == "0 metres in Hakodate"
    assert await feed(animal="octopus") == "octopus has eaten."
