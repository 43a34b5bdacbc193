"""How far each request is."""

from __future__ import annotations

import torch

from kani_lite.engines.request import Request
from kani_lite.engines.running import RunningRequest
from kani_lite.engines.text import Decode
from kani_lite.engines.text_generation import TokenLogprobs

from .kv import SequenceCache
from .sampler import Sampler, logprobs_of


class Running(RunningRequest):
    """One request on its way, and the cache that holds all of its tokens but the `pending` ones."""

    def __init__(
        self, request: Request, decode: Decode, ends: frozenset[int], limit: int, device: torch.device | str
    ) -> None:
        super().__init__(request, decode, ends, limit)
        self.cache: SequenceCache | None = None
        self.sampler = Sampler(request.params, request.prompt, sorted(ends), request.banned, torch.device(device))

    def _for_streamer(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids)

    def _logprobs_of(self, logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
        return logprobs_of(logits, token, count)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values aren't known yet: one while it generates, more while its prompt is read."""
        return len(self.tokens) - (self.cache.length if self.cache is not None else 0)

    def begin(self, cache: SequenceCache) -> None:
        self.cache = cache
        if self.wants_prompt_logprobs:
            del self._prompt_logprobs[1:]  # it was put back half way, and its prompt is read anew
        self.note_begin(cache.length)

    def note_prompt(self, logits: torch.Tensor) -> None:
        """`logits`: (rows, vocabulary), each row after one token of the prompt, in order."""
        count = self.request.params.prompt_logprobs
        assert count is not None
        following = self.request.prompt[len(self._prompt_logprobs) :][: len(logits)]
        self._prompt_logprobs += [logprobs_of(row, token, count) for row, token in zip(logits, following, strict=False)]
