"""Folders in the layout of transformers 4: safetensors with each part of a quantised layer as a tensor of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from kani_lite.engines import HqqEngine
from kani_lite.engines.hqq.layers import HqqLinear
from kani_lite.engines.hqq.package import hqq_module
from kani_lite.engines.quantization import Int4Linear
from kani_lite.exceptions import EngineError

Load = Callable[..., HqqEngine]
PROMPT = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"


def write(model_dir: Path, folder: Path, nbits: int, axis: int, shards: int) -> dict[str, Any]:
    """Quantises with hqq and writes its own state dicts as transformers 4 did; hqq's layers by name."""
    quantize = hqq_module("core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=nbits, group_size=64, axis=axis)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    tensors = {name: value for name, value in model.state_dict().items() if "proj" not in name}
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if "proj" not in name:
            continue
        layers[name] = quantize.HQQLinear(module, config, compute_dtype=torch.bfloat16, device="cpu", del_orig=False)
        state = layers[name].state_dict()
        assert "encoded_state_dict" in state  # which is how hqq writes for safetensors
        tensors |= {f"{name}.{key}": value.detach().contiguous() for key, value in state.items()}
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    if shards == 1:
        names = ["model.safetensors"]
    # in turns, so that a layer's parts are in different files
    where = {key: names[place % shards] for place, key in enumerate(tensors)}
    for name in names:
        save_file({key: value for key, value in tensors.items() if where[key] == name}, folder / name, {"format": "pt"})
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    path = folder / "config.json"
    how = {"quant_config": config, "quant_method": "hqq", "skip_modules": ["lm_head"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": how}))
    return layers


@pytest.mark.parametrize(
    ("nbits", "axis", "shards", "kind"), [(4, 1, 1, Int4Linear), (4, 0, 3, HqqLinear), (3, 1, 2, Int4Linear)]
)
def test_reads_what_transformers_wrote(
    load: Load, model_dir: Path, tmp_path: Path, nbits: int, axis: int, shards: int, kind: type
) -> None:
    theirs = write(model_dir, tmp_path / "written", nbits, axis, shards)
    engine = load(tmp_path / "written", quantize_on_fly=False)
    exact = load(tmp_path / "written", backend="pytorch")
    for name, layer in theirs.items():
        assert type(engine.model.get_submodule(name)) is kind
        assert torch.equal(exact.model.get_submodule(name).weight, layer.dequantize())
    assert torch.equal(exact.model.lm_head.weight, exact.model.state_dict()["lm_head.weight"])
    engine.save_quantized(tmp_path / "saved")  # in hqq's own format
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert load(tmp_path / "saved").generate_now(PROMPT).ids == engine.generate_now(PROMPT).ids


def test_what_is_missing(load: Load, model_dir: Path, tmp_path: Path) -> None:
    write(model_dir, tmp_path / "written", 4, 1, 2)
    with pytest.raises(EngineError, match="is quantised already: leave quantize_on_fly out"):
        load(tmp_path / "written", quantize_on_fly=True)
    (tmp_path / "written" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EngineError, match=r"'model-00002-of-00002.safetensors' isn't there"):
        load(tmp_path / "written")
