"""The embedded model: small, ours, in the package, so that everything works with no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kani_lite.engines.huggingface import HuggingEngine

WEIGHTS = Path(__file__).resolve().parent / "weights"


class NanoEngine(HuggingEngine):
    """A HuggingEngine on the embedded demonstration model; see `weights/README.md` for what it can do.

    Weights are in float32 unless `model_load_kwargs` says otherwise: at this size that is the fastest on a CPU.
    """

    def __init__(self, **kwargs: Any) -> None:
        """`kwargs`: as for HuggingEngine, without the model's name."""
        load = {"dtype": "float32", **kwargs.pop("model_load_kwargs", {})}
        super().__init__(str(WEIGHTS), model_load_kwargs=load, **kwargs)
