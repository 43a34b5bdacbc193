"""OnnxEngine with the embedded model, beside the same model as transformers runs it."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from kani_lite import ChatMessage, Kani
from kani_lite.engines import NanoEngine, SamplingParams
from kani_lite.engines.onnx import OnnxEngine
from kani_lite.engines.text_generation import Generation, TokenLogprobs
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.testing import EngineProfile, check_engine
from tests.engines.onnx.conftest import Change, Load

TOOL_QUERY = "get the price of honey"
# to the default query this model gives its likeliest reply with each of the four seeds that the suite tries
PROFILE = EngineProfile(
    query="Who are you?", tool_query=TOOL_QUERY, tool_arguments={"product": "honey"}, end_seconds=60
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
HELLO = [ChatMessage.user("Hello, how are you?")]


def get_price(product: str) -> str:
    """Get the price of a product."""
    return f"The price of {product} is 6 euros."


def some_ids(count: int, seed: int = 0) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(5, 1000) for _ in range(count)]


async def generated(engine: OnnxEngine | NanoEngine, ids: list[int], params: SamplingParams = GREEDY) -> Generation:
    return (await engine.generate(ids, params)).choices[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("precision", "anyio_backend"), [("fp32", "asyncio"), ("int4", "trio")])
async def test_it_passes_the_suite(precision: str, fp32: Path, int4: Path) -> None:
    folder = {"fp32": fp32, "int4": int4}[precision]
    report = await check_engine(lambda: OnnxEngine(folder, threads=1), PROFILE, case_seconds=300)
    report.raise_if_failed()
    assert not report.of("skip"), report


async def test_it_says_what_transformers_says(load: Load, nano: NanoEngine) -> None:
    """Greedy ids, counts of prompts with tools and without, and a round with a call."""
    engine = await load()
    for size in (1, 40, 300):
        ids = some_ids(size)
        assert (await generated(engine, ids)).ids == (await generated(nano, ids)).ids
    functions = [AIFunction(get_price)]
    for messages, offered in ((HELLO, None), (HELLO, functions), ([ChatMessage.system("Be kind."), *HELLO], None)):
        assert engine.prompt_len(messages, offered) == nano.prompt_len(messages, offered)
    rounds = []
    for each in (engine, nano):
        chat = Kani(each, functions=functions)
        rounds.append([(m.role, m.text) async for m in chat.full_round(TOOL_QUERY, temperature=0.0, max_tokens=40)])
    assert rounds[0] == rounds[1]
    assert len(rounds[0]) == 3


def check(ours: TokenLogprobs | None, theirs: TokenLogprobs | None) -> None:
    assert ours is not None
    assert theirs is not None
    assert ours.token == theirs.token
    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    assert list(ours.top.values()) == pytest.approx(list(theirs.top.values()), abs=1e-3)


async def test_logprobs_are_those_of_transformers(load: Load, nano: NanoEngine) -> None:
    """Of a prompt that is read in two parts, most of which was known."""
    engine = await load()
    ids, params = some_ids(300), GREEDY.merged(SamplingParams(logprobs=3, prompt_logprobs=2))
    await generated(engine, ids)
    ours, theirs = await generated(engine, ids, params), await generated(nano, ids, params)
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    assert ours.prompt_logprobs is not None
    assert theirs.prompt_logprobs is not None
    assert ours.cached_tokens == 0
    assert ours.prompt_logprobs[0] is None
    pairs = [*zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True)]
    for one, other in [*pairs, *zip(ours.logprobs, theirs.logprobs, strict=True)]:
        check(one, other)


# ==== what is reused ====


async def test_warm_equals_cold(load: Load) -> None:
    warm, cold = await load(), await load(max_cached_prompts=0)
    first = some_ids(200)
    edited = [*first[:150], *some_ids(90, seed=1)]
    shorter, none_shared = first[:130], some_ids(80, seed=2)
    for ids, known in ((first, 0), (first, 199), (edited, 150), (shorter, 129), (none_shared, 0), (none_shared, 79)):
        ours, theirs = await generated(warm, ids), await generated(cold, ids)
        assert (ours.ids, ours.text) == (theirs.ids, theirs.text)
        assert (ours.cached_tokens, theirs.cached_tokens) == (known, 0)


async def test_a_round_reads_only_what_is_new(load: Load) -> None:
    engine = await load(temperature=0.0, max_tokens=24)
    messages = list(HELLO)
    first = await engine.predict(messages)
    again = await engine.predict([*messages, first.message, ChatMessage.user("Thank you!")])
    # all that the model has read: of the reply the end token is not
    assert again.cached_tokens == first.prompt_tokens + first.completion_tokens - 1


async def test_chats_side_by_side_keep_what_is_theirs(load: Load) -> None:
    """They share a short beginning, for which neither gives its own up."""
    engine = await load()
    start = some_ids(20)
    chats = [start + some_ids(100, seed) for seed in (1, 2)]
    assert [(await generated(engine, ids)).cached_tokens for ids in [*chats, *chats]] == [0, 0, 119, 119]


async def test_with_little_memory_the_oldest_goes(load: Load) -> None:
    engine = await load(kv_cache_memory_gb=1100 * 10240 / 2**30)  # two slots of 512 tokens
    prompts = [some_ids(100, seed) for seed in range(3)]
    for ids in prompts:
        await generated(engine, ids)
    assert [(await generated(engine, prompts[i])).cached_tokens for i in (1, 2, 0)] == [99, 99, 0]


async def test_a_reply_that_outgrows_its_memory_goes_on(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=100, ignore_eos=True, prompt_logprobs=0)
    ids = some_ids(20)
    expected = await generated(await load(), ids, params)
    monkeypatch.setattr("kani_lite.engines.onnx.slots._SMALLEST", 16)
    monkeypatch.setattr("kani_lite.engines.onnx.generator._HEADROOM", 4)
    capacities: list[int] = []
    plain = OnnxEngine._start

    def noting(self: OnnxEngine, package: Any, *args: Any) -> None:
        from kani_lite.engines.onnx import generator

        class Noting(generator.Slot):
            def __init__(self, package: Any, model: Any, capacity: int) -> None:
                capacities.append(capacity)
                super().__init__(package, model, capacity)

        monkeypatch.setattr(generator, "Slot", Noting)
        plain(self, package, *args)

    monkeypatch.setattr(OnnxEngine, "_start", noting)
    done = await generated(await load(), ids, params)
    assert (done.ids, done.text, done.finish_reason) == (expected.ids, expected.text, "length")
    assert done.prompt_logprobs is not None
    assert len(done.prompt_logprobs) == len(ids)
    assert capacities == [32, 64, 128]


async def test_a_model_that_cannot_continue_reads_everything_each_time(load: Load, change: Change) -> None:
    engine = await load()
    value = {"search.past_present_share_buffer": False}
    other = await load(await anyio.to_thread.run_sync(change, "genai_config.json", value))
    for _ in range(2):
        ids = some_ids(300)
        ours, theirs = await generated(other, ids), await generated(engine, ids)
        assert ours.ids == theirs.ids
        assert ours.cached_tokens == 0


# ==== several at once ====


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 2}, {"kv_cache_memory_gb": 1100 * 10240 / 2**30}])
async def test_each_of_many_is_as_it_is_alone(load: Load, options: dict[str, Any]) -> None:
    engine = await load(**options)
    prompts = [some_ids(30 + 90 * i, seed=i) for i in range(4)]
    params = [GREEDY, SamplingParams(temperature=1.5, seed=1, max_tokens=20)] * 2
    alone = [(await generated(engine, *pair)).ids for pair in zip(prompts, params, strict=True)]
    together: dict[int, list[int]] = {}

    async def one(place: int) -> None:
        together[place] = (await generated(engine, prompts[place], params[place])).ids

    async with anyio.create_task_group() as group:
        for place in range(len(prompts)):
            group.start_soon(one, place)
    assert [together[place] for place in range(len(prompts))] == alone


async def test_a_short_request_does_not_wait_for_a_long_one(load: Load) -> None:
    engine = await load(max_tokens=1500, ignore_eos=True)
    async with aclosing(engine.generations(some_ids(10))) as long:
        await anext(long)
        short = await generated(engine, some_ids(20, seed=1), SamplingParams(max_tokens=3))
        assert engine.busy
    assert len(short.ids) == 3


async def test_a_cancelled_request_leaves_what_it_read(load: Load) -> None:
    engine = await load()
    ids = some_ids(60)
    async with aclosing(engine.generations(ids, SamplingParams(max_tokens=1500, ignore_eos=True))) as stream:
        await anext(stream)
    assert (await generated(engine, ids)).cached_tokens == 59


async def test_a_streamer_gets_the_ids(load: Load) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.got: list[Any] = []

        def put(self, value: Any) -> None:
            self.got.append(value.tolist())

        def end(self) -> None:
            self.got.append("end")

    engine, streamer = await load(), Streamer()
    done = (await engine.generate(some_ids(5), GREEDY, streamer)).choices[0]
    assert streamer.got == [some_ids(5), *([token] for token in done.ids), "end"]

    class Broken(Streamer):
        def put(self, value: Any) -> None:
            raise ValueError("broken streamer")

    broken = Broken()
    with pytest.raises(ValueError, match="broken streamer"):
        await engine.generate(some_ids(5), GREEDY, broken)
    assert broken.got == ["end"]
    assert (await generated(engine, some_ids(5))).ids == done.ids

    left = Streamer()  # who reads it in another thread must not wait for ever
    async with aclosing(engine.generations(some_ids(5), SamplingParams(ignore_eos=True), streamer=left)) as stream:
        await anext(stream)
    await generated(engine, some_ids(5))  # the model has seen by now that nobody wants the first
    assert left.got[-1] == "end"


async def test_a_streamer_of_a_prompt_without_memory_ends(load: Load) -> None:
    class Ends:
        ended = 0

        def put(self, value: Any) -> None:
            raise AssertionError("nothing is generated")

        def end(self) -> None:
            self.ended += 1

    engine, streamer = await load(kv_cache_memory_gb=30 * 10240 / 2**30), Ends()
    with pytest.raises(EngineError, match="larger kv_cache_memory_gb"):
        await engine.generate(some_ids(40), GREEDY, streamer)
    assert streamer.ended == 1


def test_without_an_event_loop(fp32: Path) -> None:
    engine = OnnxEngine(fp32, threads=1)
    done = engine.generate_now(some_ids(5), GREEDY)
    assert len(done.ids) == 12
    anyio.run(engine.close)
    with pytest.raises(EngineError, match="closed"):
        engine.generate_now(some_ids(5), GREEDY)


NO_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "onnxruntime.quantization"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import anyio
from kani_lite import Kani
from kani_lite.engines.onnx import OnnxEngine

async def main():
    engine = OnnxEngine(sys.argv[1], threads=1)
    print(await Kani(engine).chat_round_str("Hello, how are you?", temperature=0.0, max_tokens=24))

anyio.run(main)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_it_runs_without_torch_and_transformers(fp32: Path) -> None:
    """And ends cleanly though the engine was not closed."""
    done = subprocess.run([sys.executable, "-c", NO_TORCH, str(fp32)], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout, done.stderr) == (0, "I am fine, thank you. How can I help you?\n", "")
