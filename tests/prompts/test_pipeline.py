from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest

from kani_lite import ChatMessage, ChatRole, ReasoningPart, TextPart, ToolCall
from kani_lite.exceptions import PromptError
from kani_lite.prompts.pipeline import PromptPipeline
from kani_lite.prompts.steps import FilterMixin, MergeConsecutive, PipelineStep, Remove, Wrap
from kani_lite.prompts.types import ApplyContext

SYSTEM, USER, ASSISTANT, FUNCTION = ChatRole
system, user, assistant = ChatMessage.system, ChatMessage.user, ChatMessage.assistant


class Shout(PipelineStep):
    """A step of a user's own, which changes messages in place."""

    def execute(self, msgs: list[ChatMessage], functions: Any) -> list[ChatMessage]:
        for msg in msgs:
            msg.content = (msg.text or "").upper()
            msg.extra["shouted"] = True
        return msgs


class Number(FilterMixin, PipelineStep):
    """A step of a user's own, with filters."""

    def execute(self, msgs: list[ChatMessage], functions: Any) -> list[ChatMessage]:
        for number, msg in enumerate(self.filtered(msgs), 1):
            msg.name = str(number)
        return msgs


class Counted(ChatMessage):
    """Counts how often an attribute of any message is read."""

    reads: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        Counted.reads += 1
        return super().__getattribute__(name)


# === the pipeline ====================================================================================================


def test_llama_2() -> None:
    pipeline = (
        PromptPipeline()
        .wrap(role=SYSTEM, prefix="<<SYS>>\n", suffix="\n<</SYS>>\n")
        .translate_role(role=SYSTEM, to=USER)
        .merge_consecutive(role=USER, sep="\n")
        .merge_consecutive(role=ASSISTANT, sep=" ")
        .conversation_fmt(
            user_prefix="<s>[INST] ",
            user_suffix=" [/INST]",
            assistant_prefix=" ",
            assistant_suffix=" </s>",
            assistant_suffix_if_last="",
        )
    )
    msgs = [system("Be brief."), user("Hi."), assistant("Hello."), assistant("You?"), user("Fine."), assistant("So")]
    assert pipeline(msgs) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST] Hello. You? </s><s>[INST] Fine. [/INST] So"
    )


def test_without_steps_it_copies() -> None:
    msgs = [user(["a", TextPart(content="b")], extra={"k": 1}), assistant("x", tool_calls=[])]
    copies = PromptPipeline().execute(msgs)
    assert copies == msgs
    assert [m.model_fields_set for m in copies] == [m.model_fields_set for m in msgs]
    for before, after in zip(msgs, copies, strict=True):
        assert before is not after
        assert before.extra is not after.extra
    assert copies[0].content is not msgs[0].content
    assert copies[1].tool_calls is not msgs[1].tool_calls
    assert copies[0].parts[1] is msgs[0].parts[1]
    [deep, _] = PromptPipeline().execute(msgs, deepcopy=True)
    assert deep == msgs[0]
    assert deep.parts[1] is not msgs[0].parts[1]


def test_methods_add_a_step_and_return_the_pipeline() -> None:
    steps: list[PipelineStep] = [Remove(role=SYSTEM)]
    pipeline: PromptPipeline[Any] = PromptPipeline(steps)
    assert pipeline.wrap(prefix="a").merge_consecutive(role=USER, sep="\n") is pipeline
    assert len(steps) == 1  # the list stays the user's
    assert len(pipeline) == len(pipeline.steps) == 3
    assert [type(step) for step in pipeline[:]] == [Remove, Wrap, MergeConsecutive]
    assert pipeline[0] is steps[0]
    assert pipeline[-1] is pipeline.steps[2]
    assert len(PromptPipeline()) == 0


def test_repr() -> None:
    assert repr(PromptPipeline().wrap(prefix="a").ensure_bound_function_calls()) == (
        "PromptPipeline([Wrap(role=None, predicate=None, prefix='a', suffix=None),\n"
        " EnsureBoundFunctionCalls(id_translator=None)])"
    )
    assert repr(PromptPipeline().apply(repr)[0]) == "Apply(role=None, predicate=None, func=<built-in function repr>)"


def test_for_measurement_leaves_ensure_start_out() -> None:
    pipeline = PromptPipeline().ensure_start(role=USER).conversation_fmt(assistant_prefix="A:")
    assert pipeline([assistant("x")]) == ""
    assert pipeline([assistant("x")], for_measurement=True) == "A:x"


# === steps of a user's own ===========================================================================================


def test_a_step_of_ones_own() -> None:
    msgs = [user("a", extra={"k": 1}), user("b")]
    pipeline = PromptPipeline([Shout()]).conversation_dict(additional_keys=lambda m: m.extra)
    assert pipeline(msgs) == [
        {"role": "user", "content": "A", "k": 1, "shouted": True},
        {"role": "user", "content": "B", "shouted": True},
    ]
    assert msgs == [user("a", extra={"k": 1}), user("b")]
    assert (Shout().explain(), Shout().explain_example_kwargs()) == ("Run the step Shout.", {})


def test_a_step_of_ones_own_with_filters() -> None:
    numbered = PromptPipeline([Number(role=USER, predicate=lambda m: m.text != "b")])
    names = [m.name for m in numbered([user("a"), system("S"), user("b"), user("c")])]
    assert names == ["1", None, None, "2"]


