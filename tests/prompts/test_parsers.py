"""kani's parsers over our formats: whole and streamed replies, in any chunking, give one and the same message."""

from __future__ import annotations

from typing import Any

import pytest
from fuzzing import markers_of, pieces, replies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_replies import CALL, DEEPSEEK_CALL, HI, PARSERS, F, Says, parsed, seen, streamed, thought
from scripted import ScriptedEngine

from kani_lite import AIFunction, ChatMessage, Kani, MessagePart, TextPart, ToolCall
from kani_lite.engines import BaseEngine, Completion
from kani_lite.events import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.prompts import HERMES, PLAIN
from kani_lite.prompts.parser_reading import ParsedCompletion
from kani_lite.prompts.parsers import (
    BaseParser,
    DeepSeekR1Parser,
    GPTOSSParser,
    Llama3XToolCallParser,
    MistralToolCallParser,
    NaiveJSONToolCallParser,
    Qwen3_5Parser,
    Qwen3Parser,
    Qwen3ThinkingParser,
)

pytestmark = pytest.mark.anyio
GREY, PLAIN_AGAIN = "\033[0;37m", "\033[0m"


ANALYSIS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
XML_CALL = "<tool_call>\n<function=f>\n<parameter=b>\nx y\n</parameter>\n</function>\n</tool_call>"
REPLIES: list[tuple[type[BaseParser], str, tuple[Any, ...]]] = [
    (NaiveJSONToolCallParser, "hi", ("hi", None)),
    (NaiveJSONToolCallParser, ' {"name": "f", "parameters": {"a": 1}} ', (None, F)),
    (NaiveJSONToolCallParser, '{"name": "f"}', ('{"name": "f"}', None)),
    (Llama3XToolCallParser, '{"name": "f", "parameters": {"a": 1}}<|eom_id|>', (None, F)),
    (Llama3XToolCallParser, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', (None, F)),
    (Llama3XToolCallParser, '{"city": "Paris"}<|eot_id|>', ('{"city": "Paris"}', None)),
    (MistralToolCallParser, 'So [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]</s>', ("So", F)),
    (MistralToolCallParser, "hello</s>", ("hello", None)),
    (GPTOSSParser, f"{ANALYSIS}<|channel|>final<|message|>hi<|return|>", (thought("hm", "hi"), None)),
    (
        GPTOSSParser,
        f'{ANALYSIS}<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"a": 1}}<|call|>',
        (thought("hm"), F),
    ),
    (Qwen3Parser, f"<think>\nhm\n</think>\n\nSo {CALL}", (thought("hm", "So"), F)),
    (Qwen3Parser, "hm</think>hi", (thought("hm", "hi"), None)),
    (Qwen3Parser, f"So{CALL}</think>", ("So", F)),
    (Qwen3Parser, f"{CALL}{CALL.replace('f', 'g')}", (None, [*F, ("g", '{"a": 1}')])),
    (Qwen3ThinkingParser, "hm\n</think>\n\nhi", (thought("hm", "hi"), None)),
    (Qwen3ThinkingParser, "<think>hm</think>hi", (thought("hm", "hi"), None)),
    (Qwen3ThinkingParser, f"So {CALL}", ("So", F)),
    (Qwen3_5Parser, f"hm</think>{XML_CALL}", (thought("hm"), [("f", '{"b": "x y"}')])),
    (DeepSeekR1Parser, f"hm</think>So{DEEPSEEK_CALL}<｜tool▁outputs▁end｜>", (thought("hm", "So"), F)),
    (DeepSeekR1Parser, "hm</think>hi<｜end▁of▁sentence｜>", (thought("hm", "hi"), None)),
]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(("parser", "text", "expected"), REPLIES)
async def test_replies(parser: type[BaseParser], text: str, expected: tuple[Any, ...], chunk: int) -> None:
    chunks = [text[at : at + chunk] for at in range(0, len(text), chunk)]
    engine = parser(Says(*chunks))
    completion = await engine.predict(HI)
    assert seen(completion.message) == expected
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 5)
    assert parsed(parser, text) == expected

    reply = await streamed(engine)
    assert seen(reply.message) == expected
    assert reply.calls == (reply.message.tool_calls or [])
    if text != "hm</think>hi" or parser is not Qwen3Parser:  # it was on the screen before the marker came
        assert reply.text == (reply.message.text or "")
    assert getattr(reply.completion, "raw", text) == text


