"""The fused step gives what transformers' own pass gives, and leaves alone what it doesn't know."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.quantization import Int4Config, Int4Linear, Int8Config
from kani_lite.engines.runtime.attention import AbandonedError, Part
from kani_lite.engines.runtime.decode import FusedStep
from kani_lite.engines.runtime.decode_linear import joined, matmul
from kani_lite.engines.runtime.decode_structure import is_llama_like
from kani_lite.engines.runtime.generator import Generator
from kani_lite.engines.runtime.linear import PackedLinear, pack_linears
from kani_lite.engines.runtime.runner import PackedRunner
from tests.engines.runtime.test_families import FAMILIES, WINDOW, Family
from tests.support.runtime import GREEDY, add, drain, make_generator, run

LIKE_LLAMA = {
    "llama-2": FAMILIES["llama-2"],
    "llama-3.3": FAMILIES["llama-3.3"],
    "llama-biases": Family("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": Family("llama", {"hidden_act": "gelu"}),
    "llama-tied": Family("llama", {"tie_word_embeddings": True, "hidden_size": 128}),
    "mistral": FAMILIES["mistral"],
    "qwen-2": FAMILIES["qwen-2"],
    "qwen-2.5": FAMILIES["qwen-2.5"],
    "qwen-3": FAMILIES["qwen-3"],
    "qwen-3-window": Family("qwen3", {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW}),
}
OTHERS = ["opt", "phi-3", "gemma-2", "gemma-3", "glm", "glm-4", "mixtral", "qwen-3-moe", "deepseek-v3", "gpt-oss"]
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], list(range(40, 80)), [7]]


def fused(generator: Generator) -> FusedStep:
    assert isinstance(generator.runner, PackedRunner)
    assert generator.runner.fused is not None
    assert generator.runner.fused.applies
    return generator.runner.fused


def unfused(model: Any, **options: Any) -> Generator:
    generator = make_generator(model, **options)
    fused(generator)
    generator.runner.fused = None  # type: ignore[attr-defined]  # a PackedRunner, says fused()
    return generator


def logits(generator: Generator, texts: list[list[int]], cut: int = 1) -> list[torch.Tensor]:
    """After each token, of all texts together: read but for the last `cut` tokens, which come one by one."""
    runner = generator.runner
    caches = [runner.new_cache() for _ in texts]
    heads = [text[:-cut] for text in texts]
    first = runner.forward([Part(c, h, len(h)) for c, h in zip(caches, heads, strict=True) if h])
    found = [row for rows in first for row in rows]
    for place in range(cut, 0, -1):
        parts = [Part(c, [text[-place]]) for c, text in zip(caches, texts, strict=True) if len(text) >= place]
        found += [row for rows in runner.forward(parts) for row in rows]
    return found


def check_close(found: list[torch.Tensor], expected: list[torch.Tensor], most: float) -> None:
    """On average, in units of the logits' spread."""
    one, other = torch.stack(found).float(), torch.stack(expected).float()
    assert (one - other).abs().mean() < most * other.std()


