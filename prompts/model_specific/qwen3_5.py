"""Qwen 3.5, whose chat template takes the same as that of Qwen 3."""

from __future__ import annotations

from .qwen3 import build_prompt_pipeline

__all__ = ["build_prompt_pipeline"]
