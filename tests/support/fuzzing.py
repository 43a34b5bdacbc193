"""Random replies in each format, and what has to hold for them: for the property tests and `make fuzz`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import strategies as st

from kani_lite import AIFunction, ToolCall
from kani_lite.events import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.prompts import FORMATS, Format, Parser

BEFORE_PART = "§"  # says that a part of a marker at the end of a reply is there on purpose
FORMAT_NAMES = sorted(FORMATS)
_PIECES = [
    '{"name": "f", "arguments": {"a": 1}}',
    '[{"name": "f", "arguments": {}}, {"name": "g", "parameters": {"x": "y"}}]',
    "{'name': 'f', 'arguments': {'a': 1,}}",
    '{"name": "f", "arguments": {"a": "x"',
    "f[ARGS]{}",
    "f<｜tool▁sep｜>{}",
    "function<｜tool▁sep｜>f\n```json\n{}\n```",
    "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>",
    "print(f(a=1))",
    "analysis",
    "commentary to=functions.f",
    *["{", "[", " ", "\n", "<", "`", "a b", "é", "'", '"', "\\", "日本"],
]


def markers_of(fmt: Format) -> list[str]:
    """All markers of a format."""
    ends = [end for region in fmt.regions for end in region.ends]
    return sorted({*(r.start for r in fmt.regions), *ends, *fmt.dropped, *fmt.body_ends})


def replies(fmt: Format) -> st.SearchStrategy[str]:
    """Markers, parts of markers, calls good and bad, and any text, in any order."""
    parts = [st.text(max_size=8), st.sampled_from(_PIECES)]
    if markers := markers_of(fmt):
        whole = st.sampled_from(markers)
        parts += [whole, whole, st.builds(lambda m, size: m[:size], whole, st.integers(1, 12))]
    return st.lists(st.one_of(parts), max_size=12).map("".join)


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """`text`, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@dataclass(frozen=True)
class Case:
    """A reply, cut up, and how it is read. `expected`: the text and the calls that it must be."""

    format: Format = field(repr=False)
    text: str
    chunks: list[str]
    cut: bool = False
    functions: bool = False
    expected: tuple[str, list[tuple[str, dict[str, str]]]] | None = None


def _cut_up(rng: Random, text: str) -> list[str]:
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _said(rng: Random, fmt: Format, most: int) -> str:
    """Markers, calls and parts of both."""
    markers = markers_of(fmt) or ["<"]
    said = []
    for _ in range(rng.randrange(most)):
        piece = rng.choice(_PIECES) if rng.random() < 0.5 else rng.choice(markers)
        said.append(piece if rng.random() < 0.8 else piece[: rng.randrange(len(piece) + 1)])
    return "".join(said)


def random_case(rng: Random) -> Case:
    """The same without hypothesis, which is a hundred times as fast."""
    if rng.random() < 0.3:
        return written_case(rng)
    fmt = FORMATS[rng.choice(FORMAT_NAMES)]
    text = _said(rng, fmt, 10)
    if (special := [m for m in markers_of(fmt) if m[0] in "<["]) and rng.random() < 0.2:
        marker = rng.choice(special)
        text += BEFORE_PART + marker[: rng.randrange(2, len(marker))]
    return Case(fmt, text, _cut_up(rng, text), rng.random() < 0.3, rng.random() < 0.5)


