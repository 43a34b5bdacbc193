from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest
from openai_server import USAGE, Script, answer, either, event, events, hangs, says, script_of, streamed

from kani_lite import AIFunction, ChatMessage, Kani, MessagePart, ReasoningPart, ToolCall
from kani_lite.engines import BaseCompletion, Completion, NanoEngine, SamplingParams
from kani_lite.engines.openai import OpenAIEngine, TextLogprob
from kani_lite.events import ReasoningDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.exceptions import EngineError, PromptError
from kani_lite.functions.function import ArgumentsError

pytestmark = pytest.mark.anyio

HI = [ChatMessage.user("Hi")]


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


WEATHER = AIFunction(weather)


async def collect(engine: OpenAIEngine, *args: Any, **kwargs: Any) -> tuple[list[Any], Completion]:
    """(what the engine streams before its completion, that)."""
    *items, last = [item async for item in engine.stream(*args, **kwargs)]
    assert isinstance(last, Completion)
    return items, last


# ==== what is sent ====


async def test_a_chat_goes_to_the_server_and_its_answer_comes_back(serve: Any) -> None:
    script, engine = await serve(says("Hello", " there"), says("Hello", " there"))
    done = await engine.predict(HI)
    items, streamed_ = await collect(engine, HI)
    assert items == ["Hello", " there"]
    for completion in (done, streamed_):
        assert completion.message == ChatMessage.assistant("Hello there")
        assert (completion.prompt_tokens, completion.completion_tokens) == (11, 5)
        assert completion.finish_reason == "stop"
    assert completion.first_token_seconds <= completion.seconds
    whole, stream = (request.body for request in script.chats)
    assert whole == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    assert stream == whole | {"stream": True, "stream_options": {"include_usage": True}}


async def test_messages_and_functions_as_the_api_takes_them(serve: Any) -> None:
    script, engine = await serve(says("ok"), reasoning_key="reasoning_content", strict_tools=True)
    call = ToolCall.from_function("weather", call_id_="c1", city="Rome")
    broken = ToolCall.model_validate({"id": "c2", "type": "function", "function": {"name": "", "arguments": "{oh"}})
    messages = [
        ChatMessage.function("weather", "lost", "gone"),
        ChatMessage.system("Be brief."),
        ChatMessage.user(["a", "b"], name="Ann"),
        ChatMessage.assistant([ReasoningPart(content="hm")], tool_calls=[call, broken]),
        ChatMessage.function("weather", "Sunny", "c1"),
        ChatMessage.function(None, "no such thing"),
    ]
    await engine.predict(messages, [WEATHER], tool_choice="weather")
    body = script.chats[0].body
    wire_calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"id": "c2", "type": "function", "function": {"name": "unknown", "arguments": '{"unreadable": "{oh"}'}},
    ]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab", "name": "Ann"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": wire_calls},
        {"role": "tool", "content": "Sunny", "tool_call_id": "c1"},
        {"role": "tool", "content": "no such thing", "tool_call_id": "c2"},
    ]
    spec = {"name": "weather", "description": weather.__doc__, "parameters": WEATHER.json_schema, "strict": True}
    assert body["tools"] == [{"type": "function", "function": spec}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


class ImagePart(MessagePart):
    data: str = ""


class NotePart(MessagePart):
    def __str__(self) -> str:
        return "a note"


async def test_a_part_without_text_is_refused_and_one_with_text_is_sent(serve: Any) -> None:
    script, engine = await serve(says("ok"))
    for run in (engine.predict, engine.prompt_len):
        with pytest.raises(PromptError, match="part of type ImagePart"):
            await run([ChatMessage.user(["look", ImagePart()])])
    assert script.requests == []
    await engine.predict([ChatMessage.user(["see ", NotePart()])])
    assert script.chats[0].body["messages"][0]["content"] == "see a note"


@pytest.mark.parametrize("choice", ["maybe", "other", 3])
async def test_a_tool_choice_that_is_none(serve: Any, choice: Any) -> None:
    _, engine = await serve()
    with pytest.raises(PromptError, match="on offer \\(weather\\)"):
        await engine.predict(HI, [WEATHER], tool_choice=choice)


async def test_sampling_parameters_and_other_fields(serve: Any) -> None:
    script, engine = await serve(says("a"), says("b"), temperature=0.5, max_tokens=9, user="me", stop="x")
    await engine.predict(HI, temperature=0, seed=7, logit_bias={5: float("-inf")}, reasoning_effort="low")
    await engine.predict(HI, sampling=SamplingParams(top_p=0.9), frequency_penalty=0.1, top_logprobs=2, logprobs=True)
    first, second = ({k: v for k, v in r.body.items() if k not in ("model", "messages")} for r in script.chats)
    assert first == {
        "temperature": 0.0,
        "max_tokens": 9,
        "user": "me",
        "stop": ["x"],
        "seed": 7,
        "logit_bias": {"5": -100.0},
        "reasoning_effort": "low",
    }
    assert second == {
        "temperature": 0.5,
        "max_tokens": 9,
        "user": "me",
        "stop": ["x"],
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "logprobs": True,
        "top_logprobs": 2,
    }


EXTRAS = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "eos_token_ids": [3]}
IN_BODY = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True}


