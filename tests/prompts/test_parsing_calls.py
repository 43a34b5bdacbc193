"""Calls that are hard to tell from what is around them: markers in strings, or none at all; cut off; in thoughts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fuzzing import FUNCTIONS, WRITTEN, qwen_xml, run

from kani_lite import ChatMessage, ReasoningPart
from kani_lite.prompts import FORMATS, HERMES
from kani_lite.prompts.calls import MOST_CALLS
from kani_lite.prompts.formats import GEMMA, JSON, LLAMA3, MISTRAL, QWEN3_CODER
from kani_lite.prompts.parsing import parse


def calls(message: ChatMessage) -> list[tuple[str, str]]:
    return [(c.function.name, c.function.arguments) for c in message.tool_calls or []]


def read(name: str, text: str, *, cut: bool = False, offered: bool = True) -> tuple[str, str, list[tuple[str, str]]]:
    """The reasoning, the text and the calls, which are the same however the reply is cut up."""
    read = [list(_read(name, chunks, cut, offered)) for chunks in ([text], list(text), [text[:20], text[20:]])]
    assert read[0] == read[1] == read[2]
    return tuple(read[0])  # type: ignore[return-value]  # three of them


def _read(name: str, chunks: list[str], cut: bool, offered: bool) -> Iterator[Any]:
    message = run(FORMATS[name], chunks, cut=cut, functions=FUNCTIONS if offered else None)[0].message()
    yield "".join(p.content for p in message.parts if isinstance(p, ReasoningPart))
    yield message.text or ""
    yield calls(message)


# ==== markers inside an argument ====

TAGS = [
    "the tag </tool_call> ends it",
    "[TOOL_CALLS] <tool_call> <think> </think>",
    "<|eot_id|> and <|python_tag|>, <|end|>, <|call|>, <|channel|>, <|start|>",
    "<|END_ACTION|> ```\n``` </s> <｜tool▁call▁end｜><｜tool▁calls▁end｜> <｜tool▁sep｜>",
    '"quoted" </tool_call> \\" \\\\',
    "}]} </tool_call> {[{",
    "<tool_cal",
]


@pytest.mark.parametrize("value", TAGS)
@pytest.mark.parametrize(("name", "write"), WRITTEN)
def test_a_marker_in_an_argument_is_part_of_it(name: str, write: Any, value: str) -> None:
    arguments = {"a": value, "b": "x"}
    assert read(name, f"So:{write('f', arguments)}") == ("", "So:", [("f", json.dumps(arguments, ensure_ascii=False))])


@pytest.mark.parametrize(
    "value",
    ["see </parameter> and </function> </tool_call>", "</parameter", "<parameters> </tool_call>", "</function>"],
)
def test_a_parameter_ends_where_the_next_begins_or_its_function_ends(value: str) -> None:
    arguments = {"a": value, "b": "x"}
    assert read("qwen3-coder", qwen_xml("f", arguments) + "Bye.") == ("", "Bye.", [("f", json.dumps(arguments))])


def test_a_parameter_that_is_never_closed() -> None:
    broken = "<tool_call><function=f><parameter=a>x</function></tool_call>"
    assert read("qwen3-coder", broken + "Bye.") == ("", "Bye.", [("f", '{"a": "x"}')])
    assert read("qwen3-coder", broken + qwen_xml("g", {"b": "y"}))[2] == [("f", '{"a": "x"}'), ("g", '{"b": "y"}')]
    text = "<tool_call><function=f><parameter=a>x</parameter></tool_call>Bye."
    assert read("qwen3-coder", text) == ("", "Bye.", [("f", '{"a": "x"}')])


def test_a_string_that_is_never_closed() -> None:
    """The marker ended the call after all: what follows is not swallowed."""
    broken = '{"name": "f", "arguments": {"a": "the tag'
    assert read("hermes", f"<tool_call>{broken}</tool_call> Bye.") == ("", "Bye.", [("", broken)])
    good = '<tool_call>{"name": "g"}</tool_call>'
    assert read("hermes", f"<tool_call>{broken}</tool_call>{good}") == ("", "", [("", broken), ("g", "{}")])
    assert read("hermes", f'<tool_call>{broken}</tool_call> He said "hi". {good}') == (
        "",
        'He said "hi".',
        [("", broken), ("g", "{}")],
    )


def test_a_string_that_a_limit_cut_off_goes_on_to_the_end() -> None:
    text = '{"name": "f", "arguments": {"a": "<tool_call>{"name": "g"}'
    broken = text.replace('"g"', "'g'").replace("\"name\": 'g'", "'name': 'g'")
    assert read("hermes", f"<tool_call>{broken}", cut=True) == ("", "", [("f", broken)])
    xml = "<tool_call><function=f><parameter=a>see </function></tool_call> and"
    assert [name for name, _ in read("qwen3-coder", xml, cut=True)[2]] == ["f"]
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(read("qwen3-coder", xml, cut=True)[2][0][1])


def test_text_around_calls_streams_at_once() -> None:
    """A call is not held back beyond its end marker, nor is text behind it."""
    parser, deltas = run(HERMES, ['<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}'])
    assert len(deltas) == 3
    assert not parser.feed("")
    for fmt, text in ((HERMES, '<tool_call>{"name": "f"}</tool_call>'), (MISTRAL, "[TOOL_CALLS]f[ARGS]{}</s>")):
        parser = type(parser)(fmt)
        assert len(parser.feed(text)) == 3


# ==== calls without markers ====

CALL = '{"name": "f", "arguments": {"a": "x"}}'
F = [("f", '{"a": "x"}')]


@pytest.mark.parametrize("name", ["llama3", "json", "gemma", "phi-4-mini"])
def test_a_bare_call_that_was_cut_off(name: str) -> None:
    cut = '{"name": "g", "arguments": {"b": "y'
    assert read(name, cut, cut=True) == ("", "", [("g", cut)])
    assert read(name, cut, cut=True, offered=False) == ("", cut, [])
    for before in (CALL, f"{CALL}; ", f"{CALL}\n", f"[{CALL}, "):
        assert read(name, before + cut, cut=True) == ("", "", [*F, ("g", cut)])
    assert read(name, f'{CALL}; {{"na', cut=True) == ("", "", [*F, ("", '{"na')])
    assert read(name, f'So:\n{CALL}; {{"na', cut=True) == ("", "So:", [*F, ("", '{"na')])
    assert read(name, f"[{CALL},", cut=True) == ("", "", F)
    assert read(name, f"```json\n{cut}", cut=True) == ("", "", [("g", cut)])
    assert read(name, f"```json\n{CALL}\n``", cut=True) == ("", "", F)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "arguments": {"a": "x',  # of no function on offer
        '{"answer": {"name": "f"',
        '{"name": "f',  # the name may go on
        f"{CALL} Now I w",
        f'{CALL} {{"x": 1',
        "{",
    ],
)
def test_what_is_no_call_stays_text_when_it_is_cut_off(text: str) -> None:
    assert read("llama3", text, cut=True) == ("", text, [])


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_python_lists(name: str) -> None:
    for text in ('[ f(a="x")]', '[\n  f(\n  a="x")\n]', '[f (a="x")]', '```\n[f(a="x")]\n```'):
        assert read(name, text) == ("", "", F)
    for cut in ("[f(a='x'), g(b='\"]", '[f(a="x"), g(', "[f(a='x'),\n g(b=[(1, ')'), "):
        rest = cut[cut.index("g(") :].strip()
        assert read(name, cut, cut=True) == ("", "", [*F, ("g", rest)])
    assert read(name, "[f(a='x'),", cut=True) == ("", "", F)
    assert read(name, "[f(a='x'), g", cut=True) == ("", "", [*F, ("", "g")])
    assert read(name, "[f(a='", cut=True) == ("", "", [("f", "[f(a='")])
    for text in ("[ f of x ]", "[other(a='", "[\n1, 2]", "[f(a=b), g("):
        assert read(name, text, cut=True)[1] == text


def test_a_code_fence_around_a_call() -> None:
    for fmt in (LLAMA3, JSON, GEMMA):
        for text in (f"```json\n{CALL}\n```", f"```\n[{CALL}]\n```", f"  ```json{CALL}```\n"):
            assert read(fmt.name, text) == ("", "", F)
        for text in ('```json\n{"a": 1}\n```', "```jsonl\nx\n```", f"```json\n{CALL}\n```\nis a call.", "```", "`x`"):
            assert read(fmt.name, text) == ("", text, [])


def test_calls_after_the_text() -> None:
    """From the beginning of a line to the end of the reply, of functions on offer."""
    assert read("json", f"So:\n\n{CALL}\n{CALL}") == ("", "So:", F * 2)
    assert read("llama3", f"So:\n  [{CALL}]<|eot_id|>") == ("", "So:", F)
    assert read("llama3", 'So:\n[1]\n[f(a="x")]<|eot_id|>') == ("", "So:\n[1]", F)
    for text in (
        f"So: {CALL}",
        f"So:\n{CALL} is it.",
        f"So:\n```\n{CALL}\n```",
        'So:\n{"name": "Ada", "arguments": {}}',
        '{"a": [\n{"name": "f", "arguments": {}}\n]}',
        "So:\n[other(a=1)]",
        'So:\n```\n[f(a="x")]\n```',
    ):
        assert read("llama3", text) == ("", text, [])
    assert read("json", f"So:\n{CALL}", offered=False) == ("", f"So:\n{CALL}", [])


def test_a_marker_in_json_that_is_text_after_all() -> None:
    assert read("llama3", '{"answer": "<|eot_id|>!"}') == ("", '{"answer": "!"}', [])
    assert read("llama3", '{"name": "<|eot_id|>!"}') == ("", '{"name": "!"}', [])


# ==== calls in the reasoning ====

TAGGED = f"<tool_call>{CALL}</tool_call>"


def test_a_call_in_reasoning_that_never_ends() -> None:
    assert read("hermes", f"<think>Hm. {TAGGED}") == ("Hm.", "", F)
    assert read("hermes", f"<think>Hm.\n{TAGGED}\n{TAGGED}Bye.") == ("Hm.", "Bye.", F * 2)
    assert read("hermes", f"<think>Hm. {TAGGED[:-20]}", cut=True) == ("Hm.", "", [("f", TAGGED[11:-20])])
    block = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    assert read("deepseek-r1", f"Hm.{block}") == ("Hm.", "", [("f", "{}")])
    assert read("hermes", f"<think>a {TAGGED} <think>b {TAGGED}") == ("ab", "", F * 2)


@pytest.mark.parametrize(
    "thought", [f"I write {TAGGED} now", "I could write <tool_call> there", "or <|im_end|> <think>"]
)
def test_a_call_in_reasoning_that_ends_is_a_thought(thought: str) -> None:
    assert read("hermes", f"<think>{thought}</think>Yes.") == (thought.replace(" <think>", ""), "Yes.", [])


def test_what_is_no_call_in_reasoning_that_never_ends() -> None:
    for thought in ("I could write <tool_call> there", "<tool_call>{}</tool_call>", TAGGED.replace('"f"', '"other"')):
        assert read("hermes", f"<think>{thought}") == (thought, "", [])
    assert read("hermes", f"<think>{TAGGED}", offered=False) == (TAGGED, "", [])


# ==== all of it in linear time ====

XML = "<tool_call><function=f><parameter=a>"
ADVERSARIAL = [
    ("hermes", '<tool_call>["</tool_call>'),
    ("hermes", '<tool_call>["</tool_call>,'),
    ("hermes", '</tool_call><tool_call>",["'),
    ("hermes", '<tool_call>{"a": "\\'),
    ("hermes", "<think><tool_call></tool_call>"),
    ("hermes", '<think><tool_call>{"name": "f"}</tool_call>'),
    ("qwen3-coder", XML),
    ("qwen3-coder", f"{XML}</tool_call>"),
    ("qwen3-coder", "<tool_call><function=f><parameter=</tool_call>"),
    ("qwen3-coder", f"{XML}</parameter>   "),
    ("llama3", "\n{"),
    ("llama3", '\n{"name": "f"'),
    ("llama3", '\n{"name": "f", "arguments": {}} x'),
    ("llama3", '["<|eot_id|>'),
    ("gemma", '```tool_code["```'),
]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("name", "unit"), ADVERSARIAL)
def test_the_work_is_linear(name: str, unit: str, cut: bool) -> None:
    """Counted in lines of the parser that ran, which no noise of the machine changes."""

    def lines(repeats: int) -> int:
        count = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            count += event == "line" and "prompts" in frame.f_code.co_filename
            return trace

        text, previous = unit * repeats, sys.gettrace()
        sys.settrace(trace)
        try:
            for chunk in (len(text), 7):
                chunks = [text[at : at + chunk] for at in range(0, len(text), chunk)]
                run(FORMATS[name], chunks, cut=cut, functions=FUNCTIONS)
        finally:
            sys.settrace(previous)
        return count

    assert lines(80) < 2.6 * lines(40) + 500


def test_a_format_without_functions_reads_markers_in_strings_too() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>'
    assert calls(run(QWEN3_CODER, [text])[0].message()) == [("f", '{"a": "</tool_call>"}')]


@pytest.mark.parametrize("unit", ["<tool_call>{x</tool_call>", '<tool_call>{"name": "a"}</tool_call>'])
def test_more_calls_than_a_reply_has_are_told_as_one(unit: str) -> None:
    told = parse(HERMES, unit * (MOST_CALLS + 3)).tool_calls or []
    assert len(told) == MOST_CALLS + 1
    body = unit.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert told[-1].function.arguments == "\n".join([body] * 3)  # nothing of it is lost
    assert len(parse(HERMES, unit * MOST_CALLS).tool_calls or []) == MOST_CALLS
