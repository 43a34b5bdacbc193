"""What an engine is limited to: its numbers checked, and the memory that it takes if it isn't told."""

from __future__ import annotations

import os

from kani_lite.exceptions import EngineError

_MEMORY = 2 * 2**30  # bytes for keys and values, where the system doesn't say how much memory there is


def check_least(**limits: tuple[float | None, int]) -> None:
    """(value, least) of each setting; None is not set. Raises EngineError for the first that is too small."""
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise EngineError(f"{name}={value} is too small: give at least {least}.")


def memory_bytes(kv_cache_memory_gb: float | None) -> int | None:
    """`kv_cache_memory_gb` (2**30 bytes) in bytes. Raises EngineError unless it is more than 0."""
    if kv_cache_memory_gb is None:
        return None
    if not kv_cache_memory_gb > 0:
        raise EngineError(f"kv_cache_memory_gb={kv_cache_memory_gb} is no amount of memory: give more than 0.")
    return int(kv_cache_memory_gb * 2**30)


def quarter_of_memory() -> int:
    """Bytes: a quarter of what the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return _MEMORY
