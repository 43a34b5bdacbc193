"""Text generation without a chat around it, the same on every local engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from kani_lite.exceptions import EngineError, PromptError, PromptTooLong
from kani_lite.messages import ChatMessage

from .base import BaseEngine
from .sampling import SamplingParams, with_defaults

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction


@dataclass(frozen=True)
class TokenLogprobs:
    """The natural logarithm of a token's probability by the model itself, before penalties, temperature and cuts; and
    those of the most likely tokens, the likeliest first."""

    token: int
    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True)
class Generation:
    """What one run of a prompt gave. `ids` include the end token, if there is one; `cached_tokens` of the prompt were
    known before.

    `seconds` is the time from the first forward pass to the end, `waited_seconds` the time before it, and
    `first_token_seconds` that from the request's arrival to its first token.
    """

    ids: list[int]
    text: str
    cached_tokens: int
    finish_reason: str
    seconds: float
    waited_seconds: float
    first_token_seconds: float
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def seconds_per_token(self) -> float | None:
        """The mean time of a token after the first."""
        more = len(self.ids) - 1
        return (self.waited_seconds + self.seconds - self.first_token_seconds) / more if more else None


@dataclass(frozen=True)
class GeneratedText:
    """The `n` replies to one prompt."""

    prompt_tokens: int
    choices: list[Generation]

    @property
    def text(self) -> str:
        """The first reply."""
        return self.choices[0].text

    @property
    def ids(self) -> list[int]:
        """The first reply's token ids."""
        return self.choices[0].ids


T = TypeVar("T")
Prompt = str | Sequence[int] | Mapping[str, Any] | Any


