"""What can't be done is refused before a weight is loaded, with the reason and what to do instead."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from kani_lite.engines import HqqEngine, HuggingEngine
from kani_lite.engines.hqq import loader as loader_module
from kani_lite.engines.hqq.backends import KERNELS, Layer, choose
from kani_lite.exceptions import EngineError


def refusal(folder: Any, **kwargs: Any) -> str:
    with pytest.raises(EngineError) as caught:
        HqqEngine(folder, device="cpu", **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.fixture
def unloadable(model_dir: Path, tmp_path: Path) -> Path:
    """A folder whose weights can't be read: what is refused here is refused before."""
    folder = Path(shutil.copytree(model_dir, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(b"nothing")
    return folder


@pytest.fixture
def quantized(model_dir: Path, tmp_path: Path, load: Callable[..., HqqEngine]) -> Path:
    load(model_dir, quantization_config={"nbits": 4}).save_quantized(tmp_path / "quantized")
    return tmp_path / "quantized"


@pytest.mark.parametrize("backend", ["bitblas", "torchao_int4", "gemlite", "marlin"])
def test_backends_of_a_gpu(unloadable: Path, backend: str) -> None:
    said = refusal(unloadable, backend=backend)
    assert f"backend={backend!r} can't be used: it needs an NVIDIA GPU" in said
    assert "Use backend='cpu_int4'" in said
    assert "Use backend='pytorch'" in refusal(unloadable, backend=backend, quantization_config={"nbits": 8})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"nbits": 8}, "nbits 1 or 2 or 3 or 4, not 8"),
        ({"axis": 0}, "axis=1, not axis=0"),
        ({"group_size": 16}, "multiple of 32, not 16"),
    ],
)
def test_what_the_int4_kernel_can_not(unloadable: Path, settings: dict[str, Any], why: str) -> None:
    said = refusal(unloadable, backend="cpu_int4", quantization_config=settings)
    assert why in said
    assert said.endswith("Use backend='pytorch'.")
    mixed = {"self_attn": settings, "mlp": {"nbits": 4}}
    said = refusal(unloadable, backend="cpu_int4", quantization_config=mixed)
    assert "Use backend='auto' (here 'cpu_int4' and 'pytorch')." in said


def test_dtypes(unloadable: Path) -> None:
    assert "computes in bfloat16, not in float32" in refusal(unloadable, backend="cpu_int4", dtype="float32")
    assert "give 'auto' or one of" in refusal(unloadable, dtype="int8")


def test_unknown_names(unloadable: Path) -> None:
    assert "give 'auto' or one of 'bitblas'" in refusal(unloadable, backend="exllama")
    assert "nbits=5" in refusal(unloadable, quantization_config={"nbits": 5})
    assert "group_size=7" in refusal(unloadable, quantization_config={"group_size": 7})
    assert "bits=4" in refusal(unloadable, quantization_config={"nbits": 4, "bits": 4})
    assert "'experts'" in refusal(unloadable, quantization_config={"experts": {"nbits": 4}})
    assert "no HQQ setting" in refusal(unloadable, quantization_config={"mlp": 4})
    assert "no HQQ setting" in refusal(unloadable, quantization_config="gASVAAAA pickled by Aana")
    assert "No linear layer" in refusal(unloadable, quantization_config={"self_attn": None})


def test_groups_that_do_not_fit(unloadable: Path) -> None:
    assert "q_proj' of 64 x 64" in refusal(unloadable, quantization_config={"group_size": 48})
    assert "multiples of 128" in refusal(unloadable, quantization_config={"quant_scale": True})


def test_another_quantisation_beside_it(unloadable: Path) -> None:
    assert "quantize= asks" in refusal(unloadable, quantize="4bit")
    assert "load_in_4bit= asks" in refusal(unloadable, model_kwargs={"load_in_4bit": True})


def test_quantised_or_not(unloadable: Path, quantized: Path) -> None:
    assert "pass quantize_on_fly=True" in refusal(unloadable, quantize_on_fly=False)
    assert "is quantised already" in refusal(quantized, quantize_on_fly=True)
    assert "to 4 bits in groups of 64" in refusal(quantized, quantization_config={"nbits": 3})
    assert "needs an NVIDIA GPU" in refusal(quantized, backend="bitblas")
    with pytest.raises(EngineError, match="load it with HqqEngine"):
        HuggingEngine(quantized, device="cpu")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo run > /tmp/kani_lite_was_here",)