@st.composite
def cut_replies(draw: st.DrawFn) -> tuple[type[BaseParser], list[str]]:
    parser = draw(st.sampled_from(PARSERS))
    return parser, draw(pieces(draw(replies(parser.format))))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cut_replies(), show=st.booleans())
async def test_any_chunking_gives_the_message_of_the_whole(
    anyio_backend: str, case: tuple[type[BaseParser], list[str]], show: bool
) -> None:
    parser, chunks = case
    engine = parser(Says(*chunks), show_reasoning_in_stream=show)
    reply, whole = await streamed(engine), await engine.predict(HI)
    assert seen(reply.message) == seen(whole.message)
    assert reply.calls == (reply.message.tool_calls or [])
    assert reply.message.tool_calls != []
    # what is taken for reasoning, or a header that never ends, may hold other markers: see test_parsing
    if parser.format.reasoning_start is None and parser.format.route is None:
        for marker in markers_of(parser.format):
            assert marker not in reply.text
            assert marker not in (reply.message.text or "")
        assert reply.text == (reply.message.text or "").strip()


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("text", ["Just text, 1 < 2.", "", '{"city": "Paris"}', " spaced "])
async def test_text_without_markers_stays_as_it_is(parser: type[BaseParser], text: str) -> None:
    inner = Says(text)
    assert (await parser(inner).predict(HI)).message == ChatMessage.assistant(text)
    reply = await streamed(parser(inner))
    assert reply.message == ChatMessage.assistant(text)
    assert reply.text == text.strip()
    assert type(reply.completion) is Completion


@pytest.mark.parametrize("parser", PARSERS)
async def test_what_the_engine_parsed_itself_is_kept(parser: type[BaseParser]) -> None:
    """An engine of ours sends reasoning and calls apart."""
    call = ToolCall.from_function("g", call_id_="1")
    message = ChatMessage.assistant(thought("hm", "hi"), tool_calls=[call])
    told = [ToolCallStarted(0, "1", "g"), ToolCallDelta(0, "{}"), ToolCallFinished(0, call)]
    inner = Says(ReasoningDelta("hm"), "hi", *told, message=message, finish_reason="stop")
    inner.tool_format = HERMES  # type: ignore[attr-defined]  # as a HuggingEngine has
    assert (await parser(inner).predict(HI)).message == message
    reply = await streamed(parser(inner))
    assert reply.items == [ReasoningDelta("hm"), "hi", *told]
    assert reply.message == message


async def test_an_engine_that_is_told_to_parse_nothing() -> None:
    inner = Says("hm</think>hi")
    inner.tool_format = PLAIN  # type: ignore[attr-defined]  # as a HuggingEngine with tool_format="plain" has
    assert (await streamed(Qwen3ThinkingParser(inner))).reasoning == "hm"


async def test_calls_of_the_engine_and_of_the_text() -> None:
    """All are kept, each with its own number."""
    one, two = (ToolCall.from_function("g", call_id_=id_) for id_ in "12")
    told = [ToolCallStarted(0, "1", "g"), ToolCallDelta(0, "{}"), ToolCallFinished(0, one)]
    message = ChatMessage.assistant(f"So{CALL}", tool_calls=[one, two])
    reply = await streamed(Qwen3Parser(Says(TextDelta("So"), *told, CALL, message=message)))
    numbers = [(item.index, item.name) for item in reply.items if isinstance(item, ToolCallStarted)]
    assert numbers == [(0, "g"), (1, "f"), (2, "g")]
    assert reply.calls == reply.message.tool_calls
    assert seen(reply.message) == ("So", [("g", "{}"), *F, ("g", "{}")])
    whole = await Qwen3Parser(Says(message=message)).predict(HI)
    assert seen(whole.message) == ("So", [("g", "{}"), ("g", "{}"), *F])


async def test_parts_of_the_engine_are_kept() -> None:
    class Image(MessagePart):
        def __str__(self) -> str:
            return ""

    image = Image()
    message = ChatMessage.assistant([image, TextPart(content="<think>hm</think>"), "hi"], extra={"k": 1})
    completion = Qwen3Parser(Says()).parse_completion(Completion(message))
    assert completion.message == ChatMessage.assistant([image, *thought("hm", "hi")], extra={"k": 1})
    only_calls = ChatMessage.assistant(None, tool_calls=[ToolCall.from_function("f")])
    assert Qwen3Parser(Says()).parse_completion(Completion(only_calls)).message is only_calls


