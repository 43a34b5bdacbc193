"""Giving freed memory back to the system while a model loads."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_INTERVAL = 2**23  # bytes; asking takes about a millisecond


class Trimmer:
    """glibc keeps what is freed among what is in use, and loading a model frees a weight as it was saved for each one
    that it quantises: up to half of the peak would be such holes. Elsewhere it does nothing."""

    def __init__(self) -> None:
        self._freed = 0

    def freed(self, count: int) -> None:
        """Notes that so many bytes were freed, or will be shortly."""
        self._freed += count
        if self._freed >= _INTERVAL and (trim := _malloc_trim()) is not None:
            trim(0)
            self._freed = 0


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
