"""What two prompts share: the reason why a chat's next round is cheap."""

from __future__ import annotations

from collections.abc import Sequence

TAIL = 32
"""Tokens; re-rendering a reply changes about this much of its end."""


def common_prefix(a: Sequence[int], b: Sequence[int], step: int = 512) -> int:
    """How many ids are the same at the start. Compares slices first: that loop is C."""
    end = min(len(a), len(b))
    at = 0
    while at < end and a[at : min(at + step, end)] == b[at : min(at + step, end)]:
        at = min(at + step, end)
    while at < end and a[at] == b[at]:
        at += 1
    return at
