"""The tokenizer: byte-level BPE in which a word is always the same tokens, whatever stands before it.

Spaces are split from the words that follow (but for the commonest words of the dialogues), digits stand alone, and the
fixed pieces of JSON are units. So a name, a number or a place has one spelling in tokens in a sentence, in quotes and
in a tool call, and copying it is copying tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
# pieces of JSON that the prompt and the calls are made of, longest first
JSON_PIECES = [
    '", "parameters": {"type": "object", "properties": {"',
    '", "parameters": {"type": "object", "properties": {',
    '": {"type": "string", "description": "', '": {"type": "integer", "description": "',
    '": {"type": "number", "description": "', '": {"type": "boolean", "description": "',
    '": {"type": "string", "enum": ["', '", "enum": ["',
    '": {"type": "string"}, "', '": {"type": "integer"}, "', '": {"type": "number"}, "', '": {"type": "boolean"}, "',
    '": {"type": "string"', '": {"type": "integer"', '": {"type": "number"', '": {"type": "boolean"',
    '}}, "required": ["', '}}, "required": []}}', '}, "required": ["', '}, "required": []}}',
    '", "description": "', '", "arguments": {"', '", "arguments": {',
    '{"name": "', '"]}, "', '"]}}', '"}, "', '"}}', '}}', '": "', '": ', '", "', ', "',
]  # fmt: skip


# words that are never a value to copy: only these keep the space before them
FRAME_WORDS = """a about all also am an and any anything are as at be by can chat could did do does enough for from
fine found give had has have help her his how human if in is it its just know language like little live machine make me
meet model my name need no not now of on one or out over please remember result runs scratch small so tell than thank
that the them then there they this to told tool tools trained use user was we welcome what when where which who will
with work would yet you your""".split()


def word_pattern() -> str:
    """The pre-tokenizer's pattern."""
    words = "|".join(sorted(FRAME_WORDS, key=lambda w: (-len(w), w)))
    pieces = "|".join(re.escape(p) for p in JSON_PIECES)
    return rf"{pieces}| (?:{words})(?![\p{{L}}\p{{N}}_])|\p{{L}}+|\p{{N}}|\n| |[^\p{{L}}\p{{N}}\s]|\s"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Trains on the first 20,000 of `texts`, which are whole dialogues."""
    corpus = list(islice(texts, 20_000))
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word_pattern()), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(MARKERS)  # not special: they stay in the decoded text, where a parser looks for them
    return tokenizer
