"""Cases about token counts."""

from __future__ import annotations

from typing import Any

from kani_lite.messages import ChatMessage, ToolCall

from .cases import case
from .probe import Probe
from .profile import CaseFailed, CaseSkipped

_UNICODE = "Grüße aus 東京 🙂, naïve café\n\ttabs and \"quotes\" and {'braces': [1, 2]}"


def _chats(probe: Probe) -> dict[str, list[ChatMessage]]:
    query = probe.profile.query
    return {
        "one message": [ChatMessage.user(query)],
        "several": [ChatMessage.user(query), ChatMessage.assistant("I am fine."), ChatMessage.user("And now?")],
        "a system message": [ChatMessage.system("You are helpful."), ChatMessage.user(query)],
        "other alphabets": [ChatMessage.user(_UNICODE), ChatMessage.assistant(_UNICODE), ChatMessage.user("?")],
    }


def tool_chat(probe: Probe) -> list[ChatMessage]:
    """A chat that ends with the result of a call."""
    call = ToolCall.from_function(probe.profile.tool.name, **(probe.profile.tool_arguments or {"product": "honey"}))
    return [
        ChatMessage.user(probe.profile.tool_query or "What is the price of honey?"),
        ChatMessage.assistant(None, tool_calls=[call]),
        ChatMessage.function(call.function.name, "The price of honey is 6 euros.", call.id),
    ]


@case
async def counting_equals_the_prompt(probe: Probe) -> str:
    """`prompt_len` counts as many tokens as the model was given, with functions and replies in the history too."""
    exact = bool(getattr(probe.engine, "counts_exactly", True))
    reply = (await probe.predict()).message
    chats = [(name, chat, None) for name, chat in _chats(probe).items()]
    chats.append(("its own reply", [*probe.messages(), reply, ChatMessage.user("And then?")], None))
    with_tools = [("functions", probe.messages(), probe.functions), ("a result", tool_chat(probe), probe.functions)]
    off = 0.0
    for name, chat, functions in [*chats, *with_tools]:
        counted = await probe.count(chat, functions)
        given = (await probe.predict(chat, functions)).prompt_tokens
        if given is None:
            raise CaseSkipped("Its completions don't say how many tokens their prompts had.")
        if counted < 1 or (exact and counted != given):
            raise CaseFailed(
                f"For a chat with {name}, prompt_len is {counted}, and the model was given {given} tokens: count the "
                "prompt that runs, or set counts_exactly = False."
            )
        off = max(off, abs(counted - given) / given)
    return "exact" if exact else f"an estimate, off by at most {off:.0%}"


@case
async def counts_grow_with_the_chat(probe: Probe) -> str | None:
    """`message_len` is a number of tokens that grows with the message, `prompt_len` one that grows with the history."""
    history: list[ChatMessage] = []
    before = 0
    for message in [*_chats(probe)["several"], *_chats(probe)["several"]]:
        history.append(message.copy_with())
        counted = await probe.count(history)
        if counted < before:
            raise CaseFailed(f"prompt_len of {len(history)} messages is {counted}, of one fewer {before}.")
        before = counted
    for message in [ChatMessage.system("word"), *tool_chat(probe), ChatMessage.assistant("word")]:
        try:
            short: Any = probe.engine.message_len(message)
            longer = probe.engine.message_len(message.copy_with(content=(message.text or "") + " more words" * 50))
        except NotImplementedError:
            return "prompt_len only: the engine doesn't count single messages"
        if not isinstance(short, int) or short < 0 or longer <= short:
            raise CaseFailed(
                f"message_len of a short message of the {message.role.value} is {short!r}, and with 100 words more "
                f"{longer!r}."
            )
    return None


@case
async def edits_are_counted(probe: Probe) -> None:
    """A message that was edited in place is counted, and answered, as it is now."""
    asked = probe.messages("word")
    before, _ = await probe.count(asked), await probe.predict(asked)
    asked[0].content = "word " * 60
    now, given = await probe.count(asked), (await probe.predict(asked)).prompt_tokens
    fresh = await probe.count(probe.messages("word " * 60))
    if now <= before or now != fresh or (given is not None and given <= before):
        raise CaseFailed(
            f"A message of {before} tokens was made longer in place, to {fresh}: prompt_len now says {now}, and the "
            f"model was given {given}."
        )
