"""One round of a chat on a screen: its events are shown as they come, and remembered in case it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kani_lite.events import Event, MessageAdded, MessageStarted, TextDelta, ToolResult, Usage
from kani_lite.messages import ChatMessage, ChatRole

if TYPE_CHECKING:
    from kani_lite.kani import Kani


@dataclass
class Reply:
    """What a round has brought so far."""

    partial: str = ""  # text of the message that isn't complete
    messages: list[ChatMessage] = field(default_factory=list)
    context_tokens: int | None = None  # of the last prompt and its completion
    cached_tokens: int | None = None  # of the last prompt
    completion_tokens: int = 0
    seconds: float = 0.0

    def take(self, event: Event) -> None:
        match event:
            case MessageStarted():
                self.partial = ""
            case TextDelta(text=text):
                self.partial += text
            case MessageAdded(message=message):
                self.partial = ""
                self.messages.append(message)
            case ToolResult(message=message):
                self.messages.append(message)
            case Usage():
                self._count(event)

    def _count(self, usage: Usage) -> None:
        if usage.prompt_tokens is not None and usage.completion_tokens is not None:
            self.context_tokens = usage.prompt_tokens + usage.completion_tokens
        self.cached_tokens = usage.cached_tokens
        if usage.completion_tokens is not None and usage.seconds is not None:
            self.completion_tokens += usage.completion_tokens
            self.seconds += usage.seconds

    def status(self, max_context_size: int) -> str:
        """`123 / 2048 tokens · 98 from cache · 45 tokens/s`, of these what is known."""
        parts = []
        if self.context_tokens is not None:
            parts.append(f"{self.context_tokens} / {max_context_size} tokens")
        if self.cached_tokens is not None:
            parts.append(f"{self.cached_tokens} from cache")
        if self.seconds > 0:
            parts.append(f"{self.completion_tokens / self.seconds:.0f} tokens/s")
        return " · ".join(parts)


async def run_round(ai: Kani, query: str, show: Callable[[Event], None], reply: Reply, options: dict[str, Any]) -> None:
    """Runs a round; each event goes to `reply` and is shown."""
    async with ai.events(query, **options) as events:
        async for event in events:
            reply.take(event)
            show(event)


async def keep_what_was_said(ai: Kani, query: str, reply: Reply, before: int) -> None:
    """After a round was stopped: puts in the history what the user saw of it, where the round took it back.

    :param before: how many messages the history had before the round
    """
    text = reply.partial.strip()
    added = ai.chat_history[before:]
    kept = _whole(reply.messages)
    if not text and not kept:
        return
    if not any(message.role is ChatRole.USER for message in added):
        await ai.add_to_history(ChatMessage.user(query))
        for message in kept:
            await ai.add_to_history(message)
    if text:
        await ai.add_to_history(ChatMessage.assistant(text))


def _whole(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The messages up to the first one with a call that has no result."""
    answered = {message.tool_call_id for message in messages if message.role is ChatRole.FUNCTION}
    for index, message in enumerate(messages):
        if any(call.id not in answered for call in message.tool_calls or ()):
            return messages[:index]
    return messages
