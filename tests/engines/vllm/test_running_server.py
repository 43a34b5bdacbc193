"""VLLMServerEngine with a server that is running: its models, its streams, and servers that aren't vLLM's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync
from openai_server import Exchange, Request, cut, streamed

from kani_lite import ChatMessage
from kani_lite.engines import Completion
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.vllm import VLLMSamplingParams, VLLMServerEngine
from kani_lite.exceptions import EngineError

ASK = [ChatMessage.user("hi")]
# httpx2 leaves generators of its own to the garbage collector where a stream is left, which trio warns of
pytestmark = pytest.mark.filterwarnings("ignore:.*PoolByteStream")
DONE = b"data: [DONE]\n\n"
# what str.splitlines and httpx cut at, and JSON need not escape
UNICODE_ENDS = "\u2028 \u2029 \x85"


async def engine_at(script: Any, **given: Any) -> Any:
    return await run_sync(lambda: VLLMServerEngine(WEIGHTS, address=script.url, **given))


async def reply_to(engine: Any, **given: Any) -> tuple[list[str], Completion]:
    *pieces, last = [item async for item in engine.stream(ASK, **given)]
    return pieces, last


# ==== streams ====


@pytest.mark.parametrize("end", UNICODE_ENDS.split(" "), ids=ascii)
async def test_line_ends_of_unicode_are_text(script: Any, chunk: Callable[..., bytes], end: str) -> None:
    script.steps = [streamed([chunk(f"a{end}b", [70, 71, 72], "stop"), DONE])]
    pieces, last = await reply_to(await engine_at(script))
    assert pieces == [f"a{end}b"]
    assert (last.message.text, last.completion_tokens) == (f"a{end}b", 3)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
async def test_events_in_pieces_of_any_size(
    script: Any, chunk: Callable[..., bytes], line_end: bytes, size: int
) -> None:
    events = chunk("a\u2028é", [70, 71]) + b": a comment\n\n" + chunk(" b", [72], "stop") + DONE
    data = events.replace(b"\n", line_end)
    script.steps = [streamed([data[i : i + size] for i in range(0, len(data), size)])]
    pieces, last = await reply_to(await engine_at(script))
    assert pieces == ["a\u2028é", " b"]
    assert last.completion_tokens == 3


async def test_a_stream_without_an_end_is_told(script: Any, chunk: Callable[..., bytes]) -> None:
    script.steps = [cut([chunk("a", [70])], clean=True)]
    with pytest.raises(EngineError, match=r"broke .the stream ended before its end.*") as caught:
        await reply_to(await engine_at(script))
    assert caught.value.temporary, "what RetryEngine repeats"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"error": {"message": "no such token", "code": 400}}, r"refuses this request \(400\): no such token"),
        ({"object": "error", "message": "too old", "code": 422}, r"refuses this request \(422\): too old"),
        ({"error": {"message": "out of luck", "code": 500}}, "failed this request: out of luck"),
        ({"error": "in words"}, "failed this request: in words"),
    ],
)
async def test_an_error_inside_a_stream(script: Any, chunk: Callable[..., bytes], error: Any, said: str) -> None:
    script.steps = [streamed([chunk("a", [70]), b"data: " + json.dumps(error).encode() + b"\n\n", DONE])]
    with pytest.raises(EngineError, match=said) as caught:
        await reply_to(await engine_at(script))
    assert caught.value.temporary == ("refuses" not in said)


@pytest.mark.parametrize("given", [{"logit_bias": {10**6: 1.0}}, {"eos_token_ids": [10**6]}])
async def test_tokens_that_there_are_not_reach_no_server(script: Any, given: Any) -> None:
    engine = await engine_at(script)
    [name] = given
    with pytest.raises(EngineError, match=f"{name} has the out-of-vocab token 1000000: this model's tokens are 0 to"):
        await reply_to(engine, **given)
    assert script.completions == []


# ==== servers that aren't vLLM's ====


async def test_text_without_token_ids_is_told(script: Any, chunk: Callable[..., bytes]) -> None:
    script.steps = [streamed([chunk("hello", None, "stop"), DONE])]
    engine = await engine_at(script)
    for given in ({}, {"logprobs": 1}):
        with pytest.raises(EngineError, match=r"sent text without token ids: 'hello'\. It isn't vLLM's"):
            await reply_to(engine, **given)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"token_logprobs": [-1.0, -2.0], "top_logprobs": [{}, {}]},
        {"token_logprobs": [-1.0], "top_logprobs": [{"hello": -1.0}]},
        {"token_logprobs": [None], "top_logprobs": [{}]},
        {},
    ],
)
async def test_logprobs_of_another_kind_are_told(script: Any, chunk: Callable[..., bytes], logprobs: Any) -> None:
    more = {"logprobs": {"tokens": ["hello"], **logprobs}}
    script.steps = [streamed([chunk("hello", [70], "stop", **more), DONE])]
    with pytest.raises(EngineError, match="sent logprobs that aren't those of its tokens"):
        await reply_to(await engine_at(script), logprobs=1)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"<html>hello</html>", 200),
        (b'{"object": "list"}', 200),
        (b'{"data": {}}', 200),
        (b'["m"]', 200),
        (b"\xff\xfe\x00", 200),
        (b'{"detail": "Not Found"}', 404),
        (b'{"data": []}', 302),
    ],
)
async def test_an_address_that_is_not_a_servers_is_told(script: Any, body: bytes, status: int) -> None:
    def page(exchange: Exchange, _: Request) -> None:
        exchange.send_bytes(body, status)

    script.models, script.step_for = None, lambda _: page
    with pytest.raises(EngineError, match=r"lists no models as vLLM's does: .*check the address"):
        await engine_at(script)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(EngineError, match="address='http://box:port' is none"):
        VLLMServerEngine(WEIGHTS, address="http://box:port")


# ==== the server's models ====


async def test_a_context_that_nobody_says_must_be_given(script: Any) -> None:
    script.models = [{"id": "m"}]
    with pytest.raises(EngineError, match="doesn't say how long the context of 'm' is: pass max_context_size="):
        await engine_at(script)
    assert (await engine_at(script, max_context_size=1000)).max_context_size == 1000
    script.models = [{"id": "m", "max_model_len": 64}]
    with pytest.raises(EngineError, match="has a context of 64 tokens, not 1000"):
        await engine_at(script, max_context_size=1000)


async def test_one_of_several_models_must_be_named(script: Any, chunk: Callable[..., bytes]) -> None:
    script.models = [{"id": "other", "max_model_len": 4096}, {"id": "second", "max_model_len": 100}]
    with pytest.raises(EngineError, match=r"has 2 models \('other', 'second'\).*with served_model="):
        await engine_at(script)
    script.models = []
    with pytest.raises(EngineError, match=r"has 0 models \(none\)"):
        await engine_at(script)
    script.models = [{"id": "other", "max_model_len": 4096}]
    with pytest.raises(EngineError, match="has no model 'seconds': it has 'other'"):
        await engine_at(script, served_model="seconds")


ADAPTER = {"id": "odd", "root": "/adapters/odd", "parent": "second"}


@pytest.mark.parametrize(
    ("models", "given", "name", "context"),
    [
        ([{"id": "m", "max_model_len": 64}], {}, "m", 64),
        ([{"id": "m", "max_model_len": 64}, {"id": str(WEIGHTS), "max_model_len": 32}], {}, str(WEIGHTS), 32),
        # two names of one model, as vLLM lists them
        ([{"id": n, "max_model_len": 64, "root": str(WEIGHTS)} for n in "ab"], {}, "a", 64),
        ([{"id": "first", "max_model_len": 9}, {"id": "second", "max_model_len": 64}, ADAPTER], {}, "odd", 64),
        ([ADAPTER, {"id": "second", "max_model_len": 64}], {}, "second", 64),
        ([{"id": 3}, "odd", {"id": "m", "max_model_len": 64}], {}, "m", 64),
    ],
)
async def test_the_model_that_is_chosen(
    script: Any, chunk: Callable[..., bytes], models: list[Any], given: Any, name: str, context: int
) -> None:
    script.models = models
    script.steps = [streamed([chunk("a", [70], "stop"), DONE])]
    engine = await engine_at(script, **({"served_model": "odd"} if name == "odd" else given))
    assert engine.max_context_size == context
    if context > 32:
        await reply_to(engine)
        assert script.completions[0]["model"] == name


# ==== adapters ====


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    return tmp_path


async def test_a_call_can_go_back_to_the_plain_model(script: Any, chunk: Callable[..., bytes], adapter: Path) -> None:
    script.models = [*script.models, ADAPTER, {**ADAPTER, "id": "even"}]
    script.steps = [streamed([chunk("a", [70], "stop"), DONE])]
    adapters = {"odd": adapter, "even": adapter}
    engine = await engine_at(script, adapters=adapters, adapter="odd")

    async def model_of(**given: Any) -> str:
        await reply_to(engine, **given)
        generated = await engine.generate("hello", **given)
        assert "".join([piece async for piece in engine.generate_stream("hello", **given)]) == generated.text == "a"
        models = {body["model"] for body in script.completions[-3:]}
        return str(models.pop()) if len(models) == 1 else f"one of {models}"

    plain = str(WEIGHTS)
    assert await model_of() == "odd"
    assert await model_of(adapter="even") == "even"
    assert await model_of(adapter=None) == plain
    assert await model_of(sampling=VLLMSamplingParams(adapter=None)) == plain
    assert await model_of(sampling=VLLMSamplingParams(adapter="even")) == "even"
    assert await model_of(sampling=VLLMSamplingParams(adapter="even"), adapter=None) == plain
    assert await model_of(sampling=VLLMSamplingParams(temperature=0.5)) == "odd"
    assert await model_of() == "odd"

    engine = await engine_at(script, adapters=adapters, sampling=VLLMSamplingParams(adapter="even"))
    assert await model_of() == "even"
    with pytest.raises(EngineError, match="There is no adapter 'none'"):
        await model_of(adapter="none")