def nano(config: Any = None, dtype: str = "float32") -> Any:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, quantization_config=config, dtype=dtype)


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_gives_what_transformers_gives(name: str) -> None:
    model = LIKE_LLAMA[name].make()
    with_it, without = make_generator(copy.deepcopy(model)), unfused(model)
    fused(with_it)
    assert "fused" in with_it.runner.attention
    for texts in (PROMPTS, PROMPTS[2:3], PROMPTS[:1]):
        for found, expected in zip(logits(with_it, texts), logits(without, texts), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        sinks = [[add(generator, text) for text in texts] for generator in (with_it, without)]
        drain(with_it)
        drain(without)
        assert [sink.done.ids for sink in sinks[0]] == [sink.done.ids for sink in sinks[1]]


@pytest.mark.parametrize("name", OTHERS)
def test_leaves_other_families_alone(name: str) -> None:
    generator = make_generator(FAMILIES[name].make())
    assert isinstance(generator.runner, PackedRunner)
    assert generator.runner.fused is None
    assert "fused" not in generator.runner.attention


@pytest.mark.parametrize("cache", ["bmc", "dynamic", "paged", "slab", "static", "quantized"])
def test_works_with_every_kind_of_cache(llama: LlamaForCausalLM, cache: str) -> None:
    with_it, without = make_generator(llama, cache=cache), unfused(llama, cache=cache)
    for text in PROMPTS:
        assert run(with_it, text).ids == run(without, text).ids


@pytest.mark.parametrize("cache", ["bmc", "sliding"])
def test_windows_are_kept(cache: str) -> None:
    model = FAMILIES["mistral"].make()
    with_it, without = make_generator(model, cache=cache), unfused(model, cache=cache)
    text = list(range(100, 100 + 3 * WINDOW))
    check_close(logits(with_it, [text], WINDOW), logits(without, [text], WINDOW), 1e-4)


@pytest.mark.parametrize(
    ("config", "dtype", "most"),
    [
        (None, "bfloat16", 0.03),
        (Int4Config(), "float32", 0.01),
        (Int4Config(quantize_embeddings=True), "bfloat16", 0.03),
        (Int8Config(quantize_lm_head=True), "bfloat16", 0.03),
    ],
    ids=["bf16", "int4", "int4-all-bf16", "int8-bf16"],
)
def test_the_embedded_model_in_few_bits(config: Any, dtype: str, most: float) -> None:
    model = nano(config, dtype)
    with_it, without = make_generator(model), unfused(model)
    fused(with_it)
    texts = [[(17 * i + 5 * k) % 900 + 20 for i in range(30)] for k in range(3)]
    check_close(logits(with_it, texts, 8), logits(without, texts, 8), most)


def test_the_embedded_model_writes_the_same_in_int4() -> None:
    model = nano(Int4Config())
    with_it, without = make_generator(model), unfused(model)
    for start in range(6):
        prompt = [(start * 37 + 11 * i) % 900 + 20 for i in range(25)]
        assert run(with_it, prompt).ids == run(without, prompt).ids


def test_joined_weights_are_still_those_of_the_layers(tmp_path: Path) -> None:
    model = nano(Int4Config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = sum(layer.num_bytes for layer in model.modules() if isinstance(layer, Int4Linear))
    generator = make_generator(model, pack_weights=False)
    fused(generator)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.packed.untyped_storage().data_ptr() == attention.v_proj.packed.untyped_storage().data_ptr()
    assert sum(layer.num_bytes for layer in model.modules() if isinstance(layer, Int4Linear)) == held
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(30, 60).unsqueeze(0)
    assert torch.equal(again(ids).logits, model(ids).logits)


def int4_layers(sizes: list[int], bias: bool, width: int = 128, group: int = 64) -> list[Int4Linear]:
    torch.manual_seed(0)
    return [
        Int4Linear.from_codes(
            torch.randint(0, 16, (size, width), dtype=torch.uint8),
            torch.rand(size, width // group) * 0.01,
            torch.rand(size, width // group) * 15,
            torch.randn(size).bfloat16() if bias else None,
            group,
        )
        for size in sizes
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[128, 64, 64], [64, 100], [64]])
def test_joined_layers_give_what_each_gives(sizes: list[int], bias: bool, dtype: torch.dtype) -> None:
    layers = int4_layers(sizes, bias)
    weights = [layer.weight for layer in layers]
    for rows in (1, 3, 200):
        x = torch.randn(rows, 128).to(dtype)
        expected = torch.cat([layer(x) for layer in layers], -1)
        assert torch.equal(joined(layers)(x), expected)  # joining what is joined is allowed
        assert torch.equal(torch.cat([layer(x) for layer in layers], -1), expected)
    for layer, weight in zip(layers, weights, strict=True):
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.rows(torch.tensor([3, 0])), weight[[3, 0]])


def test_layers_that_do_not_fit_are_run_one_by_one() -> None:
    x = torch.randn(2, 128).bfloat16()
    padded, other_group = int4_layers([100, 64], True), [*int4_layers([64], True), *int4_layers([64], True, group=32)]
    mixed: list[nn.Module] = [*int4_layers([64], False), nn.Linear(128, 32, dtype=torch.bfloat16)]
    some_biases = [*int4_layers([64], True), *int4_layers([64], False)]
    for layers in (padded, other_group, some_biases):
        assert Int4Linear.join(layers) is None
    with torch.inference_mode():
        for layers in (padded, other_group, some_biases, mixed):
            assert torch.equal(joined(layers)(x), torch.cat([layer(x) for layer in layers], -1))


@pytest.mark.parametrize("packs", [True, False])
def test_a_matmul_is_its_layer(packs: bool) -> None:
    layer: Any = nn.Linear(160, 200)
    model = nn.Sequential(layer)
    if packs and pack_linears(model):
        assert isinstance(model[0], PackedLinear)
    x = torch.randn(3, 160)
    with torch.inference_mode():
        torch.testing.assert_close(matmul(model[0])(x), layer(x))


# ==== what comes later ====


def add_hook(model: Any) -> Callable[[], None]:
    """One that changes the result."""
    handle = model.model.layers[1].mlp.register_forward_hook(lambda _module, _args, out: out * 2)
    return handle.remove  # type: ignore[no-any-return]  # torch types it as Any


def add_adapter(model: Any) -> Callable[[], None]:
    """As LoRA does: another module around the layer."""
    mlp = model.model.layers[0].mlp
    base = mlp.down_proj

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) * 1.5  # type: ignore[no-any-return]  # modules return Any

    mlp.down_proj = Adapted()
    return lambda: setattr(mlp, "down_proj", base)


def replace_forward(model: Any) -> Callable[[], None]:
    """As accelerate does on one instance."""
    norm = model.model.norm
    before = norm.forward
    norm.forward = lambda x: before(x) * torch.linspace(0, 1, x.shape[-1])
    return lambda: delattr(norm, "forward")


CHANGES = pytest.mark.parametrize("change", [add_hook, add_adapter, replace_forward])


@CHANGES
def test_a_changed_model_is_noticed_at_once(make_llama: Any, change: Any) -> None:
    model = make_llama(initializer_range=0.3)
    generator = make_generator(model, pack_weights=False, max_cached_prompts=0)
    step = fused(generator)
    before = logits(generator, PROMPTS)
    undo = change(model)
    assert not step.applies
    changed = logits(generator, PROMPTS)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPTS[2]])).logits[0, -1]
    check_close([changed[-2]], [expected], 1e-4)  # the last pass has the four texts' last rows
    undo()
    assert step.applies
    after = logits(generator, PROMPTS)
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))
    assert not any(torch.allclose(one, other, rtol=1e-2) for one, other in zip(after, changed, strict=True))


