"""Packed linear layers give what plain ones give, and their weights back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from kani_lite.engines.runtime.linear import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, bias: bool, rows: int) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(160, 200, bias=bias, dtype=dtype)
    packed = PackedLinear(linear)
    x = torch.randn(2, rows, 160, dtype=dtype)
    with torch.inference_mode():
        expected, found = linear(x), packed(x)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    assert torch.equal(packed.weight, linear.weight)


def test_a_model_is_packed_in_place_and_can_be_saved(make_llama: Callable[[], LlamaForCausalLM]) -> None:
    plain = make_llama()
    plain.lm_head.weight = plain.model.embed_tokens.weight  # as tied models have it
    packed = copy.deepcopy(plain)
    layers = 7 * plain.config.num_hidden_layers
    small = sum(p.numel() < 2**14 for n, p in plain.named_parameters() if "proj" in n)
    assert pack_linears(packed) == layers - small + 1
    assert pack_linears(packed) == 0
    ids = torch.arange(20).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits)
    before, after = plain.state_dict(), packed.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_layers_are_left_alone() -> None:
    class Adapted(nn.Linear):
        """As quantised and adapted layers are: a kind of linear layer."""

    model = nn.Sequential(Adapted(256, 256), nn.Linear(8, 8), nn.Linear(256, 256, dtype=torch.float64), nn.ReLU())
    assert pack_linears(model) == 0
    assert isinstance(model[0], Adapted)
