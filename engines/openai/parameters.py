"""SamplingParams as fields of a chat completions request."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from kani_lite.engines.sampling import SamplingParams
from kani_lite.exceptions import EngineError

_PLAIN = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop")
_EXTRA = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "eos_token_ids")
_NEVER = ("typical_p", "prompt_logprobs", "n")
_OURS = {"messages", "model", "tools", "stream", "stream_options", "functions", "function_call", "self"}


def request_options(create: Any) -> frozenset[str]:
    """The options that a call may pass through to the API: those of the openai package's `create`, but what the engine
    itself or SamplingParams decides."""
    taken = _OURS | set(SamplingParams.accepted_names()) | {"tool_choice", "max_tokens", "top_logprobs"}
    return frozenset(inspect.signature(create).parameters) - taken


def split(hyperparams: Mapping[str, Any], options: frozenset[str]) -> tuple[SamplingParams, dict[str, Any]]:
    """(what SamplingParams knows, what goes to the API as it is). Raises TypeError for an unknown name."""
    sampling = {name: value for name, value in hyperparams.items() if name not in options}
    if "top_logprobs" in sampling:  # OpenAI's two names for what is one number here
        wanted, top = sampling.pop("logprobs", True), sampling.pop("top_logprobs")
        sampling["logprobs"] = top if wanted is not False else None
    elif isinstance(sampling.get("logprobs"), bool):
        sampling["logprobs"] = 0 if sampling["logprobs"] else None
    accepted = SamplingParams.accepted_names()
    for name, value in sampling.items():
        if name not in accepted and value is not None:
            near = get_close_matches(name, [*accepted, *options], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ": see SamplingParams."
            raise TypeError(f"OpenAIEngine has no option {name}={value!r}{hint}")
    known = {name: value for name, value in sampling.items() if name in accepted}
    return SamplingParams.from_kwargs(**known), {name: hyperparams[name] for name in options & hyperparams.keys()}


def needs_extra(params: SamplingParams) -> list[str]:
    """The fields that were set and are not OpenAI's own, but some servers'."""
    return [name for name in _EXTRA if _wanted(params, name)]


def request_fields(params: SamplingParams, max_tokens_key: str, extra: bool) -> dict[str, Any]:
    """The request's fields for the fields of `params` that were set. Raises EngineError, naming it, for one that the
    server can't do; `extra`: it understands vLLM's."""
    for name in _NEVER:
        if _wanted(params, name):
            raise EngineError(f"OpenAIEngine can't do {name}={getattr(params, name)!r} in a chat: leave it out.")
    more = needs_extra(params)
    if more and not extra:
        named = ", ".join(f"{name}={getattr(params, name)!r}" for name in more)
        raise EngineError(
            f"OpenAI's API has no {named}: leave it out, or pass extra_sampling=True to the engine if its server "
            "understands vLLM's parameters."
        )
    given = {name: getattr(params, name) for name in _PLAIN if name in params.model_fields_set}
    fields = {name: value for name, value in given.items() if value not in (None, [])}
    if params.max_tokens is not None:
        fields[max_tokens_key] = params.max_tokens
    if params.logprobs is not None:
        fields |= {"logprobs": True} | ({"top_logprobs": params.logprobs} if params.logprobs else {})
    if params.logit_bias:
        fields["logit_bias"] = {str(token): _bias(token, bias) for token, bias in params.logit_bias.items()}
    if more:
        fields["extra_body"] = _extra_body(params, more)
    return fields


def _wanted(params: SamplingParams, name: str) -> bool:
    """Whether a field was set to something else than what it is anyway."""
    return name in params.model_fields_set and getattr(params, name) != SamplingParams.model_fields[name].get_default(
        call_default_factory=True
    )


def _bias(token: int, bias: float) -> float:
    if bias == float("-inf"):
        return -100.0  # the API's word for never
    if not -100 <= bias <= 100:
        raise EngineError(f"logit_bias {{{token}: {bias}}}: OpenAI's API takes -100 to 100, and -inf as -100.")
    return bias


def _extra_body(params: SamplingParams, names: list[str]) -> dict[str, Any]:
    body = {name: getattr(params, name) for name in names if name != "eos_token_ids"}
    if "eos_token_ids" in names:  # in place of the model's own: those are switched off
        body |= {"ignore_eos": True, "stop_token_ids": params.eos_token_ids}
    return body
