"""Cases about sampling parameters: each does what it says, or is refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio

from kani_lite.engines.base import BaseCompletion
from kani_lite.exceptions import EngineError

from .cases import case
from .probe import Probe, named, said
from .profile import CaseFailed, CaseSkipped

_UNKNOWN = "no_such_parameter"
_UNKNOWN_GIVEN: dict[str, Any] = {_UNKNOWN: 1}
_SEEDS = 12  # a model that is sure of itself gives its likeliest reply for many of them


@case
async def greedy_repeats(probe: Probe) -> None:
    """With greedy hyperparameters the same request gets the same reply."""
    first = await probe.said()
    for _ in range(2):
        if (again := await probe.said()) != first:
            raise CaseFailed(f"With {dict(probe.profile.greedy)} the reply is {first!r:.200}, and then {again!r:.200}.")


@case
async def seed_repeats(probe: Probe) -> str:
    """A seed gives the same sampled reply again; other seeds give other replies."""
    probe.needs_sampling()
    replies = []
    for seed in (1, 1, *range(2, _SEEDS + 1)):
        completion = await probe.sampled("seed", {"temperature": 2.0, "seed": seed})
        if completion is None:
            raise CaseSkipped("The engine refuses seed.")
        replies.append(said(completion.message))
        if len(replies) == 2 and replies[0] != replies[1]:
            raise CaseFailed(f"Seed 1 gives {replies[0]!r:.200}, and then {replies[1]!r:.200}.")
        if replies[-1] != replies[0]:
            return f"seed {seed} gives another reply"
    raise CaseFailed(f"At temperature 2, {_SEEDS} seeds all give {replies[0]!r:.200}: nothing is sampled.")


@case
async def max_tokens_is_kept(probe: Probe) -> None:
    """A reply has at most `max_tokens` tokens, streamed or not."""
    probe.needs_sampling()
    for most in (1, 5):
        for stream in (False, True):
            completion = await probe.sampled("max_tokens", {"max_tokens": most}, stream=stream)
            if completion is None:
                raise CaseSkipped("The engine refuses max_tokens.")
            made = completion.completion_tokens
            if made is None:
                raise CaseSkipped("Its completions don't say how many tokens they have.")
            if made > most:
                raise CaseFailed(f"With max_tokens={most} a reply has {made} tokens: {completion.message.text!r:.200}.")


@case
async def stop_texts_end_the_reply(probe: Probe) -> str:
    """A reply ends before a stop text, of which nothing is shown, streamed or not."""
    probe.needs_sampling()
    whole = (await probe.predict()).message.text or ""
    if len(whole) < 8:
        raise CaseSkipped(f"The reply to the profile's query is too short to be cut: {whole!r}.")
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    expected = whole[: whole.index(stop)].strip()
    completion = await probe.sampled("stop", {"stop": [stop]})
    if completion is None:
        raise CaseSkipped("The engine refuses stop.")
    streamed = await probe.stream(stop=[stop])
    for name, text in (
        ("predict's message", completion.message.text),
        ("the stream's message", streamed.completion.message.text),
        ("the stream's pieces", streamed.text),
    ):
        if (text or "").strip() != expected:
            raise CaseFailed(f"{whole!r:.200}, stopped before {stop!r}, is {text!r:.200} in {name}.")
    return f"stopped before {stop!r}"


@case
async def unknown_names_are_refused(probe: Probe) -> None:
    """A hyperparameter that doesn't exist is a TypeError that names it, streamed or not."""
    probe.needs_sampling()
    for ask in (probe.predict, probe.stream):
        try:
            await ask(**_UNKNOWN_GIVEN)
        except TypeError as error:
            if _UNKNOWN not in str(error):
                raise CaseFailed(f"The TypeError for {_UNKNOWN} doesn't name it: {named(error)}.") from error
        except Exception as error:
            raise CaseFailed(f"{_UNKNOWN} should be a TypeError in {ask.__name__}, not {named(error)}.") from error
        else:
            raise CaseFailed(f"{ask.__name__} takes {_UNKNOWN}=1 and drops it: raise TypeError.")


