"""Cases about what a stream yields."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from kani_lite.engines.base import BaseCompletion
from kani_lite.events import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ReasoningPart

from .cases import case
from .probe import Probe, Streamed, said
from .profile import CaseFailed

_KNOWN = (str, TextDelta, ReasoningDelta, ToolCallStarted, ToolCallDelta, ToolCallFinished, BaseCompletion)
_MULTI_BYTE = "Please say: Grüße, 東京, naïve, 🙂👩‍👩‍👧, Ω."


def _requests(probe: Probe) -> list[tuple[list[ChatMessage], list[AIFunction] | None]]:
    requests: list[tuple[list[ChatMessage], list[AIFunction] | None]] = [
        (probe.messages(), None),
        (probe.messages(_MULTI_BYTE), None),
        (probe.messages(), probe.functions),
    ]
    if probe.profile.tool_query is not None:
        requests.append((probe.tool_query(), probe.functions))
    return requests


@case
async def stream_equals_predict(probe: Probe) -> None:
    """The same request gives the same text and calls, streamed or not."""
    for messages, functions in _requests(probe):
        whole = said((await probe.predict(messages, functions)).message)
        streamed = said((await probe.stream(messages, functions)).completion.message)
        if whole != streamed:
            raise CaseFailed(f"predict says {whole!r:.200}, and stream {streamed!r:.200}.")


@case
async def deltas_join_to_the_message(probe: Probe) -> None:
    """The pieces of a stream add up to the message of its completion: text, reasoning and calls."""
    for messages, functions in _requests(probe):
        streamed = await probe.stream(messages, functions)
        _check_kinds(streamed)
        message = streamed.completion.message
        # a message may be stripped: what was streamed can't be taken back
        if streamed.text.strip() != (message.text or "").strip():
            raise CaseFailed(f"The stream's text is {streamed.text!r:.200}, its message's {message.text!r:.200}.")
        _check_reasoning(streamed, message)
        _check_calls(streamed, message)


def _check_kinds(streamed: Streamed) -> None:
    for item in streamed.items:
        if not isinstance(item, _KNOWN):
            raise CaseFailed(f"A stream yields str, deltas and a completion, not {item!r:.200}.")


def _check_reasoning(streamed: Streamed, message: ChatMessage) -> None:
    told = "".join(item.text for item in streamed.items if isinstance(item, ReasoningDelta))
    kept = "".join(part.content for part in message.parts if isinstance(part, ReasoningPart))
    if told and told.strip() != kept.strip():
        raise CaseFailed(f"The stream's reasoning is {told!r:.200}, its message's {kept!r:.200}.")


def _check_calls(streamed: Streamed, message: ChatMessage) -> None:
    finished = [item.call for item in streamed.items if isinstance(item, ToolCallFinished)]
    if finished and finished != (message.tool_calls or []):
        raise CaseFailed(f"The stream finished {finished!r:.200}, and its message has {message.tool_calls!r:.200}.")
    arguments: dict[int, str] = defaultdict(str)
    for item in streamed.items:
        if isinstance(item, ToolCallDelta):
            arguments[item.index] += item.arguments
    for index, text in arguments.items():
        calls = message.tool_calls or []
        whole = calls[index].function.arguments if index < len(calls) else None
        if text != whole:
            raise CaseFailed(f"Arguments of call {index} were streamed as {text!r:.200}, and are {whole!r:.200}.")


@case
async def completion_comes_last(probe: Probe) -> None:
    """A stream has exactly one completion, and nothing comes after it."""
    for messages, functions in _requests(probe):
        items = (await probe.stream(messages, functions)).items
        places = [place for place, item in enumerate(items) if isinstance(item, BaseCompletion)]
        if places != [len(items) - 1]:
            raise CaseFailed(f"A stream of {len(items)} items has its completions at {places}, not one at the end.")


@case
async def characters_are_whole(probe: Probe) -> str | None:
    """A character of several bytes is never split between two pieces of a stream."""
    hot: dict[str, Any] = {"temperature": 2.0, "seed": 1, "max_tokens": 60} if probe.profile.sampling else {}
    seen = 0
    for extra in (dict[str, Any](), hot):
        if extra and await probe.sampled("seed", extra) is None:
            break  # what a hot model says can't be repeated, but nothing here needs it
        streamed = await probe.stream(probe.messages(_MULTI_BYTE), **extra)
        text = streamed.completion.message.text or ""
        for item in streamed.items:
            piece = item if isinstance(item, str) else item.text if isinstance(item, TextDelta) else ""
            if not piece.isascii():
                seen += 1
            if any("\ud800" <= character <= "\udfff" for character in piece):
                raise CaseFailed(f"A piece of the stream has half a character: {piece!a:.200}.")
        if streamed.text.count("\ufffd") > text.count("\ufffd"):
            raise CaseFailed(
                f"The stream shows broken characters that its message doesn't have: {streamed.text!r:.200}."
            )
    return f"{seen} pieces with such characters" if seen else "the model wrote none"


@case
async def usage_is_told(probe: Probe) -> str | None:
    """Completions tell positive token counts, streamed or not the same."""
    one, two = await probe.predict(), (await probe.stream()).completion
    for name in ("prompt_tokens", "completion_tokens"):
        a, b = getattr(one, name), getattr(two, name)
        if a != b:
            raise CaseFailed(f"{name} is {a} from predict, and {b} from stream.")
        if a is not None and (isinstance(a, bool) or not isinstance(a, int) or a < 1):
            raise CaseFailed(f"{name} is {a!r}: it should be a positive number, or None where it isn't known.")
    return f"{one.prompt_tokens} + {one.completion_tokens} tokens"
