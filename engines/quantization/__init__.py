"""Weights in few bits on a CPU: the layers, the solver that finds their codes, and how transformers loads them.

Importing it lets transformers load folders that were saved in these formats.
"""

from .config import Int4Config, Int8Config
from .embedding import Int4Embedding
from .int4 import Int4Linear
from .int8 import Int8Linear
from .prequantized import PackedConfig, quantization_of
from .prequantized_layouts import PermutedLinear
from .quantizer import Int4Quantizer, Int8Quantizer
from .saving import reading_files_piecewise, save_quantized
from .solver import Quantized, quantize

__all__ = [
    "Int4Config",
    "Int4Embedding",
    "Int4Linear",
    "Int4Quantizer",
    "Int8Config",
    "Int8Linear",
    "Int8Quantizer",
    "PackedConfig",
    "PermutedLinear",
    "Quantized",
    "quantization_of",
    "quantize",
    "reading_files_piecewise",
    "save_quantized",
]
