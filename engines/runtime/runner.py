"""One forward pass for several sequences."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .attention import NAME, AbandonedError, Packed, Part
from .kv import LayeredCache, NewLayer, SequenceCache

# rotary embeddings whose angles depend on the longest sequence of the batch
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_DIFFERENCE = 0.1  # of the logits' spread, between a packed and a plain pass: a sequence that saw another differs by 1


class Runner(ABC):
    """Runs a model's forward pass. `batches` says whether several sequences share one."""

    batches: ClassVar[bool]
    attention: str
    """Which implementation of attention runs, for people."""
    token_bytes: int = 1
    """Bytes that one token's keys and values take."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._takes = set(inspect.signature(model.forward).parameters)

    @abstractmethod
    def new_cache(self) -> SequenceCache:
        """An empty cache that `forward` can fill."""

    @abstractmethod
    def _pass(self, parts: Sequence[Part], stopped: Callable[[], bool]) -> list[torch.Tensor]: ...

    @torch.inference_mode()
    def forward(self, parts: Sequence[Part], stopped: Callable[[], bool] = lambda: False) -> list[torch.Tensor]:
        """For each part its logits, (wanted, vocabulary). The caches then hold the parts' ids too; if the pass fails,
        they are as they were. Raises AbandonedError if `stopped` says so half way, and whatever the model raises."""
        try:
            logits = self._pass(parts, stopped)
        except BaseException:
            for part in parts:
                part.cache.rollback()
            raise
        for part in parts:
            part.cache.commit(len(part.ids))
        return logits


class PackedRunner(Runner):
    """All sequences in one row, told apart by attention alone (see `attention`)."""

    batches = True

    def __init__(self, model: Any, new_layer: NewLayer) -> None:
        super().__init__(model)
        self.attention = "sdpa, sequences packed"
        self._new_layer = new_layer

    def new_cache(self) -> SequenceCache:
        return LayeredCache(self._new_layer)

    def _pass(self, parts: Sequence[Part], stopped: Callable[[], bool]) -> list[torch.Tensor]:
        device = self._model.device
        ids = torch.tensor([[token for part in parts for token in part.ids]], device=device)
        positions = [p for part in parts for p in range(part.cache.length, part.cache.length + len(part.ids))]
        ends = 0
        wanted: list[int] = []
        for part in parts:
            ends += len(part.ids)
            wanted += range(ends - part.wanted, ends)
        where = torch.tensor(wanted, dtype=torch.long, device=device)
        kept = {"logits_to_keep": where} if "logits_to_keep" in self._takes else {}
        with self._packed_attention():
            out = self._model(
                input_ids=ids,
                position_ids=torch.tensor([positions], device=device),
                use_cache=True,
                past_key_values=_PassedOn(),
                packed=Packed(parts, stopped),
                **kept,
            )
        logits = out.logits[0] if kept else out.logits[0, where]
        return list(logits.split([part.wanted for part in parts]))

    @contextmanager
    def _packed_attention(self) -> Iterator[None]:
        """Only for this pass: whoever else calls the model finds it as it was loaded."""
        config = self._model.config
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before


class _PassedOn(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """What a model takes for its cache: keys and values go on to attention as they are, which keeps them."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


class PlainRunner(Runner):
    """Each sequence in a pass of its own, as transformers runs it: for models whose attention can't be replaced."""

    batches = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.attention = f"{model.config._attn_implementation}, one sequence at a time"
        self._config = model.config.get_text_config(decoder=True)

    def new_cache(self) -> SequenceCache:
        return PlainCache(DynamicCache(config=self._config))

    def _pass(self, parts: Sequence[Part], stopped: Callable[[], bool]) -> list[torch.Tensor]:
        logits = []
        for part in parts:
            if stopped():
                raise AbandonedError
            assert isinstance(part.cache, PlainCache)
            kept = {"logits_to_keep": max(1, part.wanted)} if "logits_to_keep" in self._takes else {}
            ids = torch.tensor([part.ids], device=self._model.device)
            out = self._model(input_ids=ids, past_key_values=part.cache.cache, use_cache=True, **kept)
            logits.append(out.logits[0, out.logits.shape[1] - part.wanted :])
        return logits


