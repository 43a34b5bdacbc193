"""Folders that bring their own modelling code, as ChatGLM3 and InternLM 2.5 do, and weights in torch's own format."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kani_lite.engines import HuggingEngine
from kani_lite.exceptions import EngineError
from kani_lite.messages import ChatMessage

HELLO = [ChatMessage.user("hello there")]
TRUST = {"trust_remote_code": True}

CONFIGURATION = """
from transformers import PretrainedConfig


class TinyOwnConfig(PretrainedConfig):
    model_type = "tiny_own"

    def __init__(self, vocab_size=0, seq_length=512, **kwargs):
        self.vocab_size = vocab_size
        self.seq_length = seq_length  # the name that ChatGLM3 has for the length of its context
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 2
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_tiny_own import TinyOwnConfig


class TinyOwnLayer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.index, self.heads = index, config.num_attention_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, cache):
        batch, rows, width = hidden.shape
        split = self.qkv(self.norm(hidden)).view(batch, rows, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        end = key.shape[2]
        seen = torch.ones(rows, end, dtype=torch.bool).tril(end - rows)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return hidden + self.out(mixed.transpose(1, 2).reshape(batch, rows, width))


class TinyOwnForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TinyOwnConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.seq_length, config.hidden_size)
        self.layers = nn.ModuleList([TinyOwnLayer(config, i) for i in range(config.num_hidden_layers)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **kwargs):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cache = past_key_values if use_cache else None
        before = cache.get_seq_length() if cache is not None else 0
        places = torch.arange(before, before + input_ids.shape[1])
        hidden = self.embed(input_ids) + self.places(places)
        for layer in self.layers:
            hidden = layer(hidden, cache)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=cache)
"""

AUTO_MAP = {
    "AutoConfig": "configuration_tiny_own.TinyOwnConfig",
    "AutoModelForCausalLM": "modeling_tiny_own.TinyOwnForCausalLM",
}


@pytest.fixture(autouse=True)
def modules_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """transformers copies such code into a cache of modules, and imports it from there: both end with the test."""
    cache = tmp_path / "modules"
    for place in ("transformers.dynamic_module_utils.HF_MODULES_CACHE", "transformers.utils.hub.HF_MODULES_CACHE"):
        monkeypatch.setattr(place, str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield cache
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "transformers_modules":
            del sys.modules[name]


@pytest.fixture
def own_code(tmp_path: Path, tokenizer: Any) -> Path:
    """A folder with a model of a type that transformers doesn't know."""
    folder = tmp_path / "tiny_own"
    tokenizer.save_pretrained(folder)
    (folder / "configuration_tiny_own.py").write_text(CONFIGURATION)
    (folder / "modeling_tiny_own.py").write_text(MODELING)
    config = {
        "model_type": "tiny_own",
        "architectures": ["TinyOwnForCausalLM"],
        "auto_map": AUTO_MAP,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(folder), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Made here, so that the engine is the first to load the code."""
    torch.manual_seed(3)
    width, layers = 32, 2
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    shapes["places.weight"] = (512, width)
    for at in range(layers):
        shapes |= {f"layers.{at}.qkv.weight": (3 * width, width), f"layers.{at}.qkv.bias": (3 * width,)}
        shapes |= {f"layers.{at}.out.weight": (width, width), f"layers.{at}.out.bias": (width,)}
        shapes |= {f"layers.{at}.norm.weight": (width,), f"layers.{at}.norm.bias": (width,)}
    weights = {name: torch.randn(shape) * 0.5 for name, shape in shapes.items()}
    weights["places.weight"] *= 6  # or it would write one token again and again
    return weights


async def load(folder: Path, **kwargs: Any) -> HuggingEngine:
    return await anyio.to_thread.run_sync(
        lambda: HuggingEngine(folder, device="cpu", temperature=0.0, max_tokens=12, **kwargs)
    )


async def replies(engine: HuggingEngine) -> list[list[int]]:
    """What the engine writes to prompts of several lengths that run together."""
    found: dict[int, list[int]] = {}

    async def ask(prompt: list[int]) -> None:
        found[len(prompt)] = (await engine.generate(prompt, ignore_eos=True)).ids

    async with anyio.create_task_group() as group:
        for prompt in PROMPTS:
            group.start_soon(ask, prompt)
    return [found[len(prompt)] for prompt in PROMPTS]


PROMPTS = [[9, 8, 7], list(range(20, 60)), [5]]


def generated(folder: Path, **kwargs: Any) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("kwargs", [{}, {"model_load_kwargs": {"trust_remote_code": False}}])
def test_a_models_own_code_is_not_run_unasked(own_code: Path, modules_in: Path, kwargs: dict[str, Any]) -> None:
    (own_code / "configuration_tiny_own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(EngineError) as caught:
        HuggingEngine(own_code, device="cpu", **kwargs)
    assert "'tiny_own'" in str(caught.value)
    assert "model_load_kwargs={'trust_remote_code': True}" in str(caught.value)
    assert not modules_in.exists()


async def test_a_models_own_code_runs_when_it_is_trusted(own_code: Path, modules_in: Path) -> None:
    engine = await load(own_code, model_load_kwargs=TRUST)
    try:
        assert str(sys.modules[type(engine.model).__module__].__file__).startswith(str(modules_in))
        assert engine.max_context_size == 512
        assert "one sequence at a time" in engine.attention
        expected = await anyio.to_thread.run_sync(lambda: generated(own_code, **TRUST))
        assert len({token for reply in expected for token in reply}) > 10
        assert await replies(engine) == expected
        first = await engine.predict(HELLO, ignore_eos=True)
        chat = [*HELLO, first.message, ChatMessage.user("one two")]
        second = await engine.predict(chat, ignore_eos=True)
    finally:
        await engine.close()
    assert second.cached_tokens >= first.prompt_tokens  # its cache is transformers', so it is reused


@pytest.mark.parametrize("code", ["raise RuntimeError('no such package here')", "import no_such_package"])
def test_own_code_that_breaks_is_explained(own_code: Path, code: str) -> None:
    (own_code / "modeling_tiny_own.py").write_text(code)
    with pytest.raises(EngineError, match=r"tiny_own.*no.such.package") as caught:
        HuggingEngine(own_code, device="cpu", model_load_kwargs=TRUST)
    assert "\n" not in str(caught.value)


@pytest.fixture
def bin_weights(model_dir: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model_dir, tmp_path / "bin"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


async def test_weights_in_torchs_format(bin_weights: Path, model_dir: Path) -> None:
    engine = await load(bin_weights)
    try:
        assert await replies(engine) == await anyio.to_thread.run_sync(generated, model_dir)
    finally:
        await engine.close()
