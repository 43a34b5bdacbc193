"""Every Python block of the README and the docs runs, and prints what its `#>` lines say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pytest_examples import CodeExample, find_examples

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("example", list(find_examples(*map(str, PAGES))), ids=str)
def test_code_block(example: CodeExample, capsys: pytest.CaptureFixture[str]) -> None:
    if not example.prefix_tags() & {"python", "py"}:
        pytest.skip("not Python")
    exec(compile(example.source, str(example), "exec"), {"__name__": "__main__"})
    said = re.findall(r"^ *#> (.*)$", example.source, flags=re.MULTILINE)
    if said:
        assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
