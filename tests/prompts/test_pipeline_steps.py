from __future__ import annotations

from typing import Any

import pytest

from kani_lite import AIFunction, ChatMessage, ChatRole, ReasoningPart, TextPart, ToolCall
from kani_lite.exceptions import PromptError
from kani_lite.prompts.pipeline import PromptPipeline
from kani_lite.prompts.types import ApplyContext

SYSTEM, USER, ASSISTANT, FUNCTION = ChatRole
system, user, assistant = ChatMessage.system, ChatMessage.user, ChatMessage.assistant
CHAT = [system("S"), user("a"), user("b"), assistant("c"), ChatMessage.function("f", "d", "1")]


def call(name: str, call_id: str) -> ToolCall:
    return ToolCall.from_function(name, call_id_=call_id)


def calls(*ids: str, content: str | None = None) -> ChatMessage:
    return assistant(content, tool_calls=[call("f", i) for i in ids])


def result(content: str, call_id: str | None = None) -> ChatMessage:
    return ChatMessage.function("f", content, call_id)


def short(msgs: list[ChatMessage]) -> str:
    """The messages in short: their roles' first letters and their texts."""
    return " ".join(f"{m.role.value[0]}:{m.text}" for m in msgs)


# === filters =========================================================================================================


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({}, ""),
        ({"role": USER}, "s:S a:c f:d"),
        ({"role": [USER, SYSTEM]}, "a:c f:d"),
        ({"role": {ASSISTANT}}, "s:S u:a u:b f:d"),
        ({"role": []}, ""),
        ({"predicate": lambda m: m.text in "ac"}, "s:S u:b f:d"),
        ({"role": (USER, SYSTEM), "predicate": lambda m: m.text in "ac"}, "s:S u:b a:c f:d"),
    ],
)
def test_a_step_is_for_messages_that_role_and_predicate_let_through(filters: dict[str, Any], left: str) -> None:
    assert short(PromptPipeline().remove(**filters)(CHAT)) == left


@pytest.mark.parametrize("role", ["user", ["user"], 3, iter([USER])])
def test_a_role_that_is_none_is_refused(role: Any) -> None:
    with pytest.raises(ValueError, match=r"role=.* is no ChatRole: give one of ChatRole\.SYSTEM, "):
        PromptPipeline().wrap(prefix="x", role=role)


@pytest.mark.parametrize(
    ("name", "add"),
    [
        ("predicate", lambda p: p.remove(predicate="no function")),
        ("joiner", lambda p: p.merge_consecutive(joiner="no function", role=USER)),
        ("func", lambda p: p.function_call_fmt("no function")),
        ("func", lambda p: p.apply("no function")),
        ("func", lambda p: p.macro_apply("no function")),
        ("id_translator", lambda p: p.ensure_bound_function_calls("no function")),
    ],
)
def test_what_is_no_function_is_refused(name: str, add: Any) -> None:
    pipeline = PromptPipeline()
    with pytest.raises(ValueError, match=f"{name}='no function' can't be called"):
        add(pipeline)
    assert len(pipeline) == 0


# === translate_role, wrap ============================================================================================


def test_translate_role() -> None:
    assert short(PromptPipeline().translate_role(role=[SYSTEM, FUNCTION], to=USER)(CHAT)) == "u:S u:a u:b a:c u:d"
    with pytest.raises(ValueError, match="to='user' is no ChatRole"):
        PromptPipeline().translate_role(to="user")  # type: ignore[arg-type]  # that is the test


def test_translate_role_warns_once_a_run_and_only_if_it_did_something() -> None:
    pipeline = PromptPipeline().translate_role(role=USER, to=SYSTEM, warn="No users here.")
    with pytest.warns(UserWarning, match=r"^No users here\.$") as warned:
        pipeline(CHAT)
    assert len(warned) == 1
    assert pipeline(CHAT[3:]) == CHAT[3:]  # a warning would be an error


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("x", "<x>"),
        (None, "<>"),
        ([], ["<", ">"]),
        (["x", TextPart(content="y")], ["<", "x", TextPart(content="y"), ">"]),
    ],
)
def test_wrap(content: Any, expected: Any) -> None:
    assert PromptPipeline().wrap(prefix="<", suffix=">")([user(content)]) == [user(expected)]


