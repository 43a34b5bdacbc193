"""One forward pass for several sequences."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .attention import NAME, AbandonedError, Packed, Part
from .decode import FusedStep
from .kv import LayeredCache, NewLayer, SequenceCache

# a layer that shares another's keys and values; older versions of transformers have none
_NO_LAYER: tuple[type, ...] = tuple(filter(None, [getattr(cache_utils, "DummyLayer", None)]))

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
        self.attention = f"{model.config._attn_implementation}, sequences packed"
        self._new_layer = new_layer
        self.windows: dict[int, int | None] = {}
        """The sliding window that each layer asked for in the last pass."""
        self.fused: FusedStep | None = None
        """Runs the passes of models that it knows."""

    def new_cache(self) -> SequenceCache:
        return LayeredCache(self._new_layer)

    def fuse(self, texts: list[list[int]], expected: list[torch.Tensor]) -> None:
        """Lets the fused step run the model from now on, if it knows it and gives the same logits after these texts.
        Layers must have told their windows."""
        self.fused = FusedStep.of(self._model, self.windows)
        if self.fused is not None and _differ(_in_two(self, texts, 4), expected, _DIFFERENCE):
            self.fused = None
        if self.fused is not None:
            self.attention += ", layers fused"

    def _pass(self, parts: Sequence[Part], stopped: Callable[[], bool]) -> list[torch.Tensor]:
        if self.fused is not None and self.fused.applies:
            return self.fused(parts, stopped)
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
                packed=Packed(parts, stopped, self.windows),
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
    """Each sequence in a pass of its own, as transformers runs it: for models whose attention can't be replaced.

    With `keeps=False` all of a sequence is run in each pass, which is slow, and right for whatever model.
    """

    batches = False

    def __init__(self, model: Any, keeps: bool = True) -> None:
        super().__init__(model)
        self.attention = f"{model.config._attn_implementation}, one sequence at a time"
        self._config = model.config.get_text_config(decoder=True)
        names = ("past_key_values", "cache_params")  # the latter in state-space models
        self._cache_name = next((name for name in names if keeps and name in self._takes), None)
        self._switch = _lengths_of_rope(self._config).get("longrope")

    def new_cache(self) -> PlainCache:
        if self._cache_name is None:
            return PlainCache(None)
        return PlainCache(lambda: DynamicCache(config=self._config), self._switch)

    def _pass(self, parts: Sequence[Part], stopped: Callable[[], bool]) -> list[torch.Tensor]:
        logits = []
        for part in parts:
            if stopped():
                raise AbandonedError
            assert isinstance(part.cache, PlainCache)
            options: dict[str, Any] = {"use_cache": self._cache_name is not None}
            if "logits_to_keep" in self._takes:
                options["logits_to_keep"] = max(1, part.wanted)
            ids = torch.tensor([part.cache.to_run(part.ids)], device=self._model.device)
            if self._cache_name is not None:
                options[self._cache_name] = part.cache.cache
            out = self._model(input_ids=ids, **options)
            logits.append(out.logits[0, out.logits.shape[1] - part.wanted :])
        return logits


class PlainCache(SequenceCache):
    """One sequence's cache as transformers has it.

    Layers that only grow can end anywhere; a sliding window forgets, so it serves only what continues it to the letter;
    any other layer (state-space, linear attention) nothing but its own sequence. The ids are kept too, so that they can
    be run again: after a failure that can't be undone, when the sequence becomes longer than `switch` and its keys
    hold no more (see `_lengths_of_rope`), and always if there is no cache (`new` is None).
    """

    def __init__(self, new: Callable[[], Any] | None, switch: int | None = None) -> None:
        self._new, self._switch = new, switch
        self.cache = new() if new else None
        self._ids: list[int] = []
        self._held = 0  # how many of the ids the layers have

    @property
    def _layers(self) -> list[Any]:
        return self.cache.layers if self.cache is not None else []

    def to_run(self, new: list[int]) -> list[int]:
        """What the next pass has to run so that the cache goes on by `new`: these, and those before that it lacks."""
        before = len(self._ids)
        self._ids += new
        if self._new is None:
            return self._ids
        if self._held != before or self._is_long(before) != self._is_long(len(self._ids)):
            self.cache = self._new()
            self._held = 0
        run = self._ids[self._held :]
        self._held = len(self._ids)
        return run

    def _is_long(self, length: int) -> bool:
        return self._switch is not None and length > self._switch

    def _consists_of(self, *kinds: type) -> bool:
        return self.cache is not None and {type(layer) for layer in self._layers} <= set(kinds)

    @property
    def continuable(self) -> bool:
        """Whether its tokens can be run in pieces, and its end be continued by another request."""
        return self._consists_of(DynamicLayer, DynamicSlidingWindowLayer)

    def truncate(self, length: int) -> None:
        # keys of a long sequence serve no short one, and a pass that failed may not have reached all layers
        usable = self._held == length or (
            self._held > length
            and self._is_long(self._held) == self._is_long(length)
            and self._consists_of(DynamicLayer)
            and all(layer.is_initialized and layer.keys.shape[-2] >= length for layer in self._layers)
        )
        for layer in self._layers if usable and self._held > length else ():
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
        del self._ids[length:]
        self.length, self._held = length, length if usable else 0

    def can_end_at(self, length: int) -> bool:
        return length <= self.length if self._consists_of(DynamicLayer) else self.continuable and length == self.length

    def fork(self, length: int) -> SequenceCache:
        forked = PlainCache(self._new, self._switch)
        # no layer writes into the tensors it has, so they can be shared
        assert forked.cache is not None
        forked.cache.layers = [copy.copy(layer) for layer in self._layers]
        forked._ids, forked._held = list(self._ids), self._held
        forked.truncate(length)
        return forked

    def free(self) -> None:
        self._layers.clear()

    @property
    def keeps_pairs(self) -> bool:
        """Whether its layers have keys and values and nothing else, or share those of others."""
        return self._consists_of(DynamicLayer, DynamicSlidingWindowLayer, *_NO_LAYER)

    def has_window(self, index: int, window: int | None) -> bool:
        """Whether this layer sees so many tokens, None being all."""
        layer = self._layers[index] if index < len(self._layers) else None
        return type(layer) in _NO_LAYER or (layer is not None and window == getattr(layer, "sliding_window", None))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for layer in self._layers for t in _tensors(layer))

    @property
    def token_bytes(self) -> int:
        """Bytes that grow with each token: not those of a state that stays as large as it is."""
        pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in self._layers]
        return sum((k.nbytes + v.nbytes) // k.shape[-2] for k, v in pairs if k is not None and v is not None)


def _tensors(layer: Any) -> Iterator[torch.Tensor]:
    """What a layer of transformers' caches holds, be it keys and values or states by number."""
    for value in vars(layer).values():
        for item in value.values() if isinstance(value, dict) else (value,):
            if isinstance(item, torch.Tensor) and item.is_floating_point():
                yield item


