"""What is installed is what the folders hold, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kani_lite
import kani_lite.engines

ROOT = Path(__file__).parent.parent
ROOMS = {"kani_lite": "kani_lite", "engines": "kani_lite/engines", "prompts": "kani_lite/prompts"}
LEFT_OUT = "engines/nano/training/"
ALLOWED = {  # what the core may import of the package: DESIGN's one-way imports
    "messages": {"exceptions"},
    "functions": {"messages", "exceptions"},
    "budget": {"messages", "exceptions", "functions", "engines.base"},
    "calls": {"messages", "exceptions", "rounds"},
    "streaming": {"messages", "model_stream", "engines.base"},
}


def folder_files() -> dict[str, Path]:
    """Where each file of the rooms goes in a wheel."""
    files = {}
    for room, target in ROOMS.items():
        for path in (ROOT / room).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name and not name.startswith(LEFT_OUT):
                files[f"{target}/{path.relative_to(ROOT / room).as_posix()}"] = path
    return files


def test_wheel_holds_what_the_folders_hold(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert held == set(folder_files())
    assert wheel.stat().st_size < 20_000_000


def test_list_of_packages_is_complete() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {str(Path(name).parent).replace("/", ".") for name in folder_files() if name.endswith("__init__.py")}
    assert set(listed) == found


@pytest.mark.parametrize(
    "module", ["kani_lite", "kani_lite.engines", "kani_lite.engines.base", "kani_lite.prompts.parsing"]
)
def test_core_imports_nothing_heavy(module: str) -> None:
    heavy = ("torch", "transformers", "vllm", "rich", "prompt_toolkit")
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == ""


def test_all_names_are_there() -> None:
    for module in (kani_lite, kani_lite.engines, kani_lite.prompts):
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None
        with pytest.raises(AttributeError):
            _ = module.no_such_name


def imports_of(path: Path) -> set[str]:
    """The modules of the core that a file imports, as `room` or `engines.base`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and path.parent.name == "kani_lite":
            found.add(node.module if node.module.startswith("engines") else node.module.split(".")[0])
    return found


def test_imports_point_one_way() -> None:
    for path in (ROOT / "kani_lite").glob("*.py"):
        imported = imports_of(path)
        assert not {m for m in imported if m.startswith("engines") and m != "engines.base"}, path
        if path.stem in ALLOWED:
            assert imported <= ALLOWED[path.stem], path


def test_files_and_functions_are_short() -> None:
    for room in [*ROOMS, "benchmarks", "examples"]:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert text.count("\n") <= 400, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