def test_wrap_with_one_side_or_none() -> None:
    msgs = [user("x"), user(["x"]), user(None)]
    assert PromptPipeline().wrap(prefix="<")(msgs) == [user("<x"), user(["<", "x"]), user("<")]
    assert PromptPipeline().wrap(suffix=">")(msgs) == [user("x>"), user(["x", ">"]), user(">")]
    assert PromptPipeline().wrap()(msgs) == [user("x"), user(["x"]), user("")]


# === merge_consecutive ===============================================================================================


def test_merge_consecutive_with_a_separator() -> None:
    pipeline = PromptPipeline().merge_consecutive(role=USER, sep="|")
    msgs = [user("a"), user(None), user("b"), assistant("c"), assistant("d"), user("e")]
    assert pipeline(msgs) == [user("a||b"), assistant("c"), assistant("d"), user("e")]


def test_merge_consecutive_with_an_empty_separator() -> None:
    pipeline = PromptPipeline().merge_consecutive(role=USER, sep="")
    assert pipeline([user("a"), user("b")]) == [user("ab")]
    assert pipeline([user(["a"]), user("b")]) == [user(["a", "b"])]


def test_merge_consecutive_keeps_parts() -> None:
    thought = ReasoningPart(content="Hm.")
    msgs = [assistant("a"), assistant([thought, "b"]), assistant(None), assistant([])]
    merged = PromptPipeline().merge_consecutive(role=ASSISTANT, sep="|")(msgs)
    assert merged == [assistant(["a", "|", thought, "b", "|", "|"])]


def test_merge_consecutive_of_several_roles() -> None:
    pipeline = PromptPipeline().merge_consecutive(role=[USER, ASSISTANT], sep="|", out_role=SYSTEM)
    assert short(pipeline(CHAT)) == "s:S s:a|b|c f:d"
    assert short(pipeline([user("a")])) == "u:a"


def test_merge_consecutive_with_a_joiner_joins_single_messages_too() -> None:
    seen = []

    def joiner(msgs: list[ChatMessage]) -> str:
        seen.append(short(msgs))
        return "+".join(m.text or "" for m in msgs)

    pipeline = PromptPipeline().merge_consecutive(role=[USER, ASSISTANT], joiner=joiner, out_role=USER)
    assert short(pipeline([assistant("a"), user("b"), system("S"), assistant("c")])) == "u:a+b s:S u:c"
    assert seen == ["a:a u:b", "a:c"]


def test_merged_messages_keep_all_calls_and_answer_none() -> None:
    pipeline = PromptPipeline().merge_consecutive(predicate=lambda m: True, sep="", out_role=ASSISTANT)
    [merged] = pipeline([calls("1", "2", content="a"), result("b", "2"), calls("3")])
    assert merged == assistant("ab", tool_calls=[call("f", i) for i in "123"], tool_call_id=None)
    [merged] = PromptPipeline().merge_consecutive(role=FUNCTION, joiner=lambda m: None)([result("a", "1")])
    assert merged == ChatMessage.function("f", None)


@pytest.mark.parametrize("given", [{}, {"sep": "", "joiner": len}])
def test_merge_consecutive_takes_one_of_sep_and_joiner(given: Any) -> None:
    with pytest.raises(ValueError, match="either sep or joiner, not both or none"):
        PromptPipeline().merge_consecutive(role=USER, **given)


@pytest.mark.parametrize("role", [None, [USER], [USER, SYSTEM]])
def test_merge_consecutive_of_no_single_role_needs_an_out_role(role: Any) -> None:
    with pytest.raises(ValueError, match="give the merged message's role as out_role"):
        PromptPipeline().merge_consecutive(role=role, sep="")
    with pytest.raises(ValueError, match="out_role=7 is no ChatRole"):
        PromptPipeline().merge_consecutive(role=role, sep="", out_role=7)  # type: ignore[arg-type]  # that is the test


def test_a_joiner_may_build_in_a_list_that_it_was_given() -> None:
    msgs = [user(["a"]), user(["b"])]

    def joiner(group: list[ChatMessage]) -> Any:
        group[0].parts.extend(group[1].parts)
        return group[0].parts

    pipeline = PromptPipeline().macro_apply(lambda _, __: msgs).merge_consecutive(role=USER, joiner=joiner)
    assert pipeline([]) == pipeline([]) == [user(["a", "b"])]


# === function_call_fmt ===============================================================================================