def test_a_file_never_runs_code(quantized: Path) -> None:
    weights = torch.load(quantized / "qmodel.pt", weights_only=True)
    torch.save(weights | {"evil": {"x": _Evil()}}, quantized / "qmodel.pt")
    assert "would run code" in refusal(quantized)
    (quantized / "qmodel.pt").write_bytes(pickle.dumps(_Evil()))
    assert "would run code" in refusal(quantized)
    assert not Path("/tmp/kani_lite_was_here").exists()


def test_damaged_folders(quantized: Path, load: Callable[..., HqqEngine]) -> None:
    path = quantized / "qmodel.pt"
    weights = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in weights.items() if k != "model.norm"}, path)
    assert "'model.norm.weight'" in refusal(quantized)
    torch.save(weights | {"model.norm": {"weight": torch.ones(3)}}, path)
    assert "belongs to another model" in refusal(quantized)
    torch.save({"model.norm": {"weight": torch.ones(64)}}, path)
    assert "no quantised layer" in refusal(quantized)
    torch.save([1, 2], path)
    assert "no modules by name" in refusal(quantized)
    path.write_bytes(b"PK\x03\x04 cut off")
    assert "can't be loaded" in refusal(quantized) or "would run code" in refusal(quantized)
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    load(quantized)
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "none of the model" in refusal(quantized)


def test_a_hub_name_without_hqqs_file(monkeypatch: pytest.MonkeyPatch, quantized: Path) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(loader_module, "hf_hub_download", missing)
    found = loader_module.HqqLoader(None, None, "auto", None, "cpu", False, None)
    options = {"local_files_only": True}
    assert found._quantized("some/model", options) is None
    monkeypatch.setattr(loader_module, "hf_hub_download", lambda name, file, **_: str(quantized / file))
    read = found._quantized("some/model", options)
    assert read is not None
    assert "W_q" in read()["model.layers.0.mlp.up_proj"]


def test_backends_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be chosen with a GPU; nothing runs."""
    gpu = SimpleNamespace(capability=(8, 6), packages=set[str]())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: gpu.capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr("kani_lite.engines.hqq.backends.find_spec", lambda name: name in gpu.packages or None)

    def layer(nbits: int = 4, group: int = 64, axis: int = 1) -> list[Layer]:
        return [Layer("model.layers.0.mlp.up_proj", (128, 128), nbits, group, axis)]

    def chosen(backend: str, layers: list[Layer]) -> tuple[str, torch.dtype]:
        backends, dtype = choose(backend, layers, "cuda:0", None)
        return backends["model.layers.0.mlp.up_proj"], dtype

    assert chosen("auto", layer()) == ("torchao_int4", torch.bfloat16)
    assert chosen("auto", layer(2)) == ("pytorch", torch.bfloat16)
    gpu.packages |= {"bitblas", "marlin"}
    assert chosen("auto", layer(2)) == ("bitblas", torch.float16)
    assert chosen("marlin", layer(group=128)) == ("marlin", torch.float16)
    for backend, layers, why in (
        ("gemlite", layer(), "pip install gemlite"),
        ("torchao_int4", layer(2), "nbits 4, not 2"),
        ("bitblas", layer(3), "nbits 1 or 2 or 4, not 3"),
        ("bitblas", layer(axis=0), "axis=1"),
        ("bitblas", layer(group=8), "group_size of 32, 64, 128, 256, not 8"),
        ("marlin", layer(), "group_size=None, not 64"),
        ("cpu_int4", layer(), "runs on a CPU"),
    ):
        with pytest.raises(EngineError, match=why):
            choose(backend, layers, "cuda:0", None)
    gpu.capability = (7, 5)
    with pytest.raises(EngineError, match=r"Ampere.*backend='bitblas'"):
        choose("torchao_int4", layer(), "cuda:0", None)
    assert set(KERNELS) == {"bitblas", "torchao_int4", "gemlite", "marlin", "cpu_int4", "pytorch"}
