"""kani's parsers: wrappers for engines that return a model's raw text, markers included, which our formats read."""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kani_lite.engines.base import BaseCompletion, BaseEngine
from kani_lite.engines.wrapper import WrapperEngine
from kani_lite.events import Delta
from kani_lite.messages import ChatMessage, MessagePart, ToolCall
from kani_lite.model_stream import close as close_stream

from .formats.deepseek import DEEPSEEK_R1
from .formats.gpt_oss import GPT_OSS
from .formats.hermes import HERMES, QWEN3_CODER
from .formats.llama import LLAMA3
from .formats.mistral import MISTRAL
from .formats.plain import JSON, PLAIN
from .parser_reading import Reading, is_usable, was_cut, with_content, with_markers
from .parser_stream import ReplyStream, Shown
from .parsing import Format, Kind

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

_log = logging.getLogger(__name__)
_in_use: weakref.WeakSet[BaseParser] = weakref.WeakSet()


class BaseParser(WrapperEngine):
    """Reads tool calls and reasoning in the raw text of an engine. Text without markers, and calls that the engine
    found itself, are passed on as they are.

    Subclass it with a `format`, which is all that the parsers below do; or, as in kani, give the markers and override
    `parse_tool_calls`, `parse_reasoning` or `parse_completion`: what is overridden then makes the message, and the
    markers say what a stream doesn't show. Markers not given are those of the format.

    :param tool_call_start_token: opens a call; without an end marker it goes on to the end of the reply
    :param reasoning_end_token: also ends reasoning that nothing in the reply has opened
    :param reasoning_always_at_start: the reply begins inside the reasoning, which the prompt has opened. If no end
        marker comes, it was no reasoning: it is text
    :param show_reasoning_in_stream: streams reasoning as visible text, in place of its deltas
    :param reasoning_in_stream_color: puts that text between the codes that make a terminal write it in grey
    """

    format: ClassVar[Format] = PLAIN

    def __init__(
        self,
        engine: BaseEngine,
        *args: Any,
        tool_call_start_token: str | None = None,
        tool_call_end_token: str | None = None,
        reasoning_start_token: str | None = None,
        reasoning_end_token: str | None = None,
        reasoning_always_at_start: bool = False,
        show_reasoning_in_stream: bool = False,
        reasoning_in_stream_color: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(engine, *args, **kwargs)
        fmt = with_markers(self.format, Kind.CALL, tool_call_start_token, tool_call_end_token)
        self._format = with_markers(fmt, Kind.REASONING, reasoning_start_token, reasoning_end_token)
        call, reasoning = self._format.region(Kind.CALL), self._format.region(Kind.REASONING)
        self.tool_call_start_token = tool_call_start_token or (call.start if call else None)
        self.tool_call_end_token = tool_call_end_token or (call.ends[0] if call and call.ends else None)
        self.reasoning_start_token = reasoning_start_token or (self.format.reasoning_start if reasoning else None)
        self.reasoning_end_token = reasoning.ends[0] if reasoning and reasoning.ends else None
        self.reasoning_always_at_start = reasoning_always_at_start
        self.show_reasoning_in_stream = show_reasoning_in_stream
        self.reasoning_in_stream_color = reasoning_in_stream_color
        _in_use.add(self)

    # ==== what a subclass may override ====

    def parse_tool_calls(self, content: str) -> tuple[str, list[ToolCall]]:
        """The text without its calls, and the calls. As in kani, a call that can't be used is none; without a call the
        text stays as it is. (`predict` and `stream` keep such a call, so that running it tells the model.)"""
        head, end, tail = content.rpartition(self.reasoning_end_token or "\0")
        parser = self._reading().read(tail, inside=False)
        calls = [call for call in parser.calls if is_usable(call)]
        if not calls:
            return content, []
        return head + end + (parser.message().text or ""), calls

    def parse_reasoning(self, content: str) -> str | list[MessagePart | str]:
        """The text, with a ReasoningPart in front if there is reasoning in it."""
        parsed = self._reading().without_calls().read(content).message().content
        return parsed if isinstance(parsed, list) else content

    def parse_completion(self, completion: BaseCompletion) -> BaseCompletion:
        """The completion with its message parsed; the completion itself if there is nothing to parse."""
        return self._parsed(completion, None)

    # ==== running ====

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        completion = await super().predict(messages, functions, **hyperparams)
        if self._overrides("parse_completion"):
            return self.parse_completion(completion)
        return self._parsed(completion, functions)

    async def stream(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> AsyncIterator[str | Delta | BaseCompletion]:
        by_methods = self._overrides("parse_completion", "parse_tool_calls", "parse_reasoning")
        shown = Shown(self.show_reasoning_in_stream, self.reasoning_in_stream_color)
        reply = ReplyStream(self._reading(), functions, shown, tell_calls=not by_methods)
        inner: BaseCompletion | None = None
        stream = self.engine.stream(messages, functions, **hyperparams)
        try:
            async for item in stream:
                if isinstance(item, BaseCompletion):
                    inner = item
                else:
                    for read in reply.read(item):
                        yield read
        finally:
            await close_stream(stream)
        inner = reply.completed(inner)
        for last in reply.finish(inner):
            yield last
        yield self.parse_completion(inner) if by_methods else reply.completion(inner)

    def _overrides(self, *names: str) -> bool:
        return any(getattr(type(self), name) is not getattr(BaseParser, name) for name in names)

    def _reading(self) -> Reading:
        # an engine that parses by itself sends its reasoning apart: its text is none
        own = getattr(self.engine, "tool_format", None)
        itself = isinstance(own, Format) and own.reasoning_start is not None
        return Reading(self._format, self.reasoning_end_token, self.reasoning_always_at_start and not itself)

    def _parsed(self, completion: BaseCompletion, functions: Sequence[AIFunction] | None) -> BaseCompletion:
        text = completion.message.text
        if not text:
            return completion
        if self._overrides("parse_tool_calls", "parse_reasoning"):
            return self._parsed_by_methods(completion, text)
        parser = self._reading().read(text, functions, cut=was_cut(completion))
        calls = [*(completion.message.tool_calls or ()), *parser.calls]
        return with_content(completion, text, parser.message(), calls)

    def _parsed_by_methods(self, completion: BaseCompletion, text: str) -> BaseCompletion:
        """By what a subclass overrides. As in kani, an error in it leaves the message as it is: it is mostly about
        what a model wrote, which must not end the chat."""
        name = type(self).__name__
        rest, calls = text, list[ToolCall]()
        try:
            rest, calls = self.parse_tool_calls(text)
        except Exception:
            _log.exception("%s.parse_tool_calls failed: the text stays as it is.", name)
        content: str | list[MessagePart | str] = rest
        try:
            content = self.parse_reasoning(rest)
        except Exception:
            _log.exception("%s.parse_reasoning failed: the text stays as it is.", name)
        calls = [*(completion.message.tool_calls or ()), *calls]
        return with_content(completion, text, ChatMessage.assistant(content), calls)


BaseToolCallParser = BaseParser


def parsers_in_use() -> list[BaseParser]:
    """The parsers that exist in this program."""
    return list(_in_use)


# ==== the parsers ====


class NaiveJSONToolCallParser(BaseParser):
    """For models without markers: a reply that is nothing but JSON calls, `{"name": ..., "parameters": {...}}`."""

    format = JSON


class Llama3XToolCallParser(BaseParser):
    """Llama 3.1 and later: JSON calls, with or without `<|python_tag|>` before them."""

    format = LLAMA3


class MistralToolCallParser(BaseParser):
    """Mistral's models from 2024 on: a list of JSON calls after `[TOOL_CALLS]`."""

    format = MISTRAL


class GPTOSSParser(BaseParser):
    """gpt-oss, where each part of a reply has a header with its channel and recipient."""

    format = GPT_OSS


class Qwen3Parser(BaseParser):
    """Qwen 3: reasoning between `<think>` tags, JSON calls between `<tool_call>` tags."""

    format = HERMES


class _BeginsThinking(BaseParser):
    """For models whose prompt opens the reasoning."""

    def __init__(self, engine: BaseEngine, *args: Any, reasoning_always_at_start: bool = True, **kwargs: Any) -> None:
        super().__init__(engine, *args, reasoning_always_at_start=reasoning_always_at_start, **kwargs)


class Qwen3ThinkingParser(_BeginsThinking, Qwen3Parser):
    """Qwen 3 Thinking, whose replies begin in the reasoning."""


class Qwen3_5Parser(_BeginsThinking):  # noqa: N801  # kani's name
    """Qwen 3.5: reasoning as in Qwen 3 Thinking; calls as `<function=name><parameter=key>value</parameter>`."""

    format = QWEN3_CODER


class DeepSeekR1Parser(_BeginsThinking):
    """DeepSeek R1 and the models distilled from it."""

    format = DEEPSEEK_R1


DeepSeekR1ToolCallParser = DeepSeekR1Parser
