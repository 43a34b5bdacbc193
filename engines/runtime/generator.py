"""The loop: plan a forward pass, run it, choose a token for each request that is ready, and again."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kani_lite.engines.limits import check_least
from kani_lite.engines.request import Request
from kani_lite.engines.text import Decode
from kani_lite.exceptions import EngineError

from .attention import AbandonedError, Part
from .cache import CacheManager
from .kinds import CacheKind, check_name
from .kv import CacheFullError
from .linear import pack_linears
from .request import Running
from .runner import make_runner
from .scheduler import Scheduler

_WITHOUT_PACKING = ("bmc", "dynamic")  # the default, and what transformers' own cache is


@dataclass(frozen=True)
class RuntimeOptions:
    """How the local runtime works.

    `cache`: the kind of memory for keys and values (see docs/runtime.md). `kv_cache_bytes`: for all of them, those of
    running requests and those kept for later prompts; None takes a quarter of what is free. `max_cached_prompts`: how
    many ended requests are kept at most; None is as many as fit. `max_batch_size`: requests in one forward pass.
    `pack_weights`: on a CPU, lay the weights out as its kernels read them. `chunk`: tokens of prompts in one forward
    pass.
    """

    cache: str = "bmc"
    kv_cache_bytes: int | None = None
    max_cached_prompts: int | None = None
    max_batch_size: int = 64
    pack_weights: bool = True
    chunk: int = 512

    def __post_init__(self) -> None:
        check_name(self.cache)
        check_least(
            kv_cache_bytes=(self.kv_cache_bytes, 1),
            max_cached_prompts=(self.max_cached_prompts, 0),
            max_batch_size=(self.max_batch_size, 1),
            chunk=(self.chunk, 1),
        )


class Generator:
    """Runs any number of requests on one model; used by one thread.

    An error in a forward pass ends only the request that it belongs to: the others are run again without it. If memory
    is short, kept prompts go first, then the batch is run in smaller pieces, then the newest requests wait.
    """

    def __init__(
        self, model: Any, decode: Decode, ends: Sequence[int], context: int, options: RuntimeOptions | None = None
    ) -> None:
        options = options or RuntimeOptions()
        if options.pack_weights:
            pack_linears(model)
        kind = CacheKind.named(options.cache, model, context, options.kv_cache_bytes)
        self.runner = make_runner(model, kind.new_layer, context)
        if not self.runner.batches and options.cache not in _WITHOUT_PACKING:
            raise EngineError(
                f"cache={options.cache!r} needs sequences that are packed, and this model runs with "
                f"{self.runner.attention}: leave cache= out."
            )
        self.cache = CacheManager(options.max_cached_prompts)
        self._model, self._decode, self._ends, self._context = model, decode, frozenset(ends), context
        self._scheduler = Scheduler(self.runner, self.cache, kind, context, options.max_batch_size, options.chunk)

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def add(self, request: Request) -> None:
        """Lets a request wait for its turn. What is wrong with it goes to its sink."""
        params = request.params
        room = min(self._context, self._scheduler.longest) - len(request.prompt)
        if room < 1:
            needed = (len(request.prompt) + 1) * self.runner.token_bytes
            return request.fail(
                EngineError(
                    f"A prompt of {len(request.prompt)} tokens needs {needed:,} bytes for its keys and values, and "
                    f"there is room for {self._scheduler.longest} tokens: give the engine a larger kv_cache_memory_gb."
                )
            )
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        ends = self._ends if params.eos_token_ids is None else frozenset(params.eos_token_ids)
        self._scheduler.waiting.append(Running(request, self._decode, ends, limit, self._model.device))

    def step(self) -> None:
        """One forward pass and what follows from it. Raises nothing that a request could cause."""
        for one in self._scheduler.all():
            if one.request.sink.stopped():
                one.request.abandon()
                self._end(one)
        if planned := self._scheduler.plan():
            self._run(planned)

    def _run(self, planned: list[tuple[Running, int]]) -> None:
        parts = [self._part(one, size) for one, size in planned]
        sinks = [one.request.sink for one, _ in planned]
        try:
            logits = self.runner.forward(parts, lambda: all(sink.stopped() for sink in sinks))
        except AbandonedError:
            return  # the next step ends them
        except (torch.OutOfMemoryError, MemoryError, CacheFullError) as error:
            self._run_with_less(planned, error)
        except Exception as error:  # the model's own, of any kind
            if len(planned) == 1:
                self._fail(planned[0][0], error)
            else:
                self._run_in_halves(planned)
        else:
            self._advance(planned, logits)

    def _part(self, one: Running, size: int) -> Part:
        assert one.cache is not None
        ids = one.tokens[one.cache.length : one.cache.length + size]
        wanted = size if one.wants_prompt_logprobs else int(size == one.pending)
        return Part(one.cache, ids, wanted)

    def _run_with_less(self, planned: list[tuple[Running, int]], error: Exception) -> None:
        if not self.cache.drop_oldest():
            if len(planned) > 1:
                return self._run_in_halves(planned)
            if not self._scheduler.put_back_last():
                return self._fail(planned[0][0], EngineError(f"There is not enough memory for this request ({error})."))
            if planned[0][0] in self._scheduler.running:
                _collect(error)
                # at once: in the next step those that were put back would be there again, and so for ever
                return self._run(planned)
        self.cache.clear()
        _collect(error)
        # what was put back is not run now; the others are planned anew in the next step

    def _run_in_halves(self, planned: list[tuple[Running, int]]) -> None:
        middle = len(planned) // 2
        for half in (planned[:middle], planned[middle:]):
            # a half may have put requests of the other back
            if left := [(one, size) for one, size in half if one in self._scheduler.running]:
                self._run(left)

    def _advance(self, planned: list[tuple[Running, int]], logits: list[torch.Tensor]) -> None:
        ready = []
        for (one, _), rows in zip(planned, logits, strict=True):
            if one.wants_prompt_logprobs:
                one.note_prompt(rows)
            if not one.pending:
                ready.append((one, rows[-1]))
        # one argmax for all that only take the likeliest token; the others are drawn one by one
        plain = [row for one, row in ready if one.sampler.takes_the_likeliest]
        # float() changes no order, and torch's argmax of bf16 takes three times as long
        likeliest = iter(torch.stack(plain).float().argmax(-1).tolist() if plain else ())
        for one, row in ready:
            try:
                token = next(likeliest) if one.sampler.takes_the_likeliest else one.sampler.choose(row)
                if (reason := one.add(token, row)) is not None:
                    one.finish(reason)
                    self._end(one)
            except Exception as error:  # a request's own streamer or parameters
                self._fail(one, error)

    def _end(self, one: Running) -> None:
        self._scheduler.remove(one)
        if one.cache is not None:
            self.cache.put(one.tokens, one.cache)

    def _fail(self, one: Running, error: BaseException) -> None:
        self._scheduler.remove(one)
        if one.cache is not None:
            one.cache.free()
        one.request.fail(error)

    def fail_all(self, error: BaseException) -> None:
        """Ends every request with this error."""
        for one in self._scheduler.all():
            self._fail(one, error)


def _collect(error: Exception) -> None:
    """Frees what only cycles hold, where the system's memory is short; a pool that is full has no use for it, and it
    takes up to a second."""
    if not isinstance(error, CacheFullError):
        gc.collect()
