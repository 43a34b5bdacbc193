"""Raw replies read as a whole, for kani's parsers: which format holds, and what becomes of the completion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kani_lite.engines.base import BaseCompletion, Completion
from kani_lite.messages import ChatMessage, MessagePart, TextPart, ToolCall

from .parsing import Format, Kind, Parser, Region

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction


@dataclass(frozen=True)
class Reading:
    """How to read the replies of one model. `end` is the marker that ends its reasoning."""

    format: Format
    end: str | None
    always_at_start: bool = False

    @property
    def assumed_inside(self) -> bool:
        """Whether a reply is taken to begin in the reasoning, before any of it is known."""
        return self.always_at_start and self.end is not None

    def inside(self, text: str) -> bool:
        """Whether this reply begins in the reasoning: its end comes, and nothing has begun before."""
        if self.end is None or self.end not in text:
            return False
        before = text[: text.index(self.end)]
        return self.always_at_start or not any(region.start in before for region in self.format.regions)

    def without_calls(self) -> Reading:
        """For the reasoning alone: what is written as calls is text."""
        regions = tuple(r for r in self.format.regions if r.kind is not Kind.CALL)
        return replace(self, format=replace(self.format, regions=regions, bare=None))

    def parser(self, functions: Sequence[AIFunction] | None, inside: bool) -> Parser:
        """For one reply, which begins in the reasoning or not."""
        region = self.format.region(Kind.REASONING) if inside else None
        return Parser(replace(self.format, inside=region), functions)

    def read(
        self,
        text: str,
        functions: Sequence[AIFunction] | None = None,
        *,
        inside: bool | None = None,
        cut: bool = False,
    ) -> Parser:
        """The parser that has read the whole reply."""
        parser = self.parser(functions, self.inside(text) if inside is None else inside)
        parser.feed(text)
        parser.finish(cut=cut)
        return parser


class ParsedCompletion(Completion):
    """What a parser made of a completion. `raw` is the model's text, markers included; `inner` is the completion of
    the wrapped engine."""

    def __init__(self, message: ChatMessage, raw: str, inner: BaseCompletion) -> None:
        super().__init__(
            message,
            inner.prompt_tokens,
            inner.completion_tokens,
            cached_tokens=getattr(inner, "cached_tokens", None),
            seconds=getattr(inner, "seconds", None),
            finish_reason=getattr(inner, "finish_reason", None),
        )
        self.raw = raw
        self.inner = inner


def with_content(
    completion: BaseCompletion, raw: str, parsed: ChatMessage, calls: Sequence[ToolCall]
) -> BaseCompletion:
    """The completion with this content and these calls; itself if its text holds nothing else."""
    message = completion.message
    if parsed.content in (raw, raw.strip()) and list(calls) == (message.tool_calls or []):
        return completion
    kept = [part for part in message.parts if not isinstance(part, str | TextPart)]
    parts = [*kept, *(part for part in parsed.parts if part != "")]
    content: str | list[MessagePart | str] | None = parts
    if not any(isinstance(part, MessagePart) for part in parts):
        content = "".join(map(str, parts)) or (None if calls else "")
    return ParsedCompletion(message.copy_with(content=content, tool_calls=list(calls) or None), raw, completion)


def was_cut(completion: BaseCompletion) -> bool:
    """Whether a limit cut the reply off, as far as the engine says."""
    return getattr(completion, "finish_reason", None) == "length"


def with_markers(fmt: Format, kind: Kind, start: str | None, end: str | None) -> Format:
    """The format with other markers for its first region of this kind, or with such a region."""
    region = fmt.region(kind)
    if region is None:
        if not start and (not end or kind is Kind.CALL):
            return fmt
        # reasoning that only has an end: no text holds the start that it gets here
        made = Region(kind, start or f"\0{end}", (end,) if end else (), until_next=kind is Kind.CALL)
        return replace(fmt, regions=(*fmt.regions, made))
    changed = region
    # a marker that the format drops stands around all calls: it is none of a single call
    if start and start not in fmt.dropped:
        changed = replace(changed, start=start)
    if end and end not in (*fmt.dropped, *region.ends):
        changed = replace(changed, ends=(end,))
    return replace(fmt, regions=tuple(changed if r is region else r for r in fmt.regions))


def is_usable(call: ToolCall) -> bool:
    """Whether a call has a name, and arguments that are a JSON object."""
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError:
        return False
    if not call.function.name or not isinstance(arguments, dict):
        return False
    # arguments of another type: the reader puts the whole call in their place, for the model to see
    inner: object = next((arguments[key] for key in ("arguments", "parameters", "args") if key in arguments), {})
    return isinstance(inner, dict) or arguments.get("name") != call.function.name
