"""The programs of docs/vllm.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "vllm.md"
PROGRAMS = re.findall(r"^```python3\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program(program: str, tmp_path: Path, model: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(re.sub(r"^MODEL = .*$", f"MODEL = {str(model)!r}", program, flags=re.MULTILINE))
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Hello" in done.stdout


def test_there_are_programs() -> None:
    assert PROGRAMS