def test_function_call_fmt() -> None:
    def fmt(tool_call: ToolCall) -> str | None:
        return None if tool_call.id == "2" else f"{tool_call.function.name}#{tool_call.id}"

    pipeline = PromptPipeline().function_call_fmt(fmt, prefix="<", sep=", ", suffix=">")
    written = [m.content for m in pipeline([calls("1", "2", "3", content="x"), calls("1"), calls("2"), *CHAT[:2]])]
    assert written == ["x<f#1, f#3>", "<f#1>", "<>", "S", "a"]
    parts = assistant(["x"], tool_calls=[call("f", "1")])
    assert pipeline([parts])[0].content == ["x", "<f#1>"]
    assert PromptPipeline().function_call_fmt(fmt)([calls("1", "3"), calls()])[0].content == "\nf#1f#3"


# === remove, ensure_start ============================================================================================


def test_ensure_start() -> None:
    pipeline = PromptPipeline().ensure_start(role=USER, predicate=lambda m: m.text == "b")
    assert pipeline(CHAT) == CHAT[2:]
    assert pipeline(CHAT[:2]) == []
    assert pipeline(CHAT[:2], for_measurement=True) == CHAT[:2]


# === ensure_bound_function_calls =====================================================================================


def test_results_are_bound_to_their_calls() -> None:
    msgs = [result("?", "0"), user("a"), calls("1"), result("x"), calls("2", "3"), result("y", "3"), result("z")]
    bound = PromptPipeline().ensure_bound_function_calls()(msgs)
    ids = [user("a"), calls("1"), result("x", "1"), calls("2", "3"), result("y", "3"), result("z", "2")]
    assert bound == ids
    assert PromptPipeline().ensure_bound_function_calls()([*msgs, result("again", "3")]) == ids


def test_ids_are_translated() -> None:
    pipeline = PromptPipeline().ensure_bound_function_calls(lambda i: f"call-{i}")
    msgs = [result("?", "0"), calls("1"), result("x"), user("a"), result("alone")]
    assert pipeline(msgs) == [calls("call-1"), result("x", "call-1"), user("a"), result("alone")]
    assert msgs[1] == calls("1")


def test_a_call_without_a_result_is_refused() -> None:
    pipeline = PromptPipeline().ensure_bound_function_calls()
    with pytest.raises(PromptError, match=r"^Message 2 is from 'user', .* no result yet: 1\. Put their results"):
        pipeline([calls("1", "2"), result("x", "2"), user("a")])
    assert pipeline([calls("1")]) == [calls("1")]  # still to be run
    not_a_call = user("a", tool_calls=[call("f", "1")])
    assert pipeline([not_a_call, user("b")]) == [not_a_call, user("b")]


def test_a_result_that_could_answer_several_calls_is_refused() -> None:
    with pytest.raises(PromptError, match=r"^A result of 'f' has no tool_call_id, .* any of 2, 1: set its"):
        PromptPipeline().ensure_bound_function_calls()([calls("2", "1"), result("x")])


# === apply, macro_apply ==============================================================================================


def test_apply_replaces_and_removes() -> None:
    pipeline = PromptPipeline().apply(lambda m: None if m.text == "b" else user(f"{m.text}!"), role=[USER, ASSISTANT])
    assert short(pipeline(CHAT)) == "s:S u:a! u:c! f:d"


def test_apply_gives_the_context() -> None:
    def f() -> None:
        """A function."""

    function = AIFunction(f)
    seen: list[ApplyContext] = []

    def see(msg: ChatMessage, ctx: ApplyContext) -> str:
        assert ctx.msg is msg is ctx.messages[ctx.idx]
        assert (ctx.messages, ctx.functions) == (CHAT, [function])
        seen.append(ctx)
        return f"{ctx.idx} {ctx.is_last} {ctx.is_last_of_type}"

    pipeline = PromptPipeline().apply(see, role=[USER, FUNCTION])
    mixed: list[Any] = pipeline(CHAT, [function])
    assert mixed == [CHAT[0], "1 False False", "2 False True", CHAT[3], "4 True True"]
    assert "last_of_role" not in repr(seen[0])
    assert seen[0] == ApplyContext(CHAT[1], False, 1, CHAT, [function])


def test_is_last_of_type_counts_the_role_that_the_message_has_now() -> None:
    said = []

    def change(msg: ChatMessage, ctx: ApplyContext) -> ChatMessage:
        msg.role = USER
        said.append(ctx.is_last_of_type)
        return msg

    assert short(PromptPipeline().apply(change)([assistant("a"), user("b"), system("c")])) == "u:a u:b u:c"
    assert said == [False, True, True]


