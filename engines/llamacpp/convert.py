"""`kani-lite convert gguf MODEL`: a Llama-like model of transformers as a GGUF file, without torch."""

from __future__ import annotations

import argparse
import json
import os
import struct
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import EngineError
from kani_lite.new_files import new_file

from .package import gguf_package

if TYPE_CHECKING:
    from .convert_model import NewTensor

TYPES = ("f16", "bf16", "f32", "q8_0", "q4_0")
"""What the weights can be. Norms and biases stay in f32, as llama.cpp wants them; with q4_0 the embedding and the
output layer are q8_0, which costs little and keeps most of the quality."""

_EMBEDDED = "nano"
_NOT_Q4 = ("token_embd.weight", "output.weight")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; their names are those of `convert`."""
    parser.add_argument("--type", choices=TYPES, default=TYPES[0], help="what the weights are (default: %(default)s)")


def convert(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    type: str = "f16",  # noqa: A002  # the option's name
    token: str | bool | None = None,
) -> Path:
    """Makes the file `out` (or a file in the folder `out`) of a model's folder, of its name on the hub, or of "nano",
    the embedded model; by default the model's name with the type, in the working folder. Returns it.

    The file appears when it is complete. Takes the memory of the largest tensor in f32 a few times. Raises EngineError
    if the model can't be converted or the file is there, MissingModelDependencies if a package is missing.
    """
    if type not in TYPES:
        raise EngineError(f"type={type!r} is none that a GGUF file is made with here: give one of {', '.join(TYPES)}.")
    for name in ("numpy", "gguf"):  # what is imported below needs them
        gguf_package(name)
    folder, name = _folder(model, token)
    target = Path(f"{name}-{type}.gguf")
    try:
        target = _target(out, target.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target) as unfinished:
            _write(folder, name, type, unfinished)
    except OSError as error:
        place = str(target if out is None else out)
        raise EngineError(f"{place!r} can't be made ({error}): give another place for it, or make room.") from error
    return target


def _folder(model: str | PathLike[str], token: str | bool | None) -> tuple[Path, str]:
    """(the folder with the model, its name)."""
    path = Path(model).expanduser()
    if model == _EMBEDDED and not path.exists():
        return Path(__file__).resolve().parents[1] / "nano" / "weights", _EMBEDDED
    if path.is_file():
        raise EngineError(f"{str(path)!r} is a file: give the folder of a model, with its config.json.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise EngineError(f"The folder {str(path)!r} has no config.json: give the folder of a model.")
        return path, path.resolve().name
    from .hub import fetch_model

    return fetch_model(os.fspath(model), token), os.fspath(model).split("/")[-1]


def _target(out: str | PathLike[str] | None, name: str) -> Path:
    target = Path(out).expanduser() if out is not None else Path(name)
    target = target / name if target.is_dir() else target
    if target.exists():
        raise EngineError(f"{str(target)!r} is there already: give another name, or remove it.")
    return target


def _write(folder: Path, name: str, kind: str, path: Path) -> None:
    from gguf import GGUFWriter, LlamaFileType

    from .convert_model import add_settings, model_shape, new_tensors
    from .convert_tokenizer import add_tokenizer
    from .weights import stored_tensors

    config = _json(folder / "config.json")
    generation, settings = (_json(folder / f"{each}_config.json", {}) for each in ("generation", "tokenizer"))
    try:
        shape = model_shape(config, settings)
        stored = stored_tensors(folder)
        tensors = list(new_tensors(stored, config, shape))
        writer = GGUFWriter(None, shape.architecture)
        writer.add_type("model")
        writer.add_name(name)
        file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
        writer.add_file_type(LlamaFileType[file_type])
        writer.add_quantization_version(2)  # of ggml's blocks
        add_settings(writer, config, shape, generation)
        rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
        add_tokenizer(writer, folder, config, rows)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        raise EngineError(f"The files in {str(folder)!r} can't be understood ({error!r}): fetch them again.") from error
    _write_tensors(writer, tensors, kind, path)


def _write_tensors(writer: Any, tensors: Sequence[NewTensor], kind: str, path: Path) -> None:
    """One tensor at a time: their places are written before their values are known."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape, quantize

    kinds = {tensor.name: GGMLQuantizationType[kind_of(tensor, kind).upper()] for tensor in tensors}
    for tensor in tensors:
        chosen = kinds[tensor.name]
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(chosen)
        shape = tensor.shape if plain else quant_shape_to_byte_shape(tensor.shape, chosen)
        dtype = np.dtype(plain or np.uint8)
        writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, chosen)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(quantize(tensor.values(), kinds[tensor.name]))
    except struct.error as error:
        raise EngineError(f"A number of the model's config doesn't fit into GGUF ({error}): fetch it again.") from error
    finally:
        writer.close()


def kind_of(tensor: NewTensor, kind: str) -> str:
    """What this tensor's values are written as, in a file of this type."""
    if len(tensor.shape) < 2:
        return "f32"
    if kind == "q4_0" and tensor.name in _NOT_Q4:
        kind = "q8_0"
    return "f16" if kind.startswith("q") and tensor.shape[-1] % 32 else kind


def _json(path: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a file holds, or `otherwise` if that is given and there is no file."""
    if otherwise is not None and not path.is_file():
        return otherwise
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise EngineError(f"{str(path)!r} can't be read ({error}): fetch it again.") from error
