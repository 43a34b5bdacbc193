"""The embedded model in vLLM, really: these tests run only where the package vllm is installed.

Starting vLLM takes most of the time. `make test-vllm` leaves those out that are marked as long: what starts it again
and again, and the second event loop. `make test-vllm-all` runs them too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import anyio
import pytest

import kani_lite.engines

HERE = Path(__file__).parent
MODEL = Path(str(kani_lite.engines.__file__)).parent / "nano" / "weights"
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

OPTIONS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True}
ENGINES = ["VLLMEngine", "VLLMServerEngine"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(1800))  # vLLM takes a minute to start
            params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
            if params.get("anyio_backend") == "trio" and "both_loops" not in item.keywords:
                item.add_marker(pytest.mark.long)
            # vLLM and what it imports have warnings of their own; ours are errors
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings("error:::kani_lite"))


@pytest.fixture(scope="session")
def model() -> Path:
    return MODEL


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """Builds an engine of this class on the embedded model; blocks."""
    resource_tracker.ensure_running()  # multiprocessing's own, which then stays: it isn't the engine's

    def new(name: str, model: Any = MODEL, **kwargs: Any) -> Any:
        from kani_lite.engines import vllm

        return getattr(vllm, name)(model, **(OPTIONS | kwargs))

    return new


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with random weights, large enough to change every reply."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(MODEL)}))
    made = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(5):
        for part in config["target_modules"]:
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            weights[f"{name}.lora_A.weight"] = torch.randn(4, 256, generator=made) * 0.3
            weights[f"{name}.lora_B.weight"] = torch.randn(256, 4, generator=made) * 0.3
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest, build: Callable[..., Any], adapter: Path) -> Iterator[Any]:
    """One engine of each class, for all tests; on any event loop."""
    # what the server needs to read calls itself, for OpenAIEngine
    reads = {"vllm_args": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}}
    more = reads if request.param == "VLLMServerEngine" else {}
    made = build(request.param, adapters={"odd": adapter}, max_tokens=200, **more)
    yield made
    anyio.run(made.close)


class Reference:
    """The same model in transformers."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def greedy(self, ids: list[int], most: int) -> list[int]:
        """The ids that follow, with the end token."""
        with self._torch.inference_mode():
            made = self.model.generate(self._torch.tensor([ids]), do_sample=False, max_new_tokens=most)
        return list(made[0, len(ids) :].tolist())

    def logprobs(self, ids: list[int]) -> Any:
        """(tokens, vocabulary): the logarithms of the probabilities after each of these tokens."""
        with self._torch.inference_mode():
            return self._torch.log_softmax(self.model(self._torch.tensor([ids])).logits[0], -1)


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()
