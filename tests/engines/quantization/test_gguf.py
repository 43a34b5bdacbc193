"""GGUF files: tokenizer, template and weights all come from the one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, save_llama
from transformers import AutoTokenizer, LlamaForCausalLM

from kani_lite.engines import HuggingEngine
from kani_lite.exceptions import EngineError, MissingModelDependencies
from kani_lite.messages import ChatMessage

HELLO = [ChatMessage.user("hello there")]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(folder: Path, path: Path, in_8_bits: bool) -> None:
    """The folder's model as llama.cpp's own converter writes it."""
    gguf = pytest.importorskip("gguf")
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "llama")
    write_config(writer, model.config)
    write_tokenizer(writer, tokenizer)
    for key, tensor in model.state_dict().items():
        module = key.removesuffix(".weight")
        _, _, layer, *rest = (module + "....").split(".")
        name = NAMES.get(module) or f"blk.{layer}.{NAMES['.'.join(rest).strip('.')]}"
        array = tensor.numpy()
        if name.endswith(("attn_q", "attn_k")):  # llama.cpp turns neighbours, and transformers halves
            heads = model.config.num_attention_heads if name.endswith("q") else model.config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if in_8_bits and array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_config(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)


def write_tokenizer(writer: Any, tokenizer: Any) -> None:
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)
    writer.add_add_bos_token(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def load(folder: Path, **kwargs: Any) -> HuggingEngine:
    return HuggingEngine(folder, device="cpu", temperature=0, max_tokens=6, **kwargs)


@pytest.mark.parametrize("in_8_bits", [False, True], ids=["f32", "q8_0"])
def test_all_of_it_is_in_the_file(folder: Path, tmp_path: Path, in_8_bits: bool) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, in_8_bits)
    plain = load(folder)
    for engine in (load(path), load(tmp_path, model_load_kwargs={"gguf_file": path.name})):
        assert engine.max_context_size == 2048
        assert engine.build_prompt(HELLO) == plain.build_prompt(HELLO)
        assert engine.encode("hello there<|im_end|>") == plain.encode("hello there<|im_end|>")
        precision = 0.01 if in_8_bits else 1e-6
        for name, expected in plain.model.state_dict().items():
            assert (engine.model.state_dict()[name] - expected).norm() <= precision * expected.norm(), name
        said = [one.generate_now(one.build_prompt(HELLO)).text for one in (engine, plain)]
        assert said[0] == said[1] or in_8_bits


def test_a_tokenizer_beside_the_file_is_taken(folder: Path, tmp_path: Path) -> None:
    write_gguf(folder, tmp_path / "model.gguf", in_8_bits=False)
    for path in folder.iterdir():
        if "token" in path.name or "template" in path.name:
            shutil.copy(path, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("its own")
    assert load(tmp_path / "model.gguf").build_prompt(HELLO) == "its own"


# ==== what can't be loaded; these need no package ====


def test_no_such_file(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"has no file 'x\.gguf' \(it has no GGUF file\): check gguf_file"):
        load(folder, model_load_kwargs={"gguf_file": "x.gguf"})


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(60))
    return tmp_path / "model.gguf"


def test_another_format(damaged: Path) -> None:
    with pytest.raises(EngineError, match="can't be loaded") as caught:
        load(damaged)
    assert "\n" not in str(caught.value)


def test_it_is_quantised_already(folder: Path, damaged: Path) -> None:
    shutil.copytree(folder, damaged.parent, dirs_exist_ok=True)  # a tokenizer of its own
    with pytest.raises(EngineError, match=r"is quantised already \(gguf\): leave quantize out"):
        load(damaged, quantize="4bit")


def test_the_package_is_named(folder: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, damaged.parent, dirs_exist_ok=True)

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Loading a GGUF checkpoint in PyTorch, requires both PyTorch and GGUF to be installed.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    with pytest.raises(MissingModelDependencies, match=r"pip install 'kani-lite\[gguf\]'"):
        load(damaged)
