"""OnnxEngine: models in ONNX format, run by onnxruntime-genai: small, and without torch."""

from __future__ import annotations

from .engine import OnnxEngine

__all__ = ["OnnxEngine"]
