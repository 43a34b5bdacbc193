"""The short form of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.soak import soak


@pytest.mark.parametrize("cache", ["bmc", "paged"])
async def test_nothing_is_left_over(tmp_path: Path, cache: str) -> None:
    happened = await soak(tmp_path, chats=30, rounds=4, cache=cache)
    assert all(happened[kind] for kind in ("whole", "cancel", "disconnect", "error"))
