"""The programs of docs/llamacpp.md run as they stand, and say what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "llamacpp.md").read_text("utf-8")
PROGRAMS = re.findall(r"^```python3\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program(program: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(program)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line.removeprefix("#> ") for line in program.splitlines() if line.startswith("#> ")]
    assert said
    assert done.stdout.splitlines() == said


def test_the_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    from kani_lite.engines.llamacpp.convert import TYPES, convert

    rows = dict(re.findall(r"^\| `(\w+)`.*\| ([\d.]+) MB \|$", PAGE, flags=re.MULTILINE))
    sizes = {kind: f"{convert('nano', tmp_path, type=kind).stat().st_size / 1e6:.1f}" for kind in TYPES}
    assert rows == sizes