@case
async def wrong_values_are_refused(probe: Probe) -> None:
    """A value out of range is a ValueError or EngineError that names the parameter."""
    probe.needs_sampling()
    for name, value in (("temperature", -1.0), ("max_tokens", 0), ("top_p", 2.0)):
        if await probe.sampled(name, {name: value}) is not None:
            raise CaseFailed(f"{name}={value} is accepted, though it means nothing: raise ValueError.")


# ==== none is dropped ====


def _differs(reply: BaseCompletion, greedy: BaseCompletion) -> bool:
    return said(reply.message) != said(greedy.message)


def _same(reply: BaseCompletion, greedy: BaseCompletion) -> bool:
    return not _differs(reply, greedy)


def _has_logprobs(reply: BaseCompletion, _: BaseCompletion) -> bool:
    return bool(getattr(reply, "logprobs", None))


def _has_30(reply: BaseCompletion, _: BaseCompletion) -> bool:
    return reply.completion_tokens in (None, 30)


_Check = Callable[[BaseCompletion, BaseCompletion], bool]
_HOT = {"temperature": 2.0}
_FORCED = {"max_tokens": 30, "ignore_eos": True}
# (parameter, arguments, how the reply must compare with the greedy one of as many tokens, what that is in words)
_EFFECTS: list[tuple[str, Mapping[str, Any], _Check, str]] = [
    ("top_k", {**_HOT, "top_k": 1}, _same, "be the greedy one"),
    ("top_p", {**_HOT, "top_p": 1e-6}, _same, "be the greedy one"),
    ("min_p", {**_HOT, "min_p": 1.0}, _same, "be the greedy one"),
    ("min_tokens", {"max_tokens": 30, "min_tokens": 30}, _has_30, "have 30 tokens"),
    ("ignore_eos", _FORCED, _has_30, "have 30 tokens"),
    ("logit_bias", {"logit_bias": {100: 100.0}}, _differs, "differ from the greedy one"),
    ("repetition_penalty", {**_FORCED, "repetition_penalty": 10.0}, _differs, "differ from the greedy one"),
    ("frequency_penalty", {**_FORCED, "frequency_penalty": 2.0}, _differs, "differ from the greedy one"),
    ("presence_penalty", {**_FORCED, "presence_penalty": 2.0}, _differs, "differ from the greedy one"),
    ("logprobs", {"logprobs": 1}, _has_logprobs, "have logprobs"),
]


@case
async def no_parameter_is_dropped(probe: Probe) -> str:
    """A sampling parameter has its effect, or is refused by its name; none is silently left out."""
    probe.needs_sampling()
    greedy = await probe.predict()
    forced = await probe.sampled("ignore_eos", _FORCED)
    refused, unseen, dropped = [], [], []
    for name, extra, check, words in _EFFECTS:
        needs_length = "ignore_eos" in extra and name != "ignore_eos"
        if needs_length and forced is None:  # too short a reply shows no effect
            extra = {name: extra[name]}
        reply = await probe.sampled(name, extra)
        if reply is None:
            refused.append(name)
        elif needs_length and forced is None:
            unseen.append(name)
        elif not check(reply, forced if needs_length and forced is not None else greedy):
            dropped.append(f"with {dict(extra)} a reply should {words}, and is {reply.message.text!r:.100}")
    if dropped:
        raise CaseFailed(f"{len(dropped)} parameters have no effect: {'; '.join(dropped)}.")
    told = [("refused by name", refused), ("accepted, and not looked at", unseen)]
    return "; ".join(f"{words}: {', '.join(names)}" for words, names in told if names) or "all have their effect"


@case
async def sampling_beside_others_repeats(probe: Probe) -> None:
    """A request keeps its own sampling parameters beside others that have theirs."""
    probe.needs_sampling()
    alone = await probe.said()
    found: list[object] = []

    async def cold() -> None:
        found.append(await probe.said())

    async def hot(seed: int) -> None:
        try:
            await probe.predict(temperature=5.0, seed=seed)
        except (TypeError, ValueError, EngineError):
            await probe.predict(temperature=1.5)  # without a seed, which seed_repeats is about

    async with anyio.create_task_group() as group:
        for seed in range(3):
            group.start_soon(hot, seed)
        group.start_soon(cold)
    if found != [alone]:
        raise CaseFailed(f"Greedy beside hot requests gives {found!r:.200}, and alone {alone!r:.200}.")
