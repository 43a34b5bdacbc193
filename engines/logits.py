"""From logits to the next token in numpy: for engines whose library has a sampler that can't do all of SamplingParams.

The steps and their order are those of the local runtime's Sampler (runtime/sampler.py), which needs torch: bias,
repetition penalty, frequency and presence penalty, what may not come at all, temperature, then the cuts (top_k, top_p,
min_p, typical_p), each on what the one before left. Only the random numbers differ.

Needs numpy, so an engine imports this module when it loads its model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kani_lite.exceptions import EngineError

from .sampling import SamplingParams
from .text_generation import TokenLogprobs

Floats: TypeAlias = NDArray[np.floating]
Ids: TypeAlias = NDArray[np.intp]
Cut: TypeAlias = Callable[[Floats], NDArray[np.bool_]]

_NOTHING_LEFT = "No token is left to choose: the model's logits are not numbers, or all tokens are forbidden."


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """The natural logarithms of the probabilities, of the same shape (vocabulary,); exact to float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalised


def softmax(logits: Floats) -> NDArray[np.float64]:
    """The probabilities, of the same shape (vocabulary,)."""
    shares = np.exp(logits.astype(np.float64) - float(logits.max()))
    normalised: NDArray[np.float64] = shares / shares.sum()
    return normalised


class AllLogprobs(Mapping[int, float]):
    """The log probability of every token, the likeliest first, kept as the model's `logits` (vocabulary,): as a dict
    they would take many times the memory."""

    def __init__(self, logits: Floats) -> None:
        self.logits = np.array(logits)  # a view would keep the whole batch

    @cached_property
    def logprobs(self) -> NDArray[np.float64]:
        """(vocabulary,), by token id."""
        return log_softmax(self.logits)

    def __getitem__(self, token: int) -> float:
        if not 0 <= token < len(self):
            raise KeyError(token)
        return float(self.logprobs[token])

    def __iter__(self) -> Iterator[int]:
        return iter([int(token) for token in np.argsort(-self.logprobs, kind="stable")])

    def __len__(self) -> int:
        return len(self.logits)


def logprobs_of(logits: Floats, token: int, count: int) -> TokenLogprobs:
    """`logits`: (vocabulary,); `count` alternatives, AllLogprobs if that is the whole vocabulary."""
    logprobs = log_softmax(logits)
    if count >= len(logprobs):
        return TokenLogprobs(token, float(logprobs[token]), AllLogprobs(logits))
    likeliest = np.argpartition(-logprobs, count)[:count]  # sorting all of a large vocabulary takes milliseconds
    ordered = likeliest[np.argsort(-logprobs[likeliest], kind="stable")]
    return TokenLogprobs(token, float(logprobs[token]), {int(i): float(logprobs[i]) for i in ordered})


