"""AMD PACE's interface on the local runtime: `LLMModel` and `SamplingConfig` (https://github.com/amd/AMD-PACE).

A program written for PACE runs after changing its imports to this package. `AutoTokenizer` stands in for that of
transformers, for programs that call `batch_encode_plus`.
"""

from .config import KVCacheType, SamplingConfig
from .loading import AutoTokenizer
from .model import GeneratorOutput, LLMModel

__all__ = ["AutoTokenizer", "GeneratorOutput", "KVCacheType", "LLMModel", "SamplingConfig"]
