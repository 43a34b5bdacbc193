"""With strict_tools, calls are valid by construction, and all else is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel

from kani_lite import AIFunction, ChatMessage
from kani_lite.engines.call_styles import MustCall, call_style, strict_names
from kani_lite.engines.llamacpp.gbnf import call_grammar, trigger_of
from kani_lite.exceptions import EngineError
from kani_lite.prompts.formats import get_format

TOOL_CALL, END = 1018, 2  # ids of the embedded model's marker and end token
WILD: dict[str, Any] = {"temperature": 4.0, "max_tokens": 900}


class Guest(BaseModel):
    name: str
    friends: list[Guest]


def get_price(product: str) -> str:
    """Get the price of a product."""
    return product


def book(room: Literal["red", "blue"], nights: int, guest: Guest, breakfast: bool = False) -> str:
    """Book a room."""
    return room


class Other:
    class Guest(BaseModel):
        age: float | None


def greet(guest: Other.Guest) -> str:
    """Greet a guest."""
    return "hi"


PRICE, BOOK, GREET = AIFunction(get_price), AIFunction(book), AIFunction(greet)
ASK = [ChatMessage.user("get the price of honey")]


@pytest.fixture(scope="module")
def strict(build: Callable[..., Any]) -> Iterator[Any]:
    made = build(strict_tools=True)
    yield made
    anyio.run(made.close)


async def test_calls_are_valid_however_wild_the_model_is(strict: Any) -> None:
    functions = {function.name: function for function in (BOOK, GREET, PRICE)}
    made = []
    for seed in range(12):
        done = await strict.predict(ASK, [*functions.values()], seed=seed, logit_bias={TOOL_CALL: 12.0}, **WILD)
        calls = list(done.message.tool_calls or ())
        made += calls[:-1] if done.finish_reason == "length" else calls  # the last may be cut
    assert len(made) > 12
    assert {call.function.name for call in made} == set(functions)
    for call in made:
        function = functions[call.function.name]
        assert set(json.loads(call.function.arguments)) <= set(function.json_schema["properties"])
        function.parse_arguments(call.function.arguments)


async def test_without_it_such_calls_are_broken(build_later: Callable[..., Any]) -> None:
    free = await build_later()
    done = await free.predict(ASK, [BOOK], seed=0, logit_bias={TOOL_CALL: 12.0}, **WILD)
    await free.close()
    assert any(call.function.name != "book" for call in done.message.tool_calls)


async def test_a_good_model_says_what_it_says_without(strict: Any, engine: Any) -> None:
    for query in ("get the price of honey", "Hi, who are you?", "What is the price of tea?"):
        replies = [
            (await each.predict([ChatMessage.user(query)], [PRICE], temperature=0, max_tokens=80)).message
            for each in (strict, engine)
        ]
        assert replies[0].text == replies[1].text
        assert [c.function for c in replies[0].tool_calls or ()] == [c.function for c in replies[1].tool_calls or ()]


async def test_a_required_call_is_made_whatever_was_asked(strict: Any) -> None:
    hello, greedy = [ChatMessage.user("hello")], {"temperature": 0.0, "max_tokens": 300}
    assert not (await strict.predict(hello, [PRICE, BOOK], **greedy)).message.tool_calls
    for choice, names in (("required", {"get_price", "book"}), ("book", {"book"})):
        done = await strict.predict(hello, [PRICE, BOOK], tool_choice=choice, **greedy, ignore_eos=True)
        [call] = done.message.tool_calls
        assert done.message.text in (None, "")
        assert done.finish_reason == "stop"
        assert call.function.name in names
        {"get_price": PRICE, "book": BOOK}[call.function.name].parse_arguments(call.function.arguments)
    wild = await strict.predict(hello, [BOOK], tool_choice="required", seed=1, **WILD)
    assert [call.function.name for call in wild.message.tool_calls] == ["book"]
    exact = await strict.predict(hello, [BOOK], tool_choice="book", temperature=0.0)
    limit = await strict.predict(hello, [BOOK], tool_choice="book", temperature=0.0, max_tokens=exact.completion_tokens)
    assert (limit.finish_reason, limit.message.tool_calls[0].function) == ("stop", exact.message.tool_calls[0].function)
    assert not (await strict.predict(hello, [PRICE], **greedy)).message.tool_calls  # no grammar is left over


async def test_calls_that_cannot_be_required(strict: Any, engine: Any) -> None:
    with pytest.raises(EngineError, match="'nobody' is no function on offer: there are get_price, book"):
        await strict.predict(ASK, [PRICE, BOOK], tool_choice="nobody")
    with pytest.raises(EngineError, match="no functions are on offer"):
        await strict.predict(ASK, tool_choice="required")
    with pytest.raises(EngineError, match=r"tool_choice='required' isn't possible here .*strict_tools=True"):
        await engine.predict(ASK, [PRICE], tool_choice="required")


async def test_text_may_come_before_a_call_and_after_it(strict: Any) -> None:
    ids = strict.encode("<|im_start|>assistant\n")
    params = strict.params(None, {"temperature": 0.0, "max_tokens": 200, "logit_bias": {END: -1e9}})
    pieces = [piece async for piece in strict.run(ids, params, functions=[PRICE])]
    assert pieces[-1].finish_reason == "length"  # it went on after what it had to say, calls or not


async def test_it_also_holds_beside_requests_without_functions(strict: Any) -> None:
    found: dict[int, Any] = {}

    async def ask(place: int, functions: Any) -> None:
        found[place] = (await strict.predict(ASK, functions, temperature=0, max_tokens=80)).message

    async with anyio.create_task_group() as group:
        for place in range(4):
            group.start_soon(ask, place, [PRICE] if place % 2 else None)
    assert [bool(found[place].tool_calls) for place in range(4)] == [False, True, False, True]


async def test_a_schema_that_has_no_grammar_is_refused_by_name(strict: Any) -> None:
    function = AIFunction(get_price, name="odd", json_schema={"type": "object", "properties": {"a": {"type": "wrong"}}})
    with pytest.raises(EngineError, match="The arguments of 'odd' can't be written as a grammar"):
        await strict.predict(ASK, [function], temperature=0)
    assert (await strict.predict(ASK, [PRICE], temperature=0)).message.tool_calls


def test_a_format_without_a_grammar_is_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="strict_tools=True isn't possible for the format 'qwen3-coder'"):
        build(strict_tools=True, tool_format="qwen3-coder")


@pytest.mark.parametrize("name", strict_names())
def test_each_format_has_a_grammar_that_llamacpp_reads(strict: Any, name: str) -> None:
    from kani_lite.engines.llamacpp.grammar import CallGrammar

    style = call_style(get_format(name))
    assert style is not None
    trigger = trigger_of(style)
    assert trigger is not None
    vocabulary = strict._generator._grammars._vocabulary
    grammar = CallGrammar(vocabulary, trigger.encode(), call_grammar(style, [PRICE, BOOK, GREET]))
    written = style.write("get_price", '{"product": "honey"}')
    assert written.startswith(trigger)
    state = grammar.begin(written.removeprefix(trigger).encode())
    assert state is not None
    assert state.complete
    assert grammar.begin(written.removeprefix(trigger).replace("product", "prodigy").encode()) is None
    assert grammar.begin(written.removeprefix(trigger).replace("get_price", "get_prize").encode()) is None
    whole = CallGrammar(vocabulary, b"", call_grammar(style, MustCall([PRICE, BOOK], "get_price")))
    required = whole.begin(written.encode())
    assert required is not None
    assert required.complete
    assert whole.begin(style.write("book", "{").encode()) is None
    assert whole.begin(f"Well: {written}".encode()) is None


def test_a_marker_may_end_within_a_token(strict: Any) -> None:
    """Of the tokens that complete a marker and go on, those are left that a call goes on with."""
    from kani_lite.engines.llamacpp.grammar import CallGrammar, CallGuide

    vocabulary = strict._generator._grammars._vocabulary
    style = call_style(get_format("json"))
    assert style is not None
    trigger = trigger_of(style)
    assert trigger == '{"name": "'
    grammar = CallGrammar(vocabulary, b'{"na', 'root ::= "me\\": \\"" [a-z]+ "\\"}"')
    [token] = [each for each, piece in enumerate(vocabulary.pieces) if piece == b'{"name": "']
    assert token not in grammar.crossing(b"")
    other = CallGrammar(vocabulary, b'{"na', 'root ::= "mb\\": \\"" [a-z]+ "\\"}"')
    assert token in other.crossing(b"")
    guide = CallGuide(grammar, frozenset([END]))
    guide.note(token)
    assert guide._state is not None
    assert guide._state.advance_text(b'ab"}')
    assert guide._state.complete
