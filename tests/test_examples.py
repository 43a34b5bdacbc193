"""Each example runs as it stands, and says what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "quick_start.py": ["Nice to meet you, Ada!", "Your name is Ada."],
    "tool_agent.py": [
        'CALL: get_price({"product": "honey"})',
        "AI: The price of honey is 6.0 euros.",
        "orders: [('coffee', 3)]",
    ],
    "custom_prompt_engine.py": ["my favorite color? -> Your favorite color is teal."],
}


def test_all_are_listed() -> None:
    assert sorted(p.name for p in EXAMPLES.glob("*.py")) == sorted(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for line in SAYS[name]:
        assert line in done.stdout
