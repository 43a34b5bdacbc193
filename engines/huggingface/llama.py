"""Llama 2 in its own prompt format; also the example of how to give a HuggingEngine another format."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import PromptError
from kani_lite.messages import ChatMessage, ChatRole

from .base import HuggingEngine

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

_PER_MESSAGE = 7  # <s>[INST] and [/INST] around a question; an answer's space and </s> are fewer
_PER_SYSTEM = 12  # <<SYS>>, its end and the line breaks


class LlamaEngine(HuggingEngine):
    """A model in the chat format of Llama 2 (Touvron et al. 2023, section 3.3 and the reference code).

    The format knows a system text, then questions and answers in turn. With `strict`, any other history raises
    PromptError; otherwise system texts are put together and so are neighbours of one role. It has no functions.
    """

    def __init__(
        self,
        model_id: str = "meta-llama/Llama-2-7b-chat-hf",
        *args: Any,
        use_auth_token: bool | str | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_auth_token is not None:
            warnings.warn("use_auth_token is an old name: pass token=.", DeprecationWarning, stacklevel=2)
            kwargs.setdefault("token", use_auth_token)
        self.strict = strict
        super().__init__(model_id, *args, **kwargs)

    def build_prompt(self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None = None) -> str:
        """`<s>[INST] <<SYS>>...<</SYS>> question [/INST] answer </s><s>[INST] ...`"""
        system, turns = self._turns(messages)
        bos, eos = self.tokenizer.bos_token or "<s>", self.tokenizer.eos_token or "</s>"
        prompt = ""
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system is not None else ""
        for role, text in turns:
            if role is ChatRole.USER:
                prompt += f"{bos}[INST] {head}{text} [/INST]"
                head = ""
            else:
                prompt += f" {text} {eos}"
        return prompt

    def message_len(self, message: ChatMessage) -> int:
        text = message.text or ""
        return len(self.encode(text)) + (_PER_SYSTEM if message.role is ChatRole.SYSTEM else _PER_MESSAGE)

    def _turns(self, messages: Sequence[ChatMessage]) -> tuple[str | None, list[tuple[ChatRole, str]]]:
        systems: list[str] = []
        turns: list[tuple[ChatRole, str]] = []
        for place, message in enumerate(messages):
            # a function's result is something that the model is told
            role = ChatRole.USER if message.role is ChatRole.FUNCTION else message.role
            text = (message.text or "").strip()
            if self.strict:
                self._check(message, place, turns)
            if role is ChatRole.SYSTEM:
                systems.append(text)
            elif turns and turns[-1][0] is role:
                turns[-1] = (role, f"{turns[-1][1]}\n{text}")
            else:
                turns.append((role, text))
        if not turns or turns[0][0] is ChatRole.ASSISTANT:
            if self.strict:
                raise PromptError("Llama 2 needs a user message, and the first one after the system text must be it.")
            turns.insert(0, (ChatRole.USER, ""))
        if self.strict and turns[-1][0] is not ChatRole.USER:
            raise PromptError("Llama 2 answers the user: the last message must be the user's.")
        return ("\n".join(systems) if systems else None), turns

    @staticmethod
    def _check(message: ChatMessage, place: int, turns: list[tuple[ChatRole, str]]) -> None:
        if message.role is ChatRole.SYSTEM and place:
            raise PromptError(f"Message {place} is a system message: Llama 2 takes one, at the start.")
        if message.role is ChatRole.FUNCTION:
            raise PromptError(f"Message {place} is a function's result: Llama 2's format has no functions.")
        if turns and message.role is turns[-1][0]:
            raise PromptError(
                f"Message {place} has the role {message.role.value} like the one before: they must alternate."
            )
