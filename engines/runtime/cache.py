"""Keys and values of earlier prompts, so that what two prompts share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_TAIL = 32  # tokens; re-rendering a reply changes about this much of its end


@dataclass
class Entry:
    """`ids` are exactly the tokens whose keys and values `cache` holds."""

    ids: list[int]
    cache: Any


def common_prefix(a: Sequence[int], b: Sequence[int], step: int = 512) -> int:
    """How many ids are the same at the start. Compares slices first: that loop is C."""
    end = min(len(a), len(b))
    at = 0
    while at < end and a[at : min(at + step, end)] == b[at : min(at + step, end)]:
        at = min(at + step, end)
    while at < end and a[at] == b[at]:
        at += 1
    return at


class CacheManager:
    """The few prompts used last, each with its keys and values (on the model's device; a prompt of n tokens takes
    2 * layers * kv_heads * head_dim * n values).

    The rule: a new prompt takes the entry that shares the longest prefix with it. Layers that only grow never write
    into the tensors they have, so a shared prefix is a view that costs nothing. If the prompt continues the entry (all
    but at most 32 tokens of it), the entry is replaced by the longer one; if it merely shares a beginning, say a
    system prompt, both are kept and the least recently used entry goes.

    Sliding-window layers forget, so their entries serve only prompts that continue them to the letter. Any other layer
    (state-space, linear attention) is not reused at all. Used by one thread.
    """

    def __init__(self, config: Any, size: int = 4) -> None:
        self._config = config
        self._size = size
        self._entries: list[Entry] = []  # the most recently used last
        layers = {type(layer) for layer in self._new().layers}
        self.croppable = layers <= {DynamicLayer}
        self.continuable = layers <= {DynamicLayer, DynamicSlidingWindowLayer}

    def _new(self) -> Any:
        return DynamicCache(config=self._config)

    def take(self, prompt: Sequence[int]) -> Entry:
        """A cache for this prompt that holds as many of its first tokens as are known: always fewer than all, since
        the last one's logits are needed. The caller owns it until `put`."""
        most = len(prompt) - 1
        found, length = None, 0
        for entry in reversed(self._entries):
            same = min(common_prefix(entry.ids, prompt), most)
            if same > length and (self.croppable or same == len(entry.ids)):
                found, length = entry, same
        if found is None:
            return Entry([], self._new())
        if not self.croppable:
            self._entries.remove(found)
            return found
        if len(found.ids) - length <= _TAIL:
            self._entries.remove(found)
        else:  # it was of use: the least recently used goes first
            self._entries.append(self._entries.pop(self._place(found)))
        return Entry(list(prompt[:length]), self._beginning(found, length))

    def _place(self, entry: Entry) -> int:
        return next(i for i, other in enumerate(self._entries) if other is entry)

    def _beginning(self, entry: Entry, length: int) -> Any:
        cache = self._new()
        for old, new in zip(entry.cache.layers, self._layers(cache, len(entry.cache.layers)), strict=True):
            if old.is_initialized:  # a layer that shares another's keys has none of its own
                new.lazy_initialization(old.keys, old.values)
                new.keys, new.values = old.keys[..., :length, :], old.values[..., :length, :]
        return cache

    @staticmethod
    def _layers(cache: Any, number: int) -> list[Any]:
        while len(cache.layers) < number:
            cache.layers.append(DynamicLayer())
        layers: list[Any] = cache.layers
        return layers

    def put(self, entry: Entry) -> None:
        """Keeps this entry for later prompts; its ids must be what its cache holds."""
        usable = {type(layer) for layer in entry.cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
        if not (entry.ids and self._size and self.continuable and usable):
            return
        self._entries = [e for e in self._entries if e.ids != entry.ids]
        self._entries.append(entry)
        del self._entries[: -self._size]

    def clear(self) -> None:
        self._entries.clear()
