"""The tensors of a transformers folder as numpy arrays, read one at a time and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kani_lite.exceptions import EngineError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_MOST_HEADER = 100_000_000  # bytes; the format's own limit
_TYPES: Mapping[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in a safetensors file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> NDArray[np.float32]:
        """Its values; takes memory for this tensor alone."""
        values = np.memmap(self.file, _TYPES[self.dtype], "r", self.start, self.shape or (1,)).reshape(self.shape)
        if self.dtype == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model by name. Raises EngineError if a file is missing or broken, or if a tensor is of a type
    that isn't a float."""
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        names = sorted(set(index["weight_map"].values()))
    else:
        names = [_SINGLE]
    found: dict[str, StoredTensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise EngineError(f"The folder {str(folder)!r} has no {name}: give a model in safetensors.")
        found |= _tensors_of(folder / name)
    return found


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    """The format: 8 bytes with the header's length, the header as JSON, the data."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise EngineError(f"{str(file)!r} is no safetensors file: fetch it again.")
        header = json.loads(opened.read(length))
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise EngineError(
                f"The tensor {name!r} is stored as {entry['dtype']}, so this model is quantised already: give the "
                "model that it was made of."
            )
        begin, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise EngineError(f"{str(file)!r} ends before the tensor {name!r} does: fetch it again.")
        found[name] = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), 8 + length + begin)
    return found
