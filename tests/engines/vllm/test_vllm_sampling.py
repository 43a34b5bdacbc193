"""Each field of SamplingParams reaches vLLM, or is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from kani_lite.engines import SamplingParams
from kani_lite.engines.vllm import VLLMSamplingParams
from kani_lite.engines.vllm.sampling import sampling_fields, server_fields, with_adapter
from kani_lite.exceptions import EngineError

INFINITE = float("inf")


def fields(banned: list[int] | None = None, room: int = 100, **given: Any) -> dict[str, Any]:
    return sampling_fields(SamplingParams(**given), room=room, ends=[2, 5], banned=banned or [], vocabulary=1000)


def test_every_field_is_said_so_that_no_default_of_vllms_counts() -> None:
    assert fields() == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "ignore_eos": False,
        "max_tokens": 100,
        "min_tokens": 0,
        "seed": None,
        "stop": [],
        "stop_token_ids": [2, 5],
        "logprobs": None,
        "prompt_logprobs": None,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "n": 1,
    }


# field of ours, a value that isn't the default, what vLLM gets
MAPPED: list[tuple[str, Any, dict[str, Any]]] = [
    ("temperature", 0.7, {"temperature": 0.7}),
    ("temperature", 1e-6, {"temperature": 0.0}),
    ("top_p", 0.9, {"top_p": 0.9}),
    ("top_k", 5, {"top_k": 5}),
    ("top_k", -1, {"top_k": 0}),
    ("min_p", 0.1, {"min_p": 0.1}),
    ("max_tokens", 7, {"max_tokens": 7}),
    ("max_tokens", 700, {"max_tokens": 100}),
    ("min_tokens", 3, {"min_tokens": 3}),
    ("min_tokens", 300, {"min_tokens": 100}),
    ("repetition_penalty", 1.2, {"repetition_penalty": 1.2}),
    ("frequency_penalty", 0.5, {"frequency_penalty": 0.5}),
    ("presence_penalty", 0.5, {"presence_penalty": 0.5}),
    ("logit_bias", {7: 1.5, 8: -INFINITE}, {"logit_bias": {7: 1.5, 8: -INFINITE}}),
    ("seed", 7, {"seed": 7}),
    ("seed", -1, {"seed": 2**63 - 1}),
    ("stop", ["\n", "END"], {"stop": ["\n", "END"]}),
    ("ignore_eos", True, {"ignore_eos": True, "stop_token_ids": []}),
    ("eos_token_ids", [9], {"ignore_eos": True, "stop_token_ids": [9]}),
    ("eos_token_ids", [], {"ignore_eos": True, "stop_token_ids": []}),
    ("logprobs", 0, {"logprobs": 0}),
    ("logprobs", 999, {"logprobs": 999}),
    ("logprobs", 1000, {"logprobs": -1}),
    ("prompt_logprobs", 2, {"prompt_logprobs": 2}),
    ("n", 3, {"n": 1}),  # generate makes n requests
]


@pytest.mark.parametrize(("name", "value", "expected"), MAPPED)
def test_field(name: str, value: Any, expected: dict[str, Any]) -> None:
    assert fields(**{name: value}) == fields() | expected


def test_no_field_is_forgotten() -> None:
    assert {name for name, _, _ in MAPPED} | {"typical_p"} == set(SamplingParams.model_fields)


def test_what_vllm_lacks_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"vLLM has no typical_p \(given: 0.5\): use top_p or min_p"):
        fields(typical_p=0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"logit_bias": {5: 1.0, 1000: 1.0}}, "logit_bias has the out-of-vocab token 1000: this model's .* 0 to 999"),
        ({"eos_token_ids": [999, 1000]}, "eos_token_ids has the out-of-vocab token 1000"),
        ({"eos_token_ids": [-1]}, "eos_token_ids has the out-of-vocab token -1"),
    ],
)
def test_tokens_that_there_are_not_are_refused(given: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        fields(**given)


def test_banned_tokens_are_never_chosen_whatever_bias_they_have() -> None:
    assert fields(banned=[3], logit_bias={3: 5.0, 4: 1.0})["logit_bias"] == {3: -INFINITE, 4: 1.0}


def test_ignore_eos_wins_over_other_end_tokens() -> None:
    assert fields(ignore_eos=True, eos_token_ids=[9])["stop_token_ids"] == []


def test_the_server_gets_what_json_can_say() -> None:
    made = server_fields(fields(banned=[3], logit_bias={4: 1.5}))
    assert made["logit_bias"] == {"3": -100.0, "4": 1.5}
    assert None not in made.values()
    assert "logit_bias" not in server_fields(fields())


@pytest.mark.parametrize("bias", [100.5, -100.5])
def test_a_bias_that_the_server_would_change_is_refused(bias: float) -> None:
    with pytest.raises(EngineError, match=rf"logit_bias {{7: {bias}}}: vLLM's server takes -100 to 100"):
        server_fields(fields(logit_bias={7: bias}))


def test_an_adapter_goes_with_the_values_through_every_merge() -> None:
    params = with_adapter(SamplingParams(top_k=5), "french")
    assert params.model_fields_set == {"top_k", "adapter"}
    later = params.model_copy(update={"n": 1}).merged(SamplingParams(seed=3))
    assert isinstance(later, VLLMSamplingParams)
    assert (later.adapter, later.top_k, later.seed) == ("french", 5, 3)
    assert with_adapter(later, None).adapter is None
