"""The fast count of `kani-lite prompt` against its definition: tokenise every prompt as a whole."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from chat_templates import TEMPLATES, make_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ToolCall
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.terminal.prompt_count import TokenCounter, shared_length, token_counter
from kani_lite.terminal.prompt_parts import analyse
from kani_lite.terminal.prompt_source import PromptSource, find_source

UNKNOWN = "<unk>"
SPECIAL = [
    AddedToken("<s>", normalized=False),
    AddedToken("<s>\n", normalized=False),
    AddedToken("x<s>ab", normalized=False),  # in place of the first, if the text goes on like that
    AddedToken("<|e|>", normalized=False, rstrip=True),
    AddedToken("<|b|>", normalized=False, lstrip=True),
    AddedToken("<w>", normalized=False, single_word=True),
    AddedToken("<n>", normalized=True),
    AddedToken("  ", normalized=False),
    AddedToken(UNKNOWN, normalized=False, special=True),
]
LONGEST = max(len(token.content) for token in SPECIAL)
PIECES = [
    *(token.content for token in SPECIAL),
    " ",
    "\n",
    "a",
    "b",
    "ab",
    "ba",
    "x",
    "<",
    "s>",
    "|e|>",
    "é",
    "🦀",
    "_",
]


def made(backend: Tokenizer) -> Any:
    backend.add_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN)


@cache
def tokenizers() -> dict[str, Any]:
    """Tokenizers that treat the beginning of a text, words that they don't know and white space in different ways."""
    letters = {letter: i for i, letter in enumerate([UNKNOWN, "▁", "a", "b", "ab", "▁a", "ba", "é", "<", "s", "▁ab"])}
    merges = [("a", "b"), ("▁", "a"), ("b", "a"), ("▁", "ab")]
    backends = {
        name: Tokenizer(models.BPE(letters, merges, unk_token=UNKNOWN, fuse_unk=True))
        for name in ("first", "always", "prepended")
    }
    backends["first"].pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backends["always"].pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backends["prepended"].normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backends["words"] = Tokenizer(models.WordLevel({UNKNOWN: 0, "a": 1, "ab": 2}, unk_token=UNKNOWN))
    backends["words"].normalizer = normalizers.Lowercase()
    backends["words"].pre_tokenizer = pre_tokenizers.Whitespace()
    return {name: made(backend) for name, backend in backends.items()} | {"bytes": make_tokenizer(None)}


def slow(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize("name", ["first", "always", "prepended", "words", "bytes"])
@example([("ax<s>a", 0), ("b", 0)])
@example([("a <n>" + "b" * (LONGEST + 1), 0), ("b", 0)])
@example([("a<s>" + "b" * (LONGEST + 1), 0), ("b", 0)])
@given(st.lists(st.tuples(TEXTS, st.integers(0, 30)), min_size=1, max_size=6))
def test_texts_that_begin_like_the_one_before_are_counted_exactly(name: str, changes: list[tuple[str, int]]) -> None:
    tokenizer = tokenizers()[name]
    count = TokenCounter(tokenizer)
    text = ""
    for added, taken_back in changes:
        text = text[: max(len(text) - taken_back, 0)] + added
        assert count(text) == slow(tokenizer, text)


@given(TEXTS, TEXTS, TEXTS)
def test_what_texts_have_in_common(start: str, one: str, other: str) -> None:
    shared = shared_length(start + one, start + other)
    assert (start + one)[:shared] == (start + other)[:shared]
    assert (start + one)[shared : shared + 1] != (start + other)[shared : shared + 1] or start + one == start + other


CALLS = [ToolCall.from_function("roll", call_id_="abcdefgh1", sides=6)]
CHAT = [
    ChatMessage.system("Be brief."),
    ChatMessage.user("one <|im_end|> two "),
    ChatMessage.assistant("[INST] three"),
    ChatMessage.user("\nRoll! é🦀"),
    ChatMessage.assistant("Rolling.", tool_calls=CALLS),
    ChatMessage.function("roll", "4", "abcdefgh1"),
    ChatMessage.assistant("It is 4."),
    ChatMessage.user("Thanks"),
]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_all_figures_are_those_of_whole_prompts(name: str) -> None:
    tokenizer = make_tokenizer(TEMPLATES[name])
    pipeline = ChatTemplatePromptPipeline(tokenizer)
    tools = [AIFunction(lambda sides: sides, name="roll", desc="Roll.", json_schema={"type": "object"})]
    for functions in ([], tools):
        fast = analyse(PromptSource(pipeline, token_counter(tokenizer), "tokens"), CHAT, functions, True)
        whole = PromptSource(pipeline, lambda text: slow(tokenizer, text), "tokens")
        assert fast == analyse(whole, CHAT, functions, True)
        assert fast.counts.total == slow(tokenizer, pipeline(CHAT, functions))


def test_only_what_is_new_is_tokenised() -> None:
    class Watched:
        is_fast = True
        read = 0

        def __init__(self, tokenizer: Any) -> None:
            self.added_tokens_decoder = tokenizer.added_tokens_decoder
            self._tokenizer = tokenizer

        def __call__(self, text: str, **options: Any) -> Any:
            self.read += len(text)
            return self._tokenizer(text, **options)

    watched = Watched(make_tokenizer(None))
    chat = [ChatMessage.user(f"Message {i}") if i % 2 else ChatMessage.assistant("Yes.") for i in range(100)]
    chatml = find_source("chatml")
    prompt = analyse(PromptSource(chatml.render, token_counter(watched), "tokens"), chat, [], True)
    assert watched.read < 4 * len(prompt.text)  # all prompts together are 50 times as long


def test_a_tokenizer_that_does_not_say_where_its_tokens_are() -> None:
    class Words:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[str]:
            assert not add_special_tokens
            return text.split()

    assert [token_counter(Words())(text) for text in ("a b", "a b c", "")] == [2, 3, 0]
