"""Checkpoints of GPTQ, AWQ and compressed-tensors: what is loaded equals what their packing says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kani_lite.engines import HuggingEngine
from kani_lite.engines.huggingface.loading import find_source, load_model
from kani_lite.engines.quantization import Int4Config, Int4Linear, Int8Linear, PackedConfig, PermutedLinear
from kani_lite.exceptions import EngineError, MissingModelDependencies

IDS = torch.arange(1, 41).view(1, -1)
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Rounded:
    """A weight (out, in) rounded by groups: codes and zeros from 0, (code - zero) * scale."""

    codes: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]  # (out, groups)
    zeros: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any]  # (in,)

    def dequantized(self) -> torch.Tensor:
        weight = (self.codes - self.zeros[:, self.groups]) * self.scales[:, self.groups]
        return torch.from_numpy(weight.astype(np.float32))


def rounded(weight: torch.Tensor, how: Case, random: np.random.Generator) -> Rounded:
    values = weight.double().numpy()
    width = values.shape[1]
    size = how.group if how.group > 0 else width
    groups = np.arange(width) // size
    if how.act_order:
        random.shuffle(groups)
    most, count = 2**how.bits - 1, width // size
    low = np.stack([values[:, groups == g].min(1) for g in range(count)], 1)
    high = np.stack([values[:, groups == g].max(1) for g in range(count)], 1)
    if how.symmetric:
        scales, zeros = np.maximum(-low, high) / (most / 2), np.full(low.shape, 2.0 ** (how.bits - 1))
    else:
        scales = (high - low) / most
        zeros = np.clip(np.round(-low / scales), 0, most)
    if how.exact:  # three binary digits: bf16 then holds scales, offsets and weights as they are
        digits, exponents = np.frexp(scales)
        scales = np.ldexp(np.ceil(digits * 8) / 8, exponents)
    codes = np.clip(np.round(values / scales[:, groups] + zeros[:, groups]), 0, most)
    return Rounded(codes.astype(np.int64), scales, zeros.astype(np.int64), groups)


def words(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """(..., n) -> (..., n * bits / 32) int32, the first code in a word's low end."""
    per = 32 // bits
    lanes = codes.reshape(*codes.shape[:-1], -1, per).astype(np.uint64)
    packed: np.ndarray[Any, Any] = (lanes << (np.arange(per, dtype=np.uint64) * np.uint64(bits))).sum(-1)
    return packed.astype(np.uint32).view(np.int32)


def gptq(found: Rounded, how: Case) -> Arrays:
    zeros = found.zeros if how.config.get("checkpoint_format") == "gptq_v2" else found.zeros - 1
    return {
        "qweight": words(found.codes, how.bits).T,
        "qzeros": words(zeros.T, how.bits),
        "scales": found.scales.T.astype(np.float16),
        "g_idx": found.groups.astype(np.int32),
    }


def awq(found: Rounded, how: Case) -> Arrays:
    def shuffled(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        lanes = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(lanes.reshape(codes.shape), 4)

    scales = found.scales.T.astype(np.float16)
    return {"qweight": shuffled(found.codes.T), "qzeros": shuffled(found.zeros.T), "scales": scales}


def compressed(found: Rounded, how: Case) -> Arrays:
    arrays = {
        "weight_packed": words(found.codes, how.bits),
        "weight_scale": found.scales.astype(np.float32),
        "weight_shape": np.array(found.codes.shape, dtype=np.int64),
    }
    if not how.symmetric:
        arrays["weight_zero_point"] = words(found.zeros.T, how.bits).T
    if how.act_order:
        arrays["weight_g_idx"] = found.groups.astype(np.int32)
    return arrays


@dataclass
class Case:
    pack: Callable[[Rounded, Case], Arrays]
    bits: int = 4
    group: int = 64
    symmetric: bool = True
    act_order: bool = False
    exact: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    kind: type = Int4Linear

    def quantization_config(self) -> dict[str, Any]:
        """As the tools write it."""
        if self.pack is gptq:
            found = {"quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.symmetric,
                     "desc_act": self.act_order, "damp_percent": 0.05, "lm_head": False, "true_sequential": True,
                     "checkpoint_format": "gptq"}  # fmt: skip
        elif self.pack is awq:
            found = {"quant_method": "awq", "bits": self.bits, "group_size": self.group, "zero_point": True,
                     "version": "gemm", "modules_to_not_convert": None}  # fmt: skip
        else:
            weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False,
                       "strategy": "channel" if self.group < 0 else "group", "observer": "minmax",
                       "group_size": None if self.group < 0 else self.group,
                       "actorder": "group" if self.act_order else None}  # fmt: skip
            scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None,
                      "output_activations": None, "format": "pack-quantized"}  # fmt: skip
            found = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
                     "config_groups": {"group_0": scheme}, "quantization_status": "compressed",
                     "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {}}  # fmt: skip
        return found | self.config


