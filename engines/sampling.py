"""How the next token is chosen: one value type that every engine accepts."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

_GREEDY_BELOW = 1e-5  # dividing by less overflows; vLLM and PACE have the same bound

# names that transformers (and so programs written for kani) use, and ours
_ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "eos_token_id": "eos_token_ids",
}


class SamplingParams(BaseModel):
    """What decides the next token, and when to stop.

    Only fields that were given count as set, so values merge: an engine's over the model's, a call's over the engine's.
    A field that nobody set is taken from the model's own `generation_config`, which also says whether it is greedy or
    sampled. Naming `top_p`, `top_k`, `min_p` or `typical_p` asks for sampling, at temperature 1 if none is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Divides the logits; 0, and anything below 1e-5, takes the most likely token each time."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keeps the most likely tokens that together have this probability."""
    top_k: int | None = None
    """Keeps this many of the most likely tokens; None, 0 and -1 keep all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Drops tokens less likely than this share of the most likely one's probability."""
    typical_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keeps the tokens whose surprise is nearest to the mean and that have this probability together (Meister et al.
    2022)."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of a reply; None: until the context is full."""
    min_tokens: int = Field(default=0, ge=0)
    """No end of the reply before this many tokens."""
    repetition_penalty: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Above 1 makes tokens of the prompt and of the reply less likely (Keskar et al. 2019, section 4.1)."""
    frequency_penalty: float = Field(default=0.0, allow_inf_nan=False)
    """Taken from a token's logit for each time that it is in the reply."""
    presence_penalty: float = Field(default=0.0, allow_inf_nan=False)
    """Taken from a token's logit once it is in the reply."""
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed gives the same reply on the same machine, whatever else runs beside it."""
    stop: list[str] = Field(default_factory=list)
    """The reply ends before any of these texts. One text alone is accepted."""
    ignore_eos: bool = False
    """Goes on after the model's end token, up to `max_tokens`."""
    eos_token_ids: list[int] | None = None
    """The ids that end a reply, in place of the model's own. One id alone is accepted."""
    logprobs: int | None = Field(default=None, ge=0)
    """Says the log probability of each token of the reply, and of so many of the likeliest tokens in its place. A
    number of at least the vocabulary's size gives all, kept as a tensor."""
    prompt_logprobs: int | None = Field(default=None, ge=0)
    """The same for the prompt's tokens but the first, which nothing predicts. Nothing of the prompt is reused then."""
    n: int = Field(default=1, ge=1)
    """How many replies `generate` makes of one prompt, with seeds counted up from `seed`; a chat has one."""

    @field_validator("top_k")
    @classmethod
    def _off_is_none(cls, value: int | None) -> int | None:
        if value is not None and value < -1:
            raise ValueError("top_k is a number of tokens; 0, -1 or None switch it off")
        return None if value in (0, -1) else value

    @field_validator("eos_token_ids", mode="before")
    @classmethod
    def _one_id_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("logit_bias")
    @classmethod
    def _finite_bias(cls, value: dict[int, float]) -> dict[int, float]:
        for token, bias in value.items():
            if token < 0 or bias != bias or bias == float("inf"):
                raise ValueError(f"logit_bias {{{token}: {bias}}}: ids are not negative, a bias is a number or -inf")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty stop text would end every reply at once")
        return value

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature < _GREEDY_BELOW

    def merged(self, other: SamplingParams | None) -> Self:
        """These values, with those that were explicitly set in `other`, and are not None, in their place. `top_k`
        is the exception: switching it off explicitly counts."""
        if other is None:
            return self
        if not isinstance(other, SamplingParams):  # a caller without a type checker
            raise TypeError(f"SamplingParams merge with SamplingParams, not with {type(other).__name__}: {other!r:.80}")
        given = {name: getattr(other, name) for name in sorted(other.model_fields_set)}
        return self.model_copy(update={k: v for k, v in given.items() if v is not None or k == "top_k"})

    @classmethod
    def accepted_names(cls) -> list[str]:
        """Every name that `from_kwargs` takes."""
        return sorted([*cls.model_fields, *_ALIASES, "do_sample"])

    @classmethod
    def from_kwargs(cls, **hyperparams: Any) -> Self:
        """The same from loose arguments, in our names or in those of transformers.

        `do_sample=False` means temperature 0; `do_sample=True` alone means temperature 1. Arguments that are None count
        as not given. Raises TypeError for a name that is unknown or given twice under two names, and pydantic's
        ValidationError (a ValueError) for a value out of range.
        """
        values: dict[str, Any] = {}
        do_sample = hyperparams.pop("do_sample", None)
        if do_sample not in (None, False, True):  # 0 and 1 are the same
            raise TypeError(f"do_sample={do_sample!r}: give True or False.")
        for name, value in hyperparams.items():
            field = _ALIASES.get(name, name)
            if field not in cls.model_fields:
                accepted = ", ".join(cls.accepted_names())
                raise TypeError(f"Unknown sampling parameter {name}={value!r}. Accepted are: {accepted}.")
            if value is None:
                continue
            if field in values:
                raise TypeError(f"{field} is given twice: {name}={value!r} is another name of it.")
            values[field] = value
        if do_sample and not values.get("temperature"):
            values["temperature"] = 1.0
        elif do_sample is not None and not do_sample:
            values["temperature"] = 0.0
        return cls(**values)


def params_of_model(generation_config: Any) -> SamplingParams:
    """What the model's authors recommend: greedy unless their generation_config says `do_sample`."""

    def value(name: str) -> Any:
        return getattr(generation_config, name, None)

    given = {
        name: value(name) for name in ("temperature", "top_p", "top_k", "min_p", "typical_p") if value("do_sample")
    }
    given["do_sample"] = bool(value("do_sample"))
    given["repetition_penalty"] = value("repetition_penalty")
    return SamplingParams.from_kwargs(**given)


def with_defaults(model: SamplingParams, user: SamplingParams) -> SamplingParams:
    """The user's values over the model's. Asking a greedy model for top_p, top_k, min_p or typical_p means sampling."""
    merged = model.merged(user)
    if (
        model.greedy
        and "temperature" not in user.model_fields_set
        and user.model_fields_set & {"top_p", "top_k", "min_p", "typical_p"}
    ):
        return merged.model_copy(update={"temperature": 1.0})
    return merged
