"""Parsers of one's own: other markers, other formats, overridden methods."""

from __future__ import annotations

from typing import Any

import pytest
from raw_replies import CALL, DEEPSEEK_CALL, HI, PARSERS, F, Says, parsed, seen, streamed, thought

from kani_lite import ChatMessage, MessagePart, ToolCall
from kani_lite.engines import BaseCompletion, Completion, WrapperEngine
from kani_lite.prompts import HERMES, Format
from kani_lite.prompts.parsers import (
    BaseParser,
    BaseToolCallParser,
    DeepSeekR1Parser,
    DeepSeekR1ToolCallParser,
    Qwen3Parser,
)

pytestmark = pytest.mark.anyio


def test_names_and_defaults() -> None:
    assert BaseToolCallParser is BaseParser
    assert DeepSeekR1ToolCallParser is DeepSeekR1Parser
    assert issubclass(BaseParser, WrapperEngine)
    parser = Qwen3Parser(engine=Says())
    markers = (
        parser.tool_call_start_token,
        parser.tool_call_end_token,
        parser.reasoning_start_token,
        parser.reasoning_end_token,
    )
    assert markers == ("<tool_call>", "</tool_call>", "<think>", "</think>")
    assert (parser.reasoning_always_at_start, parser.show_reasoning_in_stream) == (False, False)
    assert parser.reasoning_in_stream_color
    assert [p(Says()).reasoning_always_at_start for p in PARSERS] == [False] * 5 + [True] * 3
    bare = BaseParser(Says())
    assert (bare.tool_call_start_token, bare.reasoning_end_token) == (None, None)
    assert bare.parse_tool_calls(CALL) == (CALL, [])


@pytest.mark.parametrize(
    ("parser", "kwargs", "text", "expected"),
    [
        (BaseParser, {"tool_call_start_token": "<c>", "tool_call_end_token": "</c>"}, f"So<c>{CALL[11:-12]}</c>", F),
        (BaseParser, {"tool_call_start_token": "<c>"}, f"So<c>{CALL[11:-12]}", F),
        (Qwen3Parser, {"tool_call_start_token": "<c>", "tool_call_end_token": "</c>"}, f"So<c>{CALL[11:-12]}</c>", F),
        (Qwen3Parser, {"tool_call_end_token": "</tool_call>"}, f"So{CALL}", F),
        (BaseParser, {"tool_call_end_token": "</c>"}, "So", None),
        (
            DeepSeekR1Parser,
            {"tool_call_start_token": "<｜tool▁calls▁begin｜>", "tool_call_end_token": "<｜tool▁outputs▁end｜>"},
            f"So{DEEPSEEK_CALL}<｜tool▁outputs▁end｜>",
            F,
        ),
    ],
)
def test_markers_of_ones_own(
    parser: type[BaseParser], kwargs: dict[str, str], text: str, expected: list[tuple[str, str]] | None
) -> None:
    assert parsed(parser, text, **kwargs) == ("So", expected)


def test_reasoning_with_an_end_alone() -> None:
    assert parsed(BaseParser, "hm[end]hi", reasoning_end_token="[end]") == (thought("hm", "hi"), None)
    assert parsed(BaseParser, "hi", reasoning_end_token="[end]") == ("hi", None)
    both = {"reasoning_start_token": "[r]", "reasoning_end_token": "[end]"}
    assert parsed(Qwen3Parser, "[r]hm[end]hi", **both) == (thought("hm", "hi"), None)


class Upper(BaseParser):
    """As kani's documentation tells to write one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, tool_call_start_token="CALL(", tool_call_end_token=")", **kwargs)

    def parse_tool_calls(self, content: str) -> tuple[str, list[ToolCall]]:
        text, _, name = content.removesuffix(")").partition("CALL(")
        if name == "boom":
            raise ValueError(name)
        return text, [ToolCall.from_function(name.lower())] if name else []


async def test_what_is_overridden_is_used() -> None:
    engine = Upper(Says("So CA", "LL(F", ")"))
    expected = ("So ", [("f", "{}")])
    assert seen((await engine.predict(HI)).message) == expected
    reply = await streamed(engine)
    assert seen(reply.message) == expected
    assert reply.items == ["So"]  # the calls are known with the message only
    assert seen((await streamed(Upper(Says("hi")))).message) == ("hi", None)


async def test_an_error_in_what_is_overridden(caplog: pytest.LogCaptureFixture) -> None:
    class Worse(Upper):
        def parse_reasoning(self, content: str) -> Any:
            raise KeyError(content)

    for engine in (Upper, Worse):
        completion = await engine(Says("So CALL(boom)")).predict(HI)
        assert completion.message == ChatMessage.assistant("So CALL(boom)")
    assert [r.message.split(" ")[0] for r in caplog.records] == [
        "Upper.parse_tool_calls",
        "Worse.parse_tool_calls",
        "Worse.parse_reasoning",
    ]


async def test_parse_reasoning_overridden() -> None:
    class Lines(Qwen3Parser):
        def parse_reasoning(self, content: str) -> list[MessagePart | str]:
            first, _, rest = content.partition("\n")
            return thought(first, rest)

    assert seen((await Lines(Says(f"hm\nhi{CALL}")).predict(HI)).message) == (thought("hm", "hi"), F)


async def test_parse_completion_overridden() -> None:
    class Fixed(Qwen3Parser):
        def parse_completion(self, completion: BaseCompletion) -> BaseCompletion:
            return Completion(ChatMessage.assistant(f"{completion.message.text}!"))

    assert (await Fixed(Says("<think>hm")).predict(HI)).message.text == "<think>hm!"
    assert (await streamed(Fixed(Says("<think>hm")))).message.text == "<think>hm!"


async def test_a_format_of_ones_own() -> None:
    class Mine(BaseParser):
        format = Format("mine", HERMES.regions, dropped=("<eos>",))

    reply = await streamed(Mine(Says("<think>hm</think>hi<e", "os>")))
    assert reply.message == ChatMessage.assistant(thought("hm", "hi"))
