"""Over random chats and random pipelines: nothing that was given is changed, and the same comes out twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kani_lite import ChatMessage, ChatRole, ReasoningPart, TextPart, ToolCall
from kani_lite.exceptions import PromptError
from kani_lite.prompts.pipeline import PromptPipeline
from kani_lite.prompts.types import ApplyContext

Pipeline = PromptPipeline[Any]
AddStep = Callable[[Pipeline], Pipeline]


def in_place(msg: ChatMessage, ctx: ApplyContext) -> ChatMessage:
    """Changes its message in every way that a function may."""
    msg.role = ChatRole.USER if ctx.is_last_of_type else msg.role
    msg.extra["idx"] = ctx.idx
    if isinstance(msg.content, list):
        msg.content.append("!")
    if msg.tool_calls:
        msg.tool_calls.pop()
    return msg


def prepend(msgs: list[ChatMessage], functions: Any) -> list[ChatMessage]:
    return [SHOT, *msgs]


def join_parts(msgs: list[ChatMessage]) -> Any:
    parts = msgs[0].parts
    for msg in msgs[1:]:
        parts.extend(msg.parts)
    return parts


SHOT = ChatMessage.assistant(["shot", ReasoningPart(content="Hm.")], tool_calls=[])
texts = st.sampled_from(["", "a", "b\n", "é"])
roles = st.sampled_from(list(ChatRole))
ids = st.sampled_from(["1", "2", "3"])
parts = texts | texts.map(lambda t: TextPart(content=t)) | texts.map(lambda t: ReasoningPart(content=t))
calls = st.builds(lambda i, q: ToolCall.from_function("f", call_id_=i, q=q), ids, texts)
messages = st.builds(
    ChatMessage,
    role=roles,
    content=st.none() | texts | st.lists(parts, max_size=3),
    tool_calls=st.none() | st.lists(calls, max_size=2),
    tool_call_id=st.none() | ids,
    extra=st.dictionaries(texts, texts, max_size=1),
)
filters = st.fixed_dictionaries(
    {}, optional={"role": roles | st.lists(roles, max_size=3), "predicate": st.just(lambda m: bool(m.text))}
)


def step(make: Callable[..., Pipeline], *given: st.SearchStrategy[Any]) -> st.SearchStrategy[AddStep]:
    return st.builds(lambda *args: lambda pipeline: make(pipeline, *args), *given)


steps = st.one_of(
    step(lambda p, f, to: p.translate_role(to=to, **f), filters, roles),
    step(lambda p, f, a, b: p.wrap(prefix=a, suffix=b, **f), filters, texts, texts),
    step(lambda p, f, s, r: p.merge_consecutive(sep=s, out_role=r, **f), filters, texts, roles),
    step(lambda p, f, r: p.merge_consecutive(joiner=join_parts, out_role=r, **f), filters, roles),
    step(lambda p, s: p.function_call_fmt(lambda c: c.id, sep=s), texts),
    step(lambda p, f: p.remove(**f), filters),
    step(lambda p, f: p.ensure_start(**f), filters),
    step(lambda p: p.ensure_bound_function_calls(lambda i: f"id{i}")),
    step(lambda p, f: p.apply(in_place, **f), filters),
    step(lambda p: p.macro_apply(prepend)),
)
terminals = st.one_of(
    step(lambda p: p),
    step(lambda p, a, b: p.conversation_fmt(user_prefix=a, sep=b, assistant_suffix_if_last=b), texts, texts),
    step(lambda p: p.conversation_dict(content_transform=lambda m: m.parts)),
)


def run(pipeline: Pipeline, msgs: list[ChatMessage], **kwargs: Any) -> Any:
    try:
        return pipeline(msgs, **kwargs)
    except PromptError as e:
        return str(e)


@settings(max_examples=300)
@given(st.lists(messages, max_size=6), st.lists(steps, max_size=5), terminals, st.booleans())
def test_running_changes_nothing(
    msgs: list[ChatMessage], adders: list[AddStep], add_terminal: AddStep, for_measurement: bool
) -> None:
    pipeline: Pipeline = PromptPipeline()
    for add in [*adders, add_terminal]:
        pipeline = add(pipeline)
    before, before_shot, before_steps = copy.deepcopy(msgs), copy.deepcopy(SHOT), repr(pipeline)

    made = [run(pipeline, msgs, for_measurement=for_measurement) for _ in range(2)]
    made.append(run(pipeline, msgs, for_measurement=for_measurement, deepcopy=True))

    assert made[0] == made[1] == made[2]
    assert msgs == before
    assert before_shot == SHOT
    assert repr(pipeline) == before_steps