class NumpySampler:
    """Chooses the tokens of one reply.

    `prompt_ids` count for the repetition penalty; `banned` tokens are never chosen, `ends` not before `min_tokens`.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], banned: Sequence[int] = (), ends: Sequence[int] = ()
    ) -> None:
        self._params = params
        self._banned, self._ends = _ids(banned), _ids(ends)
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self._counts: dict[int, int] = {}
        self._cuts = _cuts(params)
        self._random = np.random.default_rng(None if params.seed is None else params.seed % 2**64)
        self._length = 0

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether `choose` is nothing but argmax, now and for the rest of the reply."""
        params = self._params
        changed = params.logit_bias or params.frequency_penalty or params.presence_penalty or len(self._banned)
        early = self._length < params.min_tokens
        return params.greedy and params.repetition_penalty == 1.0 and not changed and not early

    def choose(self, logits: Floats) -> int:
        """The next token's id. `logits`: (vocabulary,), of any float type; not changed. Raises EngineError if a bias
        is for a token that doesn't exist, or if the logits leave no token to choose."""
        if self._params.greedy:
            scores = logits if self.takes_the_likeliest else self._adjusted(logits)
            token = int(scores.argmax())
            if not scores[token] > -np.inf:  # not `<=`: it may be NaN
                raise EngineError(_NOTHING_LEFT)
        else:
            token = self._drawn(*self._cut(logits))
        self.note(token)
        return token

    def scores(self, logits: Floats) -> NDArray[np.float32]:
        """(vocabulary,): the logits after all steps, those of the reply's next token. Greedy replies have neither
        temperature nor cuts. Raises as `choose` does."""
        if self._params.greedy:
            return self._adjusted(logits)
        ids, values = self._cut(logits)
        left = np.full(len(logits), -np.inf, dtype=np.float32)
        left[ids] = values
        return left

    def note(self, token: int) -> None:
        """This is the reply's next token."""
        self._length += 1
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token)
        if self._params.frequency_penalty or self._params.presence_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1

    def _adjusted(self, logits: Floats) -> NDArray[np.float32]:
        """A copy with bias and penalties, and without what may not come."""
        scores = np.array(logits, dtype=np.float32)
        params, size = self._params, len(scores)
        if params.logit_bias:
            if (largest := max(params.logit_bias)) >= size:
                raise EngineError(f"logit_bias is for token {largest}, but this model's tokens are 0 to {size - 1}.")
            scores[_ids(params.logit_bias)] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
        if self._seen:
            seen = _ids(token for token in self._seen if token < size)
            penalty = np.float32(params.repetition_penalty)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        if self._counts:
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            scores[_ids(self._counts)] -= params.frequency_penalty * counts + params.presence_penalty
        scores[self._banned[self._banned < size]] = -np.inf
        if self._length < params.min_tokens:
            scores[self._ends[self._ends < size]] = -np.inf
        return scores

    def _cut(self, logits: Floats) -> tuple[Ids, NDArray[np.float32]]:
        """The ids that are left after all steps, and their scores. Each cut sees only those: sorting a whole
        vocabulary takes milliseconds, and top_k leaves few."""
        scores = self._adjusted(logits)
        if not -np.inf < scores.max() < np.inf:  # NaN is neither
            raise EngineError(_NOTHING_LEFT)
        ids = np.flatnonzero(scores > -np.inf)
        values = scores[ids]
        if self._params.temperature != 1.0:
            values = values / np.float32(self._params.temperature)
        for cut in self._cuts:
            keep = cut(values)
            ids, values = ids[keep], values[keep]
        return ids, values

    def _drawn(self, ids: Ids, values: NDArray[np.float32]) -> int:
        """By the inverse of the distribution function: exact, and one random number a token."""
        sums = softmax(values).cumsum()
        return int(ids[np.searchsorted(sums, self._random.random() * sums[-1], side="right")])


def _ids(tokens: Sequence[int] | Iterator[int] | Mapping[int, object]) -> Ids:
    return np.fromiter(tokens, dtype=np.intp)


def _cuts(params: SamplingParams) -> list[Cut]:
    """Each takes the scores that are left and says which of them stay; one always does."""
    chosen: list[Cut] = []
    if params.top_k is not None:
        chosen.append(lambda values: _top_k(values, params.top_k or 1))
    if params.top_p < 1.0:
        chosen.append(lambda values: _top_p(values, params.top_p))
    if params.min_p > 0.0:
        chosen.append(lambda values: _min_p(values, params.min_p))
    if params.typical_p < 1.0:
        chosen.append(lambda values: _typical_p(values, params.typical_p))
    return chosen


def _top_k(values: Floats, count: int) -> NDArray[np.bool_]:
    """Those at least as high as the last of the `count` highest: equal ones stay together."""
    if count >= len(values):
        return np.ones(len(values), dtype=np.bool_)
    least = np.partition(values, len(values) - count)[len(values) - count]
    kept: NDArray[np.bool_] = values >= least
    return kept


def _top_p(values: Floats, probability: float) -> NDArray[np.bool_]:
    """The fewest of the likeliest that have this probability together (Holtzman et al. 2020, section 3.1)."""
    order = np.argsort(values, kind="stable")
    dropped = softmax(values)[order].cumsum() <= 1.0 - probability
    dropped[-1] = False
    kept = np.ones(len(values), dtype=np.bool_)
    kept[order[dropped]] = False
    return kept


def _min_p(values: Floats, share: float) -> NDArray[np.bool_]:
    """Those at least this share as likely as the likeliest (Nguyen et al. 2024, section 3)."""
    kept: NDArray[np.bool_] = values.astype(np.float64) >= float(values.max()) + np.log(share)
    return kept


def _typical_p(values: Floats, probability: float) -> NDArray[np.bool_]:
    """Those whose surprise is nearest to its mean, up to this probability together (Meister et al. 2022, section 4)."""
    logprobs = log_softmax(values)
    shares = np.exp(logprobs)
    distance = np.abs(-logprobs + (shares * logprobs).sum())
    order = np.argsort(distance, kind="stable")
    last = int((shares[order].cumsum() < probability).sum())
    kept: NDArray[np.bool_] = distance <= distance[order[min(last, len(order) - 1)]]
    return kept
