from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

# machines are shared: how long an example takes says nothing
settings.register_profile("kani_lite", deadline=None)
settings.load_profile("kani_lite")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fails a test that blocks the event loop (asyncio: that is where it can look)."""
    if "anyio_backend" not in request.fixturenames:
        yield None
        return
    with blockbuster_ctx() as found:
        # imports that happen on first use read files
        found.functions["os.stat"].can_block_in("<frozen importlib._bootstrap>", "_find_and_load")
        found.functions["io.BufferedReader.read"].can_block_in("<frozen importlib._bootstrap>", "_find_and_load")
        yield found
