"""The package `hqq`, imported when it is first needed."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch

from kani_lite.exceptions import MissingModelDependencies

_PIECE = 2**18  # codes


def hqq_module(name: str) -> Any:
    """A module of hqq. Raises MissingModelDependencies if the package isn't installed."""
    with warnings.catch_warnings():
        # hqq decorates functions with torch.compile, and this torch's compiler warns of its own code at import
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        try:
            return import_module(f"hqq.{name}")
        except ModuleNotFoundError as error:
            missing = (error.name or "hqq").split(".")[0]
            raise MissingModelDependencies(
                f"HqqEngine needs the package {missing!r}, which isn't installed: pip install 'kani-lite[hqq]'"
            ) from error


def pack(codes: Any, packing: str) -> Any:
    """Codes (rows, columns) as hqq keeps them: rows far apart share one byte, or one int32 for 3 bits. It is done by
    columns, since hqq makes int32 of what it packs."""
    function = getattr(hqq_module("core.bitpack").BitPack, f"pack_{packing}")
    pieces = codes.split(max(1, _PIECE // len(codes)), 1)
    return function(codes) if len(pieces) == 1 else torch.cat([function(piece) for piece in pieces], 1)
