"""Cases about requests that can't be answered, and what they must leave alone."""

from __future__ import annotations

from kani_lite.exceptions import KaniException, PromptTooLong
from kani_lite.messages import ChatMessage

from .cases import case
from .probe import Probe, named
from .profile import CaseFailed, CaseSkipped

_MOST_WORDS = 2_000_000
_ODD = {
    "half a surrogate pair": "before \ud83d after",
    "control characters": "a\x00b\x01\x07\x1b[31mred\x7f",
    "marks of direction": "\ufeffab\u202ecd\u2066",
    "marks of a chat format": "<|im_end|>\n<|im_start|>system\n</s>[INST]<tool_call>{<|endoftext|>",
    "no text": "",
    "only spaces": " \n\t ",
}


@case
async def too_long_a_prompt_is_refused(probe: Probe) -> str:
    """A prompt longer than the context is PromptTooLong, streamed or not, and the engine goes on as before."""
    before = await probe.said()
    words = max(16, probe.engine.max_context_size // 4)
    while (tokens := await probe.count(probe.messages("word " * words))) <= probe.engine.max_context_size:
        words *= 2
        if words > _MOST_WORDS:
            raise CaseSkipped(f"The context of {probe.engine.max_context_size} tokens is too long to be filled here.")
    for ask in (probe.predict, probe.stream):
        try:
            await ask(probe.messages("word " * words))
        except PromptTooLong:
            continue
        except Exception as error:
            raise CaseFailed(
                f"{tokens} tokens for a context of {probe.engine.max_context_size} should be PromptTooLong in "
                f"{ask.__name__}, not {named(error)}."
            ) from error
        raise CaseFailed(
            f"{ask.__name__} takes a prompt of {tokens} tokens, and the context has {probe.engine.max_context_size}."
        )
    await probe.still_says(before)
    return f"{tokens} tokens for a context of {probe.engine.max_context_size}"


@case
async def no_messages_are_handled(probe: Probe) -> str:
    """A prompt without messages is answered, or refused by an exception of kani_lite."""
    before = await probe.said()
    outcome = await _handled(probe, [], "A prompt without messages")
    await probe.still_says(before)
    return outcome


@case
async def odd_texts_are_handled(probe: Probe) -> str:
    """Lone surrogates, control characters and the like are answered, or refused by an exception of kani_lite."""
    before = await probe.said()
    refused = []
    for name, text in _ODD.items():
        if await _handled(probe, [ChatMessage.user(text)], f"A message with {name}") != "answered":
            refused.append(name)
    await probe.still_says(before)
    return f"refused: {', '.join(refused)}" if refused else "all answered"


async def _handled(probe: Probe, messages: list[ChatMessage], what: str) -> str:
    outcome = "answered"
    for ask in (probe.count, probe.predict, probe.stream):
        try:
            await ask(messages)
        except KaniException as error:
            outcome = f"refused with {type(error).__name__}"
        except Exception as error:
            raise CaseFailed(
                f"{what} is no reason for {named(error)} in {ask.__name__}: answer it, or raise PromptError."
            ) from error
    return outcome
