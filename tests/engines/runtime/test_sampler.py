"""Each step of sampling against transformers' own processors or its plain definition, alone and in a reply."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from kani_lite.engines import SamplingParams
from kani_lite.engines.runtime.sampler import AllLogprobs, Sampler, logprobs_of
from kani_lite.engines.text import StopStrings
from kani_lite.engines.text_generation import TokenLogprobs
from kani_lite.exceptions import EngineError
from tests.support.runtime import GREEDY, add, drain, make_generator, run

SIZE = 60
CPU = torch.device("cpu")
PROMPT = [3, 4, 4, 9, 30]


def make(prompt: Sequence[int] = (), ends: Sequence[int] = (), banned: Sequence[int] = (), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, ends, banned, CPU)


def logits(seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def kept(sampler: Sampler, row: torch.Tensor) -> set[int]:
    return {int(i) for i in torch.isfinite(sampler.scores(row)).nonzero()}


def likeliest(shares: torch.Tensor) -> list[int]:
    return [int(i) for i in shares.argsort(descending=True)]


# ==== one step at a time ====


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature: float) -> None:
    torch.testing.assert_close(make(temperature=temperature).scores(logits()), logits() / temperature)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-40])
def test_next_to_no_temperature_takes_the_likeliest(temperature: float) -> None:
    sampler = make(temperature=temperature, top_k=5, top_p=0.1)
    assert SamplingParams(temperature=temperature).greedy
    for seed in range(5):
        assert sampler.choose(logits(seed)) == int(logits(seed).argmax())


@pytest.mark.parametrize("top_k", [1, 7, SIZE, SIZE + 5])
def test_top_k_keeps_so_many(top_k: int) -> None:
    assert kept(make(top_k=top_k), logits()) == set(likeliest(logits())[:top_k])


@pytest.mark.parametrize("off", [None, 0, -1])
def test_top_k_off_keeps_all(off: int | None) -> None:
    assert make(top_k=off).scores(logits()).equal(logits())


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_have_this_probability(top_p: float) -> None:
    shares = torch.softmax(logits(), -1)
    order = likeliest(shares)
    count = next(n for n in range(1, SIZE + 1) if float(shares[order[:n]].sum()) >= top_p)
    assert kept(make(top_p=top_p), logits()) == set(order[:count])


@pytest.mark.parametrize("min_p", [0.01, 0.3, 1.0])
def test_min_p_drops_what_is_far_below_the_likeliest(min_p: float) -> None:
    shares = torch.softmax(logits(), -1)
    assert kept(make(min_p=min_p), logits()) == {i for i in range(SIZE) if shares[i] >= min_p * shares.max()}


@pytest.mark.parametrize("typical_p", [0.05, 0.5, 0.95])
def test_typical_p_keeps_what_surprises_as_much_as_the_mean(typical_p: float) -> None:
    logprobs = torch.log_softmax(logits(), -1)
    entropy = -(logprobs.exp() * logprobs).sum()
    order = [int(i) for i in (-logprobs - entropy).abs().argsort()]
    count = next(n for n in range(1, SIZE + 1) if float(logprobs[order[:n]].exp().sum()) > typical_p)
    assert kept(make(typical_p=typical_p), logits()) == set(order[:count])


def test_repetition_penalty_counts_prompt_and_reply_once() -> None:
    sampler = make(PROMPT, repetition_penalty=1.7)
    sampler.note(50)
    sampler.note(50)
    expected = logits()
    for token in {*PROMPT, 50}:
        expected[token] = expected[token] / 1.7 if expected[token] > 0 else expected[token] * 1.7
    torch.testing.assert_close(sampler.scores(logits()), expected)


@pytest.mark.parametrize("amount", [0.7, -0.4])
def test_frequency_and_presence_penalty_count_the_reply_alone(amount: float) -> None:
    frequency, presence = make(PROMPT, frequency_penalty=amount), make(PROMPT, presence_penalty=amount)
    for token in (8, 8, 5, 8):
        frequency.note(token)
        presence.note(token)
    expected = logits()
    expected[8] -= 3 * amount
    expected[5] -= amount
    torch.testing.assert_close(frequency.scores(logits()), expected)
    expected[8] += 2 * amount
    torch.testing.assert_close(presence.scores(logits()), expected)


def test_logit_bias_is_added() -> None:
    expected = logits()
    expected[3] += 4.5
    expected[9] = -math.inf
    torch.testing.assert_close(make(logit_bias={3: 4.5, 9: -math.inf}).scores(logits()), expected)
    with pytest.raises(EngineError, match=f"token {SIZE}, .* 0 to {SIZE - 1}"):
        make(logit_bias={SIZE: 1.0}).choose(logits())


def test_ends_wait_for_min_tokens_and_banned_tokens_never_come() -> None:
    row = logits()
    first, second, third = likeliest(row)[:3]
    sampler = make(ends=[first, SIZE + 9], banned=[second], min_tokens=2, temperature=0.0)
    assert not sampler.takes_the_likeliest
    assert [sampler.choose(row) for _ in range(4)] == [third, third, first, first]
    assert row.equal(logits()), "the model's logits are not the sampler's to change"
    waits = make(ends=[first], min_tokens=1, temperature=0.0)
    waits.choose(row)
    assert waits.takes_the_likeliest


def test_the_order_of_the_steps() -> None:
    """Each step is applied by hand, in the order that the module's docstring tells."""
    params = {
        "temperature": 0.7, "top_k": 30, "top_p": 0.95, "min_p": 0.004, "typical_p": 0.9, "repetition_penalty": 1.4,
        "frequency_penalty": 0.5, "presence_penalty": 0.25, "logit_bias": {3: 3.0, 8: -1.0, 40: -math.inf},
    }  # fmt: skip
    for seed in range(20):
        sampler = make(PROMPT, ends=[7], banned=[11], min_tokens=9, **params)
        for token in (8, 8, 5):
            sampler.note(token)
        row = logits(seed)
        row[3] += 3.0
        row[8] -= 1.0
        row[40] = -math.inf
        for token in {*PROMPT, 8, 5}:
            row[token] = row[token] / 1.4 if row[token] > 0 else row[token] * 1.4
        row[8] -= 2 * 0.5 + 0.25
        row[5] -= 0.5 + 0.25
        row[[7, 11]] = -math.inf
        row = row / 0.7
        for cut in ({"top_k": 30}, {"top_p": 0.95}, {"min_p": 0.004}, {"typical_p": 0.9}):
            row = make(**cut).scores(row)
        torch.testing.assert_close(sampler.scores(logits(seed)), row)


