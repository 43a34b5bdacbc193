"""The types that a prompt pipeline and the functions given to it speak."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole, MessagePart, ToolCall

PipelineMsgT: TypeAlias = ChatMessage
"""What goes from step to step."""

MessageContentT: TypeAlias = str | list[MessagePart | str] | None
"""What `ChatMessage.content` may be."""

RoleFilterT: TypeAlias = ChatRole | Collection[ChatRole]
"""The role, or the roles, that a step is for."""

PredicateFilterT: TypeAlias = Callable[[PipelineMsgT], bool]
"""Says whether a step is for this message."""

FunctionCallStrT: TypeAlias = Callable[[ToolCall], str | None]
"""Writes a tool call as text; None leaves it out."""

ApplyResultT = TypeVar("ApplyResultT")
MacroApplyResultT = TypeVar("MacroApplyResultT")


@dataclass
class ApplyContext:
    """Where a message stands, for a function given to `PromptPipeline.apply`."""

    msg: PipelineMsgT
    """The message itself."""

    is_last: bool
    """Whether it is the last of all messages."""

    idx: int
    """Its index in `messages`, from 0."""

    messages: list[PipelineMsgT]
    """All messages as they came to this step."""

    functions: list[AIFunction]
    """The functions that the model may call."""

    last_of_role: Mapping[ChatRole, int] | None = field(default=None, repr=False, compare=False)
    """The last index of each role in `messages`. The step counts it once for all its contexts, so that asking each
    of n messages costs O(n) together; a context made by hand may leave it out."""

    @property
    def is_last_of_type(self) -> bool:
        """Whether no message after this one has its role."""
        if self.last_of_role is None:
            self.last_of_role = last_indices(self.messages)
        # "or before": the function may have changed this very message's role by now
        return self.last_of_role.get(self.msg.role, -1) <= self.idx


def last_indices(messages: list[PipelineMsgT]) -> dict[ChatRole, int]:
    """The index of the last message of each role that occurs."""
    return {message.role: i for i, message in enumerate(messages)}


ApplyCallableT: TypeAlias = (
    Callable[[PipelineMsgT], ApplyResultT | None] | Callable[[PipelineMsgT, ApplyContext], ApplyResultT | None]
)
"""Makes something of a message, which may take its context too; None removes the message."""

MacroApplyCallableT: TypeAlias = Callable[[list[PipelineMsgT], list[AIFunction]], list[MacroApplyResultT]]
"""Makes a list of the list of all messages and the list of functions."""
