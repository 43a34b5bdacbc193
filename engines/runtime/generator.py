"""The decode loop: one prompt in, token after token out, on the thread that owns the model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kani_lite.engines.sampling import SamplingParams

from .cache import CacheManager, Entry
from .sampler import Sampler
from .text import Decode, Detokenizer, StopStrings

_CHUNK = 512  # tokens of a prompt per forward pass: how long a cancel may have to wait


@dataclass(frozen=True)
class Generation:
    """What one run made. `ids` includes the end token, if there is one."""

    ids: list[int]
    cached_tokens: int
    seconds: float
    finish_reason: str


@dataclass(frozen=True)
class Request:
    """One prompt to run. `emit` gets pieces of text, `stopped` is asked before each forward pass."""

    prompt: list[int]
    params: SamplingParams
    banned: list[int]
    emit: Callable[[str], object]
    stopped: Callable[[], bool]


class CancelledRequestError(Exception):
    """The request's caller has gone away; never leaves this package."""


class Generator:
    """Runs requests, one at a time, on a model's forward pass.

    Why not `model.generate`: it doesn't stop between the chunks of a prompt, knows no `seed` of one request, and its
    streamer blocks. The caches, logits processors and models are those of transformers.
    """

    def __init__(self, model: Any, decode: Decode, ends: Sequence[int], context: int, max_cached_prompts: int) -> None:
        self.model = model
        self.cache = CacheManager(model.config.get_text_config(decoder=True), max_cached_prompts)
        self._decode = decode
        self._ends = frozenset(ends)
        self._context = context
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def run(self, request: Request) -> Generation:
        """Raises CancelledRequestError if the request was stopped, and whatever the model raises."""
        begun = time.perf_counter()
        entry = self.cache.take(request.prompt)
        cached = len(entry.ids)
        try:
            logits = self._prefill(entry, request)
            ids, reason = self._decode_loop(entry, logits, request)
        except CancelledRequestError:
            self.cache.put(entry)  # between two passes it is whole
            raise
        self.cache.put(entry)
        return Generation(ids, cached, time.perf_counter() - begun, reason)

    def _prefill(self, entry: Entry, request: Request) -> torch.Tensor:
        rest = request.prompt[len(entry.ids) :]
        # layers that can't be continued may not take a prompt in pieces either
        chunk = _CHUNK if self.cache.continuable else len(rest)
        logits = torch.empty(0)
        for start in range(0, len(rest), chunk):
            logits = self._forward(entry, rest[start : start + chunk], request)
        return logits

    def _decode_loop(self, entry: Entry, logits: torch.Tensor, request: Request) -> tuple[list[int], str]:
        params = request.params
        sampler = Sampler(params, request.prompt, sorted(self._ends), request.banned, logits.device)
        text, stops = Detokenizer(self._decode), StopStrings(params.stop)
        room = self._context - len(request.prompt)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        ids: list[int] = []
        reason = "length"
        while True:
            token = sampler.choose(logits)
            ids.append(token)
            if token in self._ends and not params.ignore_eos:
                reason = "stop"
                break
            self._say(request, stops.add(text.add(token)))
            if stops.hit or len(ids) >= limit:
                break
            logits = self._forward(entry, [token], request)
        self._say(request, stops.add(text.finish()))
        self._say(request, stops.finish())
        return ids, "stop" if stops.hit else reason

    def _forward(self, entry: Entry, ids: list[int], request: Request) -> torch.Tensor:
        """Logits after the last of these ids, (vocabulary,). The entry then holds them too; if the pass fails half
        way, the entry is not kept."""
        if request.stopped():
            raise CancelledRequestError
        tokens = torch.tensor([ids], dtype=torch.long, device=self.model.device)
        last = {"logits_to_keep": 1} if self._last_only else {}
        out = self.model(input_ids=tokens, past_key_values=entry.cache, use_cache=True, **last)
        entry.ids.extend(ids)
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    @staticmethod
    def _say(request: Request, text: str) -> None:
        if text:
            request.emit(text)
