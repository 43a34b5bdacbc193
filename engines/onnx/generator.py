"""The loop: one forward pass for one request, then one for the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kani_lite.engines.request import Request
from kani_lite.engines.text import Decode
from kani_lite.exceptions import EngineError

from .request import Running
from .slots import Slot, SlotPool

_HEADROOM = 1024  # tokens of a reply for which memory is taken at first; more, and it moves to a larger slot
_LONGEST_CHUNK = 256  # tokens of a prompt in one forward pass, which a cancelled request waits for
_CHUNK_LOGITS = 2**24  # numbers: the model computes the logits of each token of a chunk


@dataclass(frozen=True)
class OnnxOptions:
    """`most_tokens`: of all keys and values together; `continues`: see ModelFolder; `max_batch_size`: requests that run
    beside each other; `max_cached_prompts`: how many ended requests are kept."""

    context: int
    vocabulary: int
    most_tokens: int
    token_bytes: int
    continues: bool
    max_batch_size: int
    max_cached_prompts: int


class OnnxGenerator:
    """Runs any number of requests on one model; used by one thread.

    Each has keys and values of its own, and they take turns: a forward pass each. The library can't put requests that
    come and go into one pass, and one after the other is no faster (measured); so each is answered at once.
    """

    def __init__(self, package: Any, model: Any, decode: Decode, ends: Sequence[int], options: OnnxOptions) -> None:
        longest = min(options.context, options.most_tokens)
        kept = options.max_cached_prompts if options.continues else 0
        self._pool = SlotPool(lambda capacity: Slot(package, model, capacity), longest, options.most_tokens, kept)
        self._decode, self._ends, self._options = decode, frozenset(ends), options
        chunk = max(1, min(_LONGEST_CHUNK, _CHUNK_LOGITS // options.vocabulary))
        self._chunk = chunk if options.continues else options.context
        self._waiting: list[Running] = []  # in the order in which they came
        self._running: deque[Running] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> None:
        """Lets a request wait for its turn. What is wrong with it goes to its sink."""
        params, size = request.params, len(request.prompt)
        room = self._pool.longest - size
        if room < 1:
            needed = (size + 1) * self._options.token_bytes
            return request.fail(
                EngineError(
                    f"A prompt of {size} tokens needs {needed:,} bytes for its keys and values, and there is room for "
                    f"{self._pool.longest} tokens: give the engine a larger kv_cache_memory_gb."
                )
            )
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        ends = self._ends if params.eos_token_ids is None else frozenset(params.eos_token_ids)
        self._waiting.append(Running(request, self._decode, ends, limit))

    def step(self) -> None:
        """One forward pass and what follows from it. Raises nothing that a request could cause."""
        for one in [*self._running, *self._waiting]:
            if one.request.sink.stopped():
                one.request.abandon()
                self._end(one)
        self._start()
        if self._running:
            one = self._running[0]
            self._running.rotate(-1)
            try:
                self._advance(one)
            except Exception as error:  # the library's, a streamer's or a parameter's: this request's own
                self._fail(one, error)

    def _start(self) -> None:
        """First come, first served: the ones behind wait too if there is no memory for the first."""
        while self._waiting and len(self._running) < self._options.max_batch_size:
            one = self._waiting[0]
            wanted = len(one.tokens) + min(one.left, _HEADROOM)
            try:
                slot = self._pool.take(one.tokens, wanted, one.request.params.prompt_logprobs is None)
            except Exception as error:  # the library has no memory, say
                self._fail(one, error)
                continue
            if slot is None:
                return
            one.begin(slot)
            self._running.append(self._waiting.pop(0))

    def _advance(self, one: Running) -> None:
        assert one.slot is not None
        count = min(len(one.pending), self._chunk)
        if len(one.slot.ids) + count > one.slot.capacity:
            return self._wait_for_more(one)
        one.read(count)
        if not one.pending and (reason := one.choose()) is not None:
            one.finish(reason)
            self._end(one)

    def _wait_for_more(self, one: Running) -> None:
        """Its slot is full. It goes on in a larger one, and reads everything again there; what has come before others
        is still before them."""
        assert one.slot is not None
        self._running.remove(one)
        self._pool.drop(one.slot)
        one.slot = None
        self._waiting = sorted([*self._waiting, one], key=lambda each: each.request.submitted)

    def _remove(self, one: Running) -> Slot | None:
        if one in self._waiting:
            self._waiting.remove(one)
        else:
            self._running.remove(one)
        slot, one.slot = one.slot, None
        return slot

    def _end(self, one: Running) -> None:
        if (slot := self._remove(one)) is not None:
            self._pool.put(slot)

    def _fail(self, one: Running, error: BaseException) -> None:
        if (slot := self._remove(one)) is not None:
            self._pool.drop(slot)
        one.request.fail(error)

    def fail_all(self, error: BaseException) -> None:
        """Ends every request with this error."""
        for one in [*self._running, *self._waiting]:
            self._fail(one, error)