def make_runner(model: Any, new_layer: NewLayer, context: int | None = None) -> Runner:
    """A PackedRunner if this model runs the same with it, by trying: otherwise a PlainRunner. No sequence is longer
    than `context`, if it is given."""
    size = model.config.get_text_config(decoder=True).vocab_size
    texts = [[(7 * i + 3) % size for i in range(9)], [(5 * i + 1) % size for i in range(6)]]
    plain = PlainRunner(model)
    try:
        expected, cache = _results(plain, texts)
    except Exception:  # models of all makers: this one can't use transformers' caches
        plain = PlainRunner(model, keeps=False)
        expected, cache = _results(plain, texts)
    plain.token_bytes = max(1, cache.token_bytes)
    reason = _why_not_packed(model, cache, context)
    if reason is None:
        packed = PackedRunner(model, new_layer)
        packed.token_bytes = plain.token_bytes
        reason = _trouble(packed, cache, texts, expected)
        if reason is None:
            packed.fuse(texts, expected)
            return packed
    if cache.cache is None or not _goes_on(plain, texts, expected):
        plain, reason = PlainRunner(model, keeps=False), "it doesn't go on from transformers' caches"
    plain.attention += f" ({reason})"
    return plain


def _results(plain: PlainRunner, texts: list[list[int]]) -> tuple[list[torch.Tensor], PlainCache]:
    """The logits after each text, and the first one's cache."""
    caches = [plain.new_cache() for _ in texts]
    logits = [plain.forward([Part(cache, text)])[0] for cache, text in zip(caches, texts, strict=True)]
    return logits, caches[0]


