"""The forward pass of Llama-like models, written out.

On one row a layer's arithmetic takes some hundred microseconds, and transformers' way to it (modules, masks, a cache,
keyword arguments handed down) about as long again. Here plain functions use the same weights: queries, keys and values
come from one matmul where their weights allow it, as do gate and up; angles come from a table; one row needs no mask.
Which models it serves: `decode_structure`. What it gives differs from transformers' own pass by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from .attention import AbandonedError, Packed, Part, packed_attention
from .decode_linear import joined, matmul
from .decode_structure import Watch, is_llama_like
from .kv import LayeredCache

_TABLE = 256  # positions that the first table of angles has; it doubles


class FusedStep:
    """A model's forward pass over packed sequences.

    Weights are read when it is made; those in int4 are joined, which their layers don't show. `windows` has the sliding
    window of each layer.
    """

    def __init__(self, model: Any, windows: Mapping[int, int | None]) -> None:
        body = model.model
        self._embed, self._norm, self._head = body.embed_tokens, _RMSNorm(body.norm), model.lm_head
        self._angles = _Angles(body.rotary_emb)
        layers = body.layers[: body.config.num_hidden_layers]
        self._layers = [_Layer(layer, windows.get(layer.self_attn.layer_idx)) for layer in layers]
        self._watch = Watch(model)

    @classmethod
    def of(cls, model: Any, windows: Mapping[int, int | None]) -> FusedStep | None:
        """None if the model isn't on a CPU, or computes anything else than a Llama."""
        return cls(model, windows) if model.device.type == "cpu" and is_llama_like(model) else None

    @property
    def applies(self) -> bool:
        """Whether the model is as it was when this was made: no adapter, hook or new weight has come."""
        return self._watch.unchanged()

    def __call__(self, parts: Sequence[Part], stopped: Callable[[], bool]) -> list[torch.Tensor]:
        """For each part its logits, (wanted, vocabulary). The caches have got the new keys and values but aren't
        committed. Raises AbandonedError if `stopped` says so between two layers."""
        ids = torch.tensor([token for part in parts for token in part.ids])
        x = self._embed(ids)
        cos, sin = self._angles(parts, x)
        packed = Packed(parts, stopped)
        for layer in self._layers:
            if stopped():
                raise AbandonedError
            x = layer(x, cos, sin, packed)
        wanted = [part.wanted for part in parts]
        if sum(wanted) < len(ids):
            of_each = torch.split(x, [len(part.ids) for part in parts])
            x = torch.cat([rows[len(rows) - part.wanted :] for rows, part in zip(of_each, parts, strict=True)])
        return list(torch.split(self._head(self._norm(x)), wanted))


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: Any, window: int | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._module, self._index, self._window = attention, attention.layer_idx, window
        self._dim, self._scaling = attention.head_dim, attention.scaling
        self._heads = attention.q_proj.out_features // self._dim
        self._kv_heads = attention.k_proj.out_features // self._dim
        self._turned = self._heads + self._kv_heads  # heads that the rotary embedding is for: they come first
        self._before, self._between = _RMSNorm(layer.input_layernorm), _RMSNorm(layer.post_attention_layernorm)
        self._norms = [_RMSNorm(attention.q_norm), _RMSNorm(attention.k_norm)] if hasattr(attention, "q_norm") else []
        self._qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out, self._down = matmul(attention.o_proj), matmul(mlp.down_proj)
        self._gate_up, self._width = joined([mlp.gate_proj, mlp.up_proj]), mlp.gate_proj.out_features
        self._act = silu if type(mlp.act_fn) is torch.nn.SiLU else mlp.act_fn

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(rows, hidden_size) of all parts -> the same."""
        heads = self._qkv(self._before(x)).view(len(x), -1, self._dim)
        turned = heads[:, : self._turned]
        if self._norms:
            both = torch.split(turned, [self._heads, self._kv_heads], 1)
            turned = torch.cat([norm(part) for norm, part in zip(self._norms, both, strict=True)], 1)
        turned = _turn(turned, cos, sin)
        attend = self._attend_one if len(x) == 1 else self._attend
        x = self._out(attend(turned, heads[:, self._turned :], packed)).add_(x)
        wide = self._gate_up(self._between(x))
        hidden = self._act(wide[:, : self._width]).mul_(wide[:, self._width :])
        return self._down(hidden).add_(x)

    def _attend_one(self, turned: torch.Tensor, values: torch.Tensor, packed: Packed) -> torch.Tensor:
        """The one row of one part: (1, heads * head_dim). The queries that share a key head are rows of it."""
        cache = packed.parts[0].cache
        assert isinstance(cache, LayeredCache)
        new_keys = turned[:, self._heads :].unsqueeze(2)
        keys, all_values = cache.layer(self._index).append(new_keys, values.unsqueeze(2))
        if self._window is not None:
            start = max(0, keys.shape[2] - self._window)
            keys, all_values = keys[:, :, start:], all_values[:, :, start:]
        queries = turned[:, : self._heads].view(1, self._kv_heads, -1, self._dim)
        out = scaled_dot_product_attention(queries, keys, all_values, scale=self._scaling)
        return out.reshape(1, -1)

    def _attend(self, turned: torch.Tensor, values: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Any rows of any parts: (rows, heads * head_dim)."""
        both = torch.split(turned, [self._heads, self._kv_heads], 1)
        # (rows, heads, head_dim) -> (1, heads, rows, head_dim)
        queries, keys, values = (part.transpose(0, 1).unsqueeze(0) for part in (*both, values))
        out, _ = packed_attention(self._module, queries, keys, values, None, self._scaling, self._window, packed=packed)
        return out.view(len(turned), -1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotary embedding of (rows, heads, head_dim), of which the two halves are the coordinates (Su et al. 2021,
    arXiv 2104.09864, in GPT-NeoX's order). `sin` has its sign already."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class _Angles:
    """Cosines and signed sines of the rotary embedding, by position."""

    def __init__(self, rotary: Any) -> None:
        self._rotary = rotary
        self._cos = self._sin = torch.empty(0)

    def __call__(self, parts: Sequence[Part], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, 1, head_dim) each, for all tokens of the parts, in the dtype of `like`."""
        ends = [part.cache.length + len(part.ids) for part in parts]
        if (longest := max(ends)) > len(self._cos) or self._cos.dtype != like.dtype:
            self._make(max(_TABLE, 1 << (longest - 1).bit_length()), like)
        if len(parts) == 1:
            start, end = parts[0].cache.length, ends[0]
            return self._cos[start:end], self._sin[start:end]
        places = [place for part, end in zip(parts, ends, strict=True) for place in range(part.cache.length, end)]
        where = torch.tensor(places)
        return self._cos[where], self._sin[where]

    def _make(self, length: int, like: torch.Tensor) -> None:
        cos, sin = self._rotary(like, torch.arange(length).unsqueeze(0))
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        self._cos, self._sin = cos[0].unsqueeze(1), sin.unsqueeze(1)


class _RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).

    torch's own takes six operations on a CPU; layer_norm is one. Of x beside -x the mean is 0 and the variance that of
    x alone around 0, so half of what layer_norm gives is what is wanted, in less than half the time.
    """

    def __init__(self, norm: Any) -> None:
        self._size, self._eps = norm.weight.shape[0], norm.variance_epsilon
        self._weight = norm.weight.detach().repeat(2)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., size) -> the same, contiguous."""
        both = layer_norm(torch.cat([x, -x], -1), (2 * self._size,), self._weight, None, self._eps)
        return both[..., : self._size].contiguous()
