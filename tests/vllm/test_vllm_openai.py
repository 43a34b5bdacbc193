"""OpenAIEngine with vLLM's real server, which writes the prompts and reads the calls itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from kani_lite import ChatMessage, Kani
from kani_lite.engines import OpenAIEngine
from kani_lite.testing import ENGINE_CASES, EngineCase
from tests.vllm.test_vllm_conformance import PROFILE

pytestmark = [
    pytest.mark.parametrize("engine", ["VLLMServerEngine"], indirect=True, scope="session"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]


@pytest.fixture
def make(engine: Any) -> partial[OpenAIEngine]:
    return partial(
        OpenAIEngine, api_base=f"{engine.address}/v1", api_key=engine.api_key, model=served(engine), max_tokens=200
    )


def served(engine: Any) -> str:
    """The model's name at the server, which has an adapter as well."""
    return str(engine._served)


@pytest.fixture
def over_http(make: partial[OpenAIEngine]) -> Iterator[OpenAIEngine]:
    made = make()
    yield made
    anyio.run(made.close)


@pytest.mark.parametrize("case", ENGINE_CASES, ids=str)
async def test_case(case: EngineCase, over_http: OpenAIEngine, make: partial[OpenAIEngine]) -> None:
    await case(over_http, make, PROFILE)


async def test_a_chat_is_what_it_is_with_our_own_prompts(engine: Any, over_http: OpenAIEngine) -> None:
    """The same model, with the prompts written and the calls read on the other side."""
    chats = []
    for each in (engine, over_http):
        ai = Kani(each, functions=[PROFILE.tool])
        said = [m async for m in ai.full_round(str(PROFILE.tool_query), temperature=0.0, max_tokens=80)]
        count = each.prompt_len(ai.chat_history, [PROFILE.tool])
        chats.append(([(m.role, m.text) for m in said], count if isinstance(count, int) else await count))
    assert chats[0] == chats[1]
    assert len(chats[0][0]) == 3
    assert over_http.counts_exactly


async def test_an_adapter_is_a_model_of_the_server(engine: Any, make: partial[OpenAIEngine]) -> None:
    odd = await anyio.to_thread.run_sync(partial(make, model="odd", max_tokens=30))  # it asks for the context
    try:
        ask = [ChatMessage.user("hello")]
        assert (await odd.predict(ask, temperature=0.0)).message.text != (
            await engine.predict(ask, temperature=0.0, max_tokens=30)
        ).message.text
    finally:
        await odd.close()
