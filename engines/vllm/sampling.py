"""SamplingParams as vLLM takes them: in this process, and as fields of its server's requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from kani_lite.engines.sampling import SamplingParams
from kani_lite.exceptions import EngineError

_NEVER = -100.0  # the least bias that the server takes: no token with it is chosen
_SAME = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "ignore_eos",
)


class VLLMSamplingParams(SamplingParams):
    """SamplingParams of one request, and the LoRA adapter that it runs with."""

    adapter: str | None = Field(default=None)
    """The adapter's name; None is the model as it is."""


def with_adapter(params: SamplingParams, adapter: str | None) -> VLLMSamplingParams:
    """These values for a request with this adapter."""
    given = {name: getattr(params, name) for name in params.model_fields_set if name != "adapter"}
    return VLLMSamplingParams(**given, adapter=adapter)


def sampling_fields(
    params: SamplingParams, *, room: int, ends: Sequence[int], banned: Sequence[int], vocabulary: int
) -> dict[str, Any]:
    """The fields of vllm.SamplingParams; every one that matters, so that no default of vLLM's or of the model counts.

    `room`: tokens that the context has left for the reply; `ends`: the model's own end tokens; `banned`: tokens that
    are never chosen. Raises EngineError, naming it, for what vLLM can't do.
    """
    if params.typical_p < 1.0:
        raise EngineError(f"vLLM has no typical_p (given: {params.typical_p}): use top_p or min_p.")
    _check_tokens("logit_bias", params.logit_bias, vocabulary)
    _check_tokens("eos_token_ids", params.eos_token_ids or (), vocabulary)
    most = room if params.max_tokens is None else min(room, params.max_tokens)
    fields: dict[str, Any] = {name: getattr(params, name) for name in _SAME}
    fields |= {
        "temperature": 0.0 if params.greedy else params.temperature,
        "top_k": params.top_k or 0,
        "max_tokens": most,
        "min_tokens": min(params.min_tokens, most),
        "seed": None if params.seed is None else params.seed % 2**63,  # it takes -1 for none
        "stop": list(params.stop),
        "stop_token_ids": [] if params.ignore_eos else list(ends),
        "logprobs": _count(params.logprobs, vocabulary),
        "prompt_logprobs": _count(params.prompt_logprobs, vocabulary),
        "skip_special_tokens": False,  # the parser reads them
        "spaces_between_special_tokens": False,
        "n": 1,
    }
    if params.eos_token_ids is not None and not params.ignore_eos:
        fields |= {"ignore_eos": True, "stop_token_ids": list(params.eos_token_ids)}
    bias = {**params.logit_bias, **dict.fromkeys(banned, -float("inf"))}
    if bias:
        fields["logit_bias"] = bias
    return fields


def _check_tokens(name: str, tokens: Iterable[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise EngineError(
                f"{name} has the out-of-vocab token {token}: this model's tokens are 0 to {vocabulary - 1}."
            )


def _count(asked: int | None, vocabulary: int) -> int | None:
    return -1 if asked is not None and asked >= vocabulary else asked


def server_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the server. Raises EngineError for a bias that it doesn't take."""
    bias: Mapping[int, float] = fields.get("logit_bias", {})
    made = {name: value for name, value in fields.items() if value is not None and name != "logit_bias"}
    for token, value in bias.items():
        if value > -_NEVER or (value < _NEVER and value != -float("inf")):
            raise EngineError(
                f"logit_bias {{{token}: {value}}}: vLLM's server takes -100 to 100, and -inf for tokens that are never "
                "chosen."
            )
    if bias:
        made["logit_bias"] = {str(token): max(value, _NEVER) for token, value in bias.items()}
    return made
