"""One row of benchmarks/four_bit.py, in a process of its own, so that its memory is its own.

python four_bit_row.py JOB.json RESULT.json
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import torch
import transformers
from four_bit_measure import Memory, Ours, Peer, free_bytes, model_bytes, speeds
from four_bit_quality import against_reference, exact_answers, passages, write_reference
from four_bit_rows import PEER, ROWS, Job
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kani_lite.engines.huggingface.loading import default_device
from kani_lite.engines.nano import WEIGHTS
from kani_lite.exceptions import EngineError, MissingModelDependencies

_PROMPT, _SHORT = 512, 64  # tokens
_FIRST = [3] * 8  # any tokens, for a first short reply
_BESIDE = 1.3  # times its bytes must be free before the peer is loaded beside a model


def main() -> None:
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        result = measure(job)
    except (EngineError, MissingModelDependencies, torch.OutOfMemoryError) as error:
        result = {"refused": first_line(error)}
    except Exception as error:  # anything may go wrong in others' kernels; the table goes on and says so
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {first_line(error)}"}
    Path(sys.argv[2]).write_text(json.dumps(result))


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def measure(job: Job) -> dict[str, Any]:
    device = job.device or default_device()
    if reason := ROWS[job.row].why_not(device):
        return {"refused": reason}
    return measure_peer(job, device) if job.row == PEER else measure_engine(job, device)


# ==== the peer, first of all ====


def load_plain(model: str, dtype: torch.dtype, device: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()


def measure_peer(job: Job, device: str) -> dict[str, Any]:
    """transformers' bf16 model; leaves behind what the other rows are compared with."""
    Peer(load_plain(warm_up_model(job), torch.bfloat16, device)).seconds(_FIRST, 2)
    with Memory(device) as memory:
        begun = time.perf_counter()
        model = load_plain(job.model, torch.bfloat16, device)
        loading = time.perf_counter() - begun
        Peer(model).seconds(_FIRST, 2)  # mapped files count once they are read
    used = memory.used
    linear, whole = model_bytes(model)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    chosen, (prompt, short) = texts(job, tokenizer)
    found: dict[str, Any] = speeds(Peer(model), prompt, short, job.repeat, job.seconds)
    found["peer_per_token"] = found["per_token"]
    parameters = model.num_parameters()
    reference, kind = model, "bf16"
    if free_bytes(device) > _BESIDE * 4 * parameters:
        reference, kind = load_plain(job.model, torch.float32, device), "fp32"
    write_reference(reference, chosen, Path(job.scratch))
    return found | {
        "linear_bytes": linear,
        "model_bytes": whole,
        "peak_bytes": memory.peak,
        "used_bytes": used,
        "load_seconds": loading,
        **against_reference(model, chosen, Path(job.scratch)),
        "reference": kind,
        "tokens": sum(len(passage.scored) for passage in chosen),
        "parameters": parameters,
        "device": describe_device(device),
        "job": asdict(job),
    }


def describe_device(device: str) -> str:
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU, {torch.get_num_threads()} torch threads"


def texts(job: Job, tokenizer: Any) -> tuple[list[Any], tuple[list[int], list[int]]]:
    """What quality is measured on, and the prompts of speed: 512 and 64 tokens of the same."""
    chosen = passages(job.embedded, job.text, tokenizer, job.tokens)
    if not chosen:
        raise EngineError("The text has no two tokens: give a longer --text.")
    ids = [token for passage in chosen for token in passage.ids]
    ids *= -(-_PROMPT // len(ids))
    return chosen, (ids[:_PROMPT], ids[:_SHORT])


# ==== an engine ====


def measure_engine(job: Job, device: str) -> dict[str, Any]:
    make = ROWS[job.row].make
    assert make is not None
    options = {"device": device, "temperature": 0, "ignore_eos": True, "max_cached_prompts": 0}
    # a small model first: what is imported and which threads start for this row is not the model's memory or time
    small = make(warm_up_model(job), options)
    Ours(small).seconds(_FIRST, 2)
    close(small)
    with Memory(device) as memory:
        begun = time.perf_counter()
        engine = make(job.model, options)
        loading = time.perf_counter() - begun
        ours = Ours(engine)
        ours.seconds(_FIRST, 2)  # bitsandbytes lays its weights out when they are first used
    used = memory.used
    chosen, (prompt, short) = texts(job, engine.tokenizer)
    linear, whole = model_bytes(engine.model)
    # before this thread computes anything itself
    found: dict[str, Any] = speeds(ours, prompt, short, job.repeat, job.seconds)
    found |= quality(job, engine.model, chosen)
    found["peer_per_token"] = peer_result(job)["per_token"]
    close(engine)
    return found | {
        "linear_bytes": linear,
        "model_bytes": whole,
        "peak_bytes": memory.peak,
        "used_bytes": used,
        "load_seconds": loading,
        "backends": sorted(set(getattr(engine, "backends", {}).values())),
    }


def quality(job: Job, model: Any, chosen: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = against_reference(model, chosen, Path(job.scratch))
    if job.embedded and job.dialogues:
        found["exact"], found["answers"] = exact_answers(model, job.dialogues)
    return found


def peer_result(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(job.scratch) / f"{PEER}.json").read_text())
    return found


def close(engine: Any) -> None:
    anyio.run(engine.close)


def warm_up_model(job: Job) -> str:
    """A Llama of one layer, made once."""
    folder = Path(job.scratch) / "small"
    if not folder.exists():
        config = LlamaConfig(
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=1024,
            eos_token_id=2,
            bos_token_id=None,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