PARAMS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 9},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.02},
    "typical_p": {"typical_p": 0.7},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "bias_and_penalty": {"logit_bias": {3: 6.0, 4: -2.0, 200: 2.0}, "repetition_penalty": 1.5},
    "cuts": {"top_k": 60, "top_p": 0.95, "min_p": 0.002, "typical_p": 0.9},
    "all": {
        "temperature": 0.8, "top_k": 60, "top_p": 0.95, "min_p": 0.002, "typical_p": 0.9, "repetition_penalty": 1.2,
        "logit_bias": {3: 6.0, 4: -2.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMS)
def test_the_same_scores_as_transformers_generate(llama: LlamaForCausalLM, name: str) -> None:
    params = PARAMS[name]
    theirs = {key: value for key, value in params.items() if key != "logit_bias"}
    if bias := params.get("logit_bias"):
        theirs["sequence_bias"] = [[[token], value] for token, value in bias.items()]
    prompt = torch.tensor([PROMPT])
    torch.manual_seed(1)
    out = llama.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=True, pad_token_id=0,
        output_scores=True, output_logits=True, return_dict_in_generate=True, **({"top_k": 0} | theirs),
    )  # fmt: skip
    sampler = make(PROMPT, **params)
    for raw, scores, token in zip(out.logits, out.scores, out.sequences[0, len(PROMPT) :], strict=True):
        torch.testing.assert_close(sampler.scores(raw[0]), scores[0])
        sampler.note(int(token))


