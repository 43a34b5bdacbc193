"""The table of quantised weights: what it counts, and that it can be made."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from kani_lite.engines import HqqEngine, NanoEngine
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.quantization import Int4Config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = "Ada lives in Paris. She likes tea, and her cat is called Blue. What is the name of her cat?"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, which are scripts beside each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return __import__(name)

    return load


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a machine with other work to do, threads for so small a model mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def using(engine: Any) -> Iterator[Any]:
    try:
        yield engine
    finally:
        anyio.run(engine.close)


@pytest.fixture(scope="module")
def plain() -> Any:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.bfloat16).eval()


def test_bytes_of_a_plain_model(module: Any, plain: Any) -> None:
    layers = [one for one in plain.model.layers.modules() if isinstance(one, torch.nn.Linear)]
    linear, whole = module("four_bit_measure").model_bytes(plain)
    buffers = sum(one.nbytes for one in plain.buffers())
    assert linear == sum(one.weight.nbytes for one in layers)
    # the tied weight counts once; the rotary table is kept twice, by transformers too
    assert 0 <= whole - sum(one.nbytes for one in plain.parameters()) <= 2 * buffers


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, 1, 1),
        ({"quantize": "4bit"}, 4.5 / 16, 4.5 / 16),
        ({"quantize": Int4Config(group_size=32)}, 5 / 16, 5 / 16),
        ({"quantize": "8bit"}, 0.5, 0.51),
        ({"quantize": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}, 4.25 / 16, 4.6 / 16),
    ],
    ids=["none", "int4", "groups of 32", "int8", "nf4"],
)
def test_bytes_of_quantised_layers(module: Any, plain: Any, options: dict[str, Any], least: float, most: float) -> None:
    measure = module("four_bit_measure")
    with using(NanoEngine(model_load_kwargs={"dtype": "bfloat16"}, **options)) as engine:
        engine.generate_now("hello", max_tokens=2)
        share = measure.model_bytes(engine.model)[0] / measure.model_bytes(plain)[0]
    assert least * 0.999 <= share <= most * 1.01


def test_bytes_that_hqq_hides_in_dicts(module: Any) -> None:
    measure, sizes = module("four_bit_measure"), []
    for config in ({"nbits": 4}, {"nbits": 4, "quant_scale": True, "quant_zero": True}, {"nbits": 2}):
        with using(HqqEngine(WEIGHTS, device="cpu", backend="pytorch", quantization_config=config)) as engine:
            sizes.append(measure.model_bytes(engine.model)[0])
            weights = sum(one.W_q.nbytes for one in engine.model.modules() if hasattr(one, "W_q"))
        assert sizes[-1] > weights  # the scales of groups are there too
    four, four_with_small_scales, two = sizes
    assert two < four_with_small_scales < four
    assert two / four == pytest.approx(2.5 / 4.5, rel=0.01)


def test_quality_beside_itself(module: Any, plain: Any, tmp_path: Path) -> None:
    quality = module("four_bit_quality")
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    chosen = quality.passages(False, [TEXT], tokenizer, 1000)
    quality.write_reference(plain, chosen, tmp_path)
    found = quality.against_reference(plain, chosen, tmp_path)
    ids = torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False)])
    with torch.inference_mode():
        loss = plain(input_ids=ids, labels=ids).loss
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=0.01)
    assert found["divergence"] == pytest.approx(0, abs=1e-6)
    assert found["same"] == 1


def test_fewer_bits_stray_further(module: Any, plain: Any, tmp_path: Path) -> None:
    quality = module("four_bit_quality")
    chosen = quality.passages(True, [], None, 200)
    assert sum(len(one.scored) for one in chosen) == 200
    quality.write_reference(plain, chosen, tmp_path)
    strayed = []
    for nbits in (8, 4, 2):
        config = {"nbits": nbits}
        with using(HqqEngine(WEIGHTS, device="cpu", backend="pytorch", quantization_config=config)) as engine:
            strayed.append(quality.against_reference(engine.model, chosen, tmp_path)["divergence"])
    assert 0 < strayed[0] < strayed[1] < strayed[2]


def test_rows_say_where_they_can_not_run(module: Any) -> None:
    rows = module("four_bit_rows").ROWS
    assert "bitsandbytes" in rows["int4"].why_not("cuda:0")
    assert rows["int4"].why_not("cpu") is None
    assert rows["hqq4"].why_not("cuda:0") is None


@pytest.mark.timeout(300)  # three processes that import torch
def test_the_table(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    short = ["--repeat", "1", "--seconds", "0.01", "--tokens", "100", "--dialogues", "8"]
    command = [sys.executable, str(BENCHMARKS / "four_bit.py"), "--device", "cpu", "--rows", "int4", *short]
    command += ["--json", str(found)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(found.read_text())["tables"][0]["rows"]
    peer, int4 = rows["generate"], rows["int4"]
    assert int4["linear_bytes"] < 0.30 * peer["linear_bytes"]
    assert int4["model_bytes"] < 0.45 * peer["model_bytes"]
    assert 0 < int4["divergence"] < 0.05
    assert int4["exact"] > 0.7 * int4["answers"] > 0
    assert all(int4[name] > 0 for name in ("prefill", "per_token", "peer_per_token", "load_seconds"))
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_an_unknown_row(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "four_bit.py"), "--rows", "int5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "there is no row 'int5'" in done.stderr
