"""How much memory quantising and loading take at most, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from random_models import save_random_llama

SHARD = 40  # megabytes
PROGRAM = """
import sys, threading, time
import psutil, torch
from kani_lite.engines.hqq.config import LayerSettings
from kani_lite.engines.hqq.files import WEIGHTS, module_states
from kani_lite.engines.hqq.loader import HqqLoader
from kani_lite.engines.quantization import reading_files_piecewise
from kani_lite.engines.quantization.int4 import Int4Linear, Portable

folder, saved, tiny, backend, nbits = sys.argv[1:]
Int4Linear.from_portable(Portable.solve(torch.randn(1024, 1024), 64))(torch.randn(1, 1024))  # starts torch's threads
process, peak, done = psutil.Process(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)

now = folder != saved
settings = LayerSettings.read({"nbits": int(nbits)}) if now else None
loader = HqqLoader(settings, None, backend, torch.bfloat16, "cpu", False, None, quantize_embeddings=True)
HqqLoader(None, None, backend, torch.bfloat16, "cpu", False, None).from_pretrained(tiny, output_loading_info=True)
before = process.memory_info().rss
threading.Thread(target=watch).start()
with reading_files_piecewise():
    model, _ = loader.from_pretrained(folder, output_loading_info=True)
done = True
size = sum(p.nbytes for p in model.parameters()) + sum(getattr(m, "num_bytes", 0) for m in model.modules())
print(peak - before, size)
if now:
    model.config.save_pretrained(saved)
    torch.save(module_states(model), f"{saved}/{WEIGHTS}")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 450 MB, in shards."""
    folder = tmp_path_factory.mktemp("large")
    size = save_random_llama(
        folder,
        SHARD,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=80,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=4000,
    )
    assert size > 440e6
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="holes are given back on Linux alone")
@pytest.mark.timeout(900)  # two processes that load 450 MB each, on a machine that may be busy
@pytest.mark.parametrize(
    ("backend", "nbits", "most"), [("cpu_int4", 4, 0.30), pytest.param("pytorch", 8, 0.54, marks=pytest.mark.long)]
)
def test_peak_memory_and_size(
    large: Path, model_dir: Path, tmp_path: Path, backend: str, nbits: int, most: float
) -> None:
    original = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    for folder in (large, tmp_path):
        command = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path), str(model_dir), backend, str(nbits)]
        peak, size = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        assert peak < 1.3 * max(size, SHARD * 10**6), (folder, peak / size)
        assert size < most * original
