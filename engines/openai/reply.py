"""What a server sends of one reply, whole or in pieces, read as deltas and a message.

Servers differ in how they cut tool calls up: names and ids in pieces or repeated, no index, one index for all calls,
two calls in turns, arguments as objects. All of that is put together here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kani_lite.engines.base import Completion
from kani_lite.events import Delta, ReasoningDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.messages import ChatMessage, FunctionCall, MessagePart, ReasoningPart, ToolCall
from kani_lite.prompts.calls import CallText, read_headed

from .wire import is_object

_REASONING = ("reasoning_content", "reasoning")  # DeepSeek's and older vLLM's name; newer vLLM's and others'
_OLD_FORM = -1  # the index of a call that can't have one
_COUNTS = ("prompt_tokens", "completion_tokens")
_MOST_TOKENS = 1e15  # JSON has numbers that are no count, too


@dataclass(frozen=True)
class TextLogprob:
    """The natural logarithm of a token's probability, and those of the likeliest tokens in its place, all by text."""

    token: str
    logprob: float
    top: dict[str, float]


@dataclass
class _Call:
    """A call in the making. `told`: whether its start was, so that its name is final."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    told: bool = False

    def add_name(self, piece: str) -> None:
        if not self.told and piece != self.name:  # some servers repeat the whole name
            self.name += piece

    def finished(self, cut: bool) -> ToolCall:
        """The call, its arguments repaired where only one meaning is possible; others fail when they are run, and the
        model is told of it."""
        text = self.arguments
        if not is_object(text):
            read = read_headed(CallText(text, cut=cut, header=self.name)) if self.name else []
            text = read[0].function.arguments if len(read) == 1 else text
            if cut and not text.strip():
                text = "{"  # no text would mean a call without arguments, and they may have been to come
        return ToolCall(id=self.id, type="function", function=FunctionCall(name=self.name, arguments=text))


@dataclass
class ReplyReader:
    """Reads the pieces of one reply. `refused`: calls are left out, since none were allowed."""

    refused: bool = False
    began: float = field(default_factory=time.perf_counter)
    finish_reason: str | None = None
    usage: Any = None
    done: bool = False  # the server said that nothing more comes
    begun: bool = False  # a piece of the reply itself came

    def __post_init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._logprobs: list[TextLogprob] = []
        self._first: float | None = None
        self._finished: list[ToolCall] = []

    @property
    def complete(self) -> bool:
        """Whether the server said that this is all."""
        return self.finish_reason is not None or (self.done and self.begun)

    def feed(self, chunk: Any) -> Iterator[str | Delta]:
        """What one piece of a stream, or a whole answer, adds: text as `str`, other deltas as they are."""
        usage, choices = _get(chunk, "usage"), _get(chunk, "choices")
        self.usage = usage or self.usage
        if not choices:
            # some servers tell it with each piece; beside none it comes last
            self.done = self.done or (bool(usage) and self.begun)
            return
        self.begun, choice = True, choices[0]
        self.finish_reason = _get(choice, "finish_reason") or self.finish_reason
        self._read_logprobs(_get(choice, "logprobs"))
        delta, message = _get(choice, "delta"), _get(choice, "message")
        self.done = self.done or (delta is None and message is not None)
        for item in self._said(delta or message, whole=delta is None):
            if self._first is None:
                self._first = time.perf_counter()
            yield item

    def _said(self, said: Any, whole: bool) -> Iterator[str | Delta]:
        for name in _REASONING:  # some servers send both, with the same text
            if thought := _get(said, name):
                self._reasoning.append(str(thought))
                yield ReasoningDelta(str(thought))
                break
        for name in ("content", "refusal"):
            if text := _plain(_get(said, name)):
                self._text.append(text)
                yield text
        calls = _get(said, "tool_calls")
        if not calls and (old := _get(said, "function_call")):  # the API's form before it had tools: one call
            calls, whole = [{"index": _OLD_FORM, "function": old}], False
        for piece in calls or ():
            if not self.refused:
                yield from self._read_call(piece, whole)

    def _read_call(self, piece: Any, whole: bool) -> Iterator[Delta]:
        function = _get(piece, "function") or {}
        name, arguments = str(_get(function, "name") or ""), _json_text(_get(function, "arguments"))
        call = self._new_call() if whole else self._call_of(piece, name)
        if not call.id:
            call.id = str(_get(piece, "id") or "")
        call.add_name(name)
        if not arguments:
            return
        call.arguments += arguments
        for other in self._calls[: call.index + 1]:
            if not other.told and other.name:
                yield self._start(other)
        yield ToolCallDelta(call.index, arguments)

    def _call_of(self, piece: Any, name: str) -> _Call:
        """The call that a piece belongs to: by index; by id, or else the newest, where there is none. Another id under
        the same index, with a name of its own, is another call."""
        index, id_ = _get(piece, "index"), str(_get(piece, "id") or "")
        if isinstance(index, int):
            known = self._by_index.get(index)
        elif id_:
            known = next((call for call in self._calls if call.id == id_), None)
        else:
            known = self._calls[-1] if self._calls and not (name and self._calls[-1].told) else None
        if known is not None and id_ and name and known.id not in ("", id_):
            known = next((call for call in self._calls if call.id == id_), None)
        if known is None:
            known = self._new_call()
        if isinstance(index, int):
            self._by_index[index] = known
        return known

    def _new_call(self) -> _Call:
        self._calls.append(_Call(len(self._calls)))
        return self._calls[-1]

    def _start(self, call: _Call) -> ToolCallStarted:
        # results refer to ids, so each needs its own
        if not call.id or any(other.id == call.id for other in self._calls if other.told):
            call.id = str(uuid4())
        call.told = True
        return ToolCallStarted(call.index, call.id, call.name)

    def _read_logprobs(self, logprobs: Any) -> None:
        for one in _list(_get(logprobs, "content")):
            top = {_get(other, "token"): _get(other, "logprob") for other in _list(_get(one, "top_logprobs"))}
            self._logprobs.append(TextLogprob(_get(one, "token"), _get(one, "logprob"), top))

    def finish(self) -> Iterator[Delta]:
        """What comes after the last piece: calls may have come in turns, so none is complete before."""
        cut = self.finish_reason == "length"
        for call in self._calls:
            if not call.told:
                yield self._start(call)
            # a limit cuts the last call only
            self._finished.append(call.finished(cut and call is self._calls[-1]))
            yield ToolCallFinished(call.index, self._finished[-1])

    def message(self) -> ChatMessage:
        """The reply, after `finish`: content None where there are calls and no text."""
        text = "".join(self._text)
        content: str | list[MessagePart | str] | None = text or (None if self._finished else "")
        if self._reasoning:
            content = [ReasoningPart(content="".join(self._reasoning)), *([text] if text else [])]
        return ChatMessage.assistant(content, tool_calls=self._finished or None)

    def completion(self) -> Completion:
        """The reply with what is known of it, after `finish`. Tokens are None where the server doesn't say."""
        details = _get(self.usage, "prompt_tokens_details")
        reason = self.finish_reason
        return Completion(
            self.message(),
            *(_count(_get(self.usage, name)) for name in _COUNTS),
            cached_tokens=_count(_get(details, "cached_tokens")),
            seconds=time.perf_counter() - self.began,
            first_token_seconds=None if self._first is None else self._first - self.began,
            finish_reason="stop" if reason in ("tool_calls", "function_call", None) else reason,
            logprobs=self._logprobs or None,
        )


def odd_part(said: Any) -> str | None:
    """What of an answer isn't as the API has it, so that it can't be read: its name and value; None if all is well."""
    choices, usage = _get(said, "choices"), _get(said, "usage")
    if choices is not None and not isinstance(choices, list):
        return f"choices={choices!r:.100}"
    for choice in choices or ():
        for form in ("delta", "message"):
            calls = _get(_get(choice, form), "tool_calls")
            if calls is not None and not isinstance(calls, list):
                return f"tool_calls={calls!r:.100}"
    for name in _COUNTS:
        if not isinstance(count := _get(usage, name), int | float | None):
            return f"usage.{name}={count!r:.100}"
    return None


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    return int(value) if isinstance(value, int | float) and 0 <= value < _MOST_TOKENS else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _get(value: Any, name: str) -> Any:
    """A field of a JSON object; None where there is no such field, or no object."""
    return value.get(name) if isinstance(value, dict) else None


def _plain(content: Any) -> str:
    """Content as text: some servers send a list of parts."""
    if isinstance(content, list):
        return "".join(str(_get(part, "text") or "") for part in content)
    return str(content) if content else ""


def _json_text(arguments: Any) -> str:
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return json.dumps(arguments, ensure_ascii=False)
