"""PACE's words for how to choose tokens, and ours for the same."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kani_lite.engines.runtime.sampler import ALL
from kani_lite.engines.sampling import SamplingParams

GREEDY_BELOW = 1e-5
_MAX_NEW_TOKENS = 20  # where neither config nor model says how many


class KVCacheType(StrEnum):
    """PACE's names of the kinds of memory for keys and values (docs/runtime.md)."""

    DYNAMIC = "dynamic"
    BMC = "bmc"
    SLAB_POOL = "slab"
    PAGED = "paged"


class SamplingConfig(BaseModel):
    """How to choose tokens, in PACE's words. Only what is given counts: the rest is the model's generation_config's, or
    else what stands here.

    Raises ValueError for a value out of range or an unknown name, NotImplementedError for beam search.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    max_new_tokens: int | None = Field(default=None, ge=1)
    """None is 20."""
    min_new_tokens: int = Field(default=0, ge=0)
    ignore_eos: bool = False
    repetition_penalty: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Of tokens in the prompt or the reply."""
    frequency_penalty: float = Field(default=0.0, allow_inf_nan=False)
    """For each time that a token is in the reply."""
    do_sample: bool = False
    temperature: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Below 1e-5 the likeliest token is taken each time."""
    top_k: int = Field(default=0, ge=0)
    """0 keeps the whole vocabulary."""
    top_p: float = Field(default=1.0, ge=0.0, le=1.0)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int | None = None
    """Prompts of a batch have seeds counted up from it. Also called random_seed."""
    pad_token_id: int | None = Field(default=None, ge=0)
    eos_token_id: list[int] | None = None
    """Ids that end a reply besides the model's own. One id or a tensor is accepted."""
    stop_strings: list[str] | None = None
    """One string alone is accepted."""
    return_probs: bool = False
    return_logprobs: bool = False
    return_input_logprobs: bool = False
    return_text: bool = False
    num_beams: int = 1
    early_stopping: bool = False
    """Of beams."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """None counts as not given. PACE's examples say random_seed."""
        if not isinstance(values, dict):
            return values
        return {"seed" if name == "random_seed" else name: v for name, v in values.items() if v is not None}

    @field_validator("pad_token_id", "eos_token_id", mode="before")
    @classmethod
    def _tensors_are_numbers(cls, value: Any, info: Any) -> Any:
        value = value.tolist() if isinstance(value, torch.Tensor) else value
        if info.field_name == "eos_token_id":
            return [value] if isinstance(value, int) else value
        return value[0] if isinstance(value, list) and value else value

    @field_validator("stop_strings", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("num_beams")
    @classmethod
    def _no_beams_yet(cls, value: int) -> int:
        if value != 1:
            raise NotImplementedError(f"num_beams={value}: there is no beam search yet; leave it out.")
        return value

    def over(self, generation_config: Any) -> Self:
        """These values over those of a model's generation_config. Only names that were given count here."""
        of_model = {name: getattr(generation_config, name, None) for name in _OF_MODEL}
        return self.model_validate(of_model | {name: getattr(self, name) for name in self.model_fields_set})

    def params(self, ends: Sequence[int]) -> SamplingParams:
        """The same for our runtime; `ends` are the ids that end the model's replies."""
        exact = self.temperature < GREEDY_BELOW
        return SamplingParams(
            temperature=self.temperature if self.do_sample and not exact else 0.0,
            top_k=None if exact else self.top_k,
            top_p=1.0 if exact else max(self.top_p, 1e-9),  # 0 keeps the likeliest token, as in PACE
            min_p=0.0 if exact else self.min_p,
            max_tokens=self.max_new_tokens or _MAX_NEW_TOKENS,
            min_tokens=self.min_new_tokens,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop_strings or [],
            ignore_eos=self.ignore_eos,
            eos_token_ids=sorted({*ends, *(self.eos_token_id or ())}),
            logprobs=ALL if self.return_probs or self.return_logprobs or self.return_input_logprobs else None,
            prompt_logprobs=ALL if self.return_input_logprobs else None,
        )


_OF_MODEL = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "do_sample", "temperature", "top_k", "top_p",
             "min_p", "pad_token_id")  # fmt: skip


def cache_name(kind: KVCacheType | str) -> str:
    """The runtime's name of this kind, by PACE's name or value."""
    return str(KVCacheType.__members__.get(str(kind).upper(), kind))
