"""How much memory loading takes at most, in a process of its own."""

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
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from kani_lite.engines.quantization import *
from kani_lite.engines.quantization.int4 import Portable

folder, saved = sys.argv[1:]
Int4Linear.from_portable(Portable.solve(torch.randn(1024, 1024), 64))(torch.randn(1, 1024))  # starts torch's threads
process, peak, done = psutil.Process(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)

before = process.memory_info().rss
threading.Thread(target=watch).start()
options = {} if folder == saved else {"quantization_config": Int4Config(quantize_embeddings=True)}
with reading_files_piecewise():
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options)
done = True
size = sum(p.nbytes for p in model.parameters()) + sum(getattr(m, "num_bytes", 0) for m in model.modules())
print(peak - before, size)
if folder != saved:
    save_quantized(model, None, saved)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="holes are given back on Linux alone")
@pytest.mark.timeout(300)  # three processes that load 300 MB each
def test_peak_memory(tmp_path: Path) -> None:
    size = save_random_llama(
        tmp_path / "model",
        SHARD,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=8000,
    )
    assert size > 280e6
    for folder in ("model", "saved"):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / folder), str(tmp_path / "saved")]
        peak, size = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        assert peak < 1.3 * max(size, SHARD * 10**6), (folder, peak / size)
