"""What `PromptPipeline.explain` prints: the steps in words, then a chat on its way through them."""

from __future__ import annotations

import difflib
import pprint
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kani_lite.messages import ChatMessage

from .examples import ALL_EXAMPLE_KWARGS
from .steps_base import PipelineStep, are_messages

_WIDTH = 79
_ROLE_WIDTH = 11  # of the longest role, and two blanks
_UNCHANGED, _REMOVED, _ADDED = "  ", "- ", "+ "


def example_kwargs(
    steps: Iterable[PipelineStep], asked: dict[str, bool], *, all_cases: bool = False
) -> dict[str, bool]:
    """What the example has to show: all there is, or what the steps need; what was asked for by name decides.

    Raises ValueError for a name that `build_conversation` doesn't know.
    """
    for name in asked:
        if name not in ALL_EXAMPLE_KWARGS:
            raise ValueError(f"{name}={asked[name]!r} is no example: give any of {', '.join(ALL_EXAMPLE_KWARGS)}.")
    needed = dict.fromkeys(ALL_EXAMPLE_KWARGS, True) if all_cases else {}
    for step in steps:
        needed |= step.explain_example_kwargs()
    return needed | asked


def summary(steps: Sequence[PipelineStep]) -> Iterator[str]:
    """The lines of a numbered list of the steps."""
    yield from heading(f"Prompt pipeline: {len(steps)} step{'' if len(steps) == 1 else 's'}", "=")
    digits = len(str(len(steps)))
    for number, step in enumerate(steps, 1):
        yield from _labelled(f"{number:>{digits}}. ", step.explain())


def heading(text: str, underline: str = "-") -> list[str]:
    """The lines of a heading."""
    return [text, underline * len(text)]


def example_input(groups: Iterable[Sequence[ChatMessage]]) -> Iterator[str]:
    """The lines of an example's messages, with a blank line between its groups."""
    yield from heading("Example")
    for i, group in enumerate(groups):
        if i:
            yield ""
        for msg in group:
            yield from _laid_out(_UNCHANGED, *described(msg))


def step_changes(number: int, step: PipelineStep, before: list[tuple[str, str]], after: Any) -> Iterator[str]:
    """The lines that say what a step changed: messages that went are marked "-", those that came "+".

    `before` is the `snapshot` of what came to the step, since a step of a user's may change that in place.
    """
    yield from _labelled(f"{number}. ", step.explain())
    new = snapshot(after)
    if not are_messages(after):
        yield f"   What comes out is of type {type(after).__name__}."
    elif new == before:
        yield "   It changes nothing here."
    else:
        for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, before, new, autojunk=False).get_opcodes():
            if tag != "equal":
                yield from _replaced(before[i1:i2], new[j1:j2])


def _replaced(old: list[tuple[str, str]], new: list[tuple[str, str]]) -> Iterator[str]:
    # as many as before: most likely each is another version of the one in its place
    pairs = [([a], [b]) for a, b in zip(old, new, strict=True)] if len(old) == len(new) else [(old, new)]
    for removed, added in pairs:
        for role, text in removed:
            yield from _laid_out(_REMOVED, role, text)
        for role, text in added:
            yield from _laid_out(_ADDED, role, text)


def result(data: Any) -> Iterator[str]:
    """The lines of what a pipeline made. Text stands as it is, in lines as long as it has."""
    yield from heading("Result")
    if isinstance(data, str):
        yield data
    elif data and are_messages(data):
        for role, text in snapshot(data):
            yield from _laid_out(_UNCHANGED, role, text)
    else:
        yield pprint.pformat(data, width=_WIDTH, sort_dicts=False)


def not_shown(shown: dict[str, bool]) -> Iterator[str]:
    """The lines that say which examples there are besides, if there are any."""
    names = [name for name in ALL_EXAMPLE_KWARGS if not shown.get(name)]
    if names:
        note = (
            f"Not in this example: {', '.join(names)}. See one with explain({names[0]}=True), all with "
            "explain(all_cases=True), and a chat of your own with explain(example=[...])."
        )
        yield from ["", *textwrap.wrap(note, _WIDTH)]


def snapshot(data: Any) -> list[tuple[str, str]]:
    """The messages as text, each in two columns; nothing for what isn't messages."""
    return [described(msg) for msg in data] if are_messages(data) else []


def described(msg: ChatMessage) -> tuple[str, str]:
    """A message's role, and what else there is to say of it."""
    content = "no content" if msg.content is None else repr(msg.content)
    answers = [f"answers {msg.tool_call_id}"] if msg.tool_call_id is not None else []
    calls = [f"{call.id} calls {call.function.name}({call.function.arguments})" for call in msg.tool_calls or ()]
    return msg.role.value, "; ".join([content, *answers, *calls])


def _laid_out(mark: str, role: str, text: str) -> list[str]:
    return _labelled(f"{mark}{role:<{_ROLE_WIDTH}}", text)


def _labelled(label: str, text: str) -> list[str]:
    """The text in lines that fit a terminal, the label before it and blanks below the label."""
    return textwrap.wrap(text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label))
