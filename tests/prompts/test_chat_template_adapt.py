"""What templates refuse or leave out reaches the model all the same; what they take is not changed."""

from __future__ import annotations

import itertools
import json
import typing
from typing import Any

import pytest
from chat_templates import BOS, EOS, TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st

from kani_lite import AIFunction, ChatMessage, ToolCall
from kani_lite.exceptions import PromptError
from kani_lite.messages import ReasoningPart
from kani_lite.prompts.adapt import adapted
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline, message_dict, tool_schema
from kani_lite.prompts.jinja import JinjaChatTemplate
from kani_lite.prompts.probing import Ability, Capabilities, short_id

STRICT = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') or (m.role == 'user') != loop.index0 is even %}"
    "{{ raise_exception('alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
LOOSE = (
    "{{ tools | tojson if tools }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}>"
    "{% endfor %}{{ m.reasoning_content }}\n{% endfor %}"
)


def f(x: str = "") -> str:
    """A function."""
    return x


FUNCTION = AIFunction(f)


def pipeline(template: str, **kwargs: Any) -> ChatTemplatePromptPipeline:
    return ChatTemplatePromptPipeline(JinjaChatTemplate(template, bos_token=BOS, eos_token=EOS), **kwargs)


def system(text: str) -> ChatMessage:
    return ChatMessage.system(text)


def user(text: str) -> ChatMessage:
    return ChatMessage.user(text)


def reply(text: str | None, *calls: tuple[str, str]) -> ChatMessage:
    made = [ToolCall.from_function("f", call_id_=id_, x=x) for id_, x in calls]
    return ChatMessage.assistant(text, tool_calls=made or None)


def result(text: str, id_: str) -> ChatMessage:
    return ChatMessage.function("f", text, id_)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a"), reply("b"), user("c")], "user: a\nassistant: b\nuser: c\n"),
        ([system("s"), user("a")], "user: s\n\na\n"),
        ([system("s"), system("t"), user("a")], "user: s\n\nt\n\na\n"),
        ([system("s")], "user: s\n"),
        ([system("s"), reply("b"), user("a")], "user: s\nassistant: b\nuser: a\n"),
        ([reply("b"), user("a")], "user: (continued)\nassistant: b\nuser: a\n"),
        ([reply("b")], "user: (continued)\nassistant: b\n"),
        ([user("a"), user("b")], "user: a\n\nb\n"),
        ([user("a"), reply("b"), reply("c")], "user: a\nassistant: b\n\nc\n"),
        ([user("a"), reply("b"), system("s"), user("c")], "user: a\nassistant: b\nuser: s\n\nc\n"),
        (
            [user("a"), reply("Wait.", ("1", "é")), result("r", "1"), reply("b"), user("c")],
            'user: a\nassistant: Wait.\n{"name": "f", "arguments": {"x": "é"}}\n'
            "user: Result of f:\nr\nassistant: b\nuser: c\n",
        ),
        (
            [user("a"), reply(None, ("1", "u"), ("2", "v")), result("r", "1"), result("q", "2"), user("c")],
            'user: a\nassistant: {"name": "f", "arguments": {"x": "u"}}\n{"name": "f", "arguments": {"x": "v"}}\n'
            "user: Result of f:\nr\n\nResult of f:\nq\n\nc\n",
        ),
        ([ChatMessage.function(None, "r", "1")], "user: Result of the function:\nr\n"),
    ],
)
def test_the_strictest_template(messages: list[ChatMessage], expected: str) -> None:
    assert pipeline(STRICT)(messages) == expected


TOOLS_TEXT = (
    "You can call these functions. To call one, answer with nothing but JSON: "
    '{"name": its name, "arguments": {its arguments}}\n'
)


def test_functions_that_a_template_does_not_show() -> None:
    spec = json.dumps(tool_schema(FUNCTION)["function"], ensure_ascii=False)
    text = TOOLS_TEXT + spec
    assert pipeline(STRICT)([user("a")], [FUNCTION]) == f"user: {text}\n\na\n"
    assert pipeline(STRICT)([system("s"), user("a")], [FUNCTION]) == f"user: s\n\n{text}\n\na\n"


