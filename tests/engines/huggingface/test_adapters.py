"""LoRA adapters: what the engine says is what the model with the adapter merged into its weights says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_llama
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from kani_lite.engines import HqqEngine, HuggingEngine
from kani_lite.engines.huggingface.adapters import Adapters, LoraLinear
from kani_lite.engines.huggingface.llama import LlamaEngine
from kani_lite.exceptions import EngineError
from kani_lite.messages import ChatMessage

IDS = torch.arange(1, 41).view(1, -1)
CHATS = [
    [ChatMessage.user("hello there")],
    [ChatMessage.system("the quick brown fox"), ChatMessage.user("one two three four")],
    [ChatMessage.user("how are you? " * 8)],
]
GREEDY = {"temperature": 0, "max_tokens": 8}
PROJECTIONS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
SHAPES = {"self_attn.q_proj": (128, 128), "self_attn.v_proj": (128, 64), "mlp.down_proj": (256, 128)}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), hidden_size=128, intermediate_size=256)


def save_adapter(folder: Path, seed: int = 1, tensors: Tensors | None = None, **config: Any) -> Path:
    """As peft writes it; `config` goes over its own values."""
    values: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "somewhere/else", "r": 4,
        "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": [name.split(".")[1] for name in PROJECTIONS],
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "inference_mode": True,
    }  # fmt: skip
    values |= config
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(
        halves(seed, values["rank_pattern"]) if tensors is None else tensors, folder / "adapter_model.safetensors"
    )
    return folder


def halves(seed: int, ranks: dict[str, int]) -> Tensors:
    made, random = {}, torch.Generator().manual_seed(seed)
    for layer in range(2):
        for name in PROJECTIONS:
            width, out = SHAPES[name]
            rank = next((rank for key, rank in ranks.items() if f"layers.{layer}.{name}".endswith(key)), 4)
            key = f"base_model.model.model.layers.{layer}.{name}"
            made[f"{key}.lora_A.weight"] = torch.randn(rank, width, generator=random) * 0.2
            made[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=random) * 0.2
    return made


def merged(model: Any, adapter: Path, scale: Callable[[str], float] = lambda _: 2.0) -> Any:
    """The plain model with the adapter added to its weights."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for key in {key.rsplit(".lora_", 1)[0] for key in tensors}:
        module = model.get_submodule(key.removeprefix("base_model.model."))
        added = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"] * scale(key)
        module.weight.data += added if module.weight.shape == added.shape else added.t()
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits.float()
    return found


async def replies(engine: HuggingEngine) -> list[str]:
    """Of all chats at once: they share forward passes."""
    found = [""] * len(CHATS)

    async def ask(place: int) -> None:
        found[place] = (await engine.predict(CHATS[place])).message.text or ""

    async with anyio.create_task_group() as group:
        for place in range(len(CHATS)):
            group.start_soon(ask, place)
    return found


@pytest.fixture
async def load(folder: Path) -> Any:
    made: list[HuggingEngine] = []

    async def new(cls: Any = HuggingEngine, where: Path = folder, **kwargs: Any) -> Any:
        options = {"device": "cpu"} | GREEDY | kwargs
        made.append(await anyio.to_thread.run_sync(lambda: cls(where, **options)))
        return made[-1]

    yield new
    for engine in made:
        await engine.close()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, lambda _: 2.0),
        ({"use_rslora": True}, lambda _: 4.0),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}, lambda key: 4.0 if "1.self_attn.q_proj" in key else 2.0),
        ({"alpha_pattern": {r"mlp\.\w+": 2}}, lambda key: 0.5 if "mlp" in key else 2.0),
    ],
    ids=["plain", "rslora", "rank_pattern", "alpha_pattern"],
)
async def test_equals_the_merged_model(load: Any, folder: Path, tmp_path: Path, config: Any, scale: Any) -> None:
    adapter = await anyio.to_thread.run_sync(lambda: save_adapter(tmp_path / "a", **config))
    expected = await anyio.to_thread.run_sync(lambda: merged(LlamaForCausalLM.from_pretrained(folder), adapter, scale))
    engine = await load(adapters={"mine": adapter})
    assert torch.allclose(logits(engine.model), logits(expected), atol=2e-3)
    assert not torch.allclose(logits(engine.model), logits((await load()).model), atol=0.5)


