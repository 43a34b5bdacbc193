"""Random replies in each format, and what has to hold for them: for the property tests and `make fuzz`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random
from typing import Any

from hypothesis import strategies as st

from kani_lite.events import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.prompts import FORMATS, Format, Parser

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


def random_case(rng: Random) -> tuple[Format, str, list[str]]:
    """The same without hypothesis, which is a hundred times as fast: a format, a reply in it, and the reply cut up."""
    fmt = FORMATS[rng.choice(FORMAT_NAMES)]
    markers = markers_of(fmt) or ["<"]
    said = []
    for _ in range(rng.randrange(10)):
        piece = rng.choice(_PIECES) if rng.random() < 0.5 else rng.choice(markers)
        said.append(piece if rng.random() < 0.8 else piece[: rng.randrange(len(piece) + 1)])
    text = "".join(said)
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
    return fmt, text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def run(fmt: Format, chunks: Iterable[str], **kwargs: Any) -> tuple[Parser, list[Any]]:
    parser = Parser(fmt, **kwargs)
    deltas = [delta for chunk in chunks for delta in parser.feed(chunk)]
    return parser, deltas + parser.finish()


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


def check(fmt: Format, text: str, chunks: list[str]) -> None:
    """Any chunking gives the same; no marker leaks; the deltas are the message; what was said is kept."""
    whole, events = run(fmt, [text])
    cut, again = run(fmt, chunks)
    assert seen(again) == seen(events)
    assert cut.raw == whole.raw == text
    message = cut.message()
    assert message.content == whole.message().content
    visible = "".join(d.text for d in again if isinstance(d, TextDelta))
    assert visible == (message.text or "")
    assert [d.call for d in again if isinstance(d, ToolCallFinished)] == (message.tool_calls or [])
    markers = sorted(markers_of(fmt), key=len, reverse=True)
    # taking a marker out may bring the two halves of another together
    glued = re.sub("|".join(map(re.escape, markers)), "", text) if markers else ""
    for marker in markers:
        # a code fence and the word before an action are text too, where nothing was opened
        assert marker not in visible or marker in glued or marker[0] not in "<["