async def test_vllms_parameters_go_to_vllm_only(serve: Any) -> None:
    vllm = Script([says("a"), says("b")], models=[{"id": "m", "owned_by": "vllm", "max_model_len": 512}])
    _, engine = await serve(script=vllm, extra_body={"guided": 1})
    for _ in range(2):
        await engine.predict(HI, **EXTRAS, extra_body={"priority": 2})
    for request in vllm.chats:
        assert request.body.items() >= {**IN_BODY, "stop_token_ids": [3], "guided": 1, "priority": 2}.items()
    assert sum(request.path == "/v1/models" for request in vllm.requests) == 1

    other, engine = await serve(says("a"), script=Script(models=[{"id": "m", "owned_by": "me"}]))
    with pytest.raises(EngineError, match=r"has no top_k=5, min_p=0.1.*extra_sampling=True"):
        await engine.predict(HI, **EXTRAS)
    assert other.chats == []
    told, engine = await serve(says("a"), extra_sampling=True)
    await engine.predict(HI, **EXTRAS)
    assert told.chats[0].body.items() >= IN_BODY.items()
    assert len(told.requests) == 1


async def test_values_that_change_nothing_are_no_extras(serve: Any) -> None:
    script, engine = await serve(says("a"))
    await engine.predict(HI, top_k=0, min_p=0.0, repetition_penalty=1.0, n=1)
    assert set(script.chats[0].body) == {"model", "messages"}
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"typical_p": 0.5}, EngineError, "can't do typical_p=0.5"),
        ({"n": 2}, EngineError, "can't do n=2"),
        ({"prompt_logprobs": 1}, EngineError, "can't do prompt_logprobs=1"),
        ({"logit_bias": {1: 200.0}}, EngineError, "takes -100 to 100"),
        ({"temprature": 1}, TypeError, "did you mean temperature"),
        ({"temperature": -1}, ValueError, "temperature"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    serve: Any, given: dict[str, Any], error: type[Exception], text: str
) -> None:
    script, engine = await serve()
    with pytest.raises(error, match=text):
        await engine.predict(HI, **given)
    assert script.requests == []


# ==== what comes back ====