def test_every_combination_of_cuts_leaves_a_token() -> None:
    values = itertools.product([1, 5], [1e-6, 0.5], [0.5, 1.0], [0.01, 0.5])
    for top_k, top_p, min_p, typical_p in values:
        assert kept(make(top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p), logits())


# ==== drawing ====


def test_tokens_come_as_often_as_their_probability_says() -> None:
    row, draws = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5]), 4000
    sampler = make(temperature=0.9, seed=0)
    counts = torch.zeros(5)
    for _ in range(draws):
        counts[sampler.choose(row)] += 1
    expected = torch.softmax(row / 0.9, -1)
    # 5 standard deviations
    assert ((counts / draws - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt()).all()


def test_a_seed_decides_what_is_drawn() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = make(temperature=2.0, seed=seed)
        return [sampler.choose(logits(i)) for i in range(30)]

    state = torch.random.get_rng_state()
    assert draw(5) == draw(5) != draw(6)
    assert draw(None) != draw(None)
    assert torch.random.get_rng_state().equal(state), "other code's random numbers are not touched"


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0, "presence_penalty": 1.0}])
def test_when_no_token_is_left(params: dict[str, Any]) -> None:
    for row in (torch.full((SIZE,), torch.nan), torch.full((SIZE,), -torch.inf)):
        with pytest.raises(EngineError, match="No token is left"):
            make(**params).choose(row)


# ==== in a reply ====


@contextmanager
def forced(model: Any, script: Sequence[int]) -> Iterator[None]:
    """The model wants these tokens, one after the other; one sequence at a time."""
    left = list(script)

    def choose(_module: Any, _args: Any, out: Any) -> None:
        if left:
            out.logits[..., left.pop(0)] = 1e4

    hook = model.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def test_several_ends_and_none(llama: LlamaForCausalLM) -> None:
    script = [5, 6, 7, 8, 9]
    ours = SamplingParams(temperature=0.0, max_tokens=5, eos_token_ids=[8, 7])
    one = SamplingParams(temperature=0.0, max_tokens=5, eos_token_ids=8)  # type: ignore[arg-type]  # one is accepted
    generator = make_generator(llama, ends=[6])
    for params, ids in ((GREEDY, [5, 6]), (ours, [5, 6, 7]), (one, [5, 6, 7, 8])):
        with forced(llama, script):
            done = run(generator, [1, 2], params)
        assert (done.ids, done.finish_reason) == (ids, "stop")
        assert done.text == "".join(f"{i} " for i in ids[:-1])
    with forced(llama, script):
        goes_on = run(generator, [1, 2], SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))
    assert (goes_on.ids, goes_on.finish_reason, goes_on.text) == (script, "length", "5 6 7 8 9 ")


def test_min_tokens_holds_ends_and_stop_strings_back(llama: LlamaForCausalLM) -> None:
    params = SamplingParams(temperature=0.0, min_tokens=3, max_tokens=9, stop=["6"])
    generator = make_generator(llama, ends=[5])
    with forced(llama, [6, 6, 5, 6, 5]):
        done = run(generator, [1, 2], params)
    assert done.ids[:2] == [6, 6]
    assert done.ids[2] != 5
    assert done.ids[3:] == [6]
    assert done.text == f"6 6 {done.ids[2]} "
    short = SamplingParams(temperature=0.0, min_tokens=30, max_tokens=4)
    assert len(run(generator, [1, 2], short).ids) == 4