HOW: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (HuggingEngine, {}),
    "not packed": (HuggingEngine, {"pack_weights": False}),
    "int4": (HuggingEngine, {"quantize": "4bit"}),
    "int8": (HuggingEngine, {"quantize": "8bit"}),
    "nf4": (HuggingEngine, {"model_load_kwargs": {"load_in_4bit": True}}),
    "hqq": (HqqEngine, {"quantization_config": {"nbits": 4, "group_size": 64}, "quantize_on_fly": True}),
    "without a template": (LlamaEngine, {}),
}


@pytest.mark.parametrize("name", HOW)
async def test_on_layers_of_any_kind(load: Any, tmp_path: Path, name: str) -> None:
    """Of each layer, what is added to its own output; and a batch says what one chat alone does."""
    cls, options = HOW[name]
    adapter = await anyio.to_thread.run_sync(lambda: save_adapter(tmp_path / "a"))
    engine = await load(cls, adapters={"mine": adapter}, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    layers = {key: layer for key, layer in engine.model.named_modules() if isinstance(layer, LoraLinear)}
    assert len(layers) == 6
    for key, layer in layers.items():
        a, b = (tensors[f"base_model.model.{key}.lora_{half}.weight"] for half in "AB")
        x = torch.randn(3, layer.in_features)
        with torch.inference_mode():
            added, expected = layer(x) - layer.base(x), 2 * (x @ a.t() @ b.t())
        precision = 1e-4 if engine.model.dtype is torch.float32 else 2e-2
        assert (added - expected).norm() < precision * expected.norm(), key
    together = await replies(engine)
    assert together == [(await engine.predict(chat)).message.text for chat in CHATS]
    await engine.use_adapter(None)
    assert together != await replies(engine)


async def test_several_by_name(load: Any, tmp_path: Path) -> None:
    """Changing the adapter leaves nothing behind of what the other cached."""
    first = await anyio.to_thread.run_sync(save_adapter, tmp_path / "1", 1)
    second = await anyio.to_thread.run_sync(save_adapter, tmp_path / "2", 2)
    engine = await load(adapters={"one": first, "two": second}, adapter="two")
    assert engine.adapters.active == "two"
    alone = {"one": await replies(await load(adapters={"x": first})),
             "two": await replies(await load(adapters={"x": second})), None: await replies(await load())}  # fmt: skip
    assert len({tuple(said) for said in alone.values()}) == 3
    for name in ("two", "one", None, "two"):
        await engine.use_adapter(name)
        assert await replies(engine) == alone[name]
        assert await replies(engine) == alone[name]  # now from the cache
    with pytest.raises(EngineError, match=r"no adapter 'three' \(there is 'one', 'two'\)"):
        await engine.use_adapter("three")
    assert engine.adapters.active == "two"


async def test_not_while_a_request_runs(load: Any, tmp_path: Path) -> None:
    adapter = await anyio.to_thread.run_sync(lambda: save_adapter(tmp_path / "a"))
    engine = await load(adapters={"mine": adapter}, max_tokens=200)
    stream = engine.stream(CHATS[0])
    await anext(stream)
    with pytest.raises(EngineError, match="while a request runs"):
        await engine.use_adapter(None)
    await stream.aclose()
    await engine.use_adapter(None)
    assert engine.adapters.active is None


def test_a_quantised_model_with_adapters_is_not_saved(folder: Path, tmp_path: Path) -> None:
    engine = HuggingEngine(folder, device="cpu", quantize="4bit", adapters={"a": save_adapter(tmp_path / "a")})
    with pytest.raises(EngineError, match="save it from an engine without them"):
        engine.save_quantized(tmp_path / "saved")


def test_layers_that_lie_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's; A and B are as for others."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    key, random = "base_model.model.transformer.h.0.attn.c_attn", torch.Generator().manual_seed(3)
    tensors = {
        f"{key}.lora_A.weight": torch.randn(4, 32, generator=random),
        f"{key}.lora_B.weight": torch.randn(96, 4, generator=random),
    }
    adapter = save_adapter(tmp_path / "a", tensors=tensors, fan_in_fan_out=True)
    plain = logits(model)
    Adapters({"a": adapter}).put_on(model)
    found = logits(model)
    model.transformer.h[0].attn.c_attn = model.transformer.h[0].attn.c_attn.base
    assert torch.allclose(found, logits(merged(model, adapter)), atol=1e-3)
    assert not torch.allclose(found, plain, atol=1e-2)


# ==== what can't be put on ====


def refusal(folder: Path, adapter: Path | str, **kwargs: Any) -> str:
    with pytest.raises(EngineError) as caught:
        HuggingEngine(folder, device="cpu", adapters={"mine": adapter}, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert "'mine'" in text
    return text


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    assert "has no folder" in refusal(folder, tmp_path / "nowhere")
    assert "has no folder" in refusal(folder, "./nowhere/at-all")
    assert "has no adapter_config.json" in refusal(folder, folder)
    adapter = save_adapter(tmp_path / "a")
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(whole[:100])
    assert "can't be read" in refusal(folder, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refusal(folder, adapter)
    (adapter / "adapter_model.bin").touch()
    assert "save it again as safetensors" in refusal(folder, adapter)
    (adapter / "adapter_config.json").write_text("[]")
    (adapter / "adapter_model.safetensors").write_bytes(whole)
    assert "isn't an object" in refusal(folder, adapter)


def test_a_name_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="isn't on this disk and HF_HUB_OFFLINE"):
        HuggingEngine(folder, device="cpu", adapters={"mine": "someone/adapter"})
    repository = tmp_path / "models--someone--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    save_adapter(repository / "snapshots" / "abc")
    engine = HuggingEngine(folder, device="cpu", adapters={"mine": "someone/adapter"})
    assert isinstance(engine.model.model.layers[0].self_attn.q_proj, LoraLinear)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "is of the kind 'IA3'"),
        ({"use_dora": True}, "uses DoRA: merge it"),
        ({"modules_to_save": ["embed_tokens"]}, "modules trained in full"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "the start 'pissa_niter_4'"),
        ({"r": 8}, "rank 8 on this model's layer is (8, 256) and (128, 8)"),
        ({"lora_alpha": None}, "says lora_alpha=None"),
    ],
)
def test_more_than_lora(folder: Path, tmp_path: Path, config: dict[str, Any], says: str) -> None:
    assert says in refusal(folder, save_adapter(tmp_path / "a", **config))


def test_other_tensors(folder: Path, tmp_path: Path) -> None:
    made = halves(1, {})
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    for place, (name, says) in enumerate(
        [
            (f"{key}.lora_magnitude_vector", "is no linear layer's LoRA"),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "which is no linear layer's LoRA"),
            ("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", "lacks the half B"),
        ]
    ):
        adapter = save_adapter(tmp_path / str(place), tensors=made | {name: torch.ones(4, 128)})
        assert says in refusal(folder, adapter)
    elsewhere = {name.replace("layers.1", "layers.9"): value for name, value in made.items()}
    assert "this one has no linear layer 'model.layers.9" in refusal(folder, save_adapter(tmp_path / "b", 1, elsewhere))
    assert "is empty" in refusal(folder, save_adapter(tmp_path / "c", 1, {}))


def test_the_names_are_checked_before_anything_loads(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a")
    with pytest.raises(EngineError, match=r"no adapter 'other' \(there is 'mine'\)"):
        HuggingEngine(tmp_path, device="cpu", adapters={"mine": adapter}, adapter="other")
    with pytest.raises(EngineError, match=r"no adapter 'other' \(there is none\)"):
        HuggingEngine(tmp_path, device="cpu", adapter="other")
