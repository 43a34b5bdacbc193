from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kani_lite.engines.text import Detokenizer, StopStrings


@pytest.fixture(scope="session")
def decode(tokenizer: Any) -> Callable[[Any], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30))
def test_every_piece_is_whole_and_nothing_is_lost(tokenizer: Any, decode: Callable[[Any], str], text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.add(i) for i in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.finish() == text


def test_an_unfinished_character_at_the_end_is_dropped(tokenizer: Any, decode: Callable[[Any], str]) -> None:
    ids = tokenizer.encode("ok 🐟", add_special_tokens=False)
    detokenizer = Detokenizer(decode)
    assert "".join(map(detokenizer.add, ids[:-1])) + detokenizer.finish() == "ok "


def test_broken_bytes_neither_stall_nor_cost_more_and_more(tokenizer: Any, decode: Callable[[Any], str]) -> None:
    longest = 0

    def watched(ids: Any) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    broken = tokenizer.encode("🐟", add_special_tokens=False)[1]  # a continuation byte
    fish = tokenizer.encode("é🐟!", add_special_tokens=False)
    detokenizer = Detokenizer(watched)
    pieces = [detokenizer.add(i) for i in [broken] * 500 + fish]
    assert longest < 64
    assert "".join(pieces).endswith("é🐟!")
    assert "".join(pieces).count("\ufffd") == 500


@settings(max_examples=100)
@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_stop_strings_never_leak(text: str, stops: list[str], size: int) -> None:
    filt = StopStrings(stops)
    shown = "".join(filt.add(text[i : i + size]) for i in range(0, len(text), size)) + filt.finish()
    found = [at for at in (text.find(s) for s in stops) if at >= 0]
    # the first stop string to be complete ends the text; one that began earlier may still have been open
    assert filt.hit == bool(found)
    if found:
        assert text.startswith(shown)
        assert not any(s in shown for s in stops)
    else:
        assert shown == text


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_prefix_of_a_stop_string_is_held_back(cut: int) -> None:
    filt = StopStrings(["\nUser:"])
    text = "hi\nUser: more"
    assert filt.add(text[:cut]) == text[: min(cut, 2)]
    assert filt.add(text[cut:]) == text[min(cut, 2) : 2]
    assert filt.hit