def test_a_template_that_takes_all_gets_what_it_was_given() -> None:
    chat = [
        reply("z"),
        system("s"),
        system("t"),
        user("a"),
        user("b"),
        ChatMessage.assistant([ReasoningPart(content="why"), "Wait."], tool_calls=reply(None, ("1", "x")).tool_calls),
        result("r", "1"),
        user("c"),
        reply("d"),
        reply("e", ("2", "y"), ("3", "z")),
        result("q", "2"),
        result("p", "3"),
    ]
    assert pipeline(LOOSE)(chat, [FUNCTION]) == (
        json.dumps([tool_schema(FUNCTION)])
        + "assistant: z\nsystem: s\nsystem: t\nuser: a\nuser: b\n"
        + 'assistant: Wait.<1 f {"x": "x"}>why\ntool: r\nuser: c\nassistant: d\n'
        + 'assistant: e<2 f {"x": "y"}><3 f {"x": "z"}>\ntool: q\ntool: p\n'
    )
    able = pipeline(LOOSE).capabilities()
    assert [a for a in typing.get_args(Ability) if not able.can(a)] == []
    dicts = [message_dict(m) for m in chat]
    assert adapted(dicts, [tool_schema(FUNCTION)], able.can) == (dicts, [tool_schema(FUNCTION)])


def changed(name: str, chat: list[ChatMessage], functions: list[AIFunction] | None = None) -> list[tuple[Any, ...]]:
    """The chat as the template gets it: (role, content, ids of the calls or of the result)."""
    template = pipeline(TEMPLATES[name]).capabilities()
    tools = [tool_schema(g) for g in functions or []] or None
    messages, _ = adapted([message_dict(m) for m in chat], tools, template.can)
    return [
        (m["role"], m["content"], *(c["id"] for c in m.get("tool_calls", ())), *filter(None, [m.get("tool_call_id")]))
        for m in template.dressed(messages)
    ]


ROUND = [user("a"), reply("Wait.", ("1", "u"), ("2", "v")), result("r", "1"), result("q", "2")]
WHOLE = [("user", "a"), ("assistant", "Wait.", "1", "2"), ("tool", "r", "1"), ("tool", "q", "2")]
ONE_BY_ONE = [
    ("user", "a"),
    ("assistant", "Wait."),
    ("assistant", "", "1"),
    ("tool", "r", "1"),
    ("assistant", "", "2"),
    ("tool", "q", "2"),
]
ID1, ID2 = short_id("1"), short_id("2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hermes", WHOLE),
        ("qwen3", WHOLE),
        ("deepseek_r1", WHOLE),
        ("llama3_1_json", ONE_BY_ONE),
        ("gpt_oss", ONE_BY_ONE),
        ("phi4_mini", [("user", "a"), ("assistant", "Wait."), ("assistant", "", "1", "2"), *WHOLE[2:]]),
        (
            "mistral_small",
            [
                *[("user", "a"), ("assistant", "Wait."), ("user", "(continued)")],
                *[("assistant", "", ID1, ID2), ("tool", "r", ID1), ("tool", "q", ID2)],
            ],
        ),
    ],
)
def test_calls_beside_each_other_and_beside_text(name: str, expected: list[Any]) -> None:
    assert changed(name, ROUND) == expected


@pytest.mark.parametrize(
    ("name", "chat", "expected"),
    [
        (
            "mistral_small",
            [*ROUND, user("c")],
            [*changed("mistral_small", ROUND), ("assistant", "(continued)"), ("user", "c")],
        ),
        ("mistral_parallel", [system("s"), user("a")], [("system", "s"), ("user", "a")]),
        (
            "mistral_parallel",
            [system("s"), user("a"), reply("", ("123456789", "u")), result("r", "123456789")],
            [("user", "s\n\na"), ("assistant", "", "123456789"), ("tool", "r", "123456789")],
        ),
        ("silent", [system("s"), user("a")], [("user", "s\n\na")]),
        ("qwen3_coder", [user("a"), user("b")], [("user", "a"), ("user", "b")]),
        ("parts_only", [user("a")], [("user", [{"type": "text", "text": "a"}])]),
        ("command_r", [system("s"), user("a"), system("t"), user("b")], None),
        ("gemma3", [system("s")], [("system", "s"), ("user", "(continued)")]),
    ],
)
def test_published_habits(name: str, chat: list[ChatMessage], expected: list[Any] | None) -> None:
    late = [("system", "s"), ("user", "a"), ("user", "t"), ("user", "b")]
    assert changed(name, chat) == (expected or late)


