"""What every engine shares that writes prompts itself and reads the model's text itself: token ids in, text out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import anyio.to_thread

from kani_lite.events import Delta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.messages import ChatMessage, ChatRole, ToolCall, longest_of
from kani_lite.prompts.calls import read_bare_json
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.formats import PLAIN, format_for_model, format_for_template, get_format
from kani_lite.prompts.parsing import Format, Parser

from .base import BaseCompletion, Completion
from .remember import Prompt, PromptMemo, ReplyIds
from .sampling import SamplingParams
from .text_generation import Generation, TextGenerationEngine

if TYPE_CHECKING:
    import torch

    from kani_lite.functions import AIFunction

_CALL_DELTAS = (ToolCallStarted, ToolCallDelta, ToolCallFinished)
_GUESSED_OVERHEAD = 8  # tokens around a message, where the template doesn't let it be measured


class PromptedEngine(TextGenerationEngine):
    """An engine that runs token ids: chats reach it through a prompt pipeline, and its text comes back through the
    parser of its model's format.

    A subclass has `encode`, `decode` and `run`, sets `max_context_size`, and calls `start_prompts`. Override
    `build_prompt` to write the prompt in another way, and `message_len` to go with it.
    """

    disable_function_calling_kwargs: ClassVar[dict[str, Any]] = {"tool_choice": "none"}
    token_reserve: int = 0

    def start_prompts(
        self,
        tokenizer: Any,
        name: str,
        prompt_pipeline: Callable[..., Any] | None = None,
        tool_format: Format | str | None = None,
        **template_kwargs: Any,
    ) -> None:
        """How prompts are written and replies read. `tokenizer`: of transformers, or a JinjaChatTemplate; `name`: the
        model's, which may give its format away. `template_kwargs`: as for ChatTemplatePromptPipeline. Raises
        EngineError if there is no chat template and nobody else writes prompts."""
        if prompt_pipeline is None and type(self).build_prompt is PromptedEngine.build_prompt:
            prompt_pipeline = ChatTemplatePromptPipeline(tokenizer, **template_kwargs)
        # else the subclass writes the prompt; it need not have a chat template
        self.pipeline = prompt_pipeline
        self.tool_format = get_format(tool_format) if tool_format else _format_of(name, tokenizer, prompt_pipeline)
        self._memo, self._replies = PromptMemo(), ReplyIds()
        self._overheads: dict[ChatRole, int] = {}

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included."""

    def build_prompt(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None = None
    ) -> str | list[int] | torch.Tensor:
        """The prompt for these messages, up to where the model's reply begins: the whole text with all its special
        tokens, or token ids. May run on another thread; must depend on nothing but its arguments, since prompts that
        were built are remembered."""
        if self.pipeline is None:
            raise EngineError("This engine has no prompt pipeline: pass prompt_pipeline= or override build_prompt.")
        built: str | list[int] | torch.Tensor = self.pipeline(messages, functions)
        return built

    def message_len(self, message: ChatMessage) -> int:
        """About how many tokens this message adds to a prompt: its text, and what the template puts around it."""
        if (around := self._overheads.get(message.role)) is None:
            around = self._overheads[message.role] = self._measure_overhead(message.role)
        return len(self.encode(_shown(message))) + around

    def _measure_overhead(self, role: ChatRole) -> int:
        user, reply = ChatMessage.user("a"), ChatMessage.assistant("a")
        call = ToolCall.from_function("a", call_id_="a")
        asking = ChatMessage.assistant(None, tool_calls=[call])
        without, message, after = {
            ChatRole.SYSTEM: ([user], ChatMessage.system("a"), [user]),
            ChatRole.USER: ([user, reply], user, [user, reply]),
            ChatRole.ASSISTANT: ([user], reply, [user]),
            ChatRole.FUNCTION: ([user, asking], ChatMessage.function("a", "a", "a"), [user, asking]),
        }[role]
        with_it = [message, *after] if role is ChatRole.SYSTEM else [*after, message]
        try:
            more = len(self.token_ids(self.build_prompt(with_it))) - len(self.token_ids(self.build_prompt(without)))
        except Exception:  # a template, or a subclass's build_prompt, may refuse so short a chat in any way
            return _GUESSED_OVERHEAD
        return max(0, more - len(self.encode(_shown(message))))

    def prompt_len(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None = None, **kwargs: Any
    ) -> int:
        """Exactly how many tokens the prompt has, and `token_reserve`. The prompt is remembered: running it next costs
        no second rendering."""
        return len(self._prompt(messages, functions).ids) + self.token_reserve

    def _prompt(self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None) -> Prompt:
        key = self._memo.key(messages, functions)
        if (known := self._memo.get(key)) is not None:
            return known
        built = self.build_prompt(messages, functions)
        if isinstance(built, str):
            prompt = Prompt(self._replies.splice(built, messages, self.encode, self.decode), built)
        else:
            prompt = Prompt(self.token_ids(built), None)
        self._memo.put(key, prompt)
        return prompt

    # ==== running ====

    async def predict(
        self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **hyperparams: Any
    ) -> BaseCompletion:
        """The same as `stream`, all at once."""
        async with aclosing(self.stream(messages, functions, **hyperparams)) as stream:
            async for item in stream:
                if isinstance(item, BaseCompletion):
                    return item
        raise EngineError("The model's stream ended without a completion.")

    async def stream(
        self,
        messages: list[ChatMessage],
        functions: list[AIFunction] | None = None,
        *,
        tool_choice: str = "auto",
        sampling: SamplingParams | None = None,
        streamer: Any = None,
        **hyperparams: Any,
    ) -> AsyncGenerator[str | Delta | BaseCompletion]:
        """Yields visible text as `str`, other deltas as they are, and last the Completion, whose `completion_tokens`
        count the end token.

        `tool_choice="none"` shows the model the same prompt and refuses calls. Raises PromptTooLong if the prompt
        leaves no room for a reply, TypeError for an unknown hyperparameter, EngineError after `close`.
        """
        if tool_choice not in ("auto", "none"):
            raise EngineError(f"tool_choice={tool_choice!r} isn't supported here: give 'auto' or 'none'.")
        params = self.params_of_one(sampling, hyperparams)
        self.check_open()
        prompt = await self._prompt_to_run(messages, functions)
        refused = tool_choice == "none"
        written = self.tool_format.after(prompt.text or "")
        # without functions JSON is an answer
        parser = Parser(written if functions else replace(written, bare=None), functions)
        banned = self._call_markers() if refused else []

        offered = () if refused else functions or ()
        done: Generation | None = None
        async with aclosing(
            self.run(prompt.ids, params, banned=banned, functions=offered, streamer=streamer)
        ) as pieces:
            async for piece in pieces:
                if isinstance(piece, Generation):
                    done = piece
                    break
                for delta in _visible(parser.feed(piece), refused):
                    yield delta
        if done is None:
            raise EngineError("The model's stream ended without a result.")
        for delta in _visible(parser.finish(cut=done.finish_reason == "length"), refused):
            yield delta
        yield self._completion(parser, prompt, done, refused)

    async def _prompt_to_run(self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction] | None) -> Prompt:
        prompt = self._memo.get(self._memo.key(messages, functions))
        if prompt is None:  # nobody counted it; a long one would hold the loop up
            prompt = await anyio.to_thread.run_sync(self._prompt, messages, functions)
        try:
            self.check(prompt.ids)
        except PromptTooLong as error:
            if not messages:
                raise
            raise PromptTooLong(f"{error} The longest is {longest_of(messages)}: shorten it, or send fewer.") from None
        return prompt

    def _call_markers(self) -> list[int]:
        """The token that opens a call, if it is one token; otherwise calls are only left out of the result."""
        ids = self.encode(self.tool_format.call_start) if self.tool_format.call_start else []
        return ids if len(ids) == 1 else []

    def _completion(self, parser: Parser, prompt: Prompt, done: Generation, refused: bool) -> Completion:
        message = parser.message()
        if refused and message.tool_calls:
            message = message.copy_with(tool_calls=None, content=message.content if message.content is not None else "")
        if prompt.text is not None:
            self._replies.note(message, prompt.text, self.decode(done.ids), done.ids)
        return Completion(
            message=message,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(done.ids),
            cached_tokens=done.cached_tokens,
            seconds=done.seconds,
            first_token_seconds=done.first_token_seconds,
            seconds_per_token=done.seconds_per_token,
            finish_reason=done.finish_reason,
            logprobs=done.logprobs,
        )

    async def close(self) -> None:
        await super().close()
        self._memo.clear()


def _format_of(name: str, tokenizer: Any, pipeline: Any) -> Format:
    """The format that the chat template gives away, or else the model's name. A template that shows no calls gets
    them as plain JSON, and so does the model that answers it."""
    template = pipeline if isinstance(pipeline, ChatTemplatePromptPipeline) else None
    found = format_for_template(template.chat_template if template else getattr(tokenizer, "chat_template", None))
    if found is PLAIN:
        found = format_for_model(name) or found
    if template and found.bare is None and not template.capabilities().can("calls"):
        found = replace(found, bare=read_bare_json)
    return found


def _visible(deltas: list[Delta], refused: bool) -> list[str | Delta]:
    kept = [delta for delta in deltas if not (refused and isinstance(delta, _CALL_DELTAS))]
    return [delta.text if isinstance(delta, TextDelta) else delta for delta in kept]


def _shown(message: ChatMessage) -> str:
    """About what a template writes of a message."""
    calls = message.tool_calls or ()
    return "".join(
        [message.text or "", *(f'{{"name": "{c.function.name}", "arguments": {c.function.arguments}}}' for c in calls)]
    )