async def test_the_raw_text_is_on_the_completion() -> None:
    inner = Says("<think>hm</think>", "hi", cached_tokens=2, seconds=0.5, finish_reason="stop")
    for completion in (await Qwen3Parser(inner).predict(HI), (await streamed(Qwen3Parser(inner))).completion):
        assert isinstance(completion, ParsedCompletion)
        assert completion.raw == "<think>hm</think>hi"
        assert completion.inner.message.text == completion.raw
        assert (completion.cached_tokens, completion.seconds, completion.finish_reason) == (2, 0.5, "stop")


async def test_a_stream_without_a_completion_or_without_text() -> None:
    reply = await streamed(Qwen3Parser(Says("<think>hm</think>hi", message=None)))
    assert reply.message == ChatMessage.assistant(thought("hm", "hi"))
    late = await streamed(Qwen3Parser(Says(message=ChatMessage.assistant("<think>hm</think>hi"))))
    assert (late.reasoning, late.text, late.message) == ("hm", "hi", reply.message)


async def test_leaving_the_stream_closes_the_inner_one() -> None:
    inner = Says("a", "b")
    stream = Qwen3Parser(inner).stream(HI)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    assert inner.streams_closed == 1


# ==== calls that can't be used ====


def test_parse_tool_calls_gives_kanis_results() -> None:
    def calls(parser: type[BaseParser], text: str) -> tuple[str, list[tuple[str, str]]]:
        content, found = parser(Says()).parse_tool_calls(text)
        return content, [(call.function.name, call.function.arguments) for call in found]

    for same in (
        "hi ",
        "<tool_call>bad</tool_call>x",
        'a <tool_call>{"name": "f", "arguments": 3}</tool_call> b',
        'a <tool_call>{"x": 1}</tool_call> b',
        "<tool_call>[1</tool_call>",
        f"<think>{CALL}</think>hi",
    ):
        assert calls(Qwen3Parser, same) == (same, [])
    assert calls(Qwen3Parser, f"<think>hm</think> So {CALL}") == ("<think>hm</think>So", F)
    assert calls(NaiveJSONToolCallParser, '{"a": 1}') == ('{"a": 1}', [])
    named = '{"name": "f", "arguments": {"name": "f", "arguments": {}}}'
    assert calls(Qwen3Parser, f"<tool_call>{named}</tool_call>") == (
        "",
        [("f", '{"name": "f", "arguments": {}}')],
    )


async def test_a_call_that_cannot_be_used_fails_when_it_is_run() -> None:
    """As everywhere in this package: the model is told, where kani leaves markers in the text or loses the call."""
    ai = Kani(Qwen3Parser(ScriptedEngine("<tool_call>bad</tool_call>", "I see.")))
    called, result, last = [message async for message in ai.full_round("Hi")]
    assert seen(called) == (None, [("", "bad")])
    assert result.is_tool_call_error
    assert last.text == "I see."


async def test_what_a_limit_cut_off_is_not_repaired() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "x"'
    for reason, expected in (("stop", ("f", '{"a": "x"}')), ("length", ("", text.removeprefix("<tool_call>")))):
        inner = Says(text, finish_reason=reason)
        assert seen((await Qwen3Parser(inner).predict(HI)).message) == (None, [expected])
        assert seen((await streamed(Qwen3Parser(inner))).message) == (None, [expected])


async def test_types_come_from_the_functions() -> None:
    def f(count: int) -> None:
        """Counts."""

    inner = Says("hm</think><tool_call><function=f><parameter=count>\n7\n</parameter></function></tool_call>")
    parser = Qwen3_5Parser(inner)
    expected = (thought("hm"), [("f", '{"count": 7}')])
    assert seen((await parser.predict(HI, [AIFunction(f)])).message) == expected
    assert seen((await streamed(parser, [AIFunction(f)])).message) == expected


# ==== reasoning ====


