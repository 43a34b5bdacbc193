from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
from openai_server import Script, serving

pytest.importorskip("openai")

from kani_lite.engines.openai import OpenAIEngine
from kani_lite.engines.wrappers import Backoff

Serve = Callable[..., Awaitable[tuple[Script, OpenAIEngine]]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server with these steps, or this script, and an engine for it."""
    with ExitStack() as servers:
        engines: list[OpenAIEngine] = []

        async def start(*steps: Any, script: Script | None = None, **options: Any) -> tuple[Script, OpenAIEngine]:
            script = script or Script(list(steps))
            await anyio.to_thread.run_sync(servers.enter_context, serving(script))
            given = {"api_base": script.url, "model": "m", "max_context_size": 4096, "backoff": Backoff(0.0)} | options
            # it may ask the server, which takes time
            engines.append(await anyio.to_thread.run_sync(partial(OpenAIEngine, **given)))
            return script, engines[-1]

        yield start
        for engine in engines:
            await engine.close()
        await anyio.to_thread.run_sync(servers.close)