class PlainCache(SequenceCache):
    """One sequence's cache as transformers has it.

    Layers that only grow can end anywhere; a sliding window forgets, so it serves only what continues it to the letter;
    any other layer (state-space, linear attention) nothing but its own sequence.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self._broken = False

    @property
    def _only_grows(self) -> bool:
        return {type(layer) for layer in self.cache.layers} <= {DynamicLayer}

    @property
    def continuable(self) -> bool:
        """Whether its tokens can be run in pieces, and its end be continued by another request."""
        kinds = {type(layer) for layer in self.cache.layers}
        return not self._broken and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    def rollback(self) -> None:
        if self._only_grows:
            self.truncate(self.length)
        else:
            self._broken = True

    def truncate(self, length: int) -> None:
        for layer in self.cache.layers:
            if layer.is_initialized and layer.keys.shape[-2] > length:
                layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
        self.length = length

    def can_end_at(self, length: int) -> bool:
        return self.continuable and (length <= self.length if self._only_grows else length == self.length)

    def fork(self, length: int) -> SequenceCache:
        layers = []
        for layer in self.cache.layers:
            new = DynamicLayer()
            if layer.is_initialized:  # a layer that shares another's keys has none of its own
                new.lazy_initialization(layer.keys, layer.values)
                # a layer that grows never writes into the tensors it has, so a view is enough
                new.keys, new.values = layer.keys[..., :length, :], layer.values[..., :length, :]
            layers.append(new)
        cache = DynamicCache()
        cache.layers = layers
        forked = PlainCache(cache)
        forked.length = length
        return forked

    def free(self) -> None:
        self.cache.layers.clear()

    @property
    def nbytes(self) -> int:
        tensors = [t for layer in self.cache.layers for t in (layer.keys, layer.values) if layer.is_initialized]
        return sum(t.nbytes for t in tensors)


def make_runner(model: Any, new_layer: NewLayer) -> Runner:
    """A PackedRunner if this model runs the same with it, by trying: otherwise a PlainRunner."""
    plain = PlainRunner(model)
    size = model.config.get_text_config(decoder=True).vocab_size
    texts = [[(7 * i + 3) % size for i in range(9)], [(5 * i + 1) % size for i in range(6)]]
    caches = [plain.new_cache() for _ in texts]
    expected = [plain.forward([Part(cache, text)])[0] for cache, text in zip(caches, texts, strict=True)]
    plain.token_bytes = max(1, caches[0].nbytes // len(texts[0]))
    reason = _why_not_packed(model)
    if reason is None:
        packed = PackedRunner(model, new_layer)
        packed.token_bytes = plain.token_bytes
        reason = _difference(packed, texts, expected)
        if reason is None:
            return packed
    plain.attention += f" ({reason})"
    return plain


def _why_not_packed(model: Any) -> str | None:
    config = model.config.get_text_config(decoder=True)
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention can't be replaced"
    if (chosen := config._attn_implementation) != "sdpa":
        return f"attn_implementation={chosen!r}"
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if any(r.get("rope_type") in _LENGTH_DEPENDENT_ROPE for r in nested):
        return "its rotary embedding depends on the longest sequence of a batch"
    return None


def _difference(packed: PackedRunner, texts: list[list[int]], expected: list[torch.Tensor]) -> str | None:
    """Runs the texts packed, in two passes; says what was different from the logits expected after them."""
    caches = [packed.new_cache() for _ in texts]
    try:
        packed.forward([Part(c, t[:4], 0) for c, t in zip(caches, texts, strict=True)])
        found = packed.forward([Part(c, t[4:]) for c, t in zip(caches, texts, strict=True)])
    except Exception as error:  # models of all makers: whatever it is, the plain way is there
        return f"packed attention failed: {type(error).__name__}"
    finally:
        for cache in caches:
            cache.free()
    for one, other in zip(found, expected, strict=True):
        spread = other.float().std().clamp_min(1e-6)
        if not (one.float() - other.float()).abs().mean() < _DIFFERENCE * spread:
            return "packed attention gave other results"
    return None