def plain_logprobs(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return logprobs


def check(entry: TokenLogprobs | None, token: int, row: torch.Tensor, count: int) -> None:
    assert entry is not None
    assert entry.token == token
    assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
    values, _ = row.topk(count)
    assert list(entry.top.values()) == pytest.approx(values.tolist(), abs=1e-4)
    assert [row[i].item() for i in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_logprobs_are_the_models_own(llama: LlamaForCausalLM, count: int) -> None:
    """Before penalties, temperature and cuts; with others in the batch."""
    params = SamplingParams(
        temperature=2.0, seed=1, max_tokens=10, top_p=0.9, repetition_penalty=1.3, logprobs=count, prompt_logprobs=count
    )
    generator = make_generator(llama, chunk=7)
    prompt = [random.Random(3).randrange(300) for _ in range(40)]
    run(generator, prompt)  # known now, and not to be reused
    sinks = [add(generator, p, s) for p, s in ((prompt, params), ([4, 5], GREEDY), (prompt, GREEDY))]
    drain(generator)
    done, _, other = (sink.done for sink in sinks)
    rows = plain_logprobs(llama, prompt + done.ids)
    assert done.cached_tokens == 0
    assert other.cached_tokens > 0
    assert other.logprobs is other.prompt_logprobs is None
    assert done.logprobs is not None
    assert done.prompt_logprobs is not None
    assert len(done.logprobs) == len(done.ids)
    assert len(done.prompt_logprobs) == len(prompt)
    assert done.prompt_logprobs[0] is None
    entries = [*done.prompt_logprobs[1:], *done.logprobs]
    for entry, token, row in zip(entries, (prompt + done.ids)[1:], rows, strict=False):
        check(entry, token, row, min(count, 300))


def test_all_logprobs_are_a_mapping() -> None:
    row = logits()
    entry = logprobs_of(row, 5, SIZE)
    assert isinstance(entry.top, AllLogprobs)
    expected = dict(sorted(enumerate(row.log_softmax(-1).tolist()), key=lambda item: -item[1]))
    row.zero_()
    assert list(entry.top) == list(expected)
    assert dict(entry.top) == pytest.approx(expected)
    assert entry.logprob == entry.top[5]
    for missing in (-1, SIZE):
        with pytest.raises(KeyError):
            entry.top[missing]


# ==== stop strings ====


def shown(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, list[str], bool]:
    filt = StopStrings(stops)
    out = [filt.add(piece) for piece in pieces]
    return "".join(out) + filt.finish(), out, filt.hit


def expected_text(stops: Sequence[str], text: str) -> tuple[str, bool]:
    """By definition: the first stop string that is complete, and of those that end together the longest."""
    for end in range(len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


CHUNKS = st.lists(st.text("abc", max_size=5), max_size=8)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@settings(max_examples=300)
@given(pieces=CHUNKS, stops=STOPS)
@example(pieces=["abcd"[:3], "a"], stops=["abca", "bc"])
@example(pieces=["abca"], stops=["abca", "bc"])
def test_stop_strings_end_the_text_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    expected, hit = expected_text(stops, text)
    assert shown(stops, pieces)[::2] == (expected, hit)
    assert shown(stops, list(text))[::2] == (expected, hit)


@settings(max_examples=300)
@given(pieces=CHUNKS, stops=STOPS)
def test_nothing_is_shown_that_may_still_be_part_of_one(pieces: list[str], stops: list[str]) -> None:
    filt, text, out = StopStrings(stops), "", ""
    for piece in pieces:
        text, out = text + piece, out + filt.add(piece)
        if filt.hit:
            return
        held = text[len(out) :]
        begun = [size for s in stops for size in range(1, len(s)) if text.endswith(s[:size])]
        assert text.startswith(out)
        assert len(held) == max(begun, default=0), "what can't be part of a stop string is shown at once"


@pytest.mark.parametrize("stop", ["7 8", " 8 9", "9 1"])
def test_a_stop_string_never_leaks_from_a_model(llama: LlamaForCausalLM, stop: str) -> None:
    script = [5, 7, 6, 7, 8, 9, 10, 11]
    text = "".join(f"{i} " for i in script)
    generator = make_generator(llama)
    with forced(llama, script):
        sink = add(generator, [1, 2], SamplingParams(temperature=0.0, max_tokens=8, stop=[stop, "never"]))
        drain(generator)
    pieces = sink.items[:-1]
    assert "".join(pieces) == sink.done.text == text[: text.index(stop)]
    assert sink.done.finish_reason == "stop"
    for end in range(len(pieces) + 1):
        assert text.startswith("".join(pieces[:end]))
    assert script[: len(sink.done.ids)] == sink.done.ids
