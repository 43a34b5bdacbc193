"""Counting, and what is asked of a server before the first chat."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from openai_server import Request, Script, answer, reset, says, serving, status

from kani_lite import AIFunction, ChatMessage, Kani
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.openai import OpenAIEngine, package
from kani_lite.engines.openai.counting import PromptKey, TokenCounts
from kani_lite.engines.openai.server import known_context, served_models, tokenize_url
from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptTooLong

HI = [ChatMessage.user("Hi")]
CARD = {"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 512}


def lookup(key: str) -> str:
    """Looks a key up."""
    return key


LOOKUP = AIFunction(lookup)


def words(body: Any) -> int:
    """A count that only the server knows."""
    return len(json.dumps([body["messages"], body.get("tools")]).split())


# ==== counting ====


async def test_the_server_counts(serve: Any) -> None:
    script, engine = await serve(script=Script(models=[CARD], tokenize=words), model=None, max_context_size=None)
    assert engine.counts_exactly
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "priority": 1}
    engine._passed["extra_body"] = extra
    first = await engine.prompt_len(HI, [LOOKUP], tool_choice="none")
    sent = script.requests[-1]
    tools = engine.translate_functions([LOOKUP])
    assert sent.path == "/tokenize"
    assert sent.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": tools,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert first == words(sent.body)
    asked = len(script.requests)
    assert await engine.prompt_len(HI, [LOOKUP]) == first
    assert len(script.requests) == asked  # remembered
    edited = [ChatMessage.user("Hi you there")]
    assert await engine.prompt_len(edited, [LOOKUP]) == first + 2
    assert await engine.prompt_len(HI) < first


@pytest.mark.parametrize("tokenize", [None, lambda body: 0], ids=["no route", "another server's route"])
async def test_an_estimate_where_the_server_does_not_count(serve: Any, tokenize: Any) -> None:
    script, engine = await serve(script=Script(tokenize=tokenize))
    text = "The quick brown fox jumps over the lazy dog. " * 20
    assert 150 < await engine.prompt_len([ChatMessage.user(text)]) < 300
    assert not engine.counts_exactly
    await engine.prompt_len(HI)
    assert [request.path for request in script.requests] == ["/tokenize"]  # asked once


async def test_a_server_that_cannot_count_now_is_asked_again(serve: Any) -> None:
    script, engine = await serve(script=Script(tokenize=words))
    real, script.step_for = script.step_for, lambda request: reset  # type: ignore[method-assign]  # for two requests
    assert await engine.prompt_len(HI) > 0
    script.step_for = lambda request: status(503, "Loading")  # type: ignore[method-assign]
    assert await engine.prompt_len(HI) > 0
    script.step_for = real  # type: ignore[method-assign]
    assert await engine.prompt_len(HI) == words({"messages": [{"role": "user", "content": "Hi"}]})
    assert engine.counts_exactly


async def test_a_prompt_that_vllm_cannot_write_is_refused(serve: Any) -> None:
    script, engine = await serve(script=Script(models=[CARD], tokenize=words), model=None, max_context_size=None)
    script.step_for = lambda request: status(400, "roles must alternate")  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="roles must alternate"):
        await engine.prompt_len([*HI, *HI])


async def test_usage_corrects_the_estimate(serve: Any) -> None:
    """A server whose tokens are half as long as ours."""
    text = "alpha beta gamma delta " * 30

    def chat(exchange: Any, request: Request) -> None:
        tokens = sum(len(json.dumps(m)) for m in request.body["messages"]) // 2
        answer({"content": "ok"}, usage={"prompt_tokens": tokens, "completion_tokens": 1})(exchange, request)

    _, engine = await serve(script=Script(chat=chat))
    messages = [ChatMessage.user(text)]
    before = await engine.prompt_len(messages)
    exact = (await engine.predict(messages)).prompt_tokens
    assert exact > 1.8 * before
    assert await engine.prompt_len(messages) == exact  # the very prompt
    longer = [*messages, ChatMessage.assistant("ok"), ChatMessage.user("more " * 40)]
    guess = await engine.prompt_len(longer)
    assert guess > exact
    true = (await engine.predict(longer)).prompt_tokens
    assert abs(guess - true) <= 0.1 * true
    assert engine.message_len(messages[0]) > 1.8 * before * 0.9


async def test_a_local_tokenizer_with_a_template_counts_exactly(serve: Any) -> None:
    from kani_lite.engines import NanoEngine

    script, engine = await serve(tokenizer=Path(WEIGHTS))
    nano = await anyio.to_thread.run_sync(NanoEngine)
    try:
        messages = [ChatMessage.system("Be brief."), *HI]
        assert engine.counts_exactly
        assert await engine.prompt_len(messages, [LOOKUP]) == nano.prompt_len(messages, [LOOKUP])
        assert await engine.prompt_len(messages) == nano.prompt_len(messages)
        assert script.requests == []
    finally:
        await nano.close()


THINK = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}


async def test_a_call_with_its_own_template_is_another_prompt(serve: Any) -> None:
    """Its usage says nothing of the plain prompt, and it is counted as it is written."""

    def count(body: Any) -> int:
        return 20 if body.get("chat_template_kwargs") else 10

    def chat(exchange: Any, request: Request) -> None:
        usage = {"prompt_tokens": count(request.body), "completion_tokens": 1}
        answer({"content": "ok"}, usage=usage)(exchange, request)

    script, engine = await serve(script=Script(tokenize=count, chat=chat))
    assert await engine.prompt_len(HI) == 10
    assert (await engine.predict(HI, **THINK)).prompt_tokens == 20
    assert await engine.prompt_len(HI) == 10
    assert await engine.prompt_len(HI, **THINK, temperature=1) == 20
    for effort in ("low", "high"):
        await engine.predict(HI, reasoning_effort=effort)
    assert len(engine._counts._known) == 4
    close = await engine.predict([ChatMessage.user("Hi there")], max_tokens=4090, **THINK)
    assert close.prompt_tokens == 20
    assert script.chats[-1].body["max_tokens"] == 4096 - 20


async def test_a_local_template_takes_a_calls_fields(serve: Any) -> None:
    script, engine = await serve(tokenizer=Path(WEIGHTS))
    plain = await engine.prompt_len(HI)
    longer = {"extra_body": {"chat_template": "{{ mark }}{% for m in messages %}{{ m.content * 50 }}{% endfor %}"}}
    assert await engine.prompt_len(HI, **longer) > plain + 40
    longer["extra_body"]["chat_template_kwargs"] = {"mark": "one two three"}
    assert await engine.prompt_len(HI, **longer) > plain + 42
    assert await engine.prompt_len(HI) == plain
    assert script.requests == []


async def test_half_a_character_is_counted_and_sent(serve: Any) -> None:
    """No JSON can carry it; what two halves make is whole."""

    def split(text: str) -> str:
        return text

    function = AIFunction(split, desc="odd \ud83d")
    messages = [ChatMessage.user("a \ud83d b \ud83d\ude00"), ChatMessage.assistant("\ude00")]
    script, engine = await serve(script=Script(tokenize=words, chat=says("ok")))
    assert await engine.prompt_len(messages, [function]) > 0
    assert engine.message_len(messages[0]) > 0
    await engine.predict(messages, [function], stop="\ud83d")
    sent = script.chats[0].body
    assert [message["content"] for message in sent["messages"]] == ["a \ufffd b 😀", "\ufffd"]
    assert (sent["tools"][0]["function"]["description"], sent["stop"]) == ("odd \ufffd", ["\ufffd"])
    assert script.requests[0].body["messages"] == sent["messages"]
    _, engine = await serve(tokenizer=Path(WEIGHTS))
    assert await engine.prompt_len(messages, [function]) > 0


async def test_a_bare_tokenizer_counts_texts(serve: Any) -> None:
    def encode(text: str) -> list[str]:
        return text.split()

    script, engine = await serve(tokenizer=SimpleNamespace(encode=encode))
    assert not engine.counts_exactly
    assert await engine.prompt_len([ChatMessage.user("a " * 500)]) in range(500, 520)
    assert script.requests == []
    # tiktoken's encode refuses the names of special tokens
    _, engine = await serve(tokenizer=SimpleNamespace(encode=None, encode_ordinary=encode))
    assert engine.message_len(ChatMessage.user("a b c")) in range(3, 10)
    with pytest.raises(EngineError, match="has no method `encode`"):
        await serve(tokenizer=SimpleNamespace())


async def test_a_history_is_trimmed_by_the_servers_count(serve: Any) -> None:
    script = Script(models=[CARD | {"max_model_len": 200}], tokenize=words, chat=says("ok"))
    _, engine = await serve(script=script, model=None, max_context_size=None)
    ai = Kani(engine, desired_response_tokens=50)
    for i in range(12):
        await ai.chat_round(f"{i} " + "word " * 30)
    lengths = [words(request.body) for request in script.chats]
    assert max(lengths) <= 150 < sum(lengths[:3]) + 50
    assert len(script.chats[-1].body["messages"]) < len(ai.chat_history)
    counted = sum(request.path == "/tokenize" for request in script.requests)
    assert counted <= 4 * len(script.chats)


async def test_a_prompt_that_is_known_to_be_too_long_is_not_sent(serve: Any) -> None:
    script, engine = await serve(script=Script(tokenize=lambda body: 4096))
    assert await engine.prompt_len(HI) == 4096
    with pytest.raises(PromptTooLong, match="has 4096 tokens and the context 4096: it is 1 too long"):
        await engine.predict(HI)
    assert script.chats == []


def test_estimates_build_on_the_longest_known_prompt() -> None:
    counts = TokenCounts()
    messages = [{"role": "user", "content": str(i) * 40} for i in range(4)]
    for size, tokens in ((1, 100), (2, 150), (3, 230)):
        counts.learn(PromptKey(messages[:size], []), tokens)
    last = counts.estimate(PromptKey(messages, [])) - 230
    assert 0 < last == counts.message(messages[3])
    assert counts.known(PromptKey(messages[:2], [])) == 150
    assert counts.known(PromptKey(messages[:2], [{"type": "function"}])) is None
    changed = [messages[0], messages[0], *messages[2:]]
    assert counts.estimate(PromptKey(changed, [])) > 100


def test_one_odd_usage_does_not_spoil_the_estimates() -> None:
    counts = TokenCounts()
    counts.learn(PromptKey(HI_WIRE, []), 10_000)
    assert counts.ratio == 4.0


HI_WIRE = [{"role": "user", "content": "Hi"}]


# ==== the server's models ====


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_only_model_is_taken(serve: Any) -> None:
    adapter = {"id": "tuned", "parent": "m", "owned_by": "vllm", "max_model_len": None}
    _, engine = await serve(script=Script(models=[CARD, adapter]), model=None, max_context_size=None)
    assert (engine.model, engine.max_context_size) == ("m", 512)
    _, engine = await serve(script=Script(models=[CARD, adapter]), model="tuned", max_context_size=None)
    assert (engine.model, engine.max_context_size) == ("tuned", 512)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("models", "model", "text"),
    [
        ([CARD, CARD | {"id": "other"}], None, r"has 2 models \(m, other\): pass model="),
        ([], None, r"has 0 models \(none\)"),
        ([CARD | {"id": "qwen3-8b"}], "qwen3-8B", "did you mean 'qwen3-8b'"),
        ([CARD], "zzz", "doesn't list the model 'zzz': it has m"),
        ([{"id": "m"}], "m", "doesn't say how long the context of 'm' is: pass max_context_size="),
        ([{"id": "m", "max_model_len": -1}], "m", "doesn't say how long"),
        (None, "m", "has no model"),
    ],
)
async def test_no_model_or_no_context(serve: Any, models: Any, model: str | None, text: str) -> None:
    with pytest.raises(EngineError, match=text):
        await serve(script=Script(models=models), model=model, max_context_size=None)


def test_lists_of_models_in_their_forms() -> None:
    entries = [{"id": "a", "context_length": 10}, {"id": "b", "context_window": 20}, {"id": 3}, "junk", {"id": "c"}]
    found = [(model.name, model.context) for model in served_models({"data": entries})]
    assert found == [("a", 10), ("b", 20), ("c", None)]
    assert served_models("junk") == served_models({"data": None}) == []


def test_tokenize_is_beside_the_api() -> None:
    assert tokenize_url("http://h:8000/v1/") == tokenize_url("http://h:8000") == "http://h:8000/tokenize"
    assert tokenize_url("https://h/prefix/v1") == "https://h/prefix/tokenize"


@pytest.mark.parametrize(
    ("model", "tokens"), [("gpt-4", 8192), ("gpt-4o-mini", 128_000), ("gpt-4.1-nano", 1_047_576), ("gpt-40", None)]
)
def test_openais_own_models(model: str, tokens: int | None) -> None:
    assert known_context(model) == tokens


# ==== arguments ====


def test_kanis_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    engine = OpenAIEngine()
    assert (engine.model, engine.max_context_size) == ("gpt-4.1-nano", 1_047_576)
    assert engine.client.api_key == "from the environment"
    assert engine.max_tokens_key == "max_completion_tokens"
    assert not engine.counts_exactly
    given = OpenAIEngine("key", "gpt-4", organization="org", headers={"x-a": "1"}, temperature=0.5)
    assert (given.client.api_key, given.client.organization, given.max_context_size) == ("key", "org", 8192)
    assert given.client.default_headers["x-a"] == "1"
    assert given.hyperparams == {"temperature": 0.5}
    own = OpenAIEngine(client=given.client, model="m", max_context_size=7)
    assert own.client is given.client


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "needs a key"),
        ({"api_key": "k", "model": "unheard-of"}, "pass max_context_size="),
        ({"api_key": "k", "max_context_size": 0}, "max_context_size=0 leaves no room"),
        ({"api_key": "k", "api_type": "responses"}, "api_type='responses' isn't supported"),
        ({"api_key": "k", "retry": -1}, "retry=-1"),
        ({"api_key": "k", "timeout": 0}, "timeout=0"),
        ({"api_base": "localhost:8000"}, "is no address"),
        ({"api_key": "k", "tokenizer": "./no/such/folder"}, "There is no tokenizer"),
    ],
)
def test_arguments_are_checked(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], text: str) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EngineError, match=text):
        OpenAIEngine(**given)


def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="did you mean temperature"):
        OpenAIEngine("k", temperatur=1)


def test_headers_and_key_are_sent() -> None:
    with serving(Script(models=[CARD])) as script:
        OpenAIEngine("secret", api_base=script.url, headers={"x-team": "blue"})
        OpenAIEngine(None, api_base=script.url)
    first, second = (request.headers for request in script.requests)
    assert (first["authorization"], first["x-team"]) == ("Bearer secret", "blue")
    assert second["authorization"] == "Bearer none"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'openai'", name="openai")

    monkeypatch.setattr(package, "import_module", missing)
    with pytest.raises(MissingModelDependencies, match=r"pip install 'kani-lite\[openai\]'"):
        OpenAIEngine("k")
