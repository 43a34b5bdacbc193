"""The short form of `make soak`."""

from __future__ import annotations

from pathlib import Path

from tests.support.soak import soak


async def test_nothing_is_left_over(tmp_path: Path) -> None:
    happened = await soak(tmp_path, chats=30, rounds=4)
    assert all(happened[kind] for kind in ("whole", "cancel", "disconnect", "error"))