CASES = {
    "gptq": Case(gptq),
    "gptq asymmetric": Case(gptq, group=32, symmetric=False),
    "gptq v2": Case(gptq, group=128, symmetric=False, config={"checkpoint_format": "gptq_v2"}),
    "gptq by rows": Case(gptq, group=-1),
    "gptq activation order": Case(gptq, symmetric=False, act_order=True, kind=PermutedLinear),
    "gptq 2 bits": Case(gptq, bits=2),
    "gptq 8 bits": Case(gptq, bits=8, kind=torch.nn.Linear),
    "gptq groups of 16": Case(gptq, group=16, kind=torch.nn.Linear),
    "awq": Case(awq, symmetric=False),
    "awq groups of 128": Case(awq, group=128, symmetric=False),
    "compressed": Case(compressed, group=128),
    "compressed asymmetric": Case(compressed, group=32, symmetric=False),
    "compressed by rows": Case(compressed, group=-1, symmetric=False),
    "compressed activation order": Case(compressed, act_order=True, kind=PermutedLinear),
    "compressed 8 bits by rows": Case(compressed, bits=8, group=-1, kind=Int8Linear),
    "compressed 8 bits": Case(compressed, bits=8, symmetric=False, kind=torch.nn.Linear),
}


def save(folder: Path, how: Case, dtype: torch.dtype = torch.bfloat16, **config: Any) -> Any:
    """A tiny model's folder in this format; the same model with the dequantised weights."""
    save_llama(folder, hidden_size=128, intermediate_size=256, dtype=dtype, **config)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    tensors, random = load_file(folder / "model.safetensors"), np.random.default_rng(5)
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            found = rounded(module.weight.detach(), how, random)
            key = f"model.layers.{name}"
            del tensors[f"{key}.weight"]
            packed = {f"{key}.{part}": np.ascontiguousarray(array) for part, array in how.pack(found, how).items()}
            tensors |= {part: torch.from_numpy(array) for part, array in packed.items()}
            module.weight.data = found.dequantized().to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit(folder, quantization_config=how.quantization_config())
    return model.eval()


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder: Path, device: str = "cpu", **kwargs: Any) -> Any:
    return load_model(find_source(folder, None, False, kwargs), None, {"dtype": "auto"} | kwargs, device)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits.float()
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:In the folder")  # which layers run dequantised: see below
def test_equals_the_dequantised_model(tmp_path: Path, name: str) -> None:
    how = CASES[name]
    plain = save(tmp_path, how)
    model = load(tmp_path)
    for key in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        layer, expected = (one.model.layers[1].get_submodule(key) for one in (model, plain))
        assert type(layer) is how.kind
        assert torch.equal(layer.weight, expected.weight), key
    assert type(model.lm_head) is torch.nn.Linear
    found, expected = logits(model), logits(plain)
    assert (found - expected).norm() < 0.05 * expected.norm()  # the order of bf16's sums differs


@pytest.mark.parametrize("name", ["gptq", "gptq activation order", "awq", "compressed asymmetric"])
def test_scales_of_any_number_are_close(tmp_path: Path, name: str) -> None:
    """The kernel's scales are bf16, those of checkpoints finer."""
    how = CASES[name]
    how = Case(**(vars(how) | {"exact": False}))
    plain = save(tmp_path, how, torch.float16)
    model = load(tmp_path)
    assert model.dtype is torch.bfloat16
    assert load(tmp_path, dtype=torch.float32).dtype is torch.float32
    layer, expected = (one.model.layers[0].mlp.down_proj.weight.float() for one in (model, plain))
    assert (layer - expected).norm() < 0.004 * expected.norm()
    found = torch.stack([logits(model).flatten(), logits(plain).flatten()])
    assert torch.corrcoef(found)[0, 1] > 0.998


def test_several_files_and_a_bias(tmp_path: Path) -> None:
    plain = save(tmp_path, CASES["gptq"], attention_bias=True)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}  # codes here, scales there
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load(tmp_path)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.bias, plain.model.layers[0].self_attn.q_proj.bias)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, plain.model.layers[0].self_attn.q_proj.weight)


def test_an_engine_runs_it(tmp_path: Path) -> None:
    how = CASES["gptq activation order"]
    plain = save(tmp_path / "packed", how)
    engine = HuggingEngine(tmp_path / "packed", device="cpu", temperature=0, max_tokens=8)
    done = engine.generate_now("the quick brown fox")
    ids = torch.tensor([engine.encode("the quick brown fox") + done.ids])
    with torch.inference_mode():
        scores = plain(ids).logits[0, -len(done.ids) - 1 : -1].float()
    chosen = scores.gather(1, torch.tensor(done.ids)[:, None]).squeeze(1)
    assert len(done.ids) == 8
    assert bool((chosen > scores.max(1).values - 0.5).all())  # the most likely, or as good as
    with pytest.raises(EngineError, match="or keep the folder that it came from"):
        engine.save_quantized(tmp_path / "saved")


