"""The numpy sampler against the local runtime's: the same scores after every step, and draws as they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kani_lite.engines import SamplingParams
from kani_lite.engines.logits import AllLogprobs, NumpySampler, log_softmax, logprobs_of, softmax
from kani_lite.engines.runtime.sampler import Sampler
from kani_lite.engines.runtime.sampler import logprobs_of as torch_logprobs_of
from kani_lite.exceptions import EngineError

SIZE = 60
PROMPT = [3, 4, 4, 9, 30]
SAID = [8, 8, 5]

PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        "top_k": st.sampled_from([1, 7, 30, SIZE, SIZE + 5, -1]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.999]),
        "min_p": st.sampled_from([0.01, 0.3, 1.0]),
        "typical_p": st.sampled_from([0.05, 0.5, 0.95]),
        "repetition_penalty": st.sampled_from([0.8, 1.7]),
        "frequency_penalty": st.sampled_from([-0.4, 0.7]),
        "presence_penalty": st.sampled_from([-0.4, 0.7]),
        "logit_bias": st.sampled_from([{3: 3.0, 8: -1.0, 40: -math.inf}, {8: 9.0}]),
        "min_tokens": st.sampled_from([2, 9]),
    },
)


def logits(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).normal(size=SIZE) * 3).astype(np.float32)


def make(prompt: Sequence[int] = (), **params: Any) -> NumpySampler:
    return NumpySampler(SamplingParams(**params), prompt)


@settings(max_examples=150)
@given(params=PARAMS, seed=st.integers(0, 10_000))
def test_every_step_is_that_of_the_local_runtime(params: dict[str, Any], seed: int) -> None:
    """In any combination, so in the same order, with ends and banned tokens beside."""
    given_params = SamplingParams(**params)
    ours = NumpySampler(given_params, PROMPT, banned=[11, SIZE + 3], ends=[7, SIZE + 9])
    theirs = Sampler(given_params, PROMPT, [7, SIZE + 9], [11, SIZE + 3], torch.device("cpu"))
    for token in SAID:
        ours.note(token)
        theirs.note(token)
    row = logits(seed)
    before = row.copy()
    expected = theirs.scores(torch.from_numpy(row)).numpy()
    np.testing.assert_allclose(ours.scores(row), expected, rtol=2e-6, atol=2e-6)
    assert ours.takes_the_likeliest == theirs.takes_the_likeliest
    assert expected[ours.choose(row)] > -np.inf
    np.testing.assert_array_equal(row, before, "the model's logits are not the sampler's to change")


def test_tokens_come_as_often_as_their_probability_says() -> None:
    row, draws = np.array([2.0, 1.0, -np.inf, 0.0, -1.0, 1.5], dtype=np.float32), 4000
    sampler = make(temperature=0.9, seed=0)
    counts = np.bincount([sampler.choose(row) for _ in range(draws)], minlength=6)
    expected = softmax(row / 0.9)
    assert counts[2] == 0
    # 5 standard deviations
    assert (np.abs(counts / draws - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()


@pytest.mark.parametrize("seed", [5, 0, -(2**63), 2**63 - 1])
def test_a_seed_decides_what_is_drawn(seed: int) -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = make(temperature=2.0, seed=seed)
        return [sampler.choose(logits(i)) for i in range(30)]

    state = np.random.get_state(legacy=True)[1]
    assert draw(seed) == draw(seed) != draw(6)
    assert draw(None) != draw(None)
    np.testing.assert_array_equal(np.random.get_state(legacy=True)[1], state, "others' random numbers are not touched")


def test_ends_wait_for_min_tokens_and_banned_tokens_never_come() -> None:
    row = logits()
    first, second, third = (int(i) for i in np.argsort(-row)[:3])
    params = SamplingParams(temperature=0.0, min_tokens=2)
    sampler = NumpySampler(params, [], banned=[second], ends=[first])
    assert [sampler.choose(row) for _ in range(4)] == [third, third, first, first]
    waits = NumpySampler(SamplingParams(temperature=0.0, min_tokens=1), [], ends=[first])
    assert not waits.takes_the_likeliest
    waits.choose(row)
    assert waits.takes_the_likeliest


def test_a_bias_for_no_token_is_refused() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineError, match=f"token {SIZE}, .* 0 to {SIZE - 1}"):
            make(temperature=temperature, logit_bias={SIZE: 1.0}).choose(logits())


@pytest.mark.parametrize(
    "params", [{}, {"top_k": 3, "top_p": 0.5}, {"temperature": 0.0}, {"temperature": 0.0, "presence_penalty": 1.0}]
)
def test_when_no_token_is_left(params: dict[str, Any]) -> None:
    one_nan = logits()
    one_nan[4] = np.nan
    for row in (np.full(SIZE, np.nan, np.float32), np.full(SIZE, -np.inf, np.float32), one_nan):
        with pytest.raises(EngineError, match="No token is left"):
            make(**params).choose(row)


@pytest.mark.parametrize("count", [0, 1, 3, SIZE - 1, SIZE, 1000])
def test_logprobs_are_those_of_the_local_runtime(count: int) -> None:
    row = logits(3)
    ours, theirs = logprobs_of(row, 5, count), torch_logprobs_of(torch.from_numpy(row), 5, count)
    assert ours.token == theirs.token
    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert list(ours.top) == list(theirs.top)
    assert list(ours.top.values()) == pytest.approx(list(theirs.top.values()), abs=1e-5)


def test_all_logprobs_are_a_mapping_of_their_own() -> None:
    batch = np.stack([logits(), logits(1)])
    expected = log_softmax(batch[0])
    entry = logprobs_of(batch[0], 5, SIZE)
    assert isinstance(entry.top, AllLogprobs)
    batch[:] = 0
    assert dict(entry.top) == pytest.approx(dict(enumerate(expected.tolist())))
    assert len(entry.top) == SIZE
    for missing in (-1, SIZE):
        with pytest.raises(KeyError):
            entry.top[missing]
