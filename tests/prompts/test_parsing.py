"""The parser's guarantees, over all formats: any chunking gives the same, no marker leaks, nothing is lost."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from fuzzing import FORMAT_NAMES, Case, check, markers_of, pieces, random_case, replies, run, seen
from hypothesis import given, settings
from hypothesis import strategies as st

from kani_lite import AIFunction, ChatMessage
from kani_lite.events import ReasoningDelta, TextDelta
from kani_lite.prompts import FORMATS, HERMES, PLAIN, Format, Kind, Parser, Region, parse
from kani_lite.prompts.formats import COMMAND_R, GEMMA, GPT_OSS, LLAMA3, QWEN3_CODER


def calls(message: ChatMessage) -> list[tuple[str, str]]:
    return [(c.function.name, c.function.arguments) for c in message.tool_calls or []]


@given(st.data())
def test_the_guarantees(data: st.DataObject) -> None:
    fmt = FORMATS[data.draw(st.sampled_from(FORMAT_NAMES))]
    text = data.draw(replies(fmt))
    check(Case(fmt, text, data.draw(pieces(text)), data.draw(st.booleans()), data.draw(st.booleans())))


def test_a_short_fuzz() -> None:
    """`make fuzz` runs a million of these."""
    rng = Random(1)
    for _ in range(3000):
        check(random_case(rng))


@given(st.text(st.characters(exclude_characters="<[`A{"), max_size=200))
def test_text_without_markers_stays_text(text: str) -> None:
    for fmt in FORMATS.values():
        assert parse(replace(fmt, inside=None), text).text == text.strip()


def test_reasoning_is_apart_from_the_text() -> None:
    text = "<think>\nIt is late.\n</think>\n\nGood night."
    parser, deltas = run(HERMES, [text])
    assert seen(deltas) == [ReasoningDelta("It is late."), TextDelta("Good night.")]
    assert [str(p) or p.content for p in parser.message().parts if not isinstance(p, str)] == ["It is late."]
    assert parser.message().text == "Good night."

    dropped, deltas = run(HERMES, [text], keep_reasoning=False)
    assert dropped.message().content == "Good night."
    assert ReasoningDelta("It is late.") in deltas


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("<|im_start|>assistant\n<think>\n", Kind.REASONING),
        ("<|im_start|>assistant\n", None),
        ("what does <think> mean?<|im_end|>\n<|im_start|>assistant\n", None),
    ],
)
def test_a_prompt_may_open_the_reasoning(prompt: str, kind: Kind | None) -> None:
    inside = HERMES.after(prompt).inside
    assert (inside and inside.kind) == kind


def test_a_prompt_may_end_in_a_header() -> None:
    reply = "<|channel|>final<|message|>Hello<|return|>"
    fmt = GPT_OSS.after("<|start|>user<|message|>hi<|end|><|start|>assistant")
    assert fmt.inside is not None
    assert fmt.inside.kind is Kind.HEADER
    assert parse(fmt, reply).text == "Hello"
    assert parse(fmt, "no header at all").text == "no header at all"
    assert GPT_OSS.after("<|start|>user<|message|>hi<|end|>").inside is None
    for broken in ("<|channel|><|call|>", "<|channel|>final", "<|start|>assistant<|channel|>"):
        assert parse(GPT_OSS, broken).text == parse(fmt, broken).text == ""


def test_reasoning_that_prompt_and_model_both_open() -> None:
    fmt = HERMES.after("assistant\n<think>")
    message = parse(fmt, "<think>hm</think>yes")
    assert ([p.content for p in message.parts if not isinstance(p, str)], message.text) == (["hm"], "yes")


def test_what_may_become_a_marker_is_held_back() -> None:
    parser = Parser(HERMES)
    assert parser.feed("1 <") == [TextDelta("1")]
    assert parser.feed("tool_") == []
    assert parser.feed("box>") == [TextDelta(" <tool_box>")]
    assert parser.feed(" 2 <") == [TextDelta(" 2")]
    assert parser.finish() == [TextDelta(" <")]


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_part_of_a_marker_at_the_end_is_no_text(name: str) -> None:
    fmt = replace(FORMATS[name], inside=None)
    for marker in markers_of(fmt):
        for size in range(2, len(marker) * (marker[0] in "<[")):
            parser, _ = run(fmt, [f"So: {marker[:size]}"])
            assert parser.message().text == "So:"
            assert parser.raw == f"So: {marker[:size]}"


def test_what_people_write_too_stays() -> None:
    for text in ("```py\nx\n```", "```tool", "Act"):
        assert parse(GEMMA, text).text == text
        assert parse(COMMAND_R, text).text == text


def test_a_call_cut_off_is_not_lost() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"city": "Par'
    message = run(HERMES, [text])[0].message()
    assert message.text is None
    assert calls(message) == [("", '{"name": "f", "arguments": {"city": "Par')]


def test_what_a_limit_cut_off_is_not_repaired() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "x"'
    for cut, expected in ((False, ("f", '{"a": "x"}')), (True, ("", text.removeprefix("<tool_call>")))):
        parser = Parser(HERMES)
        parser.feed(text)
        parser.finish(cut=cut)
        assert calls(parser.message()) == [expected]


def test_a_call_that_was_not_closed_ends_where_the_next_begins() -> None:
    message = parse(HERMES, '<tool_call><tool_call>{"name": "f"}\n<tool_call>{"name": "g"}</tool_call>')
    assert calls(message) == [("f", "{}"), ("g", "{}")]


def test_json_that_is_an_answer_streams() -> None:
    parser = Parser(LLAMA3)
    assert parser.feed('{"name": ') == []
    assert parser.finish() == [TextDelta('{"name":')]
    parser = Parser(LLAMA3)
    assert parser.feed('{"city": "Par') == [TextDelta('{"city": "Par')]
    assert parser.feed('is"}') == [TextDelta('is"}')]


def test_json_that_is_a_call_is_no_text() -> None:
    for text in ('{"name": "f", "parameters": {"a": 1}}<|eom_id|>', '[{"name": "f", "arguments": {"a": 1}}]'):
        message = parse(LLAMA3, text)
        assert (message.text, calls(message)) == (None, [("f", '{"a": 1}')])
    mixed = '{"name": "f", "parameters": {}} {"x": 1}'
    assert parse(LLAMA3, mixed).text == mixed


def test_types_come_from_the_schema() -> None:
    def f(text: str, count: int, flag: bool, items: list[int], pick: int | str) -> None:
        """Does it."""

    values = {"text": "12", "count": "12", "flag": "True", "items": "[1, 2]", "pick": "7"}
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    message = parse(QWEN3_CODER, f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>", [AIFunction(f)])
    [(_, arguments)] = calls(message)
    assert json.loads(arguments) == {"text": "12", "count": 12, "flag": True, "items": [1, 2], "pick": "7"}


def test_a_format_of_ones_own() -> None:
    fmt = Format("mine", (Region(Kind.CALL, "CALL(", (")END",)), Region(Kind.REASONING, "/*", ("*/",))))
    message = parse(fmt, '/* why not */ Sure. CALL({"name": "f", "arguments": {"a": ")"}})END ok')
    assert (message.text, calls(message)) == ("Sure. ok", [("f", '{"a": ")"}')])


ADVERSARIAL = ["<", "<tool_cal", " ", "<tool_call>", "{", "[", "<think>", "</tool_call>", "<｜tool", "\\\"'{'"]


@pytest.mark.parametrize("unit", ADVERSARIAL)
def test_the_work_is_linear(unit: str) -> None:
    """Counted in lines of the parser that ran, which no noise of the machine changes."""

    def lines(fmt: Format, size: int) -> int:
        text, count = unit * (size // len(unit)), 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            count += event == "line" and "prompts" in frame.f_code.co_filename
            return trace

        parser, previous = Parser(fmt), sys.gettrace()
        sys.settrace(trace)
        try:
            for at in range(0, len(text), 5):
                parser.feed(text[at : at + 5])
            parser.finish()
        finally:
            sys.settrace(previous)
        return count

    for fmt in (PLAIN, HERMES, LLAMA3):
        assert lines(fmt, 3_000) < 2.6 * lines(fmt, 1_500) + 500


@settings(max_examples=30)
@given(st.data())
def test_a_reply_is_kept_whatever_it_is(data: st.DataObject) -> None:
    """A call that is malformed is a call with the text that the model wrote: never dropped, never shown."""
    body = data.draw(st.text(st.characters(exclude_characters="<>"), min_size=1).filter(str.strip))
    message = parse(HERMES, f"<tool_call>{body}</tool_call>")
    assert message.text is None
    assert message.tool_calls


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llama3", '{"name": "f", "parameters": {}} <|eot_i', [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f"}\n</tool_call', [("f", "{}")]),
        ("gpt-oss", '<|channel|>commentary to=functions.f<|message|>{"a": 1}<|cal', [("f", '{"a": 1}')]),
        ("mistral", '[TOOL_CALLS] [{"name": "f"}]</', [("f", "{}")]),
    ],
)
def test_part_of_an_end_marker_spoils_no_call(name: str, text: str, expected: list[tuple[str, str]]) -> None:
    message = parse(FORMATS[name], text)
    assert (message.text, calls(message)) == (None, expected)


def test_an_argument_may_hold_what_opens_reasoning() -> None:
    message = parse(HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x <think> y"}}</tool_call>')
    assert calls(message) == [("f", '{"a": "x <think> y"}')]


def test_a_call_cut_off_in_its_header() -> None:
    message = parse(GPT_OSS, "<|channel|>commentary to=functions.f <|constrain|>json")
    assert (message.text, [name for name, _ in calls(message)]) == (None, ["f"])


def test_prose_is_no_call() -> None:
    for fmt, text in ((COMMAND_R, "A call to Action: buy bread."), (FORMATS["phi-4-mini"], "import functools[1]")):
        assert parse(fmt, text).text == text
    assert parse(FORMATS["phi-4-mini"], "<think>x</think>hi").text == "hi"


def test_leading_space_does_not_change_what_json_is() -> None:
    text = " " * 299 + '{"x": 1, "name": "f", "arguments": {}}'
    for chunks in ([text], list(text)):
        parser, _ = run(LLAMA3, chunks)
        assert (parser.message().text, parser.calls) == (text.strip(), [])