@CHANGES
def test_a_model_changed_before_is_not_fused(make_llama: Any, change: Any) -> None:
    model = make_llama()
    assert is_llama_like(model)
    undo = change(model)
    assert not is_llama_like(model)
    undo()
    assert is_llama_like(model)


def test_a_hook_on_all_modules_is_noticed(llama: LlamaForCausalLM) -> None:
    step = fused(make_generator(llama))
    handle = nn.modules.module.register_module_forward_pre_hook(lambda _module, _args: None)
    try:
        assert not step.applies
    finally:
        handle.remove()
    assert step.applies


def test_a_subclass_that_computes_something_else_is_not_fused(make_llama: Any) -> None:
    model = make_llama()

    class Doubled(type(model.model.layers[0])):  # type: ignore[misc]  # of an untyped package
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(*args, **kwargs)

    class Renamed(type(model)):  # type: ignore[misc]  # as above
        """Computes what its base does."""

    model.__class__ = Renamed
    assert is_llama_like(model)
    model.model.layers[1].__class__ = Doubled
    assert not is_llama_like(model)


def test_new_int4_weights_are_noticed() -> None:
    model = nano(Int4Config())
    step = fused(make_generator(model))
    layer = model.model.layers[0].mlp.up_proj
    layer.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()})
    assert not step.applies


@contextmanager
def raising(step: FusedStep, layer: int) -> Any:
    """The fused step fails in this layer."""
    whole = step._layers[layer]

    def fail(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("the accelerator is full")

    step._layers[layer] = fail  # type: ignore[call-overload]  # a stand-in for a layer
    try:
        yield
    finally:
        step._layers[layer] = whole


def test_a_pass_that_fails_or_is_given_up_leaves_no_trace(llama: LlamaForCausalLM) -> None:
    runner = make_generator(llama).runner
    assert isinstance(runner, PackedRunner)
    assert runner.fused is not None
    cache = runner.new_cache()
    runner.forward([Part(cache, PROMPTS[2], 0)])
    expected = runner.forward([Part(cache.fork(40), [5])])[0]
    with raising(runner.fused, 1), pytest.raises(torch.OutOfMemoryError):
        runner.forward([Part(cache, [5])])
    asked = iter([False, True])
    with pytest.raises(AbandonedError):
        runner.forward([Part(cache, [5])], lambda: next(asked))
    assert cache.length == 40
    assert torch.equal(runner.forward([Part(cache, [5])])[0], expected)


def test_logits_of_all_tokens_or_of_none(llama: LlamaForCausalLM) -> None:
    runner = make_generator(llama).runner
    parts = [Part(runner.new_cache(), text, wanted) for text, wanted in zip(PROMPTS, (0, 2, 40, 1), strict=True)]
    found = runner.forward(parts)
    assert [tuple(rows.shape) for rows in found] == [(0, 300), (2, 300), (40, 300), (1, 300)]
    with torch.inference_mode():
        torch.testing.assert_close(found[1], llama(torch.tensor([PROMPTS[1]])).logits[0, -2:], rtol=1e-3, atol=1e-3)
    assert runner.forward([Part(runner.new_cache(), [4, 5], 0)])[0].shape == (0, 300)


def test_the_table_of_angles_grows(llama: LlamaForCausalLM) -> None:
    with_it, without = make_generator(llama, context=500), unfused(llama, context=500)
    text = [(7 * i) % 290 for i in range(250)]  # the first table ends within the reply
    assert run(with_it, text, GREEDY).ids == run(without, text, GREEDY).ids
