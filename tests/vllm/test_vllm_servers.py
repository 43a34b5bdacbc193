"""vLLM's server itself: that it guards its API, what it writes into streams, and adapters by default."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kani_lite import ChatMessage
from kani_lite.engines.vllm.memory import device_bytes
from kani_lite.exceptions import EngineError

pytestmark = pytest.mark.long  # a server of its own; tests/engines/vllm has the same with one that a test writes
ASK = [ChatMessage.user("hello")]


@pytest.fixture(scope="module")
def server(build: Callable[..., Any], adapter: Path) -> Iterator[Any]:
    made = build(
        "VLLMServerEngine",
        adapters={"odd": adapter},
        adapter="odd",
        max_tokens=20,
        max_model_len=512,
        gpu_memory_reserved=2_000,
        engine_args={"max_num_seqs": 4},
        vllm_args=["--seed", "3"],
    )
    yield made
    anyio.run(made.close)


def body(server: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": server._served,
        "prompt": [5, 6],
        "stream": True,
        "max_tokens": 20,
        "return_token_ids": True,
        **more,
    }


def test_the_server_refuses_those_without_its_key(server: Any) -> None:
    assert server._connection.healthy()
    assert server._connection.guarded()
    assert server.max_context_size == 512


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b"], ids=ascii)
async def test_line_ends_of_unicode_come_through(server: Any, text: str) -> None:
    more = {"structured_outputs": {"choice": [text]}, "temperature": 0}
    chunks = [chunk async for chunk in server._connection.completion(body(server, **more))]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]) == text


async def test_an_error_in_a_stream_is_told_at_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "vocabulary_size", 10**7)  # so that the server sees it
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"refuses this request \(400\): .*out-of-vocab") as caught:
        await server.predict(ASK, logit_bias={10**6: 1.0})
    assert time.monotonic() - begun < 5
    assert "Its last lines" not in str(caught.value)


async def test_none_is_the_plain_model_where_there_is_an_adapter_by_default(server: Any, reference: Any) -> None:
    ids = server.token_ids(server.build_prompt(ASK))
    plain = await server.generate(ids, adapter=None)
    assert plain.ids == reference.greedy(ids, 20)
    assert (await server.generate(ids)).ids != plain.ids
    assert (await server.generate(ids, adapter="odd")).ids == (await server.generate(ids)).ids


def test_the_memory_is_known_without_starting_it_here() -> None:
    from vllm.platforms import current_platform

    assert device_bytes(sys.executable, {}) == current_platform.get_device_total_memory()


def test_a_port_that_is_taken_is_refused(server: Any, build: Callable[..., Any]) -> None:
    port = int(server.address.rpartition(":")[2])
    begun = time.monotonic()
    with pytest.raises(EngineError, match=f"vllm_port={port} on vllm_host='127.0.0.1' can't be had"):
        build("VLLMServerEngine", vllm_port=port)
    assert time.monotonic() - begun < 10
