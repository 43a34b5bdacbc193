"""`kani-lite convert onnx MODEL`: a model of transformers as a folder that OnnxEngine runs.

The work is done by the model builder of onnxruntime-genai, in a process of its own: it takes much memory, changes the
logging of its process and is made for the command line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import IO, Any

from kani_lite.exceptions import EngineError, MissingModelDependencies
from kani_lite.new_files import new_folder

from .files import CONFIG, read_folder

PRECISIONS = {
    "int4": "weights in 4 bits (the default)",
    "int8": "weights in 8 bits",
    "fp16": "weights in 16-bit floats; on a CPU slower than --fp32, and no prompt's beginning is reused",
    "fp32": "weights in 32-bit floats",
}
"""What the weights can be on a CPU, and what it means; the builder can't make bf16 for one."""

_DEFAULT = "int4"

_BLOCK_SIZES = (16, 32, 64, 128, 256)
_PACKAGES = ("onnxruntime_genai", "onnx", "onnx_ir", "torch", "transformers")
_BUILDER = "onnxruntime_genai.models.builder"
_EMBEDDED = "nano"
_LINES = 3  # of the builder's last words, in an error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; their names are those of `convert`."""
    precision = parser.add_mutually_exclusive_group()
    for name, about in PRECISIONS.items():
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=about)
    parser.set_defaults(precision=_DEFAULT)
    parser.add_argument(
        "--block-size",
        type=int,
        choices=_BLOCK_SIZES,
        default=32,
        help="weights that share a scale, with --int4 and --int8 (default: %(default)s)",
    )


def convert(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    precision: str = _DEFAULT,
    block_size: int = 32,
    token: str | bool | None = None,
) -> Path:
    """Makes the folder `out` of a model's folder, of its name on the hub, or of "nano", the embedded model; by default
    the model's name with the precision, in the working folder. Returns it.

    The folder appears when it is complete. Takes about the memory of the model in 32-bit floats. Raises EngineError if
    the model can't be converted or the folder is there and not empty, MissingModelDependencies if a package is missing.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision={precision!r} isn't possible on a CPU: give one of {', '.join(PRECISIONS)}.")
    if block_size not in _BLOCK_SIZES:
        sizes = ", ".join(map(str, _BLOCK_SIZES))
        raise EngineError(f"block_size={block_size} isn't possible: give one of {sizes}.")
    _check_packages()
    source = _find(model, token)
    name = Path(source.name).name if source.local else source.name.split("/")[-1]
    name = _EMBEDDED if model == _EMBEDDED else name
    target = Path(out).expanduser() if out is not None else Path(f"{name}-onnx-{precision}")
    with new_folder(target) as unfinished:
        _build(source, unfinished, precision, block_size)
        read_folder(unfinished)
    return target


def _check_packages() -> None:
    """None is imported yet, so that it takes no time."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise MissingModelDependencies(
                f"Converting a model needs the package {name!r}, which isn't installed: "
                "pip install 'kani-lite[onnx-convert]'"
            )


def _find(model: str | PathLike[str], token: str | bool | None) -> Any:
    """The model's Source. Raises EngineError if there is no such model."""
    from kani_lite.engines.huggingface.loading import find_source

    if model == _EMBEDDED and not Path(_EMBEDDED).exists():
        from kani_lite.engines.nano import WEIGHTS

        model = WEIGHTS
    source = find_source(model, token, False, {})
    if "gguf_file" in source.options:
        raise EngineError(f"{os.fspath(model)!r} is a GGUF file: give the model that it was made of.")
    return source


def _build(source: Any, folder: Path, precision: str, block_size: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    which = ["-i", os.path.abspath(source.name)] if source.local else ["-m", source.name]
    options = [f"block_size={block_size}"] if precision.startswith("int") else []
    token = source.options.get("token")
    # by default it demands one; "false" means the one that is stored, if there is one
    options.append(f"hf_token={token if isinstance(token, str) else 'false'}")
    offline = {"HF_HUB_OFFLINE": "1"} if source.options.get("local_files_only") else {}
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.cache.", dir=folder.parent) as work:
        cache = work if source.local else HF_HUB_CACHE
        command = [sys.executable, "-m", _BUILDER, *which, "-o", str(folder), "-p", precision, "-e", "cpu"]
        command += ["-c", cache, "--extra_options", *options]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | offline, check=False
            )
            if done.returncode or not (folder / CONFIG).is_file():
                raise EngineError(
                    f"Converting {source.described} to ONNX failed (the builder ended with {done.returncode}): "
                    f"{_last_words(log)}"
                )


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip(" ~^")]  # which only point at a place
    return " | ".join(lines[-_LINES:]) or "it said nothing."
