"""Time to first token, tokens a second, memory, import and load time of every engine, on the embedded model.

    python benchmarks/engines.py [--only nano vllm ...] [--python vllm=PATH] [--python llamacpp=PATH] [--repeats 3]
        [--tokens 128] [--processes 3] [--limit 900] [--json FILE]

Every engine has the same weights, on a CPU, and runs as it does by default, but vLLM without compiling. Beside them, in
the same run, is a bare `model.generate` of transformers in float32. Each row is measured in processes of its own,
one at a time: all once, then all again, `--processes` times; figures are medians. A row that can't be had says why.

vLLM and llama.cpp are looked for in the environments that `make test-vllm` and `make test-llamacpp` make, if they are
there, or else where this runs; `--python` says where instead (main, vllm or llamacpp).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from engines_rows import CHATS, MODEL, PEER, ROWS, Job, Row
from machine import describe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = ("main", "vllm", "llamacpp")
FIGURES = {  # a sample's name: its column, what it is divided by for that, digits
    "import": ("import, s", 1, 2),
    "load": ("load, s", 1, 2),
    "first_reply": ("first reply, ms", 1e-3, 0),
    "new_prompt": ("first token, new prompt, ms", 1e-3, 1),
    "later_round": ("first token, later round, ms", 1e-3, 1),
    "one_chat": ("1 chat, tokens/s", 1, 0),
    "eight_chats": (f"{CHATS} chats, tokens/s", 1, 0),
    "peak": ("peak, MB", 1e6, 0),
}
COLUMNS = ("", *(column for column, _, _ in FIGURES.values()), "same replies")
_IMPORTS = 3  # samples of the time to import, at least
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # vLLM on a CPU: 1 GiB of keys and values is plenty here, and compiling takes minutes
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def main() -> int:
    args = arguments()
    machine = describe("torch", "transformers", "onnxruntime-genai", "hqq")
    print(machine, flush=True)
    names = [PEER, *(name for name in ROWS if name != PEER and name in (args.only or ROWS))]
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(names, args, Path(scratch))
    for room in ROOMS:
        rows = [row.get("versions", {}) for name, row in found.items() if ROWS[name].room == room]
        if versions := {f"{package} {version}" for row in rows for package, version in row.items()}:
            print(f"{room}: {', '.join(sorted(versions))}")
    for name, row in found.items():
        if "prompts" in row:
            (new, known), (later, kept) = row["prompts"]
            say(f"{name}: a new prompt had {new} tokens ({known} known), the next round {later} ({kept} known)")
    print("\n| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 1))
    for name, row in found.items():
        print(line(ROWS[name].label, row, found[PEER]))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "tokens": args.tokens, "rows": found}, indent=1))
    return int(any("failed" in row for row in found.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*ROWS], metavar="ENGINE", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--python", action="append", default=[], metavar="ROOM=PATH", help=f"of {', '.join(ROOMS)}")
    parser.add_argument("--repeats", type=int, default=3, help="samples of a figure in each process")
    parser.add_argument("--tokens", type=int, default=128, help="of a reply whose speed is measured")
    parser.add_argument("--processes", type=int, default=3, help="of each row")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a process may take")
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    args = parser.parse_args()
    if args.tokens < 2 or args.repeats < 1 or args.processes < 1:
        parser.error("give at least 2 --tokens, 1 of --repeats and 1 of --processes")
    args.pythons = {room: default_python(room) for room in ROOMS}
    for given in args.python:
        room, _, path = given.partition("=")
        if room not in ROOMS or not Path(path).is_file():
            parser.error(f"--python {given}: give {', '.join(ROOMS[:-1])} or {ROOMS[-1]}, = and an interpreter")
        # not resolved: a virtual environment's interpreter is a link, and must be called by its own name
        args.pythons[room] = os.path.abspath(path)
    return args


def default_python(room: str) -> str:
    own = ROOT / f".venv-{room}" / "bin" / "python"
    return str(own) if room != "main" and own.is_file() else sys.executable


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(names: list[str], args: argparse.Namespace, scratch: Path) -> dict[str, dict[str, Any]]:
    """Everything that was found of each row: samples, or why there are none."""
    found = {name: prepared(name, args.pythons, scratch) for name in names}
    for number in range(args.processes):
        for name in names:  # one after the other, so that no row has the machine's best or worst minutes to itself
            if not stopped(found[name]):
                say(f"{number + 1} of {args.processes}: {ROWS[name].label}")
                job = Job(name, found[name]["model"], args.tokens, args.repeats)
                imports = -(-_IMPORTS // args.processes)
                add(found[name], run(job, args.pythons[ROWS[name].room], scratch, args.limit, imports))
    return found


def stopped(row: Mapping[str, Any]) -> bool:
    return "refused" in row or "failed" in row


def prepared(name: str, pythons: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """Where the row's model is, converted if need be; or {"refused": why}."""
    row = ROWS[name]
    python = pythons[row.room]
    if missing := missing_packages(row, python):
        return {"refused": f"the package {missing[0]} isn't installed"}
    if row.convert is None:
        return {"model": MODEL}
    kind, *options = row.convert
    model = scratch / (f"{name}.gguf" if kind == "gguf" else name)
    say(f"converting the model for {row.label}")
    command = [python, "-P", "-W", "ignore", "-m", "kani_lite", "convert", kind, "nano", str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        return {"failed": f"converting: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"}
    return {"model": str(model)}


def missing_packages(row: Row, python: str) -> list[str]:
    code = "import sys; from importlib.util import find_spec; print(*[p for p in sys.argv[1:] if find_spec(p) is None])"
    command = [python, "-P", "-c", code, "kani_lite", *row.packages]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def environment() -> dict[str, str]:
    return ENVIRONMENT | os.environ


def run(job: Job, python: str, scratch: Path, limit: float, imports: int) -> dict[str, Any]:
    """What fresh processes found, or {"refused": why} or {"failed": why}. `imports`: how often importing is timed."""
    asked, written = (scratch / f"{job.row}.{kind}" for kind in ("job", "json"))
    asked.write_text(json.dumps(asdict(job)))
    written.unlink(missing_ok=True)
    command = [python, "-W", "ignore", str(HERE / "engines_row.py"), str(asked), str(written)]
    try:
        seconds = [import_seconds(ROWS[job.row], python) for _ in range(imports)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=environment())
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {limit:.0f} s"}
    except subprocess.CalledProcessError as error:
        return {"failed": f"importing it: {(error.stderr.strip().splitlines() or ['no reason given'])[-1]}"}
    if not written.exists():
        say(done.stderr)
        code = done.returncode
        return {"failed": f"ended by signal {-code}, perhaps for memory" if code < 0 else f"ended with status {code}"}
    result: dict[str, Any] = json.loads(written.read_text())
    if "failed" in result:
        say(done.stderr)
    return result if stopped(result) else result | {"import": seconds}


def import_seconds(row: Row, python: str) -> float:
    """Of a fresh process, without the interpreter's own start."""
    code = f"import time; begun = time.perf_counter(); {row.imports}; print(time.perf_counter() - begun)"
    command = [python, "-P", "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return float(done.stdout.split()[-1])


def add(row: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Samples go to those of earlier processes; all else is the last process's."""
    for name, value in more.items():
        row[name] = row.get(name, []) + value if name in FIGURES else value


def line(label: str, row: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    """A row of the table in Markdown; in brackets how many times the peer's each figure is."""
    if reason := row.get("refused") or row.get("failed"):
        return f"| {label} | " + f"not here: {reason}".replace("|", "/").replace("\n", " ") + " |" * (len(COLUMNS) - 1)
    cells = [label]
    for name, (_, unit, digits) in FIGURES.items():
        value = median(row[name])
        ratio = "" if row is peer or name not in peer else f" ({value / median(peer[name]):.2f})"
        cells.append(f"{value / unit:,.{digits}f}{ratio}")
    replies = peer.get("replies", [])
    same = sum(ours == theirs for ours, theirs in zip(row["replies"], replies, strict=False))
    return "| " + " | ".join([*cells, f"{same} of {len(replies)}"]) + " |"


if __name__ == "__main__":
    sys.exit(main())
