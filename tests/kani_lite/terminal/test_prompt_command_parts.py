"""Which part of a prompt comes of which message, and what each of them adds."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from kani_lite.exceptions import PromptError
from kani_lite.messages import ChatMessage, ReasoningPart, ToolCall
from kani_lite.terminal.prompt_parts import Counts, Piece, analyse
from kani_lite.terminal.prompt_source import PromptSource

Write = Callable[[list[ChatMessage], bool], str]


def source_of(write: Write) -> PromptSource:
    """A source that writes these messages, with tools or without."""
    return PromptSource(lambda messages, functions, _: write(list(messages), bool(functions)), len, "characters")


def plain(messages: list[ChatMessage], tools: bool = False) -> str:
    return "".join(f"[{m.role.value} {m.text}]" for m in messages)


def contents(write: Write, *texts: str) -> list[str]:
    """What is found of user messages with these texts."""
    prompt = analyse(source_of(write), [ChatMessage.user(text) for text in texts], [], True)
    assert "".join(piece.text for piece in prompt.pieces) == prompt.text
    return [piece.text for piece in prompt.pieces if piece.content]


def test_a_system_text_that_is_written_with_the_question() -> None:
    def held_back(messages: list[ChatMessage], tools: bool) -> str:
        system, *others = (m.text for m in messages)
        return "".join(f"[{'' if i else system}|{text}]" for i, text in enumerate(others))

    messages = [ChatMessage.system("s"), ChatMessage.user("u"), ChatMessage.assistant("a")]
    prompt = analyse(source_of(held_back), messages, [], True)
    assert prompt.counts == Counts([None, 5, 9], 0, 9)
    assert prompt.pieces == [
        Piece("[", 0, False),
        Piece("s", 0, True),
        Piece("|", 1, False),
        Piece("u", 1, True),
        Piece("]", 1, False),
        Piece("[|", 2, False),
        Piece("a", 2, True),
        Piece("]", 2, False),
    ]


def test_texts_are_found_as_templates_write_them() -> None:
    assert contents(plain, "user", " a ") == ["user", " a "]
    assert contents(lambda messages, _: "".join(f"[user {(m.text or '').strip()}]" for m in messages), "r", " a ") == [
        "r",
        "a",
    ]
    assert contents(lambda messages, _: json.dumps([m.text for m in messages]), "\n", "ü\n") == ["\\n", "\\u00fc\\n"]
    assert contents(plain, "", " ") == [" "]


def test_a_text_is_not_taken_for_markup() -> None:
    prompt = analyse(source_of(plain), [ChatMessage.user("user")], [], True)
    assert prompt.pieces == [Piece("[user ", 0, False), Piece("user", 0, True), Piece("]", 0, False)]


def test_where_texts_are_treated_by_what_they_say_they_are_searched_for() -> None:
    def refuses(messages: list[ChatMessage], tools: bool) -> str:
        if any("Mark" in (m.text or "") for m in messages):
            raise PromptError("No.")
        return plain(messages)

    assert contents(refuses, "user", "b") == ["user", "b"]
    short_only = contents(lambda messages, _: plain([m for m in messages if len(m.text or "") < 5]), "ab", "cd")
    assert short_only == ["ab", "cd"]
    assert contents(lambda messages, _: "".join((m.text or "").upper() for m in messages), "ab") == []
    longer = contents(lambda messages, _: plain(messages) + ("!" if len(messages[0].text or "") < 5 else ""), "ab")
    assert longer == ["ab"]


def test_texts_out_of_order_are_found_as_far_as_possible() -> None:
    assert contents(lambda messages, _: plain(messages[::-1]), "ab", "cd") == ["ab"]
    repeated = contents(lambda messages, _: plain(messages * 2 if len(messages) == 1 else messages), "ab", "ab")
    assert repeated == ["ab"]
    last_only = contents(lambda messages, _: plain(messages[-1:]), "ab", "cd")
    assert last_only == ["cd"]


def test_thoughts_and_calls_are_found() -> None:
    calls = [ToolCall.from_function("f", x=1, y="ü"), ToolCall.from_function("g"), ToolCall.from_function("hidden")]
    calls[1].function.arguments = "broken"
    message = ChatMessage.assistant([ReasoningPart(content="why"), "so"], tool_calls=calls)

    def compact(messages: list[ChatMessage], tools: bool) -> str:
        return '<why>so(f {"x":1,"y":"ü"})(g broken)' * len(messages)

    prompt = analyse(source_of(compact), [message], [], True)
    found = [piece.text for piece in prompt.pieces if piece.content]
    assert found == ["why", "so", "f", '{"x":1,"y":"ü"}', "g", "broken"]


@given(st.lists(st.sampled_from(["", " ", "a", "user", "[", "]]", "ab", " b\n"]), min_size=1, max_size=6))
def test_the_pieces_make_the_prompt(texts: list[str]) -> None:
    assert contents(plain, *texts) == [text for text in texts if text]


def test_half_a_character_that_only_a_shorter_prompt_has() -> None:
    def last_only(messages: list[ChatMessage], tools: bool) -> str:
        return plain(messages[-1:])

    prompt = analyse(source_of(last_only), [ChatMessage.user("\ud83e"), ChatMessage.user("b")], [], True)
    assert prompt.counts == Counts([None, 8], 0, 8)
