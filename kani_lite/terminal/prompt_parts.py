"""Which part of a prompt comes of which message, and how much each of them adds.

A chat template is a program that says neither. It is asked by rendering: the first k messages, for every k; the chat
without its tools; the chat with a mark in place of each text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kani_lite.exceptions import PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ReasoningPart

from .prompt_source import PromptSource

_MARK = "kaniMark{}Ends"  # no template has a reason to change a word
_SEPARATORS = ((", ", ": "), (",", ":"))
_CONTEXT = 30  # characters of the prompt that an error shows


@dataclass(frozen=True)
class Piece:
    """A piece of the prompt. `message`: the index of the one it comes of, None for what belongs to none; `content`:
    whether it is what the message says, rather than what the template puts around it."""

    text: str
    message: int | None
    content: bool


@dataclass(frozen=True)
class Counts:
    """Units of a prompt; None where the template doesn't tell. `after[k]`: of the messages up to and with
    k, and of the tools; `tools`: of the tools alone."""

    after: list[int | None]
    tools: int | None
    total: int

    @property
    def generation(self) -> int | None:
        """What follows the last message, for the model to go on from."""
        return None if self.after[-1] is None else self.total - self.after[-1]


@dataclass(frozen=True)
class Prompt:
    """A prompt, taken apart."""

    text: str
    pieces: list[Piece]
    counts: Counts


def analyse(
    source: PromptSource, messages: list[ChatMessage], functions: list[AIFunction], add_generation_prompt: bool
) -> Prompt:
    """The prompt, its pieces in order, and what each message adds. Raises PromptError if it can't be written."""
    text = _rendered(source, messages, functions, add_generation_prompt)
    ends: list[int | None] = []
    after: list[int | None] = []
    for number, message in enumerate(messages, 1):  # one prompt after the other: together they may take gigabytes
        prefix = _try(source, messages[:number], functions)
        ends.append(len(prefix) if prefix is not None and text.startswith(prefix) else None)
        after.append(None if prefix is None or _held_back(message, prefix) else source.count(prefix))
    counts = Counts(after, _count_of_tools(source, messages, functions, after[-1]), source.count(text))
    spans = _Spans(text, messages, _contents(source, messages, functions, add_generation_prompt, text))
    return Prompt(text, list(spans.pieces(ends)), counts)


def _rendered(
    source: PromptSource, messages: Sequence[ChatMessage], functions: Sequence[AIFunction], add_generation_prompt: bool
) -> str:
    text = source.render(messages, functions, add_generation_prompt)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(error.start - _CONTEXT, 0) : error.start]
        raise PromptError(
            f"The prompt has {text[error.start]!a} after {before!r}. That is a lone surrogate, half of a character, "
            "which has no tokens: take it out of the chat or the tools, or write both halves."
        ) from None
    return text


def _try(source: PromptSource, messages: Sequence[ChatMessage], functions: Sequence[AIFunction]) -> str | None:
    try:
        return _rendered(source, messages, functions, False)
    except PromptError:
        return None


def _count_of_tools(
    source: PromptSource, messages: list[ChatMessage], functions: list[AIFunction], with_tools: int | None
) -> int | None:
    if with_tools is None or not functions:
        return None if with_tools is None else 0
    without = _try(source, messages, [])
    return None if without is None else with_tools - source.count(without)


def _held_back(message: ChatMessage, prefix: str) -> bool:
    """Whether the last message is missing: some templates write a system text with the question after it."""
    return not any(form in prefix for form in _forms(message.text or ""))


# ==== where the texts are ====


def _contents(
    source: PromptSource,
    messages: list[ChatMessage],
    functions: list[AIFunction],
    add_generation_prompt: bool,
    text: str,
) -> dict[int, tuple[int, int]]:
    """Where the text of each message is, by its index. Exact where the template treats a text alike whatever it says:
    then the prompt with marks instead of texts is the same but for them. Nothing where it doesn't."""
    marked = [
        m.copy_with(text=_MARK.format(i)) if (m.text or "").strip() and isinstance(m.content, str) else m
        for i, m in enumerate(messages)
    ]
    try:
        rest = source.render(marked, functions, add_generation_prompt)
    except PromptError:
        return {}
    found: dict[int, tuple[int, int]] = {}
    at = 0
    for i, (message, mark) in enumerate(zip(messages, marked, strict=True)):
        before, is_there, after = rest.partition(_MARK.format(i))
        if mark is message or not is_there:
            continue
        at += len(before)
        written = next((form for form in _forms(message.text or "") if text.startswith(form, at)), None)
        if written is None:
            return {}
        found[i] = (at, at + len(written))
        at, rest = at + len(written), after
    return found if text[at:] == rest else {}


def _forms(text: str) -> list[str]:
    """How templates write a text: as it is, without white space around it, as a JSON string."""
    return [text, text.strip(), json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]


class _Spans:
    """Finds the messages in the prompt, one after the other."""

    def __init__(self, text: str, messages: list[ChatMessage], contents: dict[int, tuple[int, int]]) -> None:
        self._text = text
        self._messages = messages
        self._contents = contents

    def pieces(self, ends: list[int | None]) -> Iterator[Piece]:
        """All of the text. A message ends where the prompt up to it ends, as `ends` says; where that isn't how the
        whole prompt begins (None), with the last of its contents."""
        start = 0
        for i, prefix_end in enumerate(ends):
            end = self._end(i, prefix_end, start)
            for first, last in self._contents_of(i, start, len(self._text) if end is None else end):
                yield from self._piece(start, first, i, False)
                yield from self._piece(first, last, i, True)
                start = last
            if end is not None:
                yield from self._piece(start, end, i, False)
                start = end
        yield from self._piece(start, len(self._text), None, False)

    def _end(self, i: int, end: int | None, start: int) -> int | None:
        if end is None or end < start:
            return None
        # a template may hold a system text back until the user has spoken
        return None if i in self._contents and self._contents[i][1] > end else end

    def _piece(self, start: int, end: int, message: int | None, content: bool) -> Iterator[Piece]:
        if start < end:
            yield Piece(self._text[start:end], message, content)

    def _contents_of(self, i: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where thoughts, text and calls of the message are, in this order, as far as they are found."""
        message, known = self._messages[i], self._contents.get(i)
        if known is not None and known[0] < start:
            known = None  # a message before was taken for more than it is
        thought = "".join(part.content for part in message.parts if isinstance(part, ReasoningPart))
        if (found := self._find(_forms(thought), start, end if known is None else known[0])) is not None:
            yield found
            start = found[1]
        if (found := known or self._find(_forms(message.text or ""), start, end)) is not None:
            yield found
            start = found[1]
        for call in message.tool_calls or ():
            for forms in ([call.function.name], _written_arguments(call.function.arguments)):
                if (found := self._find(forms, start, end)) is not None:
                    yield found
                    start = found[1]

    def _find(self, forms: list[str], start: int, end: int) -> tuple[int, int] | None:
        """Where the first of the forms is that occurs."""
        for form in filter(None, forms):
            at = self._text.find(form, start, end)
            if at >= 0:
                return at, at + len(form)
        return None


def _written_arguments(arguments: str) -> list[str]:
    """How templates write the arguments of a call: as they are, or as JSON with or without spaces."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return [arguments]
    return [arguments, *(json.dumps(value, ensure_ascii=e, separators=s) for e in (False, True) for s in _SEPARATORS)]