def test_a_step_without_execute() -> None:
    with pytest.raises(NotImplementedError, match=r"^PipelineStep needs a method execute\(msgs, functions\)\.$"):
        PromptPipeline([PipelineStep()])([])


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (PromptPipeline().conversation_fmt().wrap(prefix="a"), "Step 2, Wrap, takes .* made a str of"),
        (PromptPipeline().remove(role=SYSTEM).apply(lambda m: 7).conversation_dict(), "Step 3, Conv.* made a list of"),
    ],
)
def test_a_step_that_is_not_given_messages(pipeline: PromptPipeline[Any], message: str) -> None:
    with pytest.raises(PromptError, match=f"{message}.*put it before them, or use macro_apply"):
        pipeline([user("a")])


@pytest.mark.parametrize("msgs", ["a", [{"role": "user", "content": "a"}], user("a")])
def test_what_is_no_list_of_messages(msgs: Any) -> None:
    with pytest.raises(ValueError, match=r"takes a list of ChatMessages, and there is .* in this one"):
        PromptPipeline()(msgs)


# === nothing is changed ==============================================================================================


def test_a_function_may_change_its_messages() -> None:
    def change(msg: ChatMessage, ctx: ApplyContext) -> ChatMessage:
        msg.content = [*msg.parts, "!"]
        msg.extra["seen"] = True
        ctx.messages[-1].parts.append("?")
        return msg

    def change_all(msgs: list[ChatMessage], functions: Any) -> list[ChatMessage]:
        msgs.pop(0).parts.clear()
        msgs[0].tool_calls = [*(msgs[0].tool_calls or ())][:1]
        functions.append(None)
        return msgs

    calls = [ToolCall.from_function("f", call_id_=i) for i in "12"]
    msgs = [user(["a"]), assistant(["b"], tool_calls=calls)]
    before = copy.deepcopy(msgs)
    functions: list[Any] = ["f"]
    pipeline: PromptPipeline[Any] = PromptPipeline().apply(change).macro_apply(change_all)
    for _ in range(2):
        assert pipeline(msgs, functions) == [
            assistant(["b", "?", "!", "?"], tool_calls=calls[:1], extra={"seen": True})
        ]
    assert msgs == before
    assert functions == ["f"]


def mark(msg: ChatMessage) -> ChatMessage:
    msg.extra["marked"] = True
    msg.parts.append("!")
    return msg


def mark_all(msgs: list[ChatMessage], functions: Any) -> list[ChatMessage]:
    return [mark(msg) for msg in msgs]


@pytest.mark.parametrize(
    "add",
    [
        lambda p: p.translate_role(to=SYSTEM),
        lambda p: p.wrap(prefix="<", suffix=">"),
        lambda p: p.merge_consecutive(sep="|", out_role=SYSTEM),
        lambda p: p.merge_consecutive(joiner=lambda msgs: mark(msgs[0]).content, out_role=SYSTEM),
        lambda p: p.function_call_fmt(lambda call: call.id),
        lambda p: p.ensure_bound_function_calls(lambda call_id: f"id-{call_id}"),
        lambda p: p.apply(mark),
        lambda p: p.apply(lambda msg, ctx: mark(ctx.messages[0])),
        lambda p: p.macro_apply(mark_all),
    ],
)
def test_messages_that_the_pipeline_holds_stay_as_they_are(add: Any) -> None:
    call = ToolCall.from_function("f", call_id_="1")
    shot = [
        user(["q"]),
        assistant(["a", ReasoningPart(content="Hm.")], tool_calls=[call]),
        ChatMessage.function("f", "r"),
    ]
    before = copy.deepcopy(shot)
    pipeline = add(PromptPipeline().macro_apply(lambda msgs, _: shot))
    made = pipeline([])
    assert made != before
    assert shot == before
    assert pipeline([]) == made


# === how much work it is =============================================================================================


def chat(n: int) -> list[ChatMessage]:
    """n messages of all sorts: merged by role, they are four."""

    def one(i: int) -> ChatMessage:
        return Counted(role=list(ChatRole)[i * 4 // n], content=[TextPart(content="p")] if i % 2 else "t")

    return [one(i) for i in range(n)]


def bound_calls(n: int) -> list[ChatMessage]:
    calls = [ToolCall.from_function("f", call_id_=str(i)) for i in range(n)]
    results = [Counted(role=FUNCTION, content="r", tool_call_id=str(i)) for i in range(n)]
    return [Counted(role=ASSISTANT, content=None, tool_calls=calls), *results]


@pytest.mark.parametrize(
    ("pipeline", "make"),
    [
        (PromptPipeline().merge_consecutive(role=USER, sep="\n"), chat),
        (PromptPipeline().merge_consecutive(sep="\n", out_role=USER), chat),
        (PromptPipeline().merge_consecutive(joiner=lambda ms: ms[0].content, out_role=USER), chat),
        (PromptPipeline().apply(lambda m, ctx: ctx.is_last_of_type), chat),
        (PromptPipeline().ensure_start(role=FUNCTION).remove(role=USER).translate_role(to=USER), chat),
        (PromptPipeline().wrap(prefix="a").macro_apply(lambda ms, _: ms).conversation_fmt(), chat),
        (PromptPipeline().conversation_dict(), chat),
        (PromptPipeline().ensure_bound_function_calls().function_call_fmt(lambda c: c.id), bound_calls),
    ],
)
def test_twice_the_messages_are_twice_the_work(pipeline: PromptPipeline[Any], make: Any) -> None:
    reads = []
    for n in (400, 800):
        msgs = make(n)
        Counted.reads = 0
        pipeline(msgs)
        reads.append(Counted.reads)
    assert reads[0] >= 400
    assert reads[1] <= 2.05 * reads[0]


def test_ten_thousand_messages_of_one_role() -> None:
    msgs = [user(str(i)) for i in range(10_000)]
    merged = PromptPipeline().merge_consecutive(role=USER, sep=" ")(msgs)
    assert merged == [user(" ".join(map(str, range(10_000))))]
