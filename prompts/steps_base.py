"""What the steps of a prompt pipeline have in common: their interface, their filters, and how they copy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole, MessagePart

from .types import MessageContentT, PipelineMsgT, PredicateFilterT, RoleFilterT


class PipelineStep:
    """One step of a prompt pipeline. Subclass it and add it to a pipeline's `steps` for a step of your own; mostly
    `PromptPipeline.apply` and `macro_apply` do."""

    def execute(self, msgs: Any, functions: list[AIFunction]) -> Any:
        """What this step makes of the messages, or of what the step before it made. The messages belong to the
        pipeline and may be changed in place; their parts and tool calls are the caller's and may not."""
        raise NotImplementedError(f"{type(self).__name__} needs a method execute(msgs, functions).")

    def explain(self) -> str:
        """One sentence that says what this step does."""
        return f"Run the step {type(self).__name__}."

    def explain_example_kwargs(self) -> dict[str, bool]:
        """What `examples.build_conversation` has to show for this step to have something to do."""
        return {}

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({shown})"


class MessageStep(PipelineStep):
    """A step that understands messages only, and changes none of them: it makes copies where it has to."""


class FilterMixin:
    """For steps that may be for some messages only. `role` is a role or a collection of them (an empty one means
    any), `predicate` a function of a message; where both are given, both must hold.

    Raises ValueError for a `role` that is neither, or a `predicate` that can't be called.
    """

    def __init__(self, role: RoleFilterT | None = None, predicate: PredicateFilterT | None = None) -> None:
        if role is not None and not isinstance(role, ChatRole):
            _check_roles(role)
        if predicate is not None:
            check_callable("predicate", predicate)
        self.role = role
        self.predicate = predicate

    def filtered(self, msgs: Iterable[PipelineMsgT]) -> Iterator[PipelineMsgT]:
        """The messages that this step is for."""
        return (msg for msg in msgs if self.matches_filter(msg))

    def matches_filter(self, msg: PipelineMsgT) -> bool:
        """Whether this step is for this message."""
        return self.matches_role(msg.role) and (self.predicate is None or bool(self.predicate(msg)))

    def matches_role(self, role: ChatRole) -> bool:
        """Whether this step is for messages of this role, as far as the role decides."""
        if isinstance(self.role, ChatRole):
            return role is self.role
        return not self.role or role in self.role

    def explain_note(self, join_sep: str = "or", plural: bool = True) -> str:
        """The messages that this step is for, in words: "user or system messages that match the predicate"."""
        roles = [self.role] if isinstance(self.role, ChatRole) else self.role or ()
        note = "messages" if plural else "message"
        if roles:
            note = f"{natural_join([role.value for role in roles], join_sep)} {note}"
        if self.predicate is not None:
            note += " that match the predicate" if plural else " that matches the predicate"
        return note

    def explain_example_kwargs(self) -> dict[str, bool]:
        """Function calls, if this step is for their results."""
        return {"function_call": True} if self.matches_role(ChatRole.FUNCTION) else {}


def check_role(name: str, role: Any) -> None:
    """Raises ValueError if the argument of this name is no ChatRole."""
    if not isinstance(role, ChatRole):
        raise ValueError(f"{name}={role!r} is no ChatRole: give one of {', '.join(map(str, ChatRole))}.")


def check_callable(name: str, func: Any) -> None:
    """Raises ValueError if the argument of this name is no function."""
    if not callable(func):
        raise ValueError(f"{name}={func!r} can't be called: give a function.")


def _check_roles(roles: Any) -> None:
    # a string is a collection too, but of letters; an iterator would be used up by the first message
    if isinstance(roles, str) or not isinstance(roles, Collection):
        check_role("role", roles)
    for role in roles:
        check_role("role", role)


def natural_join(words: list[str], sep: str) -> str:
    """ "a", "a or b", "a, b or c" """
    return f" {sep} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def own_copy(msg: PipelineMsgT, deep: bool = False) -> PipelineMsgT:
    """A copy that shares no list or dict with the message; parts and tool calls are shared unless `deep`."""
    copied = msg.model_copy(deep=deep)
    if deep:
        return copied
    # not set as attributes: that would mark `extra` as given, and the copy would be saved differently
    fields = copied.__dict__
    fields |= {k: list(fields[k]) for k in ("content", "tool_calls") if isinstance(fields[k], list)}
    fields["extra"] = dict(msg.extra)
    return copied


def wrapped(msg: PipelineMsgT, prefix: str | None, suffix: str | None) -> PipelineMsgT:
    """A copy with these around its content, where no content counts as an empty string."""
    content: MessageContentT
    if isinstance(msg.content, list):
        content = [*_parts(prefix), *msg.content, *_parts(suffix)]
    else:
        content = f"{prefix or ''}{msg.content or ''}{suffix or ''}"
    return msg.copy_with(content=content)


def joined_content(msgs: list[PipelineMsgT], sep: str) -> MessageContentT:
    """The contents with `sep` between them: a list of parts if any is one, else text."""
    if not any(isinstance(msg.content, list) for msg in msgs):
        return sep.join(msg.text or "" for msg in msgs)
    parts: list[MessagePart | str] = list(msgs[0].parts)
    for msg in msgs[1:]:
        parts += [*_parts(sep), *msg.parts]
    return parts


def _parts(text: str | None) -> list[str]:
    return [text] if text else []


def are_messages(data: Any) -> bool:
    """Whether this is a list of messages."""
    return isinstance(data, list) and all(isinstance(item, ChatMessage) for item in data)
