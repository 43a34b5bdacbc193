"""What quantised weights save and cost: memory, time and quality, with and without, beside transformers' `generate`.

    python benchmarks/four_bit.py [MODEL ...] [--random [SIZE]] [--rows none,int4,hqq4] [--device cpu] [--text FILE]
        [--repeat 3] [--tokens 2048] [--dialogues 300] [--json FILE]

MODEL is a folder or a hub name; "nano", the default, is the embedded model, and `--random` a random Llama of
benchmarks/models.py. It runs on the GPU if there is one. Each row is measured in a process of its own; a row that can't
be had says why.

Linear layers (without the output layer) and the whole model are in bytes of their bf16 form. Memory is the GPU's, or
the process's resident set: its peak while the model loads and writes a first word, and what stays. Speed is one chat's,
and `generate` writes on the same weights in bf16 in turn with it. Divergence is that of the next-token distributions
from those of the unquantised model in fp32 (in bf16 where that doesn't fit into memory), on pages of docs/ or `--text`;
for the embedded model on its own answers in dialogues that it never saw, and "exact" is the share of answers that it
gets right to the letter in its evaluation. Of random weights perplexity would say nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from four_bit_rows import PEER, ROWS, Job
from machine import describe

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "benchmarks"
NANO = HERE.parent / "engines" / "nano" / "weights"
PAGES = ("rounds.md", "prompts.md", "runtime.md", "engines.md", "quick-start.md")
COLUMNS = (
    "",
    "linear layers / bf16",
    "model / bf16",
    "model, MB",
    "peak, MB",
    "in use, MB",
    "load, s",
    "512 tokens, s",
    "ms / token",
    "times `generate`",
    "perplexity",
    "divergence, nats",
    "same first choice",
    "exact",
)


def main() -> int:
    args = arguments()
    print(describe("torch", "transformers", "bitsandbytes", "hqq"), flush=True)
    tables: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, job) in enumerate(jobs(args)):
            folder = Path(scratch, str(number))
            folder.mkdir()
            tables.append({"model": name, "rows": table(name, replace(job, scratch=str(folder)), args)})
    if args.json:
        found = {"machine": describe("torch", "transformers", "bitsandbytes", "hqq"), "tables": tables}
        args.json.write_text(json.dumps(found, indent=1))
    return int(any("failed" in row for one in tables for row in one["rows"].values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--random", nargs="?", const="430M", metavar="SIZE", help="a random Llama; 430M if no size is")
    parser.add_argument("--rows", help=f"of {', '.join(ROWS)}; by default all, fp32 for the embedded model alone")
    parser.add_argument("--device", default="", help="by default the GPU if there is one")
    parser.add_argument("--text", type=Path, help="a text file to measure quality on")
    parser.add_argument("--repeat", type=int, default=Job.repeat)
    parser.add_argument("--seconds", type=float, default=Job.seconds, help="of one measurement of speed, about")
    parser.add_argument("--tokens", type=int, default=Job.tokens, help="of the text")
    parser.add_argument("--dialogues", type=int, default=Job.dialogues, help="of the embedded model's evaluation")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a row may take")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := [row for row in (args.rows or PEER).split(",") if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}: give some of {','.join(ROWS)}")
    return args


def jobs(args: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    """Each model's name, and what is to be measured of it."""
    text = [args.text.read_text("utf-8")] if args.text else []
    pages = text or [(HERE.parent / "docs" / page).read_text("utf-8") for page in PAGES]
    common = Job("", "", args.device, "", pages, False, args.repeat, args.seconds, args.tokens, args.dialogues)
    for model in args.models or ([] if args.random else ["nano"]):
        if model == "nano":
            yield "the embedded model", replace(common, model=str(NANO), text=text, embedded=True)
        else:
            yield model, replace(common, model=model)
    if args.random:
        import torch  # only this makes a model here
        from models import SIZES, random_llama

        if args.random not in SIZES:
            raise SystemExit(f"There is no random Llama of {args.random!r}: give one of {', '.join(SIZES)}.")
        folder = random_llama(FOLDER, args.random, torch.bfloat16)
        yield f"a random Llama, {args.random}", replace(common, model=str(folder))


def table(name: str, job: Job, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures and prints each row as soon as it is known."""
    random = name.startswith("a random")
    peer = run(replace(job, row=PEER), args.limit)
    rows = {PEER: peer}
    print(f"\n## {name}\n")
    if "device" not in peer:
        print(f"can't be measured: {peer.get('refused') or peer.get('failed')}", flush=True)
        return rows
    print(f"{peer['device']}; {peer['parameters'] / 1e6:.1f} M parameters; quality on {peer['tokens']:,} tokens beside")
    print(f"the unquantised model in {peer['reference']}; speeds are medians of {job.repeat}.\n")
    print("| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 1))
    print(line(ROWS[PEER].label, peer, peer, random), flush=True)
    asked = args.rows.split(",") if args.rows else [row for row in ROWS if job.embedded or row != "fp32"]
    for row in asked:
        if row == PEER:
            continue
        rows[row] = run(replace(job, row=row), args.limit)
        print(line(ROWS[row].label, rows[row], peer, random), flush=True)
    return rows


def run(job: Job, limit: float) -> dict[str, Any]:
    """What the row's process found, or {"refused": why} or {"failed": why}."""
    asked, found = (Path(job.scratch, f"{job.row}.{kind}") for kind in ("job", "json"))
    asked.write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-W", "ignore", str(HERE / "four_bit_row.py"), str(asked), str(found)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {limit:.0f} s"}
    if not found.exists():
        print(done.stderr, file=sys.stderr)
        code = done.returncode
        return {"failed": f"ended by signal {-code}, perhaps for memory" if code < 0 else f"ended with status {code}"}
    result: dict[str, Any] = json.loads(found.read_text())
    if "failed" in result:
        print(done.stderr, file=sys.stderr)
    return result


def line(label: str, row: dict[str, Any], peer: dict[str, Any], random: bool) -> str:
    """A row of the table in Markdown."""
    if reason := row.get("refused") or row.get("failed"):
        return f"| {label} | " + f"not here: {reason}".replace("|", "/") + " |" * (len(COLUMNS) - 1)
    cells = [
        label,
        f"{row['linear_bytes'] / peer['linear_bytes']:.3f}",
        f"{row['model_bytes'] / peer['model_bytes']:.3f}",
        f"{row['model_bytes'] / 1e6:,.1f}",
        f"{row['peak_bytes'] / 1e6:,.0f}",
        f"{row['used_bytes'] / 1e6:,.0f}",
        f"{row['load_seconds']:.1f}",
        f"{row['prefill']:.3f}",
        f"{1000 * row['per_token']:.2f}",
        f"{row['peer_per_token'] / row['per_token']:.2f}",
        "" if random else f"{row['perplexity']:.4g}",
        f"{row['divergence']:.2g}",
        f"{100 * row['same']:.1f} %",
        f"{100 * row['exact'] / row['answers']:.1f} %" if row.get("answers") else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
