"""The embedded model, its template, and the dialogues that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.engines import NanoEngine
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.nano.training.corpus import encode, segments
from kani_lite.engines.nano.training.dialogues import Writer
from kani_lite.engines.nano.training.evaluate import evaluate, load, right_tokens, suite
from kani_lite.engines.nano.training.lexicon import FORMS, POOLS, split
from kani_lite.engines.nano.training.talk import ROWS
from kani_lite.engines.nano.training.tools import _HELD_OUT, _KNOWN, _MORE


@pytest.fixture(scope="module")
def nano() -> Iterator[NanoEngine]:
    engine = NanoEngine()
    yield engine
    anyio.run(engine.close)


def test_takes_no_arguments_and_is_small(nano: NanoEngine) -> None:
    assert nano.max_context_size == 2048
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 20_000_000
    assert all(size % 64 == 0 for size in nano.model.get_input_embeddings().weight.shape)


def test_template_is_what_the_training_saw(nano: NanoEngine) -> None:
    writer = Writer(11)
    for _ in range(60):
        d = writer.dialogue()
        rendered = nano.tokenizer.apply_chat_template(d.messages, tools=d.tools, tokenize=False)
        assert rendered == "".join(text for text, _ in segments(d))


def test_template_takes_any_schema(nano: NanoEngine) -> None:
    def f(a: int | None = None, b: list[str] | None = None) -> None:
        """First line.

        More of it.
        """

    prompt = nano.build_prompt([ChatMessage.user("hi")], [AIFunction(f)])
    assert isinstance(prompt, str)
    assert '"description": "First line."' in prompt
    assert '"a": {"type": "integer"}' in prompt
    assert '"b": {"items": {"type": "string"}, "type": "array"}' in prompt


def test_loss_is_taken_at_the_assistants_tokens_alone() -> None:
    _, tokenizer = load(WEIGHTS)
    d = Writer(12).dialogue()
    ids, targets = encode(tokenizer, d)
    said = [text for text, target in segments(d) if target]
    assert tokenizer.decode([ids[t] for t in targets], skip_special_tokens=False) == "".join(said)


def test_tokenizer_gives_back_what_it_was_given() -> None:
    _, tokenizer = load(WEIGHTS)
    for text in ["Grüße, 東京! 🙂", 'a\tb  c\n\n{"name": "x_y", "arguments": {}}', "<tool_call>", " My name is Ada. "]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_word_is_the_same_tokens_wherever_it_stands() -> None:
    _, tokenizer = load(WEIGHTS)
    word = tokenizer.encode("Quibnark").ids
    for text in ["I am Quibnark.", '{"name": "Quibnark"}', "Quibnark_x", "(Quibnark 7)"]:
        ids = tokenizer.encode(text).ids
        assert any(ids[i : i + len(word)] == word for i in range(len(ids))), text


def test_evaluation_is_disjoint_from_training() -> None:
    for name, pool in POOLS.items():
        if name != "enum":
            assert not set(split(pool, True)) & set(split(pool, False))
    for name in FORMS:
        if name.endswith(" / held out"):
            overlap = set(FORMS[name]) & set(FORMS[name.removesuffix(" / held out")])
            assert overlap <= {"{a} and {b}"}
    for train, held_out, _ in ROWS:
        assert not set(train) & set(held_out)
    for family in _KNOWN + _MORE:
        assert family.held_out
        assert not set(family.requests) & set(family.held_out)
    assert not {f.names[0] for f in _HELD_OUT} & {n for f in _KNOWN + _MORE for n in f.names}


def test_evaluation_counts_what_greedy_decoding_gives(nano: NanoEngine) -> None:
    """The token-by-token check of the evaluation is the same as generating the answer."""

    async def reply(d_messages: list[ChatMessage]) -> str:
        return (await nano.predict(d_messages)).message.text or ""

    model, tokenizer = load(WEIGHTS)
    checked = 0
    for kind, d in suite(5, 60):
        if kind != "none" or len(d.messages) < 2 or d.messages[-1]["role"] != "assistant":
            continue
        said = [ChatMessage(role=m["role"], content=m["content"]) for m in d.messages]
        ids, targets = encode(tokenizer, d)
        start = max(i for i in range(len(targets)) if i == 0 or targets[i] != targets[i - 1] + 1)
        right = right_tokens(model, ids)
        exact = all(right[t] for t in targets[start:])
        assert (anyio.run(reply, said[:-1]) == said[-1].text) == exact
        checked += 1
    assert checked > 5


def test_skills_have_not_been_lost() -> None:
    """Below the shares in the model card, with room for the few dialogues that are asked here."""
    model, tokenizer = load(WEIGHTS)
    shares = {k: a / n for k, (a, n) in evaluate(model, tokenizer, seed=31, count=160).items()}
    assert shares["result"] > 0.93
    assert shares["known tools"] > 0.65
    assert shares["memory"] > 0.7


@pytest.mark.anyio
async def test_a_chat_with_a_tool(nano: NanoEngine) -> None:
    def get_price(product: str) -> str:
        """Get the price of a product."""
        return f"The price of {product} is 6 euros."

    ai = Kani(nano, functions=[AIFunction(get_price)])
    messages = [m async for m in ai.full_round("get the price of honey")]
    assert [m.role.value for m in messages] == ["assistant", "function", "assistant"]
    assert messages[-1].text == "The price of honey is 6 euros."