@pytest.mark.parametrize("name", ["gptq 8 bits", "gptq groups of 16"])
def test_says_what_runs_dequantised(tmp_path: Path, name: str) -> None:
    save(tmp_path, CASES[name])
    with pytest.warns(UserWarning, match=r"14 quantised layers, .* no kernel for CPUs takes: they run dequantised"):
        load(tmp_path)


# ==== what can't be read ====


def refusal(folder: Path, **kwargs: Any) -> str:
    with pytest.raises(EngineError) as caught:
        load(folder, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, name: str, tensor: torch.Tensor | None, new: str = "") -> None:
    """Puts another tensor in the place of this one, under its name or a new one; None takes it away."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors | ({} if tensor is None else {new or name: tensor}), folder / "model.safetensors")


def test_damaged_files(tmp_path: Path) -> None:
    save(tmp_path, CASES["gptq"])
    key = "model.layers.1.mlp.up_proj"
    scales = load_file(tmp_path / "model.safetensors")[f"{key}.scales"]
    change(tmp_path, f"{key}.scales", None)
    assert f"{key!r} of the checkpoint is damaged: it has 'qweight' without 'scales'" in refusal(tmp_path)
    change(tmp_path, "model.norm.weight", torch.ones(128), "model.norm.weight")
    for wrong, says in ((scales[:1], "scales of (256, 1), zeros of (256, 2)"), (scales[:, :9], "its codes are")):
        change(tmp_path, f"{key}.qweight", load_file(tmp_path / "model.safetensors")[f"{key}.qweight"])
        tensors = load_file(tmp_path / "model.safetensors") | {f"{key}.scales": wrong.contiguous()}
        save_file(tensors, tmp_path / "model.safetensors")
        assert says in refusal(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    others = {name: tensor for name, tensor in tensors.items() if "layers" not in name}
    save_file(others, tmp_path / "model.safetensors")
    assert "the checkpoint holds no 'qweight': its files don't match" in refusal(tmp_path)


def test_layers_that_the_model_has_not(tmp_path: Path) -> None:
    save(tmp_path, CASES["awq"])
    key = "model.layers.0.mlp.up_proj.qweight"
    change(tmp_path, key, load_file(tmp_path / "model.safetensors")[key], "model.layers.0.mlp.experts.0.w1.qweight")
    assert "'model.layers.0.mlp.experts.0.w1'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("how", "config", "extra"),
    [
        (CASES["gptq"], {"bits": 3}, "gptq"),
        (CASES["gptq"], {"checkpoint_format": "marlin"}, "gptq"),
        (CASES["awq"], {"version": "gemv"}, "gptq"),
        (CASES["compressed"], {"format": "float-quantized"}, "compressed-tensors"),
    ],
    ids=["3 bits", "marlin", "gemv", "float"],
)
def test_other_kinds_are_left_to_their_packages(
    tmp_path: Path, how: Case, config: dict[str, Any], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, how)
    edit(tmp_path, quantization_config=how.quantization_config() | config)
    for place in ("quantizers.quantizer_gptq.is_optimum", "quantizers.quantizer_awq.is_gptqmodel",
                  "utils.quantization_config.is_compressed_tensors"):  # fmt: skip
        monkeypatch.setattr(f"transformers.{place}_available", lambda: False)
    with pytest.raises(MissingModelDependencies, match=rf"pip install 'kani-lite\[{extra}\]'"):
        load(tmp_path)


def test_which_kinds_it_reads() -> None:
    for how in CASES.values():
        assert PackedConfig.reads(how.quantization_config())
    eight_by_eight = CASES["compressed"].quantization_config()
    eight_by_eight["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": True}
    assert not PackedConfig.reads(eight_by_eight)
    assert not PackedConfig.reads(CASES["compressed"].quantization_config() | {"transform_config": {"groups": 1}})
    assert not PackedConfig.reads({"quant_method": "bitsandbytes", "load_in_4bit": True})


def test_quantising_twice(tmp_path: Path) -> None:
    save(tmp_path, CASES["gptq"])
    assert "is quantised already (gptq): leave quantize out" in refusal(tmp_path, quantization_config=Int4Config())


def test_hqq_as_transformers_4_saved_it(tmp_path: Path) -> None:
    save_llama(tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "hqq", "quant_config": {}})
    assert "doesn't read: load it with HqqEngine" in refusal(tmp_path)


def test_elsewhere_transformers_own_way_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, CASES["gptq"])
    asked: dict[str, Any] = {}

    def from_pretrained(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise ImportError("Loading a GPTQ quantized model requires gptqmodel (`pip install gptqmodel`) library.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(MissingModelDependencies, match=r"kani-lite\[gptq\]"):
        load(tmp_path, device="cuda")
    assert asked["device_map"] == {"": "cuda"}
    assert "config" not in asked
