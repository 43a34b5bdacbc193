"""Models whose linear layers are quantised by HQQ: weights in 8 to 1 bits, without calibration data.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs, 2023), and the
package `hqq`, whose file format is read and written here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kani_lite._lazy import lazy

if TYPE_CHECKING:
    from .config import HqqConfig
    from .engine import HqqEngine

__all__ = ["HqqConfig", "HqqEngine"]

__getattr__ = lazy(__name__, {"HqqConfig": "config", "HqqEngine": "engine"})


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