def test_replies_in_a_row_are_joined_with_their_calls_and_thoughts() -> None:
    calls = reply(None, ("123456789", "x")).tool_calls
    thinking = ChatMessage.assistant([ReasoningPart(content="why"), "b"])
    also = ChatMessage.assistant([ReasoningPart(content="how"), "c"], tool_calls=calls)
    beside = {"assistants_in_row"}
    chat, _ = adapted([message_dict(m) for m in (user("a"), thinking, also)], None, lambda a: a not in beside)
    assert chat[1:] == [message_dict(also) | {"content": "b\n\nc", "reasoning_content": "why\n\nhow"}]
    chat, _ = adapted(
        [message_dict(m) for m in (user("a"), reply("", ("1", "x")), thinking)],
        None,
        able_without("assistants_in_row", "content_with_calls"),
    )
    assert [m["content"] for m in chat] == ["a", "", "(continued)", "b"]


def able_without(*abilities: str) -> Any:
    return lambda ability: ability not in abilities


@pytest.mark.parametrize(
    ("functions", "first"), [(None, []), ([FUNCTION], [("user", "(continued)")])], ids=["chat", "tools"]
)
def test_a_template_that_takes_the_first_message_for_the_users(functions: Any, first: list[Any]) -> None:
    chat = [reply("b"), user("a")]
    assert changed("llama3_1_json", chat, functions) == [*first, ("assistant", "b"), ("user", "a")]


def test_a_template_whose_last_message_must_be_from_the_user() -> None:
    last = (
        "{% for m in messages %}{{ m.content }};{% endfor %}{{ raise_exception('u') if messages[-1].role != 'user' }}"
    )
    assert pipeline(last)([user("a"), reply("b")]) == "a;b;(continued);"


@pytest.mark.parametrize(
    ("name", "raw", "shown"),
    [
        ("qwen3_coder", '{"x": "1"', '<parameter=arguments>\n{"x": "1"\n</parameter>'),
        ("qwen3_coder", "[1]", "<parameter=arguments>\n[1]\n</parameter>"),
        ("qwen3_coder", "  ", "<function=f>\n</function>"),
        ("hermes", '{"x": "1"', '"arguments": "{\\"x\\": \\"1\\""'),
        ("deepseek_r1", '{"x": "1"', '{"x": "1"\n```'),
        ("deepseek_r1", '{"x":1}', '{"x":1}\n```'),
        ("named-chatml", '{"x": "1"', '"arguments": "{\\"x\\": \\"1\\""'),
    ],
)
def test_arguments_that_are_no_object(name: str, raw: str, shown: str) -> None:
    call = ToolCall.from_function("f", call_id_="1")
    call.function.arguments = raw
    chat = [user("a"), ChatMessage.assistant(None, tool_calls=[call]), result("r", "1")]
    assert shown in pipeline(TEMPLATES[name])(chat)


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{{ m.reasoning_content }}", "reasoning_content"),
        ("{{ message['thinking'] }}", "thinking"),
        ("{% if 'reasoning' in m %}", "reasoning"),
        ("{{ m.get('reasoning') }}{{ thinking }}", "reasoning"),
        ("{{ thinking }}{{ reasoning }}", "reasoning_content"),
        ("{{ m.reasoning_content or m.thinking }}", "reasoning_content"),
    ],
)
def test_the_key_for_reasoning(template: str, key: str) -> None:
    assert Capabilities(lambda m, t: "", template).reasoning_key == key
    assert Capabilities(lambda m, t: "", template, "mine").reasoning_key == "mine"


def test_ids_of_nine_characters() -> None:
    assert short_id("abcDEF123") == "abcDEF123"
    assert short_id("call_1") == short_id("call_1") != short_id("call_2")
    assert all(len(short_id(str(i))) == 9 and short_id(str(i)).isalnum() for i in range(100))