def call_delta(
    index: int | None, id_: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    one = {"index": index, "id": id_, "type": "function", "function": function}
    return {"tool_calls": [{key: value for key, value in one.items() if value is not None}]}


TWO = [("a", "weather", '{"city": "Rome"}'), ("b", "weather", '{"city": "Oslo"}')]
CUTS: dict[str, list[dict[str, Any]]] = {
    "one piece each": [call_delta(0, *TWO[0]), call_delta(1, *TWO[1])],
    "in turns": [
        call_delta(0, "a", "weather", ""),
        call_delta(1, "b", "weather", '{"ci'),
        call_delta(0, None, None, '{"city": '),
        call_delta(1, None, None, 'ty": "Os'),
        call_delta(0, None, None, '"Rome"}'),
        call_delta(1, None, None, 'lo"}'),
    ],
    "names in pieces, ids late": [
        call_delta(0, None, "wea"),
        call_delta(0, "a", "ther"),
        *(call_delta(0, None, None, letter) for letter in TWO[0][2]),
        call_delta(1, "b"),
        call_delta(1, None, "weather", TWO[1][2]),
    ],
    "all with index 0": [call_delta(0, *TWO[0]), call_delta(0, *TWO[1])],
    "without an index": [
        call_delta(None, *TWO[0]),
        call_delta(None, "b", "weather"),
        call_delta(None, "b", None, TWO[1][2]),
    ],
    "id and name repeated": [
        call_delta(0, "a", "weather", '{"city": '),
        call_delta(0, "a", "weather", '"Rome"}'),
        call_delta(1, *TWO[1]),
    ],
    "arguments as objects": [
        call_delta(0, "a", "weather", {"city": "Rome"}),
        call_delta(1, "b", "weather", {"city": "Oslo"}),
    ],
}


@pytest.mark.parametrize("deltas", CUTS.values(), ids=CUTS.keys())
async def test_calls_are_put_together_however_they_are_cut(serve: Any, deltas: list[dict[str, Any]]) -> None:
    _, engine = await serve(streamed(events(deltas, "tool_calls")))
    items, done = await collect(engine, HI, [WEATHER])
    calls = [(call.id, call.function.name, call.function.arguments) for call in done.message.tool_calls or ()]
    assert calls == TWO
    assert done.message.content is None
    assert done.finish_reason == "stop"
    assert [i for i in items if isinstance(i, ToolCallStarted)] == [
        ToolCallStarted(index, id_, name) for index, (id_, name, _) in enumerate(TWO)
    ]
    told = ["", ""]
    for item in items:
        if isinstance(item, ToolCallDelta):
            told[item.index] += item.arguments
    assert told == [arguments for _, _, arguments in TWO]
    assert items[-2:] == [ToolCallFinished(i, call) for i, call in enumerate(done.message.tool_calls or ())]


async def test_whole_calls_without_ids_stay_apart(serve: Any) -> None:
    calls = [{"id": id_, "function": {"name": "weather"}} for id_ in ("", "same", "same")]
    _, engine = await serve(answer({"content": None, "tool_calls": calls}, "tool_calls"))
    found = (await engine.predict(HI, [WEATHER])).message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in found] == [("weather", "{}")] * 3
    assert len({call.id for call in found}) == 3
    assert all(call.id for call in found)


@pytest.mark.parametrize(
    ("written", "finish", "read"),
    [
        ("{'city': 'Rome',}", "tool_calls", {"city": "Rome"}),  # repaired: only one meaning
        ('{"city": "Rome"', "tool_calls", {"city": "Rome"}),
        ('{"city": "Ro', "length", None),  # cut off: not repaired
        ("", "length", None),  # its arguments may have been to come
        ("", "tool_calls", {}),
        ("Rome, please", "tool_calls", None),
    ],
)
async def test_broken_arguments_are_repaired_or_fail_when_run(
    serve: Any, written: str, finish: str, read: dict[str, Any] | None
) -> None:
    _, engine = await serve(streamed(events([call_delta(0, "a", "weather", written)], finish)))
    _, done = await collect(engine, HI, [WEATHER])
    (call,) = done.message.tool_calls or ()
    assert (call.id, call.function.name) == ("a", "weather")
    assert done.finish_reason == ("length" if finish == "length" else "stop")
    if read is not None:
        assert call.function.kwargs == read
    else:
        with pytest.raises(ArgumentsError):
            WEATHER.parse_arguments(call.function.arguments)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
async def test_reasoning_is_told_apart_from_text(serve: Any, key: str) -> None:
    step = either(
        answer({key: "Let me see.", "content": "Yes."}),
        streamed(events([{key: "Let me "}, {key: "see."}, {"content": "Yes."}])),
    )
    _, engine = await serve(step, step)
    items, done = await collect(engine, HI)
    assert items == [ReasoningDelta("Let me "), ReasoningDelta("see."), "Yes."]
    assert done.message.content == [ReasoningPart(content="Let me see."), "Yes."]
    assert (await engine.predict(HI)).message == done.message


