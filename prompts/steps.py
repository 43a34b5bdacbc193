"""The steps of a prompt pipeline that go from messages to messages; `steps_terminal` has those that end one.

Each is what the method of `PromptPipeline` with its name adds to a pipeline, which says what its arguments mean.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any

from kani_lite.exceptions import PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatRole

from .steps_base import (
    FilterMixin,
    MessageStep,
    PipelineStep,
    are_messages,
    check_callable,
    check_role,
    joined_content,
    own_copy,
    wrapped,
)
from .steps_terminal import ConversationDict, ConversationFmt
from .types import (
    ApplyContext,
    FunctionCallStrT,
    MessageContentT,
    PipelineMsgT,
    PredicateFilterT,
    RoleFilterT,
    last_indices,
)

__all__ = [
    "Apply",
    "ConversationDict",
    "ConversationFmt",
    "EnsureBoundFunctionCalls",
    "EnsureStart",
    "FilterMixin",
    "FunctionCallFmt",
    "MacroApply",
    "MergeConsecutive",
    "PipelineStep",
    "Remove",
    "TranslateRole",
    "Wrap",
]

_SHOWN_BY_MERGING = {
    ChatRole.USER: "consecutive_user",
    ChatRole.ASSISTANT: "consecutive_assistant",
    ChatRole.SYSTEM: "consecutive_system",
    ChatRole.FUNCTION: "multi_function_call",
}


class TranslateRole(FilterMixin, MessageStep):
    """Gives messages another role, and warns once if there are any and `warn` is set."""

    def __init__(
        self,
        *,
        to: ChatRole,
        warn: str | None = None,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> None:
        super().__init__(role, predicate)
        check_role("to", to)
        self.to = to
        self.warn = warn

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        matches = [self.matches_filter(msg) for msg in msgs]
        if self.warn and any(matches):
            warnings.warn(self.warn, UserWarning, stacklevel=2)
        return [msg.copy_with(role=self.to) if match else msg for msg, match in zip(msgs, matches, strict=True)]

    def explain(self) -> str:
        return f"Turn all {self.explain_note('and')} into {self.to.value} messages."


class Wrap(FilterMixin, MessageStep):
    """Puts text before and after messages."""

    def __init__(
        self,
        *,
        prefix: str | None = None,
        suffix: str | None = None,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> None:
        super().__init__(role, predicate)
        self.prefix = prefix
        self.suffix = suffix

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        return [wrapped(msg, self.prefix, self.suffix) if self.matches_filter(msg) else msg for msg in msgs]

    def explain(self) -> str:
        added = [f"{text!r} {place}" for text, place in ((self.prefix, "before"), (self.suffix, "after")) if text]
        if not added:
            return "Add nothing to any message: this step has neither a prefix nor a suffix."
        return f"Put {' and '.join(added)} each {self.explain_note('or', plural=False)}."


class MergeConsecutive(FilterMixin, MessageStep):
    """Makes one message of messages that follow one another. Linear in their total length.

    Raises ValueError unless exactly one of `sep` and `joiner` is given, and `out_role` or a single `role`.
    """

    def __init__(
        self,
        *,
        sep: str | None = None,
        joiner: Callable[[list[PipelineMsgT]], MessageContentT] | None = None,
        out_role: ChatRole | None = None,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> None:
        super().__init__(role, predicate)
        if (sep is None) == (joiner is None):
            raise ValueError(f"Give either sep or joiner, not both or none of them (sep={sep!r}, joiner={joiner!r}).")
        if out_role is None and isinstance(role, ChatRole):
            out_role = role
        if out_role is None:
            raise ValueError(
                f"With role={role!r}, messages of different roles can be merged: give the merged message's role as "
                "out_role, or give a single role."
            )
        check_role("out_role", out_role)
        if joiner is not None:
            check_callable("joiner", joiner)
        self.sep = sep
        self.joiner = joiner
        self.out_role = out_role

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        out: list[PipelineMsgT] = []
        for matches, members in itertools.groupby(msgs, key=self.matches_filter):
            group = list(members)
            out += [self._merged(group)] if matches else group
        return out

    def _merged(self, group: list[PipelineMsgT]) -> PipelineMsgT:
        if self.joiner is not None:
            # the joiner may build its result in a list that it finds in a message
            content = self.joiner([own_copy(msg) for msg in group])
        elif self.sep is not None and len(group) > 1:
            content = joined_content(group, self.sep)
        else:
            return group[0]
        # a result that was merged from several can't answer one call
        changes: dict[str, Any] = {"role": self.out_role, "content": content, "tool_call_id": None}
        if any(msg.tool_calls is not None for msg in group):
            changes["tool_calls"] = [call for msg in group for call in msg.tool_calls or ()]
        return group[0].copy_with(**changes)

    def explain(self) -> str:
        how = "with the given function" if self.sep is None else f"with {self.sep!r} between them"
        return f"Merge consecutive {self.explain_note()} into one {self.out_role.value} message {how}."

    def explain_example_kwargs(self) -> dict[str, bool]:
        shown = {name: True for role, name in _SHOWN_BY_MERGING.items() if self.matches_role(role)}
        return super().explain_example_kwargs() | shown


class FunctionCallFmt(MessageStep):
    """Appends a message's tool calls to its content, as text."""

    def __init__(self, func: FunctionCallStrT, *, prefix: str = "\n", sep: str = "", suffix: str = "") -> None:
        check_callable("func", func)
        self.func = func
        self.prefix = prefix
        self.sep = sep
        self.suffix = suffix

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        return [self._with_calls(msg) if msg.tool_calls else msg for msg in msgs]

    def _with_calls(self, msg: PipelineMsgT) -> PipelineMsgT:
        texts = (self.func(call) for call in msg.tool_calls or ())
        calls = self.sep.join(text for text in texts if text is not None)
        return wrapped(msg, None, f"{self.prefix}{calls}{self.suffix}")

    def explain(self) -> str:
        around = [f"{text!r} {place}" for text, place in self._separators() if text]
        detail = f", with {', '.join(around)}" if around else ""
        return f"Append each message's tool calls to its content, written by the given function{detail}."

    def _separators(self) -> list[tuple[str, str]]:
        return [(self.prefix, "before them"), (self.sep, "between them"), (self.suffix, "after them")]

    def explain_example_kwargs(self) -> dict[str, bool]:
        return {"function_call": True} | ({"multi_function_call": True} if self.sep else {})