def test_a_context_made_by_hand() -> None:
    last = [ApplyContext(m, i == 4, i, CHAT, []).is_last_of_type for i, m in enumerate(CHAT)]
    assert last == [True, False, True, True, True]


def test_apply_takes_functions_of_one_or_two_positional_arguments() -> None:
    class Callable:
        def __call__(self, msg: ChatMessage, *, mark: str = "?") -> str:
            return f"{msg.text}{mark}"

    assert PromptPipeline().apply(Callable())([user("a")]) == ["a?"]
    assert PromptPipeline().apply(lambda *msgs: len(msgs))([user("a")]) == [1]
    wrong: list[tuple[Any, int]] = [(lambda: 1, 0), (lambda a, b, c: 1, 3)]
    for func, count in wrong:
        with pytest.raises(ValueError, match=f"takes {count} positional arguments: give a function of a message"):
            PromptPipeline().apply(func)
    with pytest.raises(ValueError, match=r"func=<class 'int'> has no signature"):
        PromptPipeline().apply(int)  # type: ignore[arg-type]  # that is the test


def test_macro_apply() -> None:
    def f() -> None:
        """A function."""

    function = AIFunction(f)
    pipeline = PromptPipeline().macro_apply(lambda msgs, functions: (msgs[::-1], functions))
    assert pipeline(CHAT, [function]) == (CHAT[::-1], [function])
    assert PromptPipeline().conversation_fmt().macro_apply(lambda text, _: text.upper())(CHAT) == "SABCD"


# === terminal steps ==================================================================================================


def test_conversation_fmt_joins_texts() -> None:
    assert PromptPipeline().conversation_fmt()([]) == ""
    assert PromptPipeline().conversation_fmt()(CHAT) == "Sabcd"
    pipeline = PromptPipeline().conversation_fmt(prefix="<", sep="|", suffix=">", generation_suffix="G")
    assert pipeline(CHAT) == "<S|a|b|c|d|G>"


def test_conversation_fmt_marks_roles() -> None:
    marks: dict[str, Any] = {
        f"{role}_{side}": f"{role[0]}{mark}"
        for role in ("user", "assistant", "system")
        for side, mark in (("prefix", "("), ("suffix", ")"))
    }
    assert PromptPipeline().conversation_fmt(**marks)(CHAT) == "s(Ss)u(au)u(bu)a(ca)u(du)"
    marks |= {"function_prefix": "", "function_suffix": "f)"}
    assert PromptPipeline().conversation_fmt(**marks)(CHAT) == "s(Ss)u(au)u(bu)a(ca)df)"


@pytest.mark.parametrize(("last", "expected"), [(None, "[c]G"), ("", "[c"), ("...", "[c...")])
def test_conversation_fmt_of_a_chat_that_ends_on_an_assistant_message(last: str | None, expected: str) -> None:
    pipeline = PromptPipeline().conversation_fmt(
        assistant_prefix="[", assistant_suffix="]", assistant_suffix_if_last=last, generation_suffix="G", suffix="."
    )
    assert pipeline([assistant("b"), assistant("c")]) == f"[b]{expected}."
    assert pipeline([assistant("c"), user("d")]) == "[c]dG."
    assert pipeline([]) == "G."


def test_conversation_fmt_writes_nothing_for_no_content() -> None:
    msgs = [assistant(None), assistant([ReasoningPart(content="Hm."), "x"])]
    assert PromptPipeline().conversation_fmt(sep="|")(msgs) == "|x|"


def test_conversation_dict() -> None:
    assert PromptPipeline().conversation_dict()([*CHAT[2:], assistant(None)]) == [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "tool", "content": "d"},
        {"role": "assistant", "content": None},
    ]


def test_conversation_dict_to_order() -> None:
    pipeline = PromptPipeline().conversation_dict(
        system_role="boss",
        user_role="me",
        assistant_role="you",
        function_role="it",
        content_transform=lambda m: m.parts,
        additional_keys=lambda m: {"id": m.tool_call_id} if m.tool_call_id else {},
    )
    assert pipeline([CHAT[0], *CHAT[2:]]) == [
        {"role": "boss", "content": ["S"]},
        {"role": "me", "content": ["b"]},
        {"role": "you", "content": ["c"]},
        {"role": "it", "content": ["d"], "id": "1"},
    ]
