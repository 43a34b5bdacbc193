"""The server of these tests, with an engine behind it: what the engine does reaches the client, and the other way."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from openai_server import Exchange, Request, Script, script_of, serving

from kani_lite import ChatMessage
from kani_lite.engines import BaseCompletion, BaseEngine, Completion, NanoEngine
from kani_lite.engines.openai import ServerError
from kani_lite.events import Delta
from kani_lite.exceptions import PromptError, PromptTooLong

pytestmark = pytest.mark.anyio

HI = [ChatMessage.user("Hi")]


class Endless(BaseEngine):
    """Says one word again and again; or fails, before its first word or after it."""

    max_context_size = 1000

    def __init__(self, error: Exception | None = None, words: int = 0) -> None:
        self.error, self.words = error, words
        self.ended = threading.Event()

    def prompt_len(self, *args: Any, **kwargs: Any) -> int:
        if self.error:
            raise self.error
        return 1

    async def predict(self, *args: Any, **kwargs: Any) -> BaseCompletion:
        raise NotImplementedError

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[str | Delta | BaseCompletion]:
        try:
            said = 0
            while not (self.error and said >= self.words):
                yield "word "
                said += 1
                await anyio.sleep(0.005)
            assert self.error is not None
            raise self.error
        finally:
            self.ended.set()
        yield Completion(ChatMessage.assistant(""))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_engine_stops_when_the_client_hangs_up(serve: Any, stream: bool) -> None:
    behind = Endless()
    _, engine = await serve(script=script_of(behind))
    with anyio.move_on_after(0.3) as scope:
        if stream:
            async for _ in engine.stream(HI):
                pass
        else:
            await engine.predict(HI)
    assert scope.cancelled_caught
    assert await anyio.to_thread.run_sync(behind.ended.wait, 20)


@pytest.mark.parametrize("words", [0, 2], ids=["before", "within"])
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PromptTooLong("9 too many"), PromptTooLong, "finds the prompt too long: 9 too many"),
        (PromptError("no such role"), ServerError, r"refuses the request \(400\): no such role"),
    ],
)
async def test_a_refusal_reaches_the_client(
    serve: Any, error: Exception, kind: type[Exception], text: str, words: int
) -> None:
    script, engine = await serve(script=script_of(Endless(error, words)), retry=0)
    with pytest.raises(kind, match=text):
        async for _ in engine.stream(HI):
            pass
    with pytest.raises(kind, match=text):
        await engine.predict(HI)
    assert script.errors == []


async def test_logprobs_and_biases_go_through(serve: Any) -> None:
    nano = await anyio.to_thread.run_sync(NanoEngine)
    try:
        _, engine = await serve(script=script_of(nano), model=None, max_context_size=None)
        options = {"temperature": 0, "max_tokens": 5, "logprobs": 2, "logit_bias": {100: 5.0}}
        here = await nano.predict(HI, **options)
        *_, streamed = [item async for item in engine.stream(HI, **options)]
        for there in (await engine.predict(HI, **options), streamed):
            assert there.message.text == here.message.text
            assert [(one.token, one.logprob) for one in there.logprobs] == [
                (nano.decode([one.token]), pytest.approx(one.logprob)) for one in here.logprobs
            ]
            assert all(len(one.top) == 2 for one in there.logprobs)
    finally:
        await nano.close()


async def test_a_field_that_the_server_does_not_know_is_refused(serve: Any) -> None:
    _, engine = await serve(script=script_of(Endless()), retry=0)
    with pytest.raises(ServerError, match="does not know priority"):
        await engine.predict(HI, extra_body={"priority": 1})


def test_a_mistake_in_the_server_is_not_silent() -> None:
    def broken(exchange: Exchange, request: Request) -> None:
        raise KeyError("oops")

    with (
        pytest.raises(ExceptionGroup) as found,
        serving(Script([broken])) as script,
        pytest.raises(urllib.request.HTTPError) as answered,
    ):
        urllib.request.urlopen(urllib.request.Request(f"{script.url}/chat/completions", b"{}"))
    assert answered.value.code == 500
    assert "oops" in json.loads(answered.value.read())["error"]["message"]
    assert isinstance(found.value.exceptions[0], KeyError)
