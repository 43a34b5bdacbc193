"""HqqEngine: every setting quantises, replies, and comes back from its folder exactly; hqq itself reads the folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch
from pydantic import BaseModel

from kani_lite.engines import HqqEngine, HuggingEngine
from kani_lite.engines.hqq import HqqConfig
from kani_lite.engines.hqq.files import hqq_weight
from kani_lite.engines.hqq.layers import HqqLinear
from kani_lite.engines.hqq.package import hqq_module
from kani_lite.engines.hqq.weight import HqqWeight
from kani_lite.engines.quantization import Int4Linear
from kani_lite.engines.sampling import SamplingParams
from kani_lite.exceptions import EngineError, MissingModelDependencies
from kani_lite.messages import ChatMessage

Load = Callable[..., HqqEngine]
PROMPT = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"


def logits(engine: HqqEngine) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.tensor([engine.encode(PROMPT)])
        out: torch.Tensor = engine.model(input_ids=ids).logits
        return out.float()


def layers(engine: HqqEngine) -> dict[str, Any]:
    return {name: one for name, one in engine.model.named_modules() if isinstance(one, HqqLinear | Int4Linear)}


def weight_of(layer: Any) -> HqqWeight:
    found = hqq_weight(layer)
    assert found is not None
    return found


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("nbits", [8, 4, 3, 2, 1])
def test_quantises_and_comes_back(load: Load, tmp_path: Path, nbits: int, axis: int) -> None:
    engine = load(quantization_config={"nbits": nbits, "axis": axis, "group_size": 32})
    assert set(engine.backends.values()) == {"cpu_int4" if axis == 1 and nbits <= 4 else "pytorch"}
    assert len(engine.backends) == 14
    reply = engine.generate_now(PROMPT)
    engine.save_quantized(tmp_path)
    again = load(tmp_path)
    assert again.backends == engine.backends
    assert torch.equal(logits(again), logits(engine))
    assert again.generate_now(PROMPT).ids == reply.ids
    # and from there again: nothing is lost on the way through a kernel's layout
    again.save_quantized(tmp_path / "twice")
    assert torch.equal(logits(load(tmp_path / "twice")), logits(engine))


@pytest.mark.parametrize("group_size", [8, 16, 512, None])
@pytest.mark.parametrize("extra", [{}, {"quant_zero": True}, {"least_squares": True}, {"optimize": False}])
def test_groups_and_zeros(
    load: Load, save: Callable[..., Path], tmp_path: Path, group_size: int | None, extra: dict[str, Any]
) -> None:
    model = save(tmp_path / "model", hidden_size=512, intermediate_size=512, num_hidden_layers=1)
    engine = load(model, quantization_config=HqqConfig(nbits=4, group_size=group_size, **extra))
    assert set(engine.backends.values()) == {"pytorch" if group_size in (8, 16) else "cpu_int4"}
    engine.save_quantized(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(engine))


def test_scales_in_eight_bits_are_smaller_and_near(load: Load, tmp_path: Path) -> None:
    sizes, errors = [], []
    for small in (False, True):
        settings = {"nbits": 4, "group_size": 8, "quant_scale": small, "quant_zero": small}
        engine = load(quantization_config=settings, backend="pytorch")
        layer = layers(engine)["model.layers.0.mlp.up_proj"]
        plain = HuggingEngine(engine.model_id, device="cpu", pack_weights=False)
        errors.append(float((plain.model.model.layers[0].mlp.up_proj.weight.detach() - layer.weight).abs().mean()))
        engine.save_quantized(tmp_path)
        sizes.append((tmp_path / "qmodel.pt").stat().st_size)
        assert torch.equal(logits(load(tmp_path, backend="pytorch")), logits(engine))
    assert sizes[1] < sizes[0]
    assert errors[1] < 1.2 * errors[0]


def test_settings_by_layer(load: Load, tmp_path: Path) -> None:
    by_layer = {
        "self_attn": {"nbits": 4},
        "mlp": HqqConfig(nbits=3),
        "mlp.down_proj": {"nbits": 8},
        "*.1.*.q_proj": None,
    }
    engine = load(quantization_config=by_layer)
    found = {name.removeprefix("model.layers."): weight_of(one).meta["nbits"] for name, one in layers(engine).items()}
    assert found["0.self_attn.q_proj"] == 4
    assert found["0.mlp.up_proj"] == 3
    assert found["0.mlp.down_proj"] == 8
    assert "1.self_attn.q_proj" not in found
    assert engine.backends["model.layers.0.mlp.down_proj"] == "pytorch"
    assert engine.backends["model.layers.0.mlp.up_proj"] == "cpu_int4"
    engine.save_quantized(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(engine))


def test_the_output_layer_only_if_it_is_named(load: Load, save: Callable[..., Path], tmp_path: Path) -> None:
    tied = save(tmp_path / "model", tie_word_embeddings=True)
    engine = load(tied, quantization_config={"*": {"nbits": 4}, "lm_head": {"nbits": 8}})
    assert weight_of(layers(engine)["lm_head"]).meta["nbits"] == 8
    engine.save_quantized(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(engine))
    assert "lm_head" not in layers(load(tied))


@pytest.mark.parametrize(
    ("nbits", "axis", "group_size"), [(8, 1, 32), (4, 1, 64), (4, 0, 64), (3, 1, 32), (2, 0, 8), (1, 1, 64)]
)
def test_weights_are_those_that_hqq_reads(load: Load, tmp_path: Path, nbits: int, axis: int, group_size: int) -> None:
    engine = load(quantization_config={"nbits": nbits, "axis": axis, "group_size": group_size}, backend="pytorch")
    engine.save_quantized(tmp_path)
    theirs = hqq_module("models.hf.base").AutoHQQHFModel.from_quantized(
        str(tmp_path), compute_dtype=torch.bfloat16, device="cpu", cache_dir=None
    )
    for name, layer in layers(engine).items():
        assert torch.equal(layer.weight, theirs.get_submodule(name).dequantize())
        x = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
        assert torch.equal(layer(x), x @ layer.weight.t())


@pytest.mark.parametrize("backend", ["auto", "pytorch"])
def test_loads_what_hqq_quantised_and_wrote(load: Load, model_dir: Path, tmp_path: Path, backend: str) -> None:
    config = hqq_module("core.quantize").BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    plain = HuggingEngine(model_dir, device="cpu", pack_weights=False)
    auto = hqq_module("models.hf.base").AutoHQQHFModel
    auto.quantize_model(plain.model, quant_config=config, compute_dtype=torch.bfloat16, device="cpu")
    auto.save_quantized(plain.model, str(tmp_path))
    plain.tokenizer.save_pretrained(tmp_path)
    engine = load(tmp_path, quantize_on_fly=False, quantization_config=config, backend=backend)
    layer, theirs = layers(engine)["model.layers.1.mlp.up_proj"], plain.model.model.layers[1].mlp.up_proj
    assert torch.equal(weight_of(layer).codes().view(128, 64), theirs.unpack(dtype=torch.uint8).view(128, 64))
    assert torch.equal(weight_of(layer).part("zero"), theirs.meta["zero"])
    assert engine.generate_now(PROMPT).ids


def test_solver_is_as_good_as_hqqs(model_dir: Path, load: Load) -> None:
    quantizer = hqq_module("core.quantize").Quantizer
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    for nbits in (4, 3, 2):
        ours = HqqWeight.quantized(weight, None, HqqConfig(nbits=nbits), torch.float32)
        packed, meta = quantizer.quantize(weight, nbits=nbits, axis=1, round_zero=nbits == 4, device="cpu")
        theirs = quantizer.dequantize(packed, meta | {"compute_dtype": torch.float32})
        mine = quantizer.dequantize(ours.packed, ours.meta)
        assert (mine - weight).abs().mean() <= 1.001 * (theirs - weight).abs().mean()


def test_int4_kernel_equals_dequantising(load: Load) -> None:
    fast, plain = load(), load(backend="pytorch")
    for name, layer in layers(fast).items():
        other = layers(plain)[name]
        for rows in (1, 5, 100):
            x = torch.randn(rows, layer.in_features, dtype=torch.bfloat16)
            expected = x.float() @ other.weight.float().t()
            bound = 0.03 * float(expected.abs().max())  # (8 - zero) * scale in bf16, and the sums
            assert float((layer(x).float() - expected).abs().max()) < bound


def test_batched_equals_alone(load: Load) -> None:
    engine = load(backend="pytorch", dtype="float32", max_tokens=24)
    prompts = [PROMPT.replace("hello", word) for word in ("one", "twenty", "a much longer question")]
    alone = [engine.generate_now(prompt).ids for prompt in prompts]
    cold = load(backend="pytorch", dtype="float32", max_tokens=24)
    together = anyio.run(cold.generate_batch, prompts)
    assert [reply.ids for reply in together] == alone
    assert cold.generate_now(prompts[0]).cached_tokens > 0


@pytest.mark.anyio
async def test_a_chat(model_dir: Path) -> None:
    engine = await anyio.to_thread.run_sync(lambda: HqqEngine(model_dir, device="cpu", max_tokens=5, seed=3))
    messages = [ChatMessage.user("hello")]
    first = await engine.predict(messages, temperature=0.8)
    again = await engine.predict(messages, temperature=0.8)
    assert first.message.text == again.message.text
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await anyio.to_thread.run_sync(engine.save_quantized, "nowhere")


class _Backend(StrEnum):
    PYTORCH = "pytorch"


class _AanasParams(BaseModel):
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_tokens: int | None = None


def test_aanas_arguments(load: Load) -> None:
    config = hqq_module("core.quantize").BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    engine = load(
        backend=_Backend.PYTORCH,
        quantize_on_fly=True,
        compile=False,
        dtype="auto",
        quantization_config=config,
        default_sampling_params=_AanasParams(temperature=0.0, top_p=1.0, top_k=-1, max_tokens=7),
        model_kwargs={"attn_implementation": "sdpa", "device_map": "auto"},
        chat_template="llama2",
        temperature=None,
        max_tokens=None,
    )
    assert set(engine.backends.values()) == {"pytorch"}
    assert engine.model.dtype == torch.bfloat16
    assert "[INST]" in str(engine.build_prompt([ChatMessage.user("hi")]))
    assert len(engine.generate_now(PROMPT).ids) <= 7
    assert engine.sampling.greedy
    assert load(default_sampling_params={"max_tokens": 3}, sampling=SamplingParams(top_k=2)).sampling.top_k == 2


def test_without_the_package(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "hqq"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hqq", None)
    with pytest.raises(MissingModelDependencies, match=r"'hqq'.*kani-lite\[hqq\]"):
        HqqEngine(model_dir)
