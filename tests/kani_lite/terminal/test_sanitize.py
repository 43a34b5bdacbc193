from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kani_lite.terminal.sanitize import sanitize

HOSTILE = st.text(
    st.one_of(
        st.sampled_from("\x1b\x9b\x9d\x07\r\n\t\x00\x7f\u202e\u2066\u2028[]0;m31Hé→"),
        st.characters(),
    )
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("over\rwritten", r"over\x0dwritten"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\ud800", r"\ud800"),
        ("naïve 😀 שלום", "naïve 😀 שלום"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert sanitize(text) == shown


@given(HOSTILE)
def test_nothing_raw_is_left(text: str) -> None:
    shown = sanitize(text)
    shown.encode()  # no surrogates
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not set(shown) & set(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029]))


@given(st.lists(HOSTILE))
def test_chunks_make_no_difference(chunks: list[str]) -> None:
    assert "".join(map(sanitize, chunks)) == sanitize("".join(chunks))