def _json(name: str, arguments: dict[str, str], key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def _arguments(arguments: dict[str, str]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _python(name: str, arguments: dict[str, str]) -> str:
    return f"{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in arguments.items())})"


def qwen_xml(name: str, arguments: dict[str, str]) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


# how the models of a format write a call
WRITTEN: list[tuple[str, Callable[[str, dict[str, str]], str]]] = [
    ("json", lambda n, a: f"\n{_json(n, a)}"),
    ("hermes", lambda n, a: f"<tool_call>\n{_json(n, a)}\n</tool_call>"),
    ("qwen3-coder", qwen_xml),
    ("llama3", lambda n, a: f"\n{_json(n, a, 'parameters')}<|eot_id|>"),
    ("llama3", lambda n, a: f"<|python_tag|>{_json(n, a, 'parameters')}<|eom_id|>"),
    ("llama3", lambda n, a: f"<|python_tag|>{_python(n, a)}<|eom_id|>"),
    ("llama3", lambda n, a: f"\n[{_python(n, a)}]<|eot_id|>"),
    ("mistral", lambda n, a: f"[TOOL_CALLS] [{_json(n, a)}]</s>"),
    ("mistral", lambda n, a: f"[TOOL_CALLS]{n}[CALL_ID]abc[ARGS]{_arguments(a)}</s>"),
    ("deepseek-v3", lambda n, a: f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{_arguments(a)}<｜tool▁call▁end｜>"),
    (
        "deepseek-v3",
        lambda n, a: (
            f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{_arguments(a)}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
    ),
    (
        "gpt-oss",
        lambda n, a: f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{_arguments(a)}<|call|>",
    ),
    ("phi-4-mini", lambda n, a: f"<|tool_call|>[{_json(n, a)}]<|/tool_call|>"),
    ("phi-4-mini", lambda n, a: f"functools[{_json(n, a)}]<|end|>"),
    ("gemma", lambda n, a: f"```tool_code\nprint({_python(n, a)})\n```"),
    ("granite", lambda n, a: f"<|tool_call|>[{_json(n, a)}]<|end_of_text|>"),
    ("command-r", lambda n, a: f"Action: ```json\n[{_json(n, a, 'parameters')}]\n```<|END_OF_TURN_TOKEN|>"),
    ("command-r7b", lambda n, a: f"<|START_ACTION|>[{_json(n, a, 'parameters')}]<|END_ACTION|>"),
]


def written_case(rng: Random) -> Case:
    """A reply with calls as its models write them, whose arguments hold markers and quotes; it may be cut off."""
    name, write = rng.choice(WRITTEN)
    fmt, said = FORMATS[name], rng.choice(["", "", "Sure."])
    calls = []
    for _ in range(1 if "\n" in write("", {})[:1] else rng.randrange(1, 3)):
        values = [_said(rng, fmt, 6) for _ in "ab"]
        if write is qwen_xml:  # what ends a value for certain, and the space around it, can't be in it
            values = [re.sub(r"</?(function|parameter)[=>]", "</parameter> x", value).strip() for value in values]
        calls.append((rng.choice("fg"), dict(zip("ab", values, strict=True))))
    text = said + "".join(write(*call) for call in calls)
    if rng.random() < 0.3:
        text = text[: rng.randrange(len(text) + 1)]
        return Case(fmt, text, _cut_up(rng, text), True, True, (said, calls))
    return Case(fmt, text, _cut_up(rng, text), False, True, (said, calls))


def f(a: str = "", b: str = "") -> None:
    """The function of the random calls."""


def g(a: str = "", b: str = "") -> None:
    """Another one."""


FUNCTIONS = [AIFunction(f), AIFunction(g)]


def run(fmt: Format, chunks: Iterable[str], *, cut: bool = False, **kwargs: Any) -> tuple[Parser, list[Any]]:
    parser = Parser(fmt, **kwargs)
    deltas = [delta for chunk in chunks for delta in parser.feed(chunk)]
    return parser, deltas + parser.finish(cut=cut)


def seen(deltas: Iterable[Any]) -> list[Any]:
    """The events with neighbouring texts joined, and without the random ids of calls."""
    out: list[Any] = []
    for delta in deltas:
        match delta:
            case TextDelta(text) | ReasoningDelta(text):
                if out and isinstance(out[-1], type(delta)):
                    out[-1] = type(delta)(out[-1].text + text)
                else:
                    out.append(delta)
            case ToolCallStarted(index, _, name):
                out.append((index, name))
            case ToolCallDelta(index, arguments):
                out.append((index, arguments))
            case ToolCallFinished(index, call):
                out.append((index, call.function.name, call.function.arguments))
    return out


def check(case: Case) -> None:
    """Any chunking gives the same; no marker leaks; the deltas are the message; what was said is kept; a call is read
    as it was written, and one that was cut off is never run with less."""
    fmt, text, functions = case.format, case.text, FUNCTIONS if case.functions else None
    whole, events = run(fmt, [text], cut=case.cut, functions=functions)
    parser, again = run(fmt, case.chunks, cut=case.cut, functions=functions)
    assert seen(again) == seen(events)
    assert parser.raw == whole.raw == text
    message = parser.message()
    assert message.content == whole.message().content
    visible = "".join(d.text for d in again if isinstance(d, TextDelta))
    assert visible == (message.text or "")
    calls = message.tool_calls or []
    assert [d.call for d in again if isinstance(d, ToolCallFinished)] == calls
    check_markers(fmt, text, visible)
    if case.expected is not None:
        said, written = case.expected
        read = [(c.function.name, arguments) for c in calls if (arguments := _read(c)) is not None]
        assert read == written[: len(read)]
        assert case.cut or (len(read), len(calls), visible) == (len(written), len(written), said)


def _read(call: ToolCall) -> Any:
    try:
        return json.loads(call.function.arguments)
    except ValueError:
        return None


def check_markers(fmt: Format, text: str, visible: str) -> None:
    """No marker is in the text, nor a part of one at its end."""
    markers = sorted(markers_of(fmt), key=len, reverse=True)
    # taking a marker out may bring the two halves of another together
    glued = re.sub("|".join(map(re.escape, markers)), "", text) if markers else ""
    for marker in markers:
        # a code fence and the word before an action are text too, where nothing was opened
        if marker[0] in "<[":
            assert marker not in visible or marker in glued
            for size in range(2, len(marker)):
                assert not (text.endswith(part := BEFORE_PART + marker[:size]) and visible.endswith(part))
