"""Results as message content, and truncation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from kani_lite.functions import result_to_content, truncate_text
from kani_lite.messages import TextPart

EXAMPLE = "aaa bbb. ccc ddd\n\neee fff"


@pytest.mark.parametrize(
    ("text", "max_len", "expected"),
    [
        (EXAMPLE, 25, EXAMPLE),
        (EXAMPLE, 20, "aaa bbb. ccc ddd..."),
        (EXAMPLE, 19, "aaa bbb. ccc ddd..."),
        (EXAMPLE, 16, "aaa bbb..."),
        (EXAMPLE, 5, "aa..."),
        ("one\ntwo\nthree", 11, "one\ntwo..."),
        ("one, two, three four", 14, "one, two..."),
        ("one two three", 11, "one two..."),
        ("\n\nabcdefghij", 8, "\n\nabc..."),
        ("abcdef", 4, "a..."),
        ("abcdef", 3, "abc"),
        ("abcdef", 1, "a"),
        ("abcdef", 0, ""),
        ("abcdef", -2, ""),
        ("", 0, ""),
    ],
)
def test_truncate_text_cuts_where_the_text_pauses(text: str, max_len: int, expected: str) -> None:
    assert truncate_text(text, max_len) == expected


@given(st.text(alphabet="ab.,\n "), st.integers(min_value=0, max_value=40))
def test_truncated_text_fits_and_is_a_prefix(text: str, max_len: int) -> None:
    cut = truncate_text(text, max_len)
    assert len(cut) <= max_len
    if len(text) <= max_len:
        assert cut == text
    elif max_len > 3:
        assert cut.endswith("...")
        assert text.startswith(cut[:-3])
    else:
        assert cut == text[:max_len]


@given(st.text(alphabet="ab.,\n "), st.integers(min_value=4, max_value=40))
def test_the_longest_prefix_of_the_coarsest_separator_wins(text: str, max_len: int) -> None:
    if len(text) <= max_len:
        return
    for separator in ("\n\n", "\n", ". ", ", ", " "):
        chunks = text.split(separator)
        prefixes = [separator.join(chunks[:i]) for i in range(1, len(chunks))]
        fitting = [prefix for prefix in prefixes if len(prefix) + 3 <= max_len]
        if fitting and fitting[-1].strip():
            assert truncate_text(text, max_len) == fitting[-1] + "..."
            return
    assert truncate_text(text, max_len) == text[: max_len - 3] + "..."


class Weather(BaseModel):
    city: str
    degrees: float


class Odd:
    def __repr__(self) -> str:
        return "odd"


def test_values_become_text() -> None:
    assert result_to_content("as is") == "as is"
    assert result_to_content(None) == "None"
    assert result_to_content(1.5) == "1.5"
    assert result_to_content(Weather(city="Köln", degrees=3)) == '{"city":"Köln","degrees":3.0}'
    assert result_to_content({"city": "Köln"}) == '{"city": "Köln"}'
    assert result_to_content([1, "a"]) == '[1, "a"]'
    assert result_to_content([Odd()]) == "[odd]"
    loop: list[object] = []
    loop.append(loop)
    assert result_to_content(loop) == "[[...]]"


def test_parts_stay_parts() -> None:
    part = TextPart(content="x")
    assert result_to_content(part) == [part]
    content = result_to_content(["a", part, 3])
    assert content == ["a", part, "3"]
    assert content[1] is part
    assert result_to_content((part,)) == [part]