class Remove(FilterMixin, MessageStep):
    """Removes messages."""

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        return [msg for msg in msgs if not self.matches_filter(msg)]

    def explain(self) -> str:
        return f"Remove all {self.explain_note('and')}."


class EnsureStart(FilterMixin, MessageStep):
    """Removes what comes before the first matching message: everything, if there is none."""

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        return list(itertools.dropwhile(lambda msg: not self.matches_filter(msg), msgs))

    def explain(self) -> str:
        return f"Remove what comes before the first {self.explain_note(plural=False)}."


class EnsureBoundFunctionCalls(MessageStep):
    """Sees to it that each function result answers a call that comes before it.

    `execute` raises PromptError where a call isn't answered in time, or it's not clear which call a result answers.
    """

    def __init__(self, id_translator: Callable[[str], str] | None = None) -> None:
        if id_translator is not None:
            check_callable("id_translator", id_translator)
        self.id_translator = id_translator

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[PipelineMsgT]:
        out = []
        pending: dict[str, None] = {}  # a set that keeps its order, for errors that read the same each time
        for i, msg in enumerate(msgs):
            bound: PipelineMsgT | None = msg
            if msg.role is ChatRole.FUNCTION:
                bound = self._bound(msg, pending)
            elif pending:
                raise PromptError(
                    f"Message {i} is from {msg.role.value!r}, but these tool calls have no result yet: "
                    f"{', '.join(pending)}. Put their results right after the message that makes the calls."
                )
            if msg.role is ChatRole.ASSISTANT:
                pending |= {call.id: None for call in msg.tool_calls or ()}
            if bound is not None:
                out.append(self._translated(bound))
        return out

    @staticmethod
    def _bound(msg: PipelineMsgT, pending: dict[str, None]) -> PipelineMsgT | None:
        """The result with the id of its call, which isn't pending any longer; None if its call isn't here."""
        if msg.tool_call_id is None and len(pending) > 1:
            raise PromptError(
                f"A result of {msg.name!r} has no tool_call_id, and it could answer any of {', '.join(pending)}: "
                "set its tool_call_id."
            )
        if msg.tool_call_id is None:
            return msg.copy_with(tool_call_id=pending.popitem()[0]) if pending else msg
        if msg.tool_call_id not in pending:
            return None  # the call was trimmed off the start of the chat, and its result wasn't
        del pending[msg.tool_call_id]
        return msg

    def _translated(self, msg: PipelineMsgT) -> PipelineMsgT:
        if self.id_translator is None:
            return msg
        changes: dict[str, Any] = {}
        if msg.tool_calls is not None:
            changes["tool_calls"] = [call.copy_with(id=self.id_translator(call.id)) for call in msg.tool_calls]
        if msg.tool_call_id is not None:
            changes["tool_call_id"] = self.id_translator(msg.tool_call_id)
        return msg.copy_with(**changes)

    def explain(self) -> str:
        translated = "" if self.id_translator is None else ", and translate the ids with the given function"
        return (
            "Give each function result the id of the call that it answers, remove results whose call isn't there, "
            f"refuse calls without a result{translated}."
        )

    def explain_example_kwargs(self) -> dict[str, bool]:
        return {"function_call": True}


