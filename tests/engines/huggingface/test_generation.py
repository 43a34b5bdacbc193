"""What a HuggingEngine writes: the same as transformers, streamed or not, warm or cold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kani_lite.engines import HuggingEngine
from kani_lite.engines.base import Completion
from kani_lite.events import ToolCallFinished
from kani_lite.exceptions import EngineError, PromptTooLong
from kani_lite.messages import ChatMessage
from kani_lite.prompts import PLAIN

HELLO = [ChatMessage.user("hello there")]


async def drain(engine: HuggingEngine, messages: list[ChatMessage], **kwargs: Any) -> tuple[list[Any], Completion]:
    items: list[Any] = [item async for item in engine.stream(messages, **kwargs)]
    assert isinstance(items[-1], Completion)
    return items[:-1], items[-1]


async def test_greedy_is_what_transformers_generates(load: Callable[..., Any]) -> None:
    engine = await load(temperature=0, tool_format=PLAIN)
    ids = engine.encode(str(engine.build_prompt(HELLO)))
    with torch.inference_mode():
        out = engine.model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
    pieces, completion = await drain(engine, HELLO, max_tokens=40)
    ended = out[-1] == engine.tokenizer.eos_token_id
    raw = engine.decode(out[:-1] if ended else out)
    assert completion.message.text == raw.strip().rstrip("\ufffd")
    assert completion.completion_tokens == len(out)
    assert completion.prompt_tokens == len(ids) == engine.prompt_len(HELLO)
    assert "".join(pieces) == completion.message.text


async def test_predict_is_the_stream_at_once(load: Callable[..., Any]) -> None:
    engine = await load(max_tokens=20, tool_format=PLAIN)
    _, streamed = await drain(engine, HELLO, temperature=0.9, seed=3)
    predicted = await engine.predict(HELLO, temperature=0.9, seed=3)
    assert predicted.message == streamed.message


async def test_a_seed_makes_sampling_repeatable(engine: HuggingEngine) -> None:
    texts = [(await engine.predict(HELLO, temperature=1.5, seed=seed)).message.text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "params",
    [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {"repetition_penalty": 1.3, "temperature": 0.7}],
)
async def test_sampling_draws_from_what_transformers_would(engine: HuggingEngine, params: dict[str, Any]) -> None:
    """Each token that is drawn must be one that transformers' own processors leave possible."""
    ids = engine.encode(str(engine.build_prompt(HELLO)))
    call = {"temperature": 1.0} | params
    with torch.inference_mode():
        out = engine.model.generate(
            torch.tensor([ids]), do_sample=True, max_new_tokens=1, top_k=call.pop("top_k", 0), **call,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    possible = {int(i) for i in torch.isfinite(out.scores[0][0]).nonzero()}
    for seed in range(15):
        assert (await engine.generate(ids, seed=seed, max_tokens=1, **({"temperature": 1.0} | params))).ids[
            0
        ] in possible


async def test_the_models_own_defaults_decide(load: Callable[..., Any]) -> None:
    engine = await load(max_tokens=8)
    greedy = [(await engine.predict(HELLO)).message.text for _ in range(2)]
    assert greedy[0] == greedy[1]
    sampled = {(await engine.predict(HELLO, top_p=0.99, seed=s)).message.text for s in range(4)}
    assert len(sampled) > 1


async def test_penalties_and_limits(engine: HuggingEngine) -> None:
    eos = engine.tokenizer.eos_token_id

    async def run(**params: Any) -> list[int]:
        return (await engine.generate("hello", **params)).ids

    assert len(set(await run(presence_penalty=1e6, max_tokens=50))) == 50
    assert len(set(await run(frequency_penalty=1e6, max_tokens=50))) == 50
    assert len(await run(ignore_eos=True, max_tokens=60)) == 60
    assert eos not in await run(min_tokens=60, max_tokens=60)


async def test_multi_byte_text_is_never_split(engine: HuggingEngine, scripted: Callable[[str], None]) -> None:
    text = "né 🐟🐠 日本語, and so on"
    scripted(text)
    pieces, completion = await drain(engine, HELLO, max_tokens=100)
    assert completion.message.text == "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert completion.finish_reason == "stop"
    assert completion.completion_tokens == len(engine.encode(text)) + 1


async def test_stop_strings_do_not_leak(engine: HuggingEngine, scripted: Callable[[str], None]) -> None:
    scripted("one two\nUser: three")
    pieces, completion = await drain(engine, HELLO, stop=["\nUser:", "never"], max_tokens=100)
    assert "".join(pieces) == completion.message.text == "one two"
    assert completion.finish_reason == "stop"


async def test_a_call_is_parsed_or_refused(engine: HuggingEngine, scripted: Callable[[str], None]) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    scripted(call)
    pieces, completion = await drain(engine, HELLO, max_tokens=100)
    assert any(isinstance(p, ToolCallFinished) for p in pieces)
    assert completion.message.tool_calls
    assert completion.message.tool_calls[0].function.kwargs == {"x": 1}
    scripted("")
    # the marker is one token, which is banned: the model must write something else
    pieces, completion = await drain(engine, HELLO, tool_choice="none", max_tokens=5)
    assert not completion.message.tool_calls
    with pytest.raises(EngineError, match="required"):
        await engine.predict(HELLO, tool_choice="required")


async def test_the_opening_marker_is_banned(engine: HuggingEngine) -> None:
    marker = engine.encode("<tool_call>")[0]

    def insist(_module: Any, _args: Any, out: Any) -> None:
        out.logits[..., marker] = 1e4

    engine.model.register_forward_hook(insist)
    assert (await engine.predict(HELLO)).message.tool_calls
    refused = (await engine.predict(HELLO, **engine.disable_function_calling_kwargs)).message
    assert refused.tool_calls is None
    assert "<tool_call>" not in (refused.text or "")


async def test_a_prompt_too_long_says_by_how_much(load: Callable[..., Any]) -> None:
    engine = await load(max_context_size=15)
    size = engine.prompt_len(HELLO)
    with pytest.raises(PromptTooLong, match=rf"{size} tokens.* {size + 1 - 15} more .*15"):
        await engine.predict(HELLO)


async def test_the_contexts_end_is_a_length_stop(load: Callable[..., Any]) -> None:
    engine = await load(max_context_size=30, temperature=0)
    completion = (await drain(engine, HELLO, ignore_eos=True))[1]
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens is not None
    assert completion.completion_tokens is not None
    assert completion.prompt_tokens + completion.completion_tokens == 30


async def test_a_chat_reuses_all_but_its_new_text(engine: HuggingEngine) -> None:
    chat = [ChatMessage.system("one two three " * 20), ChatMessage.user("hello")]
    first = (await drain(engine, chat))[1]
    assert first.prompt_tokens is not None
    assert first.completion_tokens is not None
    chat = [*chat, first.message, ChatMessage.user("how are you?")]
    second = (await drain(engine, chat))[1]
    # of the reply, all but the token that was chosen last is known; where text was stripped, its prompt is
    assert second.cached_tokens is not None
    assert second.cached_tokens >= first.prompt_tokens
    other = [chat[0], ChatMessage.user("fine")]
    assert ((await drain(engine, other))[1].cached_tokens or 0) > 40
    again = (await drain(engine, chat))[1]
    assert again.prompt_tokens is not None
    assert again.cached_tokens == again.prompt_tokens - 1, "another chat must not cost this one its cache"
    assert again.message == second.message


async def test_a_reply_keeps_the_ids_that_the_model_chose(
    engine: HuggingEngine, scripted: Callable[[str], None]
) -> None:
    """A tokenizer writes "hello" as one token; a model that spelled it must find its own spelling again."""
    spelled = [engine.encode(c)[0] for c in "hello"]
    assert engine.encode("hello") != spelled
    script = [*spelled]

    def choose(_module: Any, _args: Any, out: Any) -> None:
        out.logits[..., script.pop(0) if script else engine.tokenizer.eos_token_id] = 2e4

    engine.model.register_forward_hook(choose)
    reply = (await drain(engine, HELLO))[1].message
    chat = [*HELLO, reply, ChatMessage.user("so")]
    ids = engine._prompt(chat, None).ids
    assert any(ids[i : i + 5] == spelled for i in range(len(ids)))
    assert engine.decode(ids) == engine.build_prompt(chat)
    second = (await drain(engine, chat))[1]
    assert second.cached_tokens == engine.prompt_len(HELLO) + len(spelled)
    reply.content = "hello!"  # an edit in place: the old ids are not the message's any more
    assert engine.decode(engine._prompt(chat, None).ids) == engine.build_prompt(chat)


async def test_an_edit_in_place_is_noticed_and_a_repeat_is_free(
    engine: HuggingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = 0
    build = engine.build_prompt

    def counting(*args: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return build(*args)

    monkeypatch.setattr(engine, "build_prompt", counting)
    message = ChatMessage.user("hello")
    before = engine.prompt_len([message])
    await engine.predict([message])
    assert rendered == 1
    message.content = "hello there, how are you?"
    assert engine.prompt_len([message]) > before
    assert rendered == 2


WORDS = st.lists(st.sampled_from(["one", "two", "hello there", "fox", "?"]), min_size=1, max_size=12).map(" ".join)
EDITS = st.lists(st.tuples(st.sampled_from(["say", "undo", "edit", "trim", "other"]), WORDS), min_size=2, max_size=6)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_warm_is_cold_token_for_token(model_dir: Path, edits: list[tuple[str, str]]) -> None:
    engine = HuggingEngine(model_dir, device="cpu", temperature=0.0, max_tokens=10, max_cached_prompts=2)
    cold = HuggingEngine(model_dir, device="cpu", temperature=0.0, max_tokens=10, max_cached_prompts=0)

    async def check() -> None:
        chats: list[list[ChatMessage]] = [[ChatMessage.system("be one two three of it")]]
        for kind, text in edits:
            chat = chats[-1]
            if kind == "undo":
                del chat[-2:]
            elif kind == "edit" and chat:
                chat[0].content = text
            elif kind == "trim":
                del chat[1:3]
            elif kind == "other":
                chats.insert(0, [*chat[:1]])
                chat = chats[0]
            chat.append(ChatMessage.user(text))
            ids = engine._prompt(chat, None).ids
            expected = (await cold.generate(ids)).choices[0]
            assert expected.cached_tokens == 0
            reply = await engine.predict(chat)
            assert (await engine.generate(ids)).ids == expected.ids
            assert reply.completion_tokens == len(expected.ids)
            chat.append(reply.message)
        await engine.close()
        await cold.close()

    anyio.run(check, backend="trio")


async def test_long_prompts_run_in_pieces(engine: HuggingEngine, counted: Callable[[], int]) -> None:
    chat = [ChatMessage.user("one two three " * 300)]
    size = engine.prompt_len(chat)
    assert size > 600
    await engine.predict(chat, max_tokens=1)
    assert counted() == -(-size // 512)