def _why_not_packed(model: Any, cache: PlainCache, context: int | None) -> str | None:
    config = model.config.get_text_config(decoder=True)
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention can't be replaced"
    chosen = config._attn_implementation
    # soft capping and sinks aren't in torch's kernel: transformers writes such attention out, and so do we
    if chosen != "sdpa" and not (chosen == "eager" and not model._supports_sdpa):
        return f"attn_implementation={chosen!r}"
    if not cache.keeps_pairs:
        return "its layers keep other things than keys and values"
    if any(context is None or context > length for length in _lengths_of_rope(config).values()):
        return "its rotary embedding depends on the longest sequence of a batch"
    return None


def _lengths_of_rope(config: Any) -> dict[str, int]:
    """For each kind of rotary embedding here whose angles depend on the longest sequence of a pass: the length from
    which on they do. `longrope` has one set of angles up to this length and another for longer sequences."""
    rope = getattr(config, "rope_parameters", None) or {}
    found = {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if (kind := part.get("rope_type")) in ("dynamic", "longrope"):
            length = part.get("original_max_position_embeddings") if kind == "longrope" else None
            found[kind] = int(length or config.max_position_embeddings)
    return found


def _trouble(
    packed: PackedRunner, cache: PlainCache, texts: list[list[int]], expected: list[torch.Tensor]
) -> str | None:
    """What goes wrong when the texts are packed, or would with longer ones."""
    try:
        found = _in_two(packed, texts, 4)
    except Exception as error:  # models of all makers: whatever it is, the plain way is there
        return f"packed attention failed: {type(error).__name__}"
    if _differ(found, expected, _DIFFERENCE):
        return "packed attention gave other results"
    # a model that tells only the mask of its window (or chunks) runs packed as if it had none
    if not all(cache.has_window(index, window) for index, window in packed.windows.items()):
        return "its attention isn't told its window"
    return None


def _goes_on(plain: PlainRunner, texts: list[list[int]], expected: list[torch.Tensor]) -> bool:
    """Whether a sequence goes on from its cache, and from nothing else: some models keep a state in their modules."""
    try:
        # the last token alone: layers with a state may not take a text in pieces
        alone, beside = _in_two(plain, texts[:1], -1), _in_two(plain, texts, -1)
    except Exception:  # as above
        return False
    # the same passes give the same, to the last bits, unless the other text comes in between
    return not (_differ(alone, expected[:1], _DIFFERENCE) or _differ(alone, beside[:1], _DIFFERENCE / 100))


def _in_two(runner: Runner, texts: list[list[int]], cut: int) -> list[torch.Tensor]:
    """The logits after each of the texts, which are run together in two passes."""
    caches = [runner.new_cache() for _ in texts]
    try:
        runner.forward([Part(c, t[:cut], 0) for c, t in zip(caches, texts, strict=True)])
        return runner.forward([Part(c, t[cut:]) for c, t in zip(caches, texts, strict=True)])
    finally:
        for cache in caches:
            cache.free()


def _differ(found: list[torch.Tensor], expected: list[torch.Tensor], most: float) -> bool:
    """Whether any logits are, on average, further apart than `most` of their spread."""
    for one, other in zip(found, expected, strict=True):
        spread = other.float().std().clamp_min(1e-6)
        if not (one.float() - other.float()).abs().mean() < most * spread:
            return True
    return False
