"""Attention over several sequences that lie side by side in one batch row.

A model's linear layers don't care whose token a row is, so the tokens of all sequences go through them together; only
attention has to tell them apart. It is registered with transformers under `NAME` and finds the batch in the keyword
arguments that models hand down to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from .kv import LayeredCache, SequenceCache

NAME = "kani_lite_packed"


@dataclass(frozen=True)
class Part:
    """One sequence's share of a forward pass: `ids` go on from what `cache` holds. Logits are wanted after the last
    `wanted` of them."""

    cache: SequenceCache
    ids: list[int]
    wanted: int = 1


class AbandonedError(Exception):
    """Nobody waits for this forward pass any more; never leaves this package."""


@dataclass
class Packed:
    """The sequences of one forward pass, in their order in the row. `stopped` is asked in each layer, and `windows`
    notes the sliding window that each layer wants."""

    parts: Sequence[Part]
    stopped: Callable[[], bool]
    windows: dict[int, int | None] = field(default_factory=dict)
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, rows: int, start: int, end: int, window: int | None, group: int, like: torch.Tensor) -> torch.Tensor:
        """(group * rows, end - start): whether a query may see a key, for the last `rows` of `end` tokens and the
        keys from `start` on. It is the same for all layers of one kind."""
        key = (rows, end, window or 0)
        if (found := self.masks.get(key)) is None:
            queries = torch.arange(end - rows, end, device=like.device).unsqueeze(1)
            keys = torch.arange(start, end, device=like.device)
            found = keys <= queries
            if window is not None:
                found &= keys > queries - window
            self.masks[key] = found = found.repeat(group, 1)
        return found


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    *,
    packed: Packed,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`query` (1, heads, tokens, head_dim), `key` and `value` (1, kv_heads, tokens, head_dim), of all sequences one
    after the other. Returns (1, tokens, heads, head_dim of the values)."""
    if packed.stopped():
        raise AbandonedError
    index: Any = module.layer_idx
    packed.windows[index] = sliding_window
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    at = 0
    for part in packed.parts:
        end = at + len(part.ids)
        assert isinstance(part.cache, LayeredCache)
        keys, values = part.cache.layer(index).append(key[:, :, at:end], value[:, :, at:end])
        out[:, at:end] = _attend(query[:, :, at:end], keys, values, scaling, sliding_window, softcap, s_aux, packed)
        at = end
    return out, None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    packed: Packed,
) -> torch.Tensor:
    """One sequence: (1, rows, heads, head_dim). The queries that share a key head become rows of one head, so that the
    keys are not copied for each of them (10 times faster in bf16 with 4096 keys than `enable_gqa`)."""
    heads, rows, dim = query.shape[1:]
    kv_heads, end = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    start = 0
    if window is not None and end - rows - window + 1 > 0:
        start = end - rows - window + 1
        keys, values = keys[:, :, start:], values[:, :, start:]
    mask = None
    if rows > 1:
        mask = packed.mask(rows, start, end, window, group, query)
    grouped = query.reshape(1, kv_heads, group * rows, dim)
    if softcap is None and sinks is None:
        if rows == end and group == 1 and window is None:
            out = scaled_dot_product_attention(grouped, keys, values, is_causal=True, scale=scaling)
        else:
            out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    else:
        out = _written_out(grouped, keys, values, mask, scaling, softcap, sinks)
    return out.reshape(1, heads, rows, -1).transpose(1, 2)


def _written_out(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with what torch's kernel lacks: soft capping (Gemma 2) and learned sinks (gpt-oss)."""
    scores = (query @ keys.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        kv_heads, rows = query.shape[1], query.shape[2]
        sink = sinks.reshape(1, kv_heads, -1, 1, 1).expand(1, -1, -1, rows * kv_heads // sinks.numel(), 1)
        scores = torch.cat([scores, sink.reshape(1, kv_heads, rows, 1).to(scores.dtype)], dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32)[..., : keys.shape[2]].to(query.dtype)
    return shares @ values


AttentionInterface.register(NAME, packed_attention)
