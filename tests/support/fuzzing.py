"""Random replies in each format, for the property tests and `make fuzz`."""

from __future__ import annotations

from hypothesis import strategies as st

from kani_lite.prompts import FORMATS, Format

FORMAT_NAMES = sorted(FORMATS)
_CALLS = [
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
    "{",
    "[",
]


def markers_of(fmt: Format) -> list[str]:
    """All markers of a format."""
    ends = [end for region in fmt.regions for end in region.ends]
    return sorted({*(r.start for r in fmt.regions), *ends, *fmt.dropped, *fmt.body_ends})


def replies(fmt: Format) -> st.SearchStrategy[str]:
    """Markers, parts of markers, calls good and bad, and any text, in any order."""
    markers = markers_of(fmt)
    parts = [st.text(max_size=8), st.sampled_from(_CALLS), st.sampled_from([" ", "\n", "<", "[", "`", "a b"])]
    if markers:
        whole = st.sampled_from(markers)
        parts += [whole, whole, st.builds(lambda m, size: m[:size], whole, st.integers(1, 12))]
    return st.lists(st.one_of(parts), max_size=12).map("".join)


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """`text`, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