async def test_reasoning_streams_apart() -> None:
    reply = await streamed(Qwen3Parser(Says("<think>h", "m</think>", f"hi{CALL}")))
    assert [i for i in reply.items if isinstance(i, str | ReasoningDelta)] == [
        ReasoningDelta("h"),
        ReasoningDelta("m"),
        "hi",
    ]


@pytest.mark.parametrize(
    ("items", "color", "expected"),
    [
        (["<think>h", "m</think>\n\nhi"], True, f"{GREY}hm{PLAIN_AGAIN}\nhi"),
        (["<think>h", "m</think>\n\nhi"], False, "hm\nhi"),
        ([f"<think>hm</think>{CALL}"], True, f"{GREY}hm{PLAIN_AGAIN}"),
        (["<think>hm"], True, f"{GREY}hm{PLAIN_AGAIN}"),
        (["hi"], True, "hi"),
        ([ReasoningDelta("hm"), "hi"], True, f"{GREY}hm{PLAIN_AGAIN}\nhi"),
    ],
)
async def test_reasoning_as_visible_text(items: list[Any], color: bool, expected: str) -> None:
    parser = Qwen3Parser(Says(*items), show_reasoning_in_stream=True, reasoning_in_stream_color=color)
    reply = await streamed(parser)
    assert (reply.text, reply.reasoning) == (expected, "")
    assert GREY not in (reply.message.text or "")


async def test_reasoning_that_never_ends_was_the_answer() -> None:
    """The prompt may have closed the reasoning (enable_thinking=False): only the end of the reply shows it."""
    inner = Says("So", f" {CALL}")
    reply = await streamed(Qwen3ThinkingParser(inner))
    assert seen(reply.message) == ("So", F)
    assert reply.text == "So"
    assert reply.calls == reply.message.tool_calls
    shown = await streamed(Qwen3ThinkingParser(Says("So"), show_reasoning_in_stream=True))
    assert shown.text == f"{GREY}So{PLAIN_AGAIN}"
    assert shown.message == ChatMessage.assistant("So")


async def test_reasoning_that_never_ends_and_has_a_call() -> None:
    """The call is told once, whether the reply is taken to begin in the reasoning or opens it itself."""

    def f(a: int) -> None:
        """Does it."""

    for parser, text in ((Qwen3ThinkingParser, f"So {CALL}"), (Qwen3Parser, f"<think>So {CALL}")):
        for chunk in (1, 7, 1000):
            inner = Says(*(text[at : at + chunk] for at in range(0, len(text), chunk)))
            reply = await streamed(parser(inner), [AIFunction(f)])
            assert seen(reply.message)[1] == F
            assert reply.calls == reply.message.tool_calls
            assert seen((await parser(inner).predict(HI, [AIFunction(f)])).message) == seen(reply.message)


async def test_an_end_that_nothing_opened() -> None:
    """It was on the screen already, but the message is that of the whole text."""
    reply = await streamed(Qwen3Parser(Says("hm", f"</think>hi{CALL}")))
    assert seen(reply.message) == (thought("hm", "hi"), F)
    assert reply.text == "hmhi"
    assert reply.calls == reply.message.tool_calls


def test_parse_reasoning() -> None:
    parser = Qwen3Parser(Says())
    assert parser.parse_reasoning("hi") == "hi"
    assert parser.parse_reasoning("<think> hm </think> hi ") == thought("hm", "hi")
    assert parser.parse_reasoning(f"hm</think>{CALL}") == thought("hm", CALL)
    assert GPTOSSParser(Says()).parse_reasoning(f"{ANALYSIS}<|channel|>final<|message|>hi") == thought("hm", "hi")
    assert NaiveJSONToolCallParser(Says()).parse_reasoning("{}") == "{}"


async def test_in_a_chat() -> None:
    def f(a: int) -> str:
        """Doubles it."""
        return str(2 * a)

    inner: BaseEngine = ScriptedEngine(f"<think>hm</think>{CALL}", "It is 2.", chunk=3)
    ai = Kani(Qwen3Parser(inner), functions=[AIFunction(f)])
    texts = ["".join([token async for token in stream]) async for stream in ai.full_round_stream("Hi")]
    assert texts == ["", "2", "It is 2."]
    assert [seen(message) for message in ai.chat_history] == [
        ("Hi", None),
        (thought("hm"), F),
        ("2", None),
        ("It is 2.", None),
    ]
