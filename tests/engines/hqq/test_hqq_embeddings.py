"""Quantised embeddings and output layers: what they hold, what they share, and that they come back from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kani_lite.engines import HqqEngine
from kani_lite.engines.hqq import HqqConfig
from kani_lite.engines.hqq.embedding import HqqEmbedding
from kani_lite.engines.hqq.int4 import offsets, zeros_for
from kani_lite.engines.hqq.layers import HqqLinear
from kani_lite.engines.hqq.weight import HqqWeight
from kani_lite.engines.quantization import Int4Linear
from kani_lite.exceptions import EngineError

Load = Callable[..., HqqEngine]
Save = Callable[..., Path]
PROMPT = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
WIDTHS = {"vocab_size": 320, "num_hidden_layers": 1}  # rows that fill whole units of every packing


def logits(engine: HqqEngine) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = engine.model(input_ids=torch.tensor([engine.encode(PROMPT)])).logits
        return out.float()


@pytest.mark.parametrize("nbits", [8, 4, 3, 2, 1])
def test_rows_are_those_of_the_weight(nbits: int) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(3))
    layer = HqqLinear(HqqWeight.quantized(weight, None, HqqConfig(nbits=nbits, group_size=32), torch.bfloat16))
    indices = torch.tensor([0, 47, 5, 24, 5, 23])
    assert torch.equal(layer.rows(indices), layer.weight[indices])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("backend", "nbits"), [("auto", 4), ("pytorch", 4), ("auto", 8), ("auto", 2)])
def test_embedding_and_output_layer(
    load: Load, save: Save, tmp_path: Path, tied: bool, backend: str, nbits: int
) -> None:
    source = save(tmp_path / "model", tie_word_embeddings=tied, **WIDTHS)
    engine = load(source, quantization_config={"nbits": nbits}, backend=backend, quantize_embeddings=True)
    embedding, head = engine.model.get_input_embeddings(), engine.model.get_output_embeddings()
    fast = backend == "auto" and nbits <= 4
    assert type(head) is (Int4Linear if fast else HqqLinear)
    assert isinstance(embedding, HqqEmbedding)
    assert (embedding.table is None) is tied
    ids = torch.tensor([[1, 3], [200, 1]])
    assert torch.equal(embedding(ids), embedding.weight[ids])
    if tied:
        assert torch.equal(embedding.weight, head.weight.to(embedding.weight.dtype))
    plain = load(source, quantization_config={"nbits": nbits}, backend=backend).model.get_input_embeddings().weight
    bound = 0.2 if nbits <= 4 else 0.02  # no less than 4 bits, whatever the other layers have
    assert float((embedding.weight - plain.detach()).norm() / plain.detach().norm()) < bound
    engine.save_quantized(tmp_path / "saved")
    again = load(tmp_path / "saved", backend=backend, quantize_embeddings=True)
    assert torch.equal(logits(again), logits(engine))
    assert (again.model.get_input_embeddings().table is None) is tied


def test_a_named_output_layer_says_how(load: Load, save: Save, tmp_path: Path) -> None:
    source = save(tmp_path / "model", tie_word_embeddings=False, **WIDTHS)
    engine = load(source, quantization_config={"*": {"nbits": 4}, "lm_head": {"nbits": 8}}, quantize_embeddings=True)
    table = engine.model.get_input_embeddings().table
    assert table.hqq.meta["nbits"] == engine.model.lm_head.hqq.meta["nbits"] == 8


def test_refusals(load: Load, save: Save, model_dir: Path, tmp_path: Path) -> None:
    left_out = {"*": {"nbits": 4}, "lm_head": None}
    with pytest.raises(EngineError, match="leaves 'lm_head' as it is: drop one of them"):
        load(quantization_config=left_out, quantize_embeddings=True)
    load().save_quantized(tmp_path / "saved")
    with pytest.raises(EngineError, match="its embedding isn't: leave quantize_embeddings out"):
        load(tmp_path / "saved", quantize_embeddings=True)


def test_zeros_come_back_from_the_kernels_offsets() -> None:
    source = torch.Generator().manual_seed(5)
    scales = (torch.rand(4000, 4, generator=source) + 0.01).to(torch.bfloat16)
    spread = torch.tensor([0.01, 1.0, 8.0, 40.0])  # from near 0 to far outside of the codes
    zeros = (torch.randn(4000, 4, generator=source) * spread + torch.tensor([8.0, 8.0, 4.0, 0.0])).to(torch.bfloat16)
    moved = offsets(scales, zeros)
    found = zeros_for(scales, moved)
    assert torch.equal(offsets(scales, found), moved)
    assert float((found.float() - zeros.float()).abs().max()) < 1  # other ones, but hardly


def test_progress_shows(load: Load, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = load()
    assert "Loading weights: 100%" in capfd.readouterr().err
    engine.save_quantized(tmp_path)
    capfd.readouterr()
    load(tmp_path)
    assert "Loading quantised layers: 100%" in capfd.readouterr().err


def test_a_damaged_weight_is_named(load: Load, save: Save, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    path = folder / "model.safetensors"
    weights: dict[str, Any] = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EngineError, match="aren't finite"):
        load(folder)