async def test_logprobs_usage_and_a_list_as_content(serve: Any) -> None:
    top = [{"token": "A", "logprob": -0.1, "bytes": None}, {"token": "B", "logprob": -2.5, "bytes": None}]
    logprobs = {"content": [{"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 8}}
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    _, engine = await serve(answer({"content": parts}, "length", usage, logprobs=logprobs))
    done = await engine.predict(HI, logprobs=2)
    assert done.message.text == "AB"
    assert done.logprobs == [TextLogprob("A", -0.1, {"A": -0.1, "B": -2.5})]
    assert (done.cached_tokens, done.finish_reason) == (8, "length")


async def test_no_usage_and_no_text(serve: Any) -> None:
    _, engine = await serve(streamed(events([{"role": "assistant", "content": ""}], usage=None)))
    items, done = await collect(engine, HI)
    assert items == []
    assert done.message == ChatMessage.assistant("")
    assert (done.prompt_tokens, done.completion_tokens) == (None, None)


async def test_forbidden_calls_are_left_out(serve: Any) -> None:
    script, engine = await serve(streamed(events([{"content": "Hm."}, call_delta(0, *TWO[0])], "tool_calls")))
    items, done = await collect(engine, HI, [WEATHER], tool_choice="none")
    assert items == ["Hm."]
    assert done.message == ChatMessage.assistant("Hm.")
    assert script.chats[0].body["tool_choice"] == "none"
    assert len(script.chats[0].body["tools"]) == 1


# ==== streams that end early ====


async def test_closing_a_stream_hangs_up(serve: Any) -> None:
    script, engine = await serve(hangs([event({"content": "One"})]), says("Two"))
    async with aclosing(engine.stream(HI)) as stream:
        assert await anext(stream) == "One"
    assert await anyio.to_thread.run_sync(script.hung_up.wait, 10)
    assert (await engine.predict(HI)).message.text == "Two"


@pytest.mark.parametrize("pieces", [[], [event({"content": "One"})]], ids=["before an answer", "within it"])
async def test_cancelling_hangs_up(serve: Any, pieces: list[bytes]) -> None:
    script, engine = await serve(hangs(pieces))
    with anyio.move_on_after(0.3) as scope:
        async for _ in engine.stream(HI):
            pass
    assert scope.cancelled_caught
    assert await anyio.to_thread.run_sync(script.hung_up.wait, 10)


async def test_a_closed_engine_says_so(serve: Any) -> None:
    _, engine = await serve(says("x"))
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.predict(HI)


# ==== the embedded model behind the server ====


async def test_a_chat_over_http_is_the_chat_itself(serve: Any) -> None:
    nano = await anyio.to_thread.run_sync(NanoEngine)
    try:
        script, engine = await serve(script=script_of(nano), model=None, max_context_size=None)
        assert (engine.model, engine.max_context_size) == ("model", nano.max_context_size)
        assert engine.counts_exactly
        there = Kani(engine, functions=[WEATHER])
        here = Kani(nano, functions=[WEATHER])
        question = "What is the weather in Rome?"
        said = [message async for message in there.full_round(question, temperature=0, max_tokens=60)]
        wanted = [message async for message in here.full_round(question, temperature=0, max_tokens=60)]
        assert [(m.role, m.text, bool(m.tool_calls)) for m in said] == [
            (m.role, m.text, bool(m.tool_calls)) for m in wanted
        ]
        assert any(message.tool_calls for message in said)
        counted = await engine.prompt_len(there.chat_history, [WEATHER])
        assert counted == nano.prompt_len(there.chat_history, [WEATHER])
        pieces = [
            token
            async for token in there.chat_round_stream("Hello!", temperature=0, max_tokens=20, include_functions=False)
        ]
        assert len(pieces) > 1
        assert "".join(pieces) == there.chat_history[-1].text
        assert {request.path for request in script.requests} == {"/v1/models", "/tokenize", "/v1/chat/completions"}
    finally:
        await nano.close()


async def test_no_more_tokens_are_asked_for_than_there_is_room(serve: Any) -> None:
    nano = await anyio.to_thread.run_sync(NanoEngine)
    try:
        script, engine = await serve(script=script_of(nano), model=None, max_context_size=None)
        prompt = await engine.prompt_len(HI)
        done: BaseCompletion = await engine.predict(HI, max_tokens=nano.max_context_size, temperature=0)
        assert done.prompt_tokens == prompt
        assert script.chats[0].body["max_tokens"] == nano.max_context_size - prompt
    finally:
        await nano.close()