def one_prompt(prompt: Prompt) -> str | list[int]:
    """A prompt as text, or as the ids of one sequence: of a list, a tensor (tokens,) or (1, tokens), or what a
    tokenizer returns. Raises PromptError for several prompts and for anything else."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        if "input_ids" not in prompt:
            raise PromptError(f"This prompt has no 'input_ids', only {sorted(map(str, prompt))}.")
        prompt = prompt["input_ids"]
    ids: Any = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes, bytearray)):
        raise PromptError(f"A prompt is a text or token ids, not {type(prompt).__name__}: {prompt!r:.80}")
    if len(ids) == 1 and isinstance(ids[0], Sequence):
        ids = ids[0]
    elif any(isinstance(part, Sequence) and not isinstance(part, str) for part in ids):
        raise PromptError(f"{len(ids)} prompts are given as one: use generate_batch, or give one at a time.")
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise PromptError(f"A prompt's token ids are whole numbers from 0 on, not {token!r:.80}")
    return list(ids)


class TextGenerationEngine(BaseEngine):
    """An engine that also continues a bare text. A prompt is a text with its special tokens, token ids, a tensor of
    them, or what a tokenizer returns; it is run as it is, without a chat template."""

    sampling: SamplingParams = SamplingParams()
    """The engine's own values, over the model's."""

    model_sampling: SamplingParams = SamplingParams(temperature=0.0)
    """What the model's authors recommend."""

    vocabulary_size: int
    """Token ids are below this."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are recognised, none are added."""

    @abstractmethod
    def run(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        banned: Sequence[int] = (),
        functions: Sequence[AIFunction] = (),
        streamer: Any = None,
    ) -> AsyncGenerator[str | Generation]:
        """Runs a prompt that `check` has passed: the text of one reply piece by piece, and last its Generation. Closing
        it stops the model. `banned` tokens are never chosen; `functions` are those that the reply may call."""

    def check_open(self) -> None:
        """Raises EngineError after `close`."""
        return

    def params(self, sampling: SamplingParams | None, hyperparams: Mapping[str, Any]) -> SamplingParams:
        """The model's own values, the engine's and these, each over the one before. Raises TypeError for a name that
        is unknown."""
        given = self.sampling.merged(sampling).merged(SamplingParams.from_kwargs(**hyperparams))
        return with_defaults(self.model_sampling, given)

    def params_of_one(self, sampling: SamplingParams | None, hyperparams: Mapping[str, Any]) -> SamplingParams:
        """The same for what can give one reply only. Raises EngineError if more are asked for."""
        params = self.params(sampling, hyperparams)
        if params.n > 1:
            raise EngineError(f"n={params.n} replies can't go to one stream: leave out n, or use generate.")
        return params

    async def _ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt; a text is read on another thread, as a long one would hold the loop up."""
        if isinstance(prompt, str):
            return await anyio.to_thread.run_sync(self.token_ids, prompt)
        return self.token_ids(prompt)

    def token_ids(self, prompt: Prompt) -> list[int]:
        """The ids that a prompt is run as."""
        text_or_ids = one_prompt(prompt)
        return self.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids

    def check(self, ids: Sequence[int]) -> None:
        """Raises PromptError for an empty prompt or unknown ids, PromptTooLong if there is no room for a reply."""
        if not ids:
            raise PromptError("The prompt is empty: a model needs at least one token to go on from.")
        if not 0 <= min(ids) <= max(ids) < self.vocabulary_size:
            wrong = next(i for i in ids if not 0 <= i < self.vocabulary_size)
            raise PromptError(f"The prompt has the token id {wrong}: this model knows 0 to {self.vocabulary_size - 1}.")
        over = len(ids) + 1 - self.max_context_size
        if over > 0:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens: with one for a reply that is {over} more than the context "
                f"of {self.max_context_size}."
            )

    async def generations(
        self, prompt: Prompt, sampling: SamplingParams | None = None, streamer: Any = None, **hyperparams: Any
    ) -> AsyncGenerator[str | Generation]:
        """The text of one reply piece by piece, and last its Generation."""
        params = self.params_of_one(sampling, hyperparams)
        ids = await self._ids(prompt)
        self.check(ids)
        async with aclosing(self.run(ids, params, streamer=streamer)) as pieces:
            async for piece in pieces:
                yield piece

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams | None = None, streamer: Any = None, **hyperparams: Any
    ) -> GeneratedText:
        """Continues a prompt `n` times. Raises PromptTooLong, PromptError for what is not one prompt, TypeError for an
        unknown hyperparameter, EngineError."""
        params = (sampling or SamplingParams()).merged(SamplingParams.from_kwargs(**hyperparams))
        all_values = self.sampling.merged(params)
        count, seed = all_values.n, all_values.seed
        if streamer is not None and count > 1:
            raise EngineError(f"n={count} replies can't go to one streamer: leave out n or the streamer.")
        ids = await self._ids(prompt)
        seeds = [None if seed is None else seed + i for i in range(count)]
        each = [params.model_copy(update={"n": 1}).merged(SamplingParams(seed=one)) for one in seeds]
        return GeneratedText(len(ids), await _together([partial(self._last, ids, one, streamer) for one in each]))

    async def _last(self, ids: list[int], params: SamplingParams, streamer: Any) -> Generation:
        async with aclosing(self.generations(ids, params, streamer)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Generation):
                    return piece
        raise EngineError("The model's stream ended without a result.")

    async def generate_stream(
        self, prompt: Prompt, sampling: SamplingParams | None = None, **hyperparams: Any
    ) -> AsyncGenerator[str]:
        """The text of one reply piece by piece. Raises what `generate` does."""
        async with aclosing(self.generations(prompt, sampling, **hyperparams)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece

    async def generate_batch(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | None = None, **hyperparams: Any
    ) -> list[GeneratedText]:
        """All of these prompts, in their order; as many at once as there is room for. The first error ends the rest."""
        return await _together([partial(self.generate, prompt, sampling, **hyperparams) for prompt in prompts])

    async def chat(self, messages: Sequence[ChatMessage], **hyperparams: Any) -> ChatMessage:
        """The model's next message."""
        return (await self.predict(list(messages), **hyperparams)).message

    async def chat_stream(self, messages: Sequence[ChatMessage], **hyperparams: Any) -> AsyncGenerator[str]:
        """The text of the model's next message piece by piece."""
        stream: Any = self.stream(list(messages), **hyperparams)
        async with aclosing(stream):
            async for item in stream:
                if isinstance(item, str):
                    yield item


async def _together(work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All results in their order. The first error ends the rest, and is raised as it is."""
    results: dict[int, T] = {}
    failed: list[Exception] = []

    async def one(place: int) -> None:
        try:
            results[place] = await work[place]()
        except Exception as error:  # raised below, not as a group
            failed.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for place in range(len(work)):
            group.start_soon(one, place)
    if failed:
        raise failed[0]
    return [results[place] for place in range(len(work))]