class Apply(FilterMixin, MessageStep):
    """Replaces each message by what a function makes of it.

    Raises ValueError if the function takes neither one nor two positional arguments.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> None:
        super().__init__(role, predicate)
        self.func = func
        self._takes_context = _positional_count(func) == 2

    def execute(self, msgs: list[PipelineMsgT], functions: list[AIFunction]) -> list[Any]:
        # the function may change what it gets, and that may not be a message that another function holds
        msgs = [own_copy(msg) for msg in msgs]
        last_of_role = last_indices(msgs)
        out = []
        for i, msg in enumerate(msgs):
            if not self.matches_filter(msg):
                out.append(msg)
                continue
            context = ApplyContext(msg, i == len(msgs) - 1, i, msgs, functions, last_of_role)
            made = self.func(msg, context) if self._takes_context else self.func(msg)
            if made is not None:
                out.append(made)
        return out

    def explain(self) -> str:
        return f"Replace each {self.explain_note(plural=False)} by what {_name(self.func)} makes of it."


class MacroApply(PipelineStep):
    """Replaces the list of messages by what a function makes of it."""

    def __init__(self, func: Callable[[Any, list[AIFunction]], Any]) -> None:
        check_callable("func", func)
        self.func = func

    def execute(self, msgs: Any, functions: list[AIFunction]) -> Any:
        if are_messages(msgs):
            msgs = [own_copy(msg) for msg in msgs]  # as in Apply
        return self.func(msgs, functions)

    def explain(self) -> str:
        return f"Replace the list of messages by what {_name(self.func)} makes of it."


def _positional_count(func: Callable[..., Any]) -> int:
    check_callable("func", func)
    try:
        parameters = inspect.signature(func).parameters.values()
    except ValueError as e:
        raise ValueError(
            f"func={func!r} has no signature: give a function of a message, or of it and a context."
        ) from e
    count = sum(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)
    if count not in (1, 2):
        raise ValueError(
            f"func={func!r} takes {count} positional arguments: give a function of a message, or of it and an "
            "ApplyContext."
        )
    return count


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "<lambda>")
    return "the given function" if name == "<lambda>" else f"{name}()"
