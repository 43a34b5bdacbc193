"""Calls: read, refused, required, and valid by construction."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.engines.call_styles import call_style, strict_names
from kani_lite.exceptions import EngineError
from kani_lite.prompts.formats import get_format


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def book(room: Literal["red", "blue"], nights: int, breakfast: bool) -> str:
    """Book a room in a hotel."""
    return "done"


WEATHER, BOOK = AIFunction(get_weather), AIFunction(book)
ASK = [ChatMessage.user("What is the weather in Paris?")]
GREEDY = {"temperature": 0.0, "max_tokens": 120}


def only_call(message: ChatMessage) -> Any:
    assert message.tool_calls is not None
    [call] = message.tool_calls
    return call.function


async def test_a_call_is_read_streamed_or_not(engine: Any) -> None:
    whole = (await engine.predict(ASK, [WEATHER], **GREEDY)).message
    call = only_call(whole)
    assert call.name == "get_weather"
    assert WEATHER.parse_arguments(call.arguments) == {"city": "Paris"}
    items = [item async for item in engine.stream(ASK, [WEATHER], **GREEDY)]
    assert only_call(items[-1].message) == call
    assert not any(isinstance(item, str) and "tool_call" in item for item in items)


async def test_a_round_with_a_call_runs_to_its_last_word(engine: Any) -> None:
    ai = Kani(engine, functions=[WEATHER])
    messages = [message async for message in ai.full_round("What is the weather in Paris?", **GREEDY)]
    assert [message.role.value for message in messages[:2]] == ["assistant", "function"]
    assert messages[1].text == "It is sunny in Paris."
    assert messages[-1].role.value == "assistant"
    assert not messages[-1].tool_calls


async def test_calls_that_are_off_are_not_made_and_the_prompt_stays(engine: Any) -> None:
    offered = await engine.predict(ASK, [WEATHER], **GREEDY)
    refused = await engine.predict(ASK, [WEATHER], tool_choice="none", **GREEDY)
    assert not refused.message.tool_calls
    assert refused.message.text
    assert refused.prompt_tokens == offered.prompt_tokens


async def test_a_required_call_is_made_whatever_was_asked(engine: Any) -> None:
    hello = [ChatMessage.user("hello")]
    assert not (await engine.predict(hello, [WEATHER, BOOK], **GREEDY)).message.tool_calls
    any_of = only_call((await engine.predict(hello, [WEATHER, BOOK], tool_choice="required", **GREEDY)).message)
    assert any_of.name in ("get_weather", "book")
    named = only_call((await engine.predict(hello, [WEATHER, BOOK], tool_choice="book", **GREEDY)).message)
    assert named.name == "book"
    assert set(BOOK.parse_arguments(named.arguments)) == {"room", "nights", "breakfast"}
    with pytest.raises(EngineError, match="'nobody' is no function on offer: there are get_weather, book"):
        await engine.predict(hello, [WEATHER, BOOK], tool_choice="nobody", **GREEDY)


@pytest.mark.parametrize("seed", range(6))
async def test_calls_are_valid_however_wild_the_model_is(engine: Any, seed: int) -> None:
    wild = {"temperature": 2.0, "seed": seed, "max_tokens": 300}
    done = await engine.predict(ASK, [BOOK], tool_choice="required", **wild)
    if done.finish_reason == "length":
        pytest.skip("the call was cut by the limit")  # numbers may have any length
    BOOK.parse_arguments(only_call(done.message).arguments)
    # a call that nobody required, begun by hand so that the wild model is in it: the grammar is of the whole reply
    free = await engine.predict(ASK, [BOOK], **wild, logit_bias={engine.encode("<tool_call>")[0]: 30.0})
    for call in free.message.tool_calls or []:
        if free.finish_reason == "stop":
            assert call.function.name == "book"
            BOOK.parse_arguments(call.function.arguments)


async def test_without_strict_tools_a_wild_model_writes_nonsense(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same requests as above: what the grammar is good for."""
    monkeypatch.setattr(engine, "_strict", False)
    invalid = 0
    for seed in range(6):
        wild = {"temperature": 2.0, "seed": seed, "max_tokens": 300}
        free = await engine.predict(ASK, [BOOK], **wild, logit_bias={engine.encode("<tool_call>")[0]: 30.0})
        for call in free.message.tool_calls or []:
            try:
                BOOK.parse_arguments(call.function.arguments)
                invalid += call.function.name != "book"
            except Exception:  # of any kind: it isn't valid
                invalid += 1
    assert invalid > 0


@pytest.mark.parametrize("name", strict_names())
async def test_every_format_with_a_grammar_can_be_forced(
    engine: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fmt = get_format(name)
    monkeypatch.setattr(engine, "tool_format", fmt)
    monkeypatch.setattr(engine, "_style", call_style(fmt))
    done = await engine.predict(ASK, [WEATHER, BOOK], tool_choice="get_weather", **GREEDY)
    if done.finish_reason == "length":  # this model has never seen the format, and may not end its text
        done = await engine.predict(ASK, [WEATHER, BOOK], tool_choice="get_weather", max_tokens=600, temperature=0.0)
    call = only_call(done.message)
    assert call.name == "get_weather"
    assert isinstance(WEATHER.parse_arguments(call.arguments)["city"], str)


async def test_a_format_without_a_grammar_can_not_be_forced(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_style", None)
    with pytest.raises(EngineError, match="A call can't be required in the format 'hermes'"):
        await engine.predict(ASK, [WEATHER], tool_choice="required")
    assert only_call((await engine.predict(ASK, [WEATHER], **GREEDY)).message).name == "get_weather"
