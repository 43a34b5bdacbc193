"""A GGUF file, read back by another program, has what the model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kani_lite.engines.llamacpp.convert import TYPES, convert
from kani_lite.engines.llamacpp.convert_model import llama3_factors, model_shape, rope_settings
from kani_lite.engines.nano import WEIGHTS
from kani_lite.exceptions import EngineError

gguf = pytest.importorskip("gguf")
from gguf.quants import dequantize  # noqa: E402  # it needs the package


def read(path: Path) -> Any:
    return gguf.GGUFReader(path)


def field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be changed."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "model"))


def change(folder: Path, file: str, **values: Any) -> None:
    changed = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(changed))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: convert("nano", folder, type=kind) for kind in TYPES}


def test_the_metadata_is_the_models(files: dict[str, Path]) -> None:
    reader = read(files["f16"])
    config = json.loads((WEIGHTS / "config.json").read_text())
    assert field(reader, "general.architecture") == "llama"
    assert field(reader, "general.name") == "nano"
    assert field(reader, "llama.context_length") == config["max_position_embeddings"]
    assert field(reader, "llama.embedding_length") == config["hidden_size"]
    assert field(reader, "llama.attention.head_count_kv") == config["num_key_value_heads"]
    assert field(reader, "llama.rope.freq_base") == config["rope_parameters"]["rope_theta"]
    assert field(reader, "general.sampling.temp") == 0.0
    assert field(reader, "tokenizer.chat_template") == (WEIGHTS / "chat_template.jinja").read_text()
    assert field(reader, "tokenizer.ggml.eos_token_id") == config["eos_token_id"]
    assert not field(reader, "tokenizer.ggml.add_bos_token")
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == config["vocab_size"]
    assert (tokens[2], types[2]) == ("<|im_end|>", gguf.TokenType.CONTROL)
    assert (tokens[1018], types[1018]) == ("<tool_call>", gguf.TokenType.USER_DEFINED)
    # llama.cpp has no way to split text as this tokenizer does
    assert field(reader, "tokenizer.huggingface.json") == (WEIGHTS / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f32", 0), ("bf16", 0), ("f16", 1e-3), ("q8_0", 0.01), ("q4_0", 0.13)]
)
def test_the_tensors_are_the_models(files: dict[str, Path], kind: str, tolerance: float) -> None:
    stored = load_file(WEIGHTS / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in read(files[kind]).tensors}
    assert len(tensors) == len(stored)
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.4.ffn_down.weight": "model.layers.4.mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for name, theirs in pairs.items():
        values = dequantize(tensors[name].data, tensors[name].tensor_type)
        expected = stored[theirs].float().numpy()
        assert values.shape == expected.shape
        assert np.abs(values - expected).max() <= tolerance * np.abs(expected).max()
    embedding = {"q4_0": "Q8_0"}.get(kind, kind.upper())
    assert tensors["token_embd.weight"].tensor_type.name == embedding
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == kind.upper()


def test_the_halves_of_heads_are_interleaved(files: dict[str, Path]) -> None:
    stored = load_file(WEIGHTS / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    [made] = [tensor.data for tensor in read(files["f32"]).tensors if tensor.name == "blk.0.attn_q.weight"]
    head = 64
    assert (made[0] == stored[0]).all()
    assert (made[1] == stored[head // 2]).all()
    assert (made[head + 2] == stored[head + 1]).all()
    assert sorted(map(bytes, made)) == sorted(map(bytes, stored))


def test_several_files_are_read_as_one(model: Path) -> None:
    stored = load_file(model / "model.safetensors")
    names = sorted(stored)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: stored[name] for name in part}, model / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()
    made = read(convert(model, type="q4_0", out=model / "out.gguf"))
    assert len(made.tensors) == len(stored)
    (model / "b.safetensors").unlink()
    with pytest.raises(EngineError, match=r"has no b\.safetensors"):
        convert(model, model / "again.gguf")


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GemmaForCausalLM"]}, "A GemmaForCausalLM can't be converted to GGUF here, only Llama"),
    ({"hidden_act": "gelu"}, "config has hidden_act='gelu'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "scaled by 'yarn'"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config="),
    ({"num_hidden_layers": 6}, r"nothing for 'blk\.5\.attn_k\.weight' \(9 missing\)"),
    ({"vocab_size": "many"}, "can't be understood"),
    ({"intermediate_size": 10**30}, "number of the model's config doesn't fit into GGUF"),
    ({"num_hidden_layers": float("inf")}, "can't be understood"),
]


@pytest.mark.parametrize(("values", "says"), CONFIGS, ids=range(len(CONFIGS)))
def test_what_cannot_be_converted(model: Path, values: dict[str, Any], says: str) -> None:
    change(model, "config.json", **values)
    before = sorted(model.iterdir())
    with pytest.raises(EngineError, match=says):
        convert(model, model / "out.gguf")
    assert sorted(model.iterdir()) == before  # nothing is left behind


@pytest.mark.parametrize("length", [10**30, 2**31, 0, -1, None])
def test_a_context_length_that_is_none(model: Path, length: Any) -> None:
    """Then that of the tokenizer counts, as for HuggingEngine."""
    change(model, "config.json", max_position_embeddings=length)
    change(model, "tokenizer_config.json", model_max_length=1024)
    assert field(read(convert(model, model / "out.gguf")), "llama.context_length") == 1024
    change(model, "tokenizer_config.json", model_max_length=10**30)
    with pytest.raises(EngineError, match=f"The context length isn't known: .* max_position_embeddings={length};"):
        convert(model, model / "other.gguf")


@pytest.mark.parametrize("place", ["/proc/x/y.gguf", "/proc/y.gguf", "/dev/null/y.gguf", "/" + 300 * "a" + ".gguf"])
def test_where_no_file_can_be(place: str) -> None:
    with pytest.raises(EngineError, match=rf"'{place}' can't be made \(.*\): give another place"):
        convert("nano", place)


def test_tensors_that_cannot_be_converted(model: Path) -> None:
    stored = load_file(model / "model.safetensors")
    save_file(stored | {"model.layers.0.mlp.gate": torch.zeros(2, 2)}, model / "model.safetensors")
    with pytest.raises(EngineError, match=r"The tensor 'model\.layers\.0\.mlp\.gate' is none that such a model has"):
        convert(model, model / "out.gguf")
    stored["model.norm.weight"] = torch.zeros(256, dtype=torch.int8)
    save_file(stored, model / "model.safetensors")
    with pytest.raises(EngineError, match="is stored as I8, so this model is quantised already"):
        convert(model, model / "out.gguf")
    (model / "model.safetensors").write_bytes(b"not these")
    with pytest.raises(EngineError, match="is no safetensors file"):
        convert(model, model / "out.gguf")


def test_tokenizers_that_cannot_be_converted(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    change(model, "tokenizer.json", model={"type": "Unigram", "vocab": []})
    with pytest.raises(EngineError, match="is of the type 'Unigram'"):
        convert(model, model / "out.gguf")
    tokenizer["added_tokens"].append({"id": 5000, "content": "<more>", "special": True})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EngineError, match="5001 tokens, but the model's embedding 1024"):
        convert(model, model / "out.gguf")
    (model / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer\.json"):
        convert(model, model / "out.gguf")


def test_where_the_file_goes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(model) == Path("model-f16.gguf")
    assert convert("nano", model, type="q8_0") == model / "nano-q8_0.gguf"
    assert (model / "nano-q8_0.gguf").stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(EngineError, match=r"'model-f16\.gguf' is there already"):
        convert(model)
    with pytest.raises(EngineError, match="type='q2_k' is none"):
        convert(model, type="q2_k")
    with pytest.raises(EngineError, match=r"config\.json' is a file: give the folder"):
        convert(model / "config.json")


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_ends_sampling_and_padding(model: Path) -> None:
    change(model, "generation_config.json", do_sample=True, temperature=0.6, top_k=20, eos_token_id=[2, 0])
    change(model, "tokenizer_config.json", bos_token={"content": "<|im_start|>"}, add_bos_token=True)
    stored = load_file(model / "model.safetensors")
    embedding = stored["model.embed_tokens.weight"]
    stored["model.embed_tokens.weight"] = torch.cat([embedding, embedding[:32]])
    save_file(stored, model / "model.safetensors")
    change(model, "config.json", vocab_size=1056)
    reader = read(convert(model, model / "out.gguf", type="q4_0"))
    assert json.loads(field(reader, "kani_lite.eos_token_ids")) == [2, 0]
    assert field(reader, "general.sampling.temp") == pytest.approx(0.6)
    assert field(reader, "general.sampling.top_k") == 20
    assert field(reader, "tokenizer.ggml.bos_token_id") == 1
    assert field(reader, "tokenizer.ggml.add_bos_token")
    assert field(reader, "tokenizer.ggml.tokens")[1055] == "[PAD1055]"
    assert field(reader, "tokenizer.ggml.token_type")[1055] == gguf.TokenType.UNUSED


def test_a_window_shortens_the_context() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text()) | {"architectures": ["MistralForCausalLM"]}
    assert model_shape(config | {"sliding_window": 512}).context == 512
    assert model_shape(config | {"sliding_window": None}).context == 2048
    assert model_shape(config | {"sliding_window": -1}).context == 2048
    assert model_shape(config | {"sliding_window": 512, "use_sliding_window": False}).context == 2048


def test_ropes_of_older_configs() -> None:
    assert rope_settings({"rope_theta": 5.0}) == {"rope_type": "default", "rope_theta": 5.0}
    older = {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert rope_settings(older)["rope_type"] == "linear"
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}
    factors = llama3_factors(rope | {"original_max_position_embeddings": 8192}, 128)
    assert factors.shape == (64,)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert (np.diff(factors) >= 0).all()
