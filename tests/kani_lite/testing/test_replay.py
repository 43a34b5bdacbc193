"""Recording the embedded model and playing it back; what a recording is strict about; damaged files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from flaky import Flaky

from kani_lite import AIFunction, ChatMessage, Kani, ToolCall
from kani_lite.engines import BaseCompletion, NanoEngine, SamplingParams, WrapperEngine
from kani_lite.engines.openai import ServerError
from kani_lite.events import Delta, ReasoningDelta
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.testing import RecordingEngine, ReplayEngine, Reply, ScriptedEngine, UnexpectedCall, check_engine

HELLO = [ChatMessage.user("Hello, how are you?")]
GREEDY = {"temperature": 0.0, "max_tokens": 30}


@pytest.fixture(scope="module")
def nano() -> Iterator[NanoEngine]:
    engine = NanoEngine()
    yield engine
    anyio.run(engine.close)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.jsonl"


class Open(WrapperEngine):
    """Leaves the engine of the module open."""

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()


def get_price(product: str) -> str:
    """Get the price of a product."""
    return f"The price of {product} is 6 euros."


async def replay(path: Path) -> ReplayEngine:
    return await anyio.to_thread.run_sync(ReplayEngine, path)


async def record(path: Path, *steps: Any, ask: Callable[..., Any] | None = None) -> None:
    """Records what a scripted engine says to one request for each step."""
    engine = RecordingEngine(ScriptedEngine(*steps), path)
    for _ in steps:
        await (engine.predict(HELLO) if ask is None else ask(engine))
    await engine.close()


async def listen(engine: Any, messages: list[ChatMessage] = HELLO, **kwargs: Any) -> list[Any]:
    return [item async for item in engine.stream(messages, **kwargs)]


async def test_a_chat_with_a_tool_comes_back_event_for_event(nano: NanoEngine, path: Path) -> None:
    async def chat(engine: Any) -> tuple[list[Any], list[ChatMessage]]:
        ai = Kani(engine, functions=[AIFunction(get_price)])
        async with ai.events("get the price of honey", **GREEDY) as stream:
            events = [event async for event in stream]
        text = await ai.chat_round_str("thank you", include_functions=False, **GREEDY)
        assert text
        return events, ai.chat_history

    recording = RecordingEngine(Open(nano), path)
    events, history = await chat(recording)
    await recording.close()
    with await replay(path) as engine:
        assert engine.max_context_size == nano.max_context_size
        assert engine.disable_function_calling_kwargs == {"tool_choice": "none"}
        assert engine.reuses_prefix
        again, history_again = await chat(engine)
    assert again == events
    assert history_again == history
    assert history[2].text == "The price of honey is 6 euros."


async def test_a_recording_of_a_model_passes_the_cases_that_it_was_recorded_with(nano: NanoEngine, path: Path) -> None:
    only = ["counting_equals_the_prompt", "stream_equals_predict", "completion_comes_last", "usage_is_told"]
    (await check_engine(lambda: RecordingEngine(Open(nano), path), only=only)).raise_if_failed()
    report = await check_engine(lambda: ReplayEngine(path), only=only)
    report.raise_if_failed()
    assert len(report.of("pass")) == len(only)


async def test_streams_answer_predict_and_the_other_way_round(path: Path) -> None:
    await record(path, "one two", ask=listen)
    with await replay(path) as engine:
        assert (await engine.predict(HELLO)).message.text == "one two"
    await record(path, "one two")
    with await replay(path) as engine:
        first, last = await listen(engine)
    assert first == "one two"
    assert last.message.text == "one two"


async def test_deltas_calls_and_figures_come_back(path: Path) -> None:
    call = ToolCall.from_function("f", call_id_="c1", a=[1, None])
    await record(path, Reply(ReasoningDelta("hm"), "text é\u2028\ud83d", call), ask=listen)
    expected = await listen(ScriptedEngine(Reply(ReasoningDelta("hm"), "text é\u2028\ud83d", call)))
    with await replay(path) as engine:
        found = await listen(engine)
    assert found[:-1] == expected[:-1]
    assert found[-1].message == expected[-1].message
    assert found[-1].prompt_tokens == expected[-1].prompt_tokens


@pytest.mark.parametrize(
    ("error", "comes_back"),
    [(PromptTooLong("by 3 tokens"), PromptTooLong), (TimeoutError("late"), TimeoutError), (KeyError("k"), EngineError)],
)
async def test_errors_come_back(path: Path, error: Exception, comes_back: type[Exception]) -> None:
    async def ask(engine: Any) -> None:
        with pytest.raises(type(error)):
            await listen(engine)

    await record(path, Reply("before ", error), ask=ask)
    with await replay(path) as engine:
        stream: Any = engine.stream(HELLO)
        assert await anext(stream) == "before "
        with pytest.raises(comes_back, match=str(error).strip("'")):
            await anext(stream)


async def test_what_an_error_says_to_who_tries_again_comes_back(path: Path) -> None:
    async def ask(engine: Any) -> None:
        with pytest.raises(ServerError):
            await engine.predict(HELLO)

    busy, refused = ServerError("busy", status=429, retry_after=2.5, temporary=True), ServerError("no", status=401)
    await record(path, busy, refused, ask=ask)
    with await replay(path) as engine:
        for error in (busy, refused):
            with pytest.raises(ServerError) as found:
                await engine.predict(HELLO)
            assert vars(found.value) == vars(error)


async def test_an_engine_is_closed_though_its_recording_has_no_folder(path: Path) -> None:
    inner = Flaky()
    with pytest.raises(EngineError, match="folder"):
        await RecordingEngine(inner, path.parent / "gone" / "chat.jsonl").close()
    assert inner.closed


async def test_a_stream_that_was_broken_off_says_so(path: Path) -> None:
    async def ask(engine: Any) -> None:
        stream = engine.stream(HELLO)
        assert await anext(stream) == "one "
        await stream.aclose()

    await record(path, "one two", ask=ask)
    with await replay(path) as engine:
        stream: Any = engine.stream(HELLO)
        assert await anext(stream) == "one "
        with pytest.raises(EngineError, match="broken off here when it was recorded"):
            await anext(stream)


# ==== strict ====


async def test_another_request_is_refused_with_the_first_difference(path: Path) -> None:
    await record(path, "hi", ask=lambda engine: engine.predict(HELLO, [AIFunction(get_price)], **GREEDY))
    engine = await replay(path)
    functions = [AIFunction(get_price)]
    for problem, messages, offered, kwargs in [
        (
            r"messages\[0\].content, recorded as 'Hello, how are you\?', now 'Hello, how were you\?'",
            [ChatMessage.user("Hello, how were you?")],
            functions,
            GREEDY,
        ),
        (r"the length of messages, recorded as 1, now 2", [*HELLO, *HELLO], functions, GREEDY),
        (r"the length of functions, recorded as 1, now 0", HELLO, None, GREEDY),
        (r"hyperparams.temperature, recorded as 0.0, now 0.7", HELLO, functions, {**GREEDY, "temperature": 0.7}),
        (r"hyperparams.max_tokens, recorded as 30, missing now", HELLO, functions, {"temperature": 0}),
        (r"hyperparams.seed, now 1, not there when it was recorded", HELLO, functions, {**GREEDY, "seed": 1}),
    ]:
        with pytest.raises(UnexpectedCall, match=problem):
            await engine.predict(messages, offered, **kwargs)
    assert (await engine.predict(HELLO, functions, **GREEDY)).message.text == "hi"
    with pytest.raises(UnexpectedCall, match="'Hello, how were you"):
        engine.assert_done()


async def test_calls_are_used_once_and_all_of_them(path: Path) -> None:
    await record(path, "one", "two")
    engine = await replay(path)
    assert (await engine.predict(HELLO)).message.text == "one"
    with pytest.raises(UnexpectedCall, match=r"1 of the engine's replies .* the call in line 3 of chat\.jsonl"):
        engine.assert_done()
    assert (await engine.predict(HELLO)).message.text == "two"
    engine.assert_done()
    with pytest.raises(UnexpectedCall, match=r"All 2 calls of chat\.jsonl are used up"):
        await engine.predict(HELLO)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.predict(HELLO)


async def test_ids_of_calls_may_differ_but_not_what_they_join(path: Path) -> None:
    def history(first: str, second: str, answered: str) -> list[ChatMessage]:
        calls = [ToolCall.from_function("f", call_id_=id_) for id_ in (first, second)]
        return [ChatMessage.assistant(None, tool_calls=calls), ChatMessage.function("f", "done", answered)]

    await record(path, "ok", ask=lambda engine: engine.predict(history("a", "b", "b")))
    engine = await replay(path)
    with pytest.raises(UnexpectedCall, match=r"messages\[1\].tool_call_id, recorded as 'call 1', now 'call 0'"):
        await engine.predict(history("x", "y", "x"))
    assert (await engine.predict(history("x", "y", "y"))).message.text == "ok"


async def test_hyperparameters_that_json_cannot_hold_are_left_out(path: Path) -> None:
    async def ask(engine: Any) -> None:
        await engine.predict(HELLO, sampling=SamplingParams(seed=3), streamer=print)

    await record(path, "ok", ask=ask)
    line = json.loads((await anyio.Path(path).read_text()).splitlines()[1])
    assert line["request"]["hyperparams"] == {"sampling": {"seed": 3}}
    with await replay(path) as engine:
        await engine.predict(HELLO, sampling=SamplingParams(seed=3))


async def test_counts_are_those_of_the_recording(nano: NanoEngine, path: Path) -> None:
    class CountsAsync(Open):
        async def _count(self, *args: Any) -> int:
            await anyio.lowlevel.checkpoint()
            return nano.prompt_len(*args)

        def prompt_len(self, messages: Any, functions: Any = None, **kwargs: Any) -> Any:
            return self._count(messages, functions)

    recording = RecordingEngine(CountsAsync(nano), path)
    counted = recording.prompt_len(HELLO)
    assert not isinstance(counted, int)
    tokens = await counted
    alone = recording.message_len(HELLO[0])
    await recording.save()
    engine = await replay(path)
    assert engine.prompt_len(HELLO) == tokens == nano.prompt_len(HELLO)
    assert engine.message_len(HELLO[0]) == alone
    more = engine.prompt_len([*HELLO, ChatMessage.user("not counted " * 50)], [AIFunction(get_price)])
    assert isinstance(more, int)
    assert more > tokens + 100


# ==== files ====


async def test_the_old_file_stays_if_writing_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await record(path, "old")
    before = await anyio.to_thread.run_sync(path.read_bytes)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        await record(path, "new")
    assert await anyio.to_thread.run_sync(path.read_bytes) == before
    assert [p.name async for p in anyio.Path(path).parent.iterdir()] == ["chat.jsonl"]


async def test_a_cancelled_test_keeps_its_recording(path: Path) -> None:
    recording = RecordingEngine(ScriptedEngine("hi"), path)
    await recording.predict(HELLO)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await recording.close()
    with await replay(path) as engine:
        assert (await engine.predict(HELLO)).message.text == "hi"


@pytest.mark.parametrize(
    ("line", "change", "problem"),
    [
        (0, lambda text: "", "is no recording, or is damaged, at line 1"),
        (0, lambda text: text.replace('"version": 1', '"version": 2'), "has version 2 of the format"),
        (0, lambda text: text.replace("kani_lite.recording", "other"), "its format is 'other'"),
        (0, lambda text: text.replace('"counts_exactly": true, ', ""), "it has no counts_exactly"),
        (1, lambda text: text[: len(text) // 2], "damaged, at line 2"),
        (1, lambda text: text.replace('"error": null', '"error": {"type": "SystemExit", "text": ""}'), "unknown error"),
        (1, lambda text: "[]", "damaged, at line 2"),
    ],
)
async def test_damaged_files_are_told(path: Path, line: int, change: Callable[[str], str], problem: str) -> None:
    await record(path, "hi")
    lines = (await anyio.Path(path).read_text()).splitlines()
    changed = change(lines[line])
    assert changed != lines[line]
    lines[line] = changed
    await anyio.Path(path).write_text("\n".join(lines))
    with pytest.raises(EngineError, match=problem):
        await replay(path)


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="can't be read"):
        ReplayEngine(tmp_path / "none.jsonl")
    recording = RecordingEngine(ScriptedEngine(), tmp_path / "none" / "chat.jsonl")
    with pytest.raises(EngineError, match=r"folder .* doesn't exist"):
        anyio.run(recording.save)


async def test_a_stream_without_a_completion_comes_back(path: Path) -> None:
    class OnlyText(ScriptedEngine):
        async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[str | Delta | BaseCompletion]:
            for piece in ("one ", "two"):
                await anyio.lowlevel.checkpoint()
                yield piece

    recording = RecordingEngine(OnlyText(), path)
    assert await listen(recording) == ["one ", "two"]
    await recording.close()
    with await replay(path) as engine:
        assert await listen(engine) == ["one ", "two"]
    with await replay(path) as engine:
        assert (await engine.predict(HELLO)).message.text == "one two"
