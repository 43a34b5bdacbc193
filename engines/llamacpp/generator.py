"""The loop: forward passes that all requests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kani_lite.engines.request import Request
from kani_lite.engines.running_numpy import Logits
from kani_lite.engines.text import Decode
from kani_lite.exceptions import EngineError

from .grammar import CallGrammars
from .library import NO_ROOM, Context
from .request import Running
from .slots import Slot, SlotPool

_HEADROOM = 256  # tokens of a reply for which there should be room before a request begins beside others
_PROMPT_LOGITS = 2**24  # numbers: where the logits after each token of a prompt are wanted


@dataclass(frozen=True)
class LlamaOptions:
    """`context`: tokens of one sequence; `room`: cells of all; `divisible`: as for SlotPool; `max_batch_size`:
    requests in one forward pass; `max_cached_prompts`: how many ended requests are kept."""

    context: int
    vocabulary: int
    room: int
    divisible: bool
    max_batch_size: int
    max_cached_prompts: int


class LlamaGenerator:
    """Runs any number of requests on one model; used by one thread.

    Each step is one forward pass: a token of every request that generates, and as much of the waiting prompts as the
    batch has room for.
    """

    def __init__(
        self,
        context: Context,
        decode: Decode,
        ends: Sequence[int],
        options: LlamaOptions,
        grammars: CallGrammars | None = None,
    ) -> None:
        """`grammars`: for calls that must be valid."""
        self._context, self._options, self._grammars = context, options, grammars
        count = options.max_batch_size + options.max_cached_prompts
        self._pool = SlotPool(context, count, options.room, options.max_cached_prompts, options.divisible)
        self._decode, self._ends = decode, frozenset(ends)
        self._waiting: list[Running] = []  # both in the order in which they came
        self._running: list[Running] = []
        self._full = False  # until a request ends, none begins

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> None:
        """Lets a request wait for its turn. What is wrong with it goes to its sink."""
        params, room = request.params, self._options.context - len(request.prompt)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        ends = self._ends if params.eos_token_ids is None else frozenset(params.eos_token_ids)
        try:
            guide = self._grammars.guide(request.functions, ends) if self._grammars and request.functions else None
        except EngineError as error:  # a function whose schema has no grammar
            return request.fail(error)
        self._waiting.append(Running(request, self._decode, ends, limit, guide))

    def step(self) -> None:
        """One forward pass and what follows from it. Raises nothing that a request could cause."""
        for one in [*self._running, *self._waiting]:
            if one.request.sink.stopped():
                one.request.abandon()
                self._end(one)
        self._start()
        parts = self._parts()
        if not parts:
            return
        try:
            status = self._context.decode(
                [(slot.sequence, one.known, tokens, one.wants_prompt_logprobs) for one, slot, tokens in parts]
            )
        except Exception as error:  # the library's own: what these sequences hold is unknown
            for one, _, _ in parts:
                self._fail(one, error)
            return
        if status == NO_ROOM:
            self._make_room()
        else:
            self._take_logits(parts)

    def _start(self) -> None:
        """First come, first served: the ones behind wait too if there is no room for the first."""
        self._full = self._full and bool(self._running)
        while not self._full and self._waiting and len(self._running) < self._options.max_batch_size:
            one = self._waiting[0]
            wanted = len(one.tokens) + min(one.left, _HEADROOM)
            slot = self._pool.take(one.tokens, wanted, not one.wants_prompt_logprobs)
            if slot is None:
                return
            one.begin(slot)
            self._running.append(self._waiting.pop(0))

    def _parts(self) -> list[tuple[Running, Slot, list[int]]]:
        """What each request reads in the next forward pass: those that generate first."""
        left = self._context.batch_size
        parts = []
        for one in sorted(self._running, key=lambda each: len(each.pending) > 1):
            most = (
                left if not one.wants_prompt_logprobs else min(left, max(1, _PROMPT_LOGITS // self._options.vocabulary))
            )
            tokens = one.tokens[one.known : one.known + most]
            if tokens and one.slot is not None:
                parts.append((one, one.slot, tokens))
                left -= len(tokens)
        return parts

    def _take_logits(self, parts: Sequence[tuple[Running, Slot, list[int]]]) -> None:
        at = 0  # place in the batch
        for one, slot, tokens in parts:
            begin, start, at = one.known, at, at + len(tokens)
            slot.ids += tokens
            try:
                if one.wants_prompt_logprobs:
                    one.note_prompt(begin, len(tokens), partial(self._logits, start))
                reason = one.choose(self._context.logits(at - 1)) if not one.pending else None
                if reason is not None:
                    one.finish(reason)
                    self._end(one)
            except Exception as error:  # a streamer's or a parameter's: this request's own
                self._fail(one, error)

    def _logits(self, start: int, number: int) -> Logits:
        return self._context.logits(start + number)

    def _make_room(self) -> None:
        """The cells are full: what is kept goes first, then the youngest request waits and begins again."""
        if self._pool.make_room():
            return
        youngest = max(self._running, key=lambda each: each.request.submitted)
        if len(self._running) == 1:
            error = (
                f"There is no room for the {len(youngest.tokens)} tokens of this chat: give more kv_cache_memory_gb."
            )
            self._fail(youngest, EngineError(error))
            return
        self._running.remove(youngest)
        assert youngest.slot is not None
        self._pool.drop(youngest.slot)
        youngest.slot, self._full = None, True  # beginning again at once, it would take the room away again
        self._waiting = sorted([*self._waiting, youngest], key=lambda each: each.request.submitted)

    def _remove(self, one: Running) -> Slot | None:
        (self._waiting if one in self._waiting else self._running).remove(one)
        slot, one.slot = one.slot, None
        self._full = self._full and slot is None
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
