"""From logits to the next token, with transformers' own processors where it has them.

The order of the steps is transformers': bias, repetition penalty, frequency and presence penalty (which it lacks: they
stand beside their kind, as in vLLM), what may not come at all, temperature, then the cuts (top_k, top_p, min_p,
typical_p), each on what the one before left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text_generation import TokenLogprobs
from kani_lite.exceptions import EngineError

ALL = sys.maxsize
"""So many log probabilities ask for those of the whole vocabulary."""


class AllLogprobs(Mapping[int, float]):
    """The log probability of every token, the likeliest first, kept as the model's `logits` (vocabulary,): as a dict
    they would take many times the memory."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits.detach().to("cpu", copy=True)  # the row of a batch would keep all of it

    @cached_property
    def logprobs(self) -> torch.Tensor:
        """(vocabulary,) in float32, by token id."""
        return torch.log_softmax(self.logits.float(), -1)

    def __getitem__(self, token: int) -> float:
        if not 0 <= token < len(self):
            raise KeyError(token)
        return float(self.logprobs[token])

    def __iter__(self) -> Iterator[int]:
        return iter(self.logits.argsort(descending=True).tolist())

    def __len__(self) -> int:
        return len(self.logits)


def logprobs_of(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    """`logits`: (vocabulary,); `count` alternatives, AllLogprobs if that is the whole vocabulary."""
    logprobs = torch.log_softmax(logits.float(), -1)
    if count >= len(logprobs):
        return TokenLogprobs(token, float(logprobs[token]), AllLogprobs(logits))
    values, ids = logprobs.topk(count)
    return TokenLogprobs(token, float(logprobs[token]), dict(zip(ids.tolist(), values.tolist(), strict=True)))


_NOTHING_LEFT = (
    "No token is left to choose: the model's logits are not numbers (try dtype='float32'), or all tokens are forbidden."
)


class Sampler:
    """Chooses the tokens of one reply.

    `prompt` counts for the repetition penalty; `banned` tokens are never chosen, `ends` not before `min_tokens`.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        ends: Sequence[int],
        banned: Sequence[int],
        device: torch.device,
    ) -> None:
        self._params = params
        self._ends = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        self._banned = torch.tensor(sorted(banned), dtype=torch.long, device=device)
        self._repeats = params.repetition_penalty != 1.0
        self._counts_needed = bool(params.frequency_penalty or params.presence_penalty)
        self._counts: dict[int, int] = {}
        self._seen = torch.tensor([list(prompt)], dtype=torch.long, device=device) if self._repeats else None
        self._penalise = RepetitionPenaltyLogitsProcessor(params.repetition_penalty) if self._repeats else None
        self._warp = _warpers(params)
        self._bias = self._bias_of(params, device)
        self._random = torch.Generator(device=device)
        if params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(params.seed)
        self._length = 0

    @staticmethod
    def _bias_of(params: SamplingParams, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not params.logit_bias:
            return None
        ids = torch.tensor(list(params.logit_bias), dtype=torch.long, device=device)
        return ids, torch.tensor(list(params.logit_bias.values()), device=device)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether `choose` is nothing but argmax, now and for the rest of the reply."""
        plain = self._params.greedy and self._length >= self._params.min_tokens and self._bias is None
        return plain and not (self._repeats or self._counts_needed or len(self._banned))

    def choose(self, logits: torch.Tensor) -> int:
        """The next token's id. `logits`: (vocabulary,), of any float type; not changed. Raises EngineError if a bias
        is for a token that doesn't exist, or if the logits leave no token to choose."""
        scores = self.scores(logits)
        if self._params.greedy:
            token = int(scores.argmax())
            if not scores[token] > -torch.inf:  # not `<=`: it may be NaN
                raise EngineError(_NOTHING_LEFT)
        else:
            shares = torch.softmax(scores, -1)
            if shares.isnan().any():
                raise EngineError(_NOTHING_LEFT)
            token = int(torch.multinomial(shares, 1, generator=self._random))
        self.note(token)
        return token

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """(vocabulary,) in float32: the logits after all steps, those of the reply's next token. Greedy replies have
        neither temperature nor cuts."""
        warped: torch.Tensor = self._warp(None, self._adjusted(logits.float()).unsqueeze(0))[0]
        return warped

    def note(self, token: int) -> None:
        """This is the reply's next token."""
        self._length += 1
        if self._seen is not None:
            self._seen = torch.cat([self._seen, self._seen.new_tensor([[token]])], dim=1)
        if self._counts_needed:
            self._counts[token] = self._counts.get(token, 0) + 1

    def _adjusted(self, scores: torch.Tensor) -> torch.Tensor:
        size = len(scores)
        if self._bias is not None:
            scores = scores.index_add(0, *self._existing_bias(size))
        if self._penalise is not None:
            scores = self._penalise(self._seen, scores.unsqueeze(0))[0]
        if self._counts:
            scores = scores - self._penalties(scores)
        early = self._length < self._params.min_tokens and len(self._ends)
        if early or len(self._banned):
            scores = scores.clone()
            scores[self._banned[self._banned < size]] = -torch.inf
            if early:
                scores[self._ends[self._ends < size]] = -torch.inf
        return scores

    def _penalties(self, like: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor(list(self._counts), device=like.device)
        counts = torch.tensor(list(self._counts.values()), dtype=like.dtype, device=like.device)
        each = self._params.frequency_penalty * counts + self._params.presence_penalty
        return torch.zeros_like(like).index_add(0, ids, each)

    def _existing_bias(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._bias is not None
        if (largest := max(self._params.logit_bias)) >= size:
            raise EngineError(f"logit_bias is for token {largest}, but this model's tokens are 0 to {size - 1}.")
        return self._bias


def _warpers(params: SamplingParams) -> Any:
    # temperature first, as transformers and vLLM have it: the cuts see the distribution that is sampled
    chosen: list[Any] = []
    if params.greedy:
        return LogitsProcessorList(chosen)
    if params.temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        chosen.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chosen.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        chosen.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1.0:
        chosen.append(TypicalLogitsWarper(params.typical_p))
    return LogitsProcessorList(chosen)
