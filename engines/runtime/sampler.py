"""From logits to the next token, with transformers' own processors where it has them.

The order of the steps is transformers': what may not come at all, penalties, bias, temperature, then the cuts (top_k,
top_p, typical_p, min_p), each on what the one before left.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def params_of_model(generation_config: Any) -> SamplingParams:
    """What the model's authors recommend: greedy unless their generation_config says `do_sample`."""

    def value(name: str) -> Any:
        return getattr(generation_config, name, None)

    given = {name: value(name) for name in ("temperature", "top_p", "top_k", "min_p") if value("do_sample")}
    given["do_sample"] = bool(value("do_sample"))
    given["repetition_penalty"] = value("repetition_penalty")
    return SamplingParams.from_kwargs(**given)


def with_defaults(model: SamplingParams, user: SamplingParams) -> SamplingParams:
    """The user's values over the model's. Asking for top_p, top_k or min_p of a greedy model means sampling."""
    merged = model.merged(user)
    if (
        model.greedy
        and "temperature" not in user.model_fields_set
        and user.model_fields_set & {"top_p", "top_k", "min_p"}
    ):
        return merged.model_copy(update={"temperature": 1.0})
    return merged


def logprobs_of(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    """`logits`: (vocabulary,); `count` alternatives."""
    logprobs = torch.log_softmax(logits.float(), -1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return TokenLogprobs(token, float(logprobs[token]), dict(zip(ids.tolist(), values.tolist(), strict=True)))


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
        self._counts: torch.Tensor | None = None
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
        """The next token's id. `logits`: (vocabulary,), of any float type; not changed."""
        scores = self._adjusted(logits.float())
        if self._params.greedy:
            token = int(scores.argmax())
        else:
            warped = self._warp(None, scores.unsqueeze(0))
            token = int(torch.multinomial(torch.softmax(warped, -1), 1, generator=self._random))
        self._note(token, scores)
        return token

    def _adjusted(self, scores: torch.Tensor) -> torch.Tensor:
        params = self._params
        if self._penalise is not None:
            scores = self._penalise(self._seen, scores.unsqueeze(0))[0]
        if self._counts is not None:
            scores = scores - params.frequency_penalty * self._counts - params.presence_penalty * (self._counts > 0)
        if self._bias is not None:
            scores = scores.index_add(0, *self._bias)
        early = self._length < params.min_tokens and len(self._ends)
        if early or len(self._banned):
            scores = scores.clone()
            scores[self._banned] = -torch.inf
            if early:
                scores[self._ends] = -torch.inf
        return scores

    def _note(self, token: int, scores: torch.Tensor) -> None:
        self._length += 1
        if self._seen is not None:
            self._seen = torch.cat([self._seen, self._seen.new_tensor([[token]])], dim=1)
        if self._counts_needed:
            if self._counts is None:
                self._counts = torch.zeros_like(scores)
            self._counts[token] += 1


def _warpers(params: SamplingParams) -> Any:
    # temperature first, as transformers and vLLM have it: the cuts see the distribution that is sampled
    chosen: list[Any] = []
    if params.temperature not in (0.0, 1.0):
        chosen.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        chosen.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chosen.append(TopPLogitsWarper(params.top_p))
    if params.typical_p < 1.0:
        chosen.append(TypicalLogitsWarper(params.typical_p))
    if params.min_p > 0.0:
        chosen.append(MinPLogitsWarper(params.min_p))
    return LogitsProcessorList(chosen)
