"""Int4Linear, Int8Linear and Int4Embedding against the weights that they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kani_lite.engines.quantization import Int4Embedding, Int4Linear, Int8Linear, int4
from kani_lite.engines.quantization.int4 import KERNEL_ROWS, Portable, pair, unpair
from kani_lite.exceptions import EngineError

SHAPES = [(16, 32, 32), (40, 64, 32), (64, 64, 64), (100, 256, 64), (1000, 512, 128), (192, 1024, 256), (1, 64, 64)]
ROWS = [1, 2, 3, 5, 16, KERNEL_ROWS, KERNEL_ROWS + 1, 300]


def random_codes(out: int, width: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(out + width)
    codes = torch.randint(0, 16, (out, width), dtype=torch.uint8)
    scales = torch.rand(out, width // group) * 0.01 + 0.005
    return codes, scales, torch.rand(out, width // group) * 15


def plain(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    grouped = codes.view(*scales.shape, -1)
    return ((grouped - zeros.unsqueeze(-1)) * scales.unsqueeze(-1)).view(codes.shape)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within what bf16 keeps of the largest."""
    return bool((found.float() - expected).abs().max() <= 0.01 * expected.abs().max())


@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_the_matmul_with_the_weight(out: int, width: int, group: int, dtype: torch.dtype) -> None:
    codes, scales, zeros = random_codes(out, width, group)
    bias = torch.randn(out, dtype=dtype)
    layer = Int4Linear.from_codes(codes, scales, zeros, bias, group)
    weight = plain(codes, scales, zeros)
    assert close(layer.weight, weight)
    for rows in ROWS:
        x = torch.randn(rows, width).to(dtype)
        y = layer(x)
        assert y.dtype == dtype
        assert close(y, x.float() @ weight.t() + bias.float())


def test_any_leading_shape() -> None:
    layer = Int4Linear.from_codes(*random_codes(48, 64, 32), None, 32)
    x = torch.randn(2, 3, 64)
    assert layer(x).shape == (2, 3, 48)
    assert torch.equal(layer(x)[1, 2], layer(x[1, 2]))
    assert layer(x[:0]).shape == (0, 3, 48)
    assert layer(x.transpose(0, 1)).shape == (3, 2, 48)


def test_a_row_does_not_depend_on_the_others() -> None:
    """A batch gives what each chat gives alone, to the bit, up to where the layer dequantises."""
    layer = Int4Linear.from_codes(*random_codes(256, 512, 64))
    x = torch.randn(KERNEL_ROWS, 512).bfloat16()
    assert torch.equal(torch.cat([layer(row[None]) for row in x]), layer(x))
    more = layer(torch.cat([x, x]))
    assert close(more[: len(x)], layer(x).float())


@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_state_dict_is_portable_and_exact(out: int, width: int, group: int) -> None:
    codes, scales, zeros = random_codes(out, width, group)
    layer = Int4Linear.from_codes(codes, scales, zeros, torch.randn(out), group)
    state = layer.state_dict()
    assert set(state) == {"codes", "scales", "offsets", "bias"}
    assert torch.equal(unpair(state["codes"]), codes)
    again = Int4Linear(width, out, nn.Parameter(torch.empty(out)), group)
    again.load_state_dict(state)
    packed = Int4Linear.from_codes(codes.flip(0), scales, zeros, torch.zeros(out), group)
    packed.load_state_dict(state)
    x = torch.randn(3, width)
    for other in (again, packed):
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
        assert torch.equal(other(x), layer(x))


def test_casting_a_model_leaves_the_weight_alone() -> None:
    layer = Int4Linear.from_codes(*random_codes(64, 64, 64), torch.randn(64))
    before = layer.weight
    assert torch.equal(layer.to(torch.float16).weight, before)
    assert torch.equal(layer.double()(torch.ones(1, 64)), layer(torch.ones(1, 64)).float())


def test_bytes_per_weight() -> None:
    layer = Int4Linear.from_codes(*random_codes(256, 1024, 64), None, 64)
    assert layer.num_bytes == 256 * 1024 * 0.5 + 256 * 16 * 4
    assert layer.num_bytes / (256 * 1024 * 2) < 0.3


@pytest.mark.parametrize("block", [16, 32, 64])
def test_reads_other_processors_layouts(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Those of AVX2 and ARM, and rows in pairs as for the rest of a weight that fills no block."""
    codes = torch.randint(0, 16, (128, 32), dtype=torch.uint8)
    places = torch.randperm(block)
    blocks = codes.view(-1, block, 32)[:, places.argsort()].transpose(1, 2)
    packed = (blocks[..., : block // 2] | (blocks[..., block // 2 :] << 4)).reshape(2, 32, 32)
    monkeypatch.setattr(int4, "_layout", lambda: (block, places))
    assert torch.equal(int4._unpacked(packed), codes)
    layer = Int4Linear.from_codes(codes, torch.ones(128, 1), torch.full((128, 1), 8), None, 32)
    layer._packed = packed
    assert torch.equal(layer.rows(torch.arange(128)), codes.bfloat16() - 8)


def test_pairs() -> None:
    codes = torch.randint(0, 16, (3, 4, 10), dtype=torch.uint8)
    assert pair(codes).shape == (3, 4, 5)
    assert torch.equal(unpair(pair(codes)), codes)


@pytest.mark.parametrize(
    ("shape", "groups", "group", "says"),
    [
        ((64, 64), (64, 4), 16, "give one of"),
        ((64, 96), (64, 1), 64, "don't fill a row of 96"),
        ((64, 64), (64, 2), 64, "need scales and zeros of"),
    ],
)
def test_refuses(shape: Any, groups: Any, group: int, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        Int4Linear.from_codes(
            torch.zeros(shape, dtype=torch.uint8), torch.ones(groups), torch.ones(groups), None, group
        )


def test_embedding_looks_rows_up() -> None:
    torch.manual_seed(0)
    weight = torch.randn(100, 128).bfloat16()
    found = Portable.solve(weight, 64)
    embedding = Int4Embedding.from_portable(found, torch.float32)
    linear = Int4Linear.from_portable(found)
    ids = torch.tensor([[0, 99], [5, 5]])
    assert embedding(ids).dtype == torch.float32
    assert torch.equal(embedding(ids), embedding.weight[ids])
    assert torch.equal(linear.rows(ids.view(-1)).float(), embedding(ids).view(4, -1))
    assert torch.equal(linear.weight.float(), embedding.weight)
    assert (embedding.weight - weight).square().mean() < 0.01
    assert embedding(ids[:0]).shape == (0, 2, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("out", "width"), [(16, 32), (40, 72), (3, 7), (1000, 512)])
def test_int8(out: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(out, width).to(dtype), nn.Parameter(torch.randn(out, dtype=dtype))
    layer = Int8Linear.from_weight(weight, bias)
    assert close(layer.weight, weight.float())
    for rows in (1, 2, 4, 5, 40):
        x = torch.randn(rows, width).to(dtype)
        assert layer(x).dtype == dtype
        assert close(layer(x), x.float() @ layer.weight.float().t() + bias.float())
    assert layer(x[:0]).shape == (0, out)
    again = Int8Linear(width, out, nn.Parameter(torch.empty(out, dtype=dtype)))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def test_int8_refuses_damaged_weights() -> None:
    with pytest.raises(EngineError, match="aren't finite"):
        Int8Linear.from_weight(torch.tensor([[1.0, torch.inf]]))
