"""How many tokens texts have that begin alike, such as a chat after its first message, its second, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


def token_counter(tokenizer: Any) -> Callable[[str], int]:
    """What counts the tokens of texts: fast where each begins like the one before, if the tokenizer says which part of
    the text a token is; else each text is tokenised as a whole."""
    if getattr(tokenizer, "is_fast", False):
        return TokenCounter(tokenizer)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


class _Cut(NamedTuple):
    """A special token in a text: where it is, and how many tokens are before it."""

    start: int
    end: int
    before: int


class TokenCounter:
    """Counts the tokens of texts by a tokenizer of the library `tokenizers`; exact, for any texts in any order.

    Such a tokenizer looks for its special tokens first, and then works on each text between them alone. Up to the last
    special token that a text shares with the one counted before, both have the same tokens: only what follows is
    tokenised. So a chat that grows by a message takes time for that message, if the format has special tokens at all.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # those that are looked for in the normalised text don't come first
        added = tokenizer.added_tokens_decoder.items()
        self._special: dict[int, str] = {number: token.content for number, token in added if not token.normalized}
        self._longest = max((len(token.content) for _, token in added), default=0)
        self._text = ""
        self._cuts: list[_Cut] = []

    def __call__(self, text: str) -> int:
        """The number of tokens, without any that the tokenizer would put around the text."""
        # within its length from the end of what is shared, a longer token may stand in place of one that was found
        known = shared_length(self._text, text) - self._longest
        while self._cuts and self._cuts[-1].end >= known:
            self._cuts.pop()
        start, _, before = self._cuts[-1] if self._cuts else (0, 0, 0)
        made = self._tokenizer(text[start:], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        del self._cuts[-1:]  # found again
        self._cuts += self._found(made, text, start, before)
        self._text = text
        return before + len(made["input_ids"])

    def _found(self, made: Any, text: str, start: int, before: int) -> Iterator[_Cut]:
        for i, (token, (first, last)) in enumerate(zip(made["input_ids"], made["offset_mapping"], strict=True)):
            # the text is compared because a word that the tokenizer doesn't know may have the number of a special token
            if token in self._special and text[start + first : start + last].strip() == self._special[token]:
                yield _Cut(start + first, start + last, before + i)


def shared_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
