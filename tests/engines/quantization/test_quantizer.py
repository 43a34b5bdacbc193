"""transformers loading, saving and loading again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kani_lite.engines.quantization import Int4Config, Int4Embedding, Int4Linear, Int8Config, Int8Linear, save_quantized
from kani_lite.engines.quantization.embedding import TiedInt4Embedding
from kani_lite.engines.quantization.int4 import Portable
from kani_lite.exceptions import EngineError

IDS = torch.arange(2, 42).view(1, -1)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=480,  # not of 64s: groups of 32
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,  # not of 64s: padded
        tie_word_embeddings=request.param,
        attention_bias=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.05)
    made = tmp_path_factory.mktemp("llama")
    model.bfloat16().save_pretrained(made, max_shard_size="400KB")
    return made


def load(folder: Path, config: Any = None) -> Any:
    options = {} if config is None else {"quantization_config": config}
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits.float()
    return found


CONFIGS = {
    "plain": (Int4Config(), "Linear", "Embedding"),
    "embeddings": (Int4Config(quantize_embeddings=True), "Int4Linear", "Int4Embedding"),
    "head": (Int4Config(quantize_lm_head=True), "Int4Linear", "Embedding"),
    "rows": (Int4Config(quantize_embeddings=True, quantize_lm_head=False), "Linear", "Int4Embedding"),
    "group 128": (Int4Config(group_size=128), "Linear", "Embedding"),
    "int8": (Int8Config(), "Linear", "Embedding"),
    "int8 head": (Int8Config(quantize_lm_head=True), "Int8Linear", "Embedding"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_again_it_is_the_same(folder: Path, tmp_path: Path, name: str) -> None:
    config, head, embedding = CONFIGS[name]
    model = load(folder, config)
    tied = model.config.tie_word_embeddings
    if tied and embedding == "Int4Embedding":
        embedding = "TiedInt4Embedding" if head == "Int4Linear" else "Embedding"
    found = logits(model)
    both = torch.stack([found.flatten(), logits(load(folder)).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.98

    saved = save_quantized(model, None, tmp_path / "new" / "quantised")
    written = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == config.quant_method
    assert written["version"] == 1
    again = load(saved)
    for one in (model, again):
        assert type(one.lm_head).__name__ == head
        assert type(one.model.embed_tokens).__name__ == embedding
    assert torch.equal(logits(again), found)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert [file.name for file in saved.parent.iterdir()] == ["quantised"]


def test_loading_quantises_as_the_solver_does(folder: Path) -> None:
    plain, model = load(folder), load(folder, Int4Config(quantize_embeddings=True))
    for name, group in (("q_proj", 64), ("o_proj", 64)):
        layer = getattr(model.model.layers[1].self_attn, name)
        weight = getattr(plain.model.layers[1].self_attn, name).weight
        assert isinstance(layer, Int4Linear)
        assert layer.group_size == group
        expected = Portable.solve(weight, group)
        assert all(torch.equal(a, b) for a, b in zip(layer.portable(), expected, strict=True))
        assert torch.equal(layer.bias, getattr(plain.model.layers[1].self_attn, name).bias)
    assert model.model.layers[0].mlp.down_proj.group_size == 32
    assert model.lm_head.num_bytes < 0.35 * plain.lm_head.weight.nbytes
    assert isinstance(model.model.embed_tokens, Int4Embedding | TiedInt4Embedding)
    assert torch.equal(model.model.embed_tokens(IDS), model.model.embed_tokens.weight[IDS])


def test_skips_and_small_layers(folder: Path) -> None:
    model = load(folder, Int4Config(skip=["q_proj", r"model\.layers\.1\.mlp"]))
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] is torch.nn.Linear
    assert kinds["model.layers.1.mlp.up_proj"] is torch.nn.Linear
    assert kinds["model.layers.0.mlp.up_proj"] is Int4Linear
    assert kinds["model.layers.0.self_attn.k_proj"] is Int4Linear


def test_other_layers_and_dtypes(tmp_path: Path) -> None:
    """GPT-2's layers hold their weights the other way round, and its embedding is tied."""
    config = GPT2Config(n_embd=128, n_layer=2, n_head=2, vocab_size=300, n_positions=64)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    model = load(tmp_path / "gpt2", Int4Config(quantize_embeddings=True))
    assert isinstance(model.transformer.h[0].attn.c_attn, Int4Linear)
    assert model.transformer.h[0].attn.c_attn.bias is not None
    assert isinstance(model.lm_head, Int4Linear)
    found = logits(model)
    assert model.dtype == torch.float32
    both = torch.stack([found.flatten(), logits(load(tmp_path / "gpt2")).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.98
    assert torch.equal(logits(load(save_quantized(model, None, tmp_path / "saved"))), found)


def test_int8_is_close(folder: Path) -> None:
    model = load(folder, Int8Config(quantize_lm_head=True))
    assert isinstance(model.model.layers[0].mlp.up_proj, Int8Linear)
    both = torch.stack([logits(model).flatten(), logits(load(folder)).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.9995


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Int4Config(group_size=48), "group_size=48"),
        (lambda: Int4Config(skip="lm_head"), "skip='lm_head' is one text"),
        (lambda: Int4Config(version=2), "version 2 .* reads version 1"),
        (lambda: Int8Config(version="x"), "version 'x'"),
    ],
)
def test_refuses(make: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        make()


@pytest.mark.parametrize("where", ["cuda", {"": 0}, {"model": "cpu", "lm_head": "disk"}])
def test_refuses_other_devices(folder: Path, where: Any) -> None:
    with pytest.raises(EngineError, match="is for models on a CPU, not on"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=Int4Config(), device_map=where)


def test_refuses_to_save(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="isn't quantised"):
        save_quantized(load(folder), None, tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(EngineError, match="not empty"):
        save_quantized(load(folder, Int4Config()), None, tmp_path / "full")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]