def test_a_template_that_takes_functions_and_no_two_users_in_a_row() -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'user' and loop.previtem and loop.previtem.role == 'user' %}"
        "{{ raise_exception('two users') }}{% endif %}{% endfor %}" + LOOSE
    )
    shown = json.dumps([tool_schema(FUNCTION)])
    assert pipeline(refusing)([reply("b"), user("a")], [FUNCTION]) == f"{shown}assistant: b\nuser: a\n"


def test_what_is_refused_in_every_form() -> None:
    with pytest.raises(PromptError, match=r"refuses these messages \(user, assistant\): never\. Give another template"):
        pipeline("{{ raise_exception('never') }}")([user("a"), reply("b")])
    picky = "{% for m in messages %}{{ m.content + 1 if 'bad' in m.content else m.content }}{% endfor %}"
    with pytest.raises(PromptError, match="can only concatenate str"):
        pipeline(picky)([user("bad")])


def test_a_chat_that_is_refused_is_tried_in_the_plainest_form() -> None:
    # the probes can't know that this template wants no more than one result in the whole chat
    once = (
        "{% if messages | selectattr('role', 'equalto', 'tool') | list | length > 1 %}{{ raise_exception('one') }}"
        "{% endif %}" + LOOSE
    )
    chat = [user("a"), reply("", ("1", "x")), result("r", "1"), reply("", ("2", "y")), result("q", "2")]
    assert pipeline(once)(chat[:3]) == 'user: a\nassistant: <1 f {"x": "x"}>\ntool: r\n'
    assert pipeline(once)(chat) == (
        'user: a\nassistant: {"name": "f", "arguments": {"x": "x"}}\nuser: Result of f:\nr\n'
        'assistant: {"name": "f", "arguments": {"x": "y"}}\nuser: Result of f:\nq\n'
    )


def test_no_messages() -> None:
    assert pipeline(STRICT)([]) == ""


@st.composite
def chats(draw: st.DrawFn) -> list[ChatMessage]:
    """Any sequence of messages in which results follow their calls; each has a word of its own."""
    number = itertools.count()

    def word() -> str:
        return f"w{next(number)}w"

    chat: list[ChatMessage] = []
    for kind in draw(st.lists(st.sampled_from(["system", "user", "reply", "round", "late"]), min_size=1, max_size=8)):
        if kind in ("system", "user", "reply"):
            chat.append({"system": system, "user": user, "reply": reply}[kind](word()))
            continue
        calls = [(word(), word()) for _ in range(draw(st.integers(1, 3)))]
        chat.append(reply(word() if kind == "late" else "", *calls))
        chat += [result(word(), id_) for id_, _ in calls]
    return chat


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(chat=chats(), with_tools=st.booleans())
def test_nothing_is_lost(name: str, chat: list[ChatMessage], with_tools: bool) -> None:
    prompt = pipeline(TEMPLATES[name])(chat, [FUNCTION] if with_tools else None)
    for message in chat:
        assert (message.text or "") in prompt
        for call in message.tool_calls or []:
            assert call.function.kwargs["x"] in prompt
    assert "A function." in prompt or not with_tools


def test_functions_that_show_only_beside_a_user_message() -> None:
    shy = (
        "{% for m in messages %}{{ (tools | tojson) if m.role == 'user' and tools }}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    made = pipeline(shy)
    tool = json.dumps([tool_schema(FUNCTION)], ensure_ascii=False)
    assert made([system("s")]) == "system: s\n"
    assert made([system("s")], [FUNCTION]) == f"system: s\n{tool}user: (continued)\n"


def test_a_call_without_text_is_no_empty_turn() -> None:
    turns = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments }}]"
        "{% endfor %}{% if m.content is not none %}{{ m.role }}: {{ m.content }};{% endif %}{% endfor %}"
    )
    chat = [user("u"), ChatMessage.assistant("", tool_calls=[ToolCall.from_function("f", x="Ä")]), result("r", "1")]
    assert pipeline(turns)(chat) == 'user: u;[f {"x": "Ä"}]tool: r;'
    told = [user("u"), reply("See:", ("1", "Ä")), result("r", "1")]
    assert pipeline(turns)(told) == 'user: u;[f {"x": "Ä"}]assistant: See:;tool: r;'
