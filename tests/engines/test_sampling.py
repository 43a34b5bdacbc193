from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kani_lite.engines.sampling import SamplingParams


def test_merging_takes_only_what_was_set() -> None:
    base = SamplingParams(temperature=0.5, top_k=7, seed=1)
    merged = base.merged(SamplingParams(temperature=0.0, seed=None))
    assert merged == SamplingParams(temperature=0.0, top_k=7, seed=1)
    assert base.merged(None) is base
    assert base.merged(SamplingParams()) == base


def test_a_default_that_was_set_explicitly_overrides() -> None:
    assert SamplingParams(temperature=0.0).merged(SamplingParams(temperature=1.0)).temperature == 1.0


def test_merging_is_associative_over_what_was_set() -> None:
    a, b, c = SamplingParams(top_p=0.5), SamplingParams(temperature=0.2), SamplingParams(top_p=0.9)
    assert a.merged(b).merged(c) == a.merged(b.merged(c))


@pytest.mark.parametrize("off", [0, -1, None])
def test_top_k_off(off: int | None) -> None:
    assert SamplingParams(top_k=off).top_k is None
    assert SamplingParams(top_k=50).merged(SamplingParams(top_k=off)).top_k is None


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"min_p": 2},
        {"max_tokens": 0},
        {"repetition_penalty": 0},
        {"stop": ["a", ""]},
        {"no_such_field": 1},
    ],
)
def test_values_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplingParams(**bad)


def test_names_of_transformers() -> None:
    made = SamplingParams.from_kwargs(
        max_new_tokens=5, min_new_tokens=2, stop_strings="end", do_sample=False, top_k=None
    )
    assert made == SamplingParams(max_tokens=5, min_tokens=2, stop=["end"], temperature=0.0)
    assert "top_k" not in made.model_fields_set
    assert SamplingParams.from_kwargs(do_sample=True).model_fields_set == {"temperature"}
    assert SamplingParams.from_kwargs(do_sample=True, temperature=0.3).temperature == 0.3
    assert (SamplingParams.from_kwargs(do_sample=0), SamplingParams.from_kwargs(do_sample=1)) == (
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0),
    )
    with pytest.raises(TypeError, match="do_sample='no': give True or False"):
        SamplingParams.from_kwargs(do_sample="no")


def test_unknown_and_doubled_names() -> None:
    with pytest.raises(TypeError, match=r"num_beams=4.*max_new_tokens.*temperature"):
        SamplingParams.from_kwargs(num_beams=4)
    with pytest.raises(TypeError, match="twice"):
        SamplingParams.from_kwargs(max_new_tokens=5, max_tokens=6)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        SamplingParams().temperature = 0.0  # type: ignore[misc]  # the point of the test
