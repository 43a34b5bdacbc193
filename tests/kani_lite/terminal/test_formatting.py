from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kani_lite.terminal import format_stream, format_width, print_stream, print_width


async def pieces(chunks: list[str]) -> AsyncIterator[str]:
    for chunk in chunks:
        yield chunk


async def formatted(chunks: list[str], width: int | None, prefix: str = "") -> list[str]:
    return [text async for text in format_stream(pieces(chunks), width, prefix)]


def test_format_width_wraps_and_indents() -> None:
    expected = "USER: Hello\n      world I\n      am a\n      potato"
    assert format_width("Hello world I am a potato", width=15, prefix="USER: ") == expected
    assert format_width("one\n\ntwo", width=20, prefix="AI: ") == "AI: one\n\n    two"
    assert format_width("as it\nis", prefix="AI: ") == "AI: as it\nis"
    assert format_width("", width=20, prefix="AI: ") == "AI: "


def test_print_width_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_width("a\x1b[2Jb", prefix="AI: ")
    assert capsys.readouterr().out == "AI: a\\x1b[2Jb\n"


@pytest.mark.anyio
async def test_a_stream_without_a_width_is_passed_on_at_once() -> None:
    assert await formatted(["  ", "\n He", "llo ", "", "you", " \n"], None, "AI: ") == ["AI: He", "llo", " you"]


@pytest.mark.anyio
async def test_a_stream_wraps_by_columns_not_by_chunks() -> None:
    chunks = ["Hel", "lo wor", "ld I am a pota", "to"]
    assert "".join(await formatted(chunks, 15, "USER: ")) == "USER: Hello\n      world I\n      am a\n      potato"


@pytest.mark.anyio
async def test_a_word_longer_than_a_line_is_cut() -> None:
    assert "".join(await formatted(["abcdefgh ij"], 7, "AI: ")) == "AI: abc\n    def\n    gh\n    ij"


@pytest.mark.anyio
async def test_print_stream(capsys: pytest.CaptureFixture[str]) -> None:
    await print_stream(pieces(["hi ", "\x1b", "[1m", "there\n"]), prefix="AI: ")
    await print_stream(pieces([" ", "\n"]), prefix="AI: ")
    assert capsys.readouterr().out == "AI: hi \\x1b[1mthere\n"


TEXTS = st.lists(st.text("ab c\n\t", max_size=12), max_size=8)


@given(TEXTS, st.one_of(st.none(), st.integers(1, 20)), st.sampled_from(["", "AI: "]))
def test_chunks_make_no_difference(chunks: list[str], width: int | None, prefix: str) -> None:
    whole = "".join(anyio.run(formatted, ["".join(chunks)], width, prefix))
    assert "".join(anyio.run(formatted, chunks, width, prefix)) == whole


@given(TEXTS, st.integers(5, 20))
def test_no_line_is_too_wide_and_no_word_is_lost(chunks: list[str], width: int) -> None:
    out = "".join(anyio.run(formatted, chunks, width, "AI: "))
    assert all(len(line) <= width for line in out.splitlines())
    assert "".join(out.removeprefix("AI: ").split()) == "".join("".join(chunks).split())
