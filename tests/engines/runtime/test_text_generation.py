"""Text generation without a chat, on a HuggingEngine: whole, streamed, in batches; streamers; whose values count."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_llama
from transformers import TextIteratorStreamer, TextStreamer

from kani_lite.engines import HuggingEngine, SamplingParams
from kani_lite.engines.sampling import params_of_model, with_defaults
from kani_lite.engines.text_generation import Generation, one_prompt
from kani_lite.exceptions import EngineError, PromptError, PromptTooLong
from kani_lite.messages import ChatMessage

TEXT = "hello there, how are"
CHAT = [ChatMessage.user("hello there")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tiny"))


Load = Callable[..., Any]


@pytest.fixture
async def load(folder: Path) -> AsyncIterator[Load]:
    """Loads the tiny model off the loop (a constructor reads files), and closes it after the test."""
    made: list[HuggingEngine] = []

    async def new(**kwargs: Any) -> HuggingEngine:
        values = {"temperature": 0.0, "max_tokens": 12} | kwargs
        made.append(await anyio.to_thread.run_sync(partial(HuggingEngine, folder, device="cpu", **values)))
        return made[-1]

    yield new
    for engine in made:
        await engine.close()


@pytest.fixture
async def engine(load: Load) -> HuggingEngine:
    found: HuggingEngine = await load()
    return found


def force(engine: HuggingEngine, text: str) -> None:
    """The model writes this text, then its end token, in its next reply."""
    script = engine.encode(text)

    def choose(_module: Any, _args: Any, out: Any) -> None:
        out.logits[..., script.pop(0) if script else engine.tokenizer.eos_token_id] = 1e4

    engine.model.register_forward_hook(choose)


async def idle(engine: HuggingEngine) -> None:
    with anyio.fail_after(5):
        while engine.busy:  # noqa: ASYNC110  # the thread tells nobody
            await anyio.sleep(0.002)


# ==== whole and streamed ====


async def test_generate_is_what_transformers_generates(engine: HuggingEngine) -> None:
    ids = torch.tensor([engine.encode(TEXT)])
    with torch.inference_mode():
        out = engine.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    found = await engine.generate(TEXT)
    assert found.ids == out
    assert found.prompt_tokens == ids.shape[1]
    ended = out[-1] == engine.tokenizer.eos_token_id
    assert found.text == engine.decode(out[:-1] if ended else out).rstrip("\ufffd")
    assert found.choices[0].finish_reason == ("stop" if ended else "length")


async def test_a_prompt_in_every_form(engine: HuggingEngine) -> None:
    ids = engine.encode(TEXT)
    tokenizer = engine.tokenizer
    forms: list[Any] = [
        TEXT, ids, tuple(ids), torch.tensor(ids), torch.tensor([ids]), [ids], {"input_ids": ids},
        tokenizer(TEXT), tokenizer([TEXT]), tokenizer(TEXT, return_tensors="pt"),
        tokenizer([TEXT], return_tensors="np"),
    ]  # fmt: skip
    expected = (await engine.generate(TEXT)).ids
    for form in forms:
        assert (await engine.generate(form)).ids == expected
    assert [one.ids for one in await engine.generate_batch(forms)] == [expected] * len(forms)
    assert (
        "".join([piece async for piece in engine.generate_stream(tokenizer([TEXT]))])
        == (await engine.generate(TEXT)).text
    )


WRONG: list[tuple[Any, str]] = [
    (torch.ones(2, 3, dtype=torch.long), "2 prompts are given as one: use generate_batch"),
    ([[1, 2], [3]], "2 prompts"),
    (["a", "b"], "whole numbers from 0 on, not 'a'"),
    (torch.ones(1, 2, 3, dtype=torch.long), "whole numbers"),
    (torch.ones(1, 3), "whole numbers from 0 on, not 1.0"),
    (torch.tensor(3), "not Tensor"),
    ([1, -5], "not -5"),
    ([True], "not True"),
    (5, "not int: 5"),
    (None, "not NoneType"),
    (b"hello", "not bytes"),
    ({"ids": [1]}, "no 'input_ids', only"),
]


@pytest.mark.parametrize(("prompt", "reason"), WRONG)
def test_what_is_not_one_prompt(prompt: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        one_prompt(prompt)


async def test_wrong_prompts_say_so(engine: HuggingEngine) -> None:
    for prompt, reason in WRONG[:3]:
        with pytest.raises(PromptError, match=reason):
            await engine.generate(prompt)
        with pytest.raises(PromptError, match=reason):
            await anext(engine.generate_stream(prompt))
    for empty in ("", [], torch.ones((1, 0), dtype=torch.long)):
        with pytest.raises(PromptError, match="empty"):
            await engine.generate(empty)
    with pytest.raises(PromptTooLong, match="2048"):
        await engine.generate([1] * 2048)
    with pytest.raises(TypeError, match="temprature"):
        await engine.generate(TEXT, temprature=1)


async def test_a_stream_is_the_whole_in_pieces(engine: HuggingEngine) -> None:
    force(engine, "né 🐟, one two three, and so on")
    pieces = [piece async for piece in engine.generate_stream(TEXT, max_tokens=60)]
    assert "".join(pieces) == "né 🐟, one two three, and so on"
    assert len(pieces) > 5


async def test_stop_strings_never_leak(engine: HuggingEngine) -> None:
    force(engine, "one two\nUser: three")
    pieces = [piece async for piece in engine.generate_stream(TEXT, stop=["\nUser:", "\nUsers"], max_tokens=60)]
    assert "".join(pieces) == "one two"


async def test_a_stream_that_is_left_frees_the_engine(engine: HuggingEngine) -> None:
    async with aclosing(engine.generate_stream(TEXT, max_tokens=1900, ignore_eos=True)) as stream:
        await anext(stream)
        assert engine.busy
    await idle(engine)
    with anyio.move_on_after(0.1) as scope:
        async for _ in engine.generate_stream(TEXT, max_tokens=1900, ignore_eos=True):
            pass
    assert scope.cancelled_caught
    await idle(engine)
    assert len((await engine.generate(TEXT, ignore_eos=True)).ids) == 12


async def test_times_are_plausible(engine: HuggingEngine) -> None:
    with anyio.fail_after(60):
        done = (await engine.generate(TEXT, max_tokens=30, ignore_eos=True)).choices[0]
        one = (await engine.generate(TEXT, max_tokens=1)).choices[0]
    assert done.seconds_per_token is not None
    whole = done.waited_seconds + done.seconds
    assert 0 < done.first_token_seconds < whole
    assert done.first_token_seconds + 29 * done.seconds_per_token == pytest.approx(whole)
    assert one.seconds_per_token is None
    assert one.waited_seconds < one.first_token_seconds <= one.waited_seconds + one.seconds


async def test_a_request_that_waits_has_waited(load: Load) -> None:
    engine = await load(max_batch_size=1)
    both = await engine.generate_batch([TEXT, "one two"], max_tokens=300, ignore_eos=True)
    early, late = sorted((one.choices[0] for one in both), key=lambda done: done.waited_seconds)
    assert late.waited_seconds > early.seconds / 4, "it began when the other had ended"
    assert late.first_token_seconds > late.waited_seconds


# ==== batches ====


async def test_a_large_batch_splits_by_itself(load: Load) -> None:
    engine = await load(max_batch_size=8, max_tokens=6, ignore_eos=True)
    alone = await load(max_cached_prompts=0, max_tokens=6, ignore_eos=True)
    prompts = [[7, i, 2 * i + 1, *range(i % 9)] for i in range(100)]
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        most = max(most, len(engine._generator._scheduler.running))

    engine.model.register_forward_pre_hook(look)
    found = await engine.generate_batch(prompts)
    assert most == 8
    assert [one.prompt_tokens for one in found] == [len(prompt) for prompt in prompts]
    for place in range(0, 100, 9):
        assert found[place].ids == (await alone.generate(prompts[place])).ids
    assert await engine.generate_batch([]) == []


async def test_the_first_error_ends_a_batch(engine: HuggingEngine) -> None:
    with pytest.raises(PromptTooLong):
        await engine.generate_batch([TEXT, [1] * 3000, TEXT], max_tokens=1900, ignore_eos=True)
    await idle(engine)
    assert (await engine.generate(TEXT)).ids


async def test_n_replies_have_seeds_counted_up(engine: HuggingEngine) -> None:
    params = SamplingParams(temperature=1.5, seed=7)
    together = await engine.generate(TEXT, params, n=4)
    singles = [(await engine.generate(TEXT, params, seed=7 + i)).ids for i in range(4)]
    assert [one.ids for one in together.choices] == singles
    assert len({tuple(ids) for ids in singles}) > 1
    assert together.ids == singles[0]
    free = await engine.generate(TEXT, temperature=3.0, n=3)
    assert len({tuple(one.ids) for one in free.choices}) > 1


async def test_the_engines_own_n_and_seed_count_too(load: Load) -> None:
    engine = await load(n=3, seed=5, temperature=1.5)
    together = await engine.generate(TEXT)
    assert [one.ids for one in together.choices] == [
        (await engine.generate(TEXT, seed=5 + i, n=1)).ids for i in range(3)
    ]
    assert len((await engine.generate(TEXT, n=2)).choices) == 2


# ==== chats ====


async def test_chat_and_chat_stream(engine: HuggingEngine) -> None:
    message = await engine.chat(CHAT)
    assert message == (await engine.predict(CHAT)).message
    assert "".join([piece async for piece in engine.chat_stream(CHAT)]) == message.text
    sampled = await engine.chat(CHAT, temperature=2.0, seed=3)
    assert sampled == await engine.chat(CHAT, sampling=SamplingParams(temperature=2.0, seed=3))
    async with aclosing(engine.chat_stream(CHAT, max_tokens=1900, ignore_eos=True)) as stream:
        await anext(stream)
    await idle(engine)


# ==== streamers ====


class Noted:
    """A streamer that keeps what it gets; its call numbered `fails` raises."""

    def __init__(self, fails: int = -1) -> None:
        self.puts: list[list[int]] = []
        self.ended = 0
        self.fails = fails

    def put(self, value: torch.Tensor) -> None:
        if len(self.puts) == self.fails:
            raise ValueError("this streamer broke")
        self.puts.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


async def test_a_streamer_gets_the_prompt_each_token_and_the_end(engine: HuggingEngine) -> None:
    for call in (partial(engine.generate, TEXT), partial(engine.predict, CHAT)):
        streamer = Noted()
        await call(streamer=streamer)
        assert streamer.ended == 1
        assert all(len(put) == 1 for put in streamer.puts[1:])
    prompt, *tokens = streamer.puts
    assert engine.decode(prompt) == engine.build_prompt(CHAT)
    assert 1 <= len(tokens) <= 12


async def test_transformers_streamers(engine: HuggingEngine, capsys: pytest.CaptureFixture[str]) -> None:
    force(engine, "one two three, and so on")
    printing = TextStreamer(engine.tokenizer, skip_prompt=True, skip_special_tokens=True)
    await engine.generate(TEXT, streamer=printing, max_tokens=60)
    assert capsys.readouterr().out == "one two three, and so on\n"
    pieces = TextIteratorStreamer(engine.tokenizer, skip_prompt=True)
    done = await engine.generate(TEXT, streamer=pieces)
    found = await anyio.to_thread.run_sync(lambda: list(pieces))
    assert "".join(found).rstrip("\ufffd") == engine.decode(done.ids).rstrip("\ufffd")


async def beside_another(engine: HuggingEngine, **call: Any) -> Exception:
    """What this call fails with, while another one runs as if it were alone."""
    expected = (await engine.generate("one two", max_tokens=20, ignore_eos=True)).ids
    found: list[list[int]] = []
    errors: list[Exception] = []

    async def other() -> None:
        found.append((await engine.generate("one two", max_tokens=20, ignore_eos=True)).ids)

    async def failing() -> None:
        try:
            await engine.generate(TEXT, **call)
        except Exception as error:
            errors.append(error)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            group.start_soon(failing)
    assert found == [expected]
    await idle(engine)
    return errors[0]


@pytest.mark.parametrize("fails", [1, 3])
async def test_a_streamer_that_raises_ends_only_its_request(engine: HuggingEngine, fails: int) -> None:
    assert "this streamer broke" in str(await beside_another(engine, streamer=Noted(fails)))


async def test_a_streamer_that_raises_at_the_prompt_does_too(engine: HuggingEngine) -> None:
    assert "this streamer broke" in str(await beside_another(engine, streamer=Noted(0)))


async def test_a_bias_that_is_wrong_ends_only_its_request(engine: HuggingEngine) -> None:
    assert "logit_bias is for token 1000000" in str(await beside_another(engine, logit_bias={10**6: 1.0}))


async def test_one_streamer_is_for_one_reply(engine: HuggingEngine) -> None:
    streamer = Noted()
    with pytest.raises(EngineError, match="n=2"):
        await engine.generate(TEXT, streamer=streamer, n=2)
    assert not streamer.puts


async def test_generate_now_is_for_code_that_is_not_async(engine: HuggingEngine) -> None:
    expected = await engine.generate(TEXT)
    streamer = Noted()
    done = await anyio.to_thread.run_sync(partial(engine.generate_now, TEXT, streamer=streamer))
    assert isinstance(done, Generation)
    assert done.ids == expected.ids
    assert streamer.ended == 1


# ==== whose values count ====


class Config:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_the_models_own_values_are_defaults() -> None:
    greedy = params_of_model(Config(temperature=0.7, top_p=0.9, repetition_penalty=1.1))
    assert greedy.greedy
    assert greedy.repetition_penalty == 1.1
    assert params_of_model(None).greedy
    sampled = params_of_model(Config(do_sample=True, temperature=0.7, top_k=20))
    assert (sampled.temperature, sampled.top_k) == (0.7, 20)
    assert with_defaults(sampled, SamplingParams(temperature=0.0)).greedy
    assert with_defaults(sampled, SamplingParams(top_k=-1)).top_k is None
    assert with_defaults(sampled, SamplingParams(top_p=0.5)).temperature == 0.7
    assert with_defaults(greedy, SamplingParams(top_p=0.5)).temperature == 1.0
    assert with_defaults(greedy, SamplingParams(repetition_penalty=1.3)).greedy


FIELDS: dict[str, Any] = {
    "temperature": [0.0, 0.5, 1.0], "top_p": [0.5, 1.0], "top_k": [None, -1, 0, 5], "min_p": [0.0, 0.1],
    "max_tokens": [None, 3], "seed": [None, 0, 4], "stop": [[], ["a"]], "eos_token_ids": [None, [1]],
    "logprobs": [None, 0, 2], "logit_bias": [{}, {1: 2.0}],
}  # fmt: skip
SOME = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in FIELDS.items()})


@given(base=SOME, other=SOME)
def test_only_fields_that_are_set_and_not_none_override(base: dict[str, Any], other: dict[str, Any]) -> None:
    merged = SamplingParams(**base).merged(SamplingParams(**other))
    for name, field in SamplingParams.model_fields.items():
        value = other.get(name)
        if value is None and not (name == "top_k" and "top_k" in other):
            value = base.get(name, field.get_default(call_default_factory=True))
        expected = None if name == "top_k" and value in (0, -1) else value
        assert getattr(merged, name) == expected


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        SamplingParams(seed=seed)
