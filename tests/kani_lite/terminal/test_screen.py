from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from kani_lite import ChatMessage, ToolCall
from kani_lite.events import (
    EndReason,
    Event,
    MessageStarted,
    ReasoningDelta,
    RoundEnd,
    TextDelta,
    ToolCallFinished,
    ToolResult,
    Usage,
)
from kani_lite.terminal.replies import Reply
from kani_lite.terminal.screen import OneLine, ReplyView, Screen, call_text


@pytest.fixture(autouse=True)
def forty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "41")


def calculate(expression: str, id_: str = "1") -> ToolCall:
    return ToolCall.from_function("calculate", call_id_=id_, expression=expression)


def result(call: ToolCall, text: str) -> ToolResult:
    return ToolResult(call, ChatMessage.function("calculate", text, call.id))


def shown(*events: Event, escapes: bool = False) -> str:
    out = io.StringIO()
    view = ReplyView(Screen(out, escapes))
    for event in events:
        view.show(event)
    view.finish()
    return out.getvalue()


def test_text_streams_without_the_white_space_around_it() -> None:
    assert (
        shown(TextDelta(" \n"), TextDelta("one "), TextDelta("two\n\n"), TextDelta("three \n")) == "one two\n\nthree\n"
    )


def test_nothing_said_shows_nothing() -> None:
    assert shown(MessageStarted(), TextDelta(" "), RoundEnd(EndReason.DONE)) == ""


def test_a_call_and_its_result_share_a_line() -> None:
    call = calculate("37 * 12")
    events: list[Event] = [
        TextDelta("Let me see."),
        ToolCallFinished(0, call),
        result(call, "444"),
        TextDelta("It is 444."),
    ]
    assert shown(*events) == 'Let me see.\ncalculate(expression="37 * 12") -> 444\nIt is 444.\n'


def test_several_calls_have_a_line_each() -> None:
    one, two = calculate("1", "a"), calculate("2", "b")
    events: list[Event] = [ToolCallFinished(0, one), ToolCallFinished(1, two), result(one, "1"), result(two, "2")]
    assert shown(*events) == 'calculate(expression="1") -> 1\ncalculate(expression="2") -> 2\n'
    assert shown(*events[:2], events[3], events[2]).splitlines()[1:] == [
        'calculate(expression="2") -> 2',
        'calculate(expression="1") -> 1',
    ]


def test_what_is_dim_fits_a_line() -> None:
    call = calculate("1 + " * 20)
    out = shown(
        ReasoningDelta("Hm,\n let me "), ReasoningDelta(" think " * 9), ToolCallFinished(0, call), result(call, "4")
    )
    assert out == 'Hm, let me think think think think thin…\ncalculate(expression="1 + 1 + 1 + 1 + 1…\n'


def test_dim_text_is_dim_and_safe() -> None:
    call = calculate("\x1b[2J")
    out = shown(ReasoningDelta("a\x1b]0;x\x07"), ToolCallFinished(0, call), result(call, "\x9b1m"), escapes=True)
    assert out.startswith("\x1b[2ma\\x1b]0;x\\x07\x1b[0m\n")
    assert set(re.findall(r"\x1b\[\dm|[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)) == {"\x1b[2m", "\x1b[0m"}


def test_a_limit_is_named() -> None:
    assert shown(RoundEnd(EndReason.TOOL_ROUNDS)) == "(the limit of tool rounds was reached)\n"


def test_arguments_that_are_no_json_are_shown_as_they_are() -> None:
    call = calculate("1")
    call.function.arguments = "{broken"
    assert call_text(call) == "calculate({broken)"


@given(st.lists(st.text(max_size=20), max_size=6), st.integers(2, 30))
def test_one_line_fits_in_any_chunking(chunks: list[str], width: int) -> None:
    line = OneLine(width)
    out = "".join(line.feed(chunk) for chunk in chunks)
    assert get_cwidth(out) <= width
    assert "\n" not in out
    assert out == OneLine(width).feed("".join(chunks))


def test_status_says_what_is_known() -> None:
    reply = Reply()
    assert reply.status(2048) == ""
    reply.take(Usage(100, 23))
    assert reply.status(2048) == "123 / 2048 tokens"
    reply.take(Usage(150, 45, 98, 1.0))
    assert reply.status(2048) == "195 / 2048 tokens · 98 from cache · 45 tokens/s"
