from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import call, calling

from kani_lite import AIFunction, ChatMessage, ChatRole, Kani
from kani_lite.budget import Budget
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.exceptions import MessageTooLong, PromptTooLong

pytestmark = pytest.mark.anyio


class CountingEngine(BaseEngine):
    """A token a character, two more a message, three more a prompt; counts how often it is asked."""

    def __init__(self, size: int = 100, mode: str = "both", refuses: Any = None) -> None:
        self.max_context_size = size
        self.mode = mode
        self.refuses = refuses
        self.counted = 0
        self.measured = 0

    def message_len(self, message: ChatMessage) -> int:
        if self.mode == "prompt":
            return super().message_len(message)
        self.counted += 1
        return len(message.text or "") + 2

    def prompt_len(self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any) -> Any:
        self.measured += 1
        if self.refuses is not None and self.refuses(messages):
            raise ValueError("roles must alternate")
        return self.exact(messages)

    def exact(self, messages: list[ChatMessage]) -> int:
        return 3 + sum(len(m.text or "") + 2 for m in messages)

    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        return Completion(ChatMessage.assistant("ok"))


class AsyncCounting(CountingEngine):
    async def prompt_len(self, messages: Any, functions: Any = None, **kwargs: Any) -> Any:
        return super().prompt_len(messages, functions, **kwargs)


class BlockEngine(CountingEngine):
    reuses_prefix = True


def texts(messages: list[ChatMessage]) -> list[str | None]:
    return [m.text for m in messages]


async def fit(
    engine: CountingEngine,
    history: list[ChatMessage],
    size: int,
    always: list[ChatMessage] | None = None,
    budget: Budget | None = None,
) -> list[ChatMessage]:
    return await (budget or Budget()).fit(engine, always or [], history, None, size, {})


def legal_starts(history: list[ChatMessage]) -> list[int]:
    return [i for i, m in enumerate(history) if i == 0 or m.role is not ChatRole.FUNCTION]


message_lists = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "function"]), st.integers(0, 30)), min_size=1, max_size=25
).map(lambda rows: [ChatMessage(role=ChatRole(role), content="x" * n) for role, n in rows])


@pytest.mark.parametrize("kind", ["both", "prompt", "async"])
@given(history=message_lists, size=st.integers(5, 200), later=message_lists, edit=st.integers(0, 100))
@settings(max_examples=60)
async def test_keeps_the_largest_suffix_that_fits(
    kind: str, history: list[ChatMessage], size: int, later: list[ChatMessage], edit: int
) -> None:
    engine = AsyncCounting(mode="both") if kind == "async" else CountingEngine(mode=kind)
    budget, always = Budget(), [ChatMessage.system("sys")]
    for turn in range(3):
        if turn == 1:
            history = [*history, *later]
        if turn == 2:  # edits in place are noticed
            history[edit % len(history)].content = "y" * (edit % 17)
        fitting = [i for i in legal_starts(history) if engine.exact([*always, *history[i:]]) <= size]
        if fitting:
            assert await fit(engine, history, size, always, budget) == [*always, *history[fitting[0] :]]
        else:
            with pytest.raises((PromptTooLong, MessageTooLong)):
                await fit(engine, history, size, always, budget)


@given(history=message_lists, size=st.integers(40, 200))
@settings(max_examples=60)
async def test_blocks_keep_the_start_stable(history: list[ChatMessage], size: int) -> None:
    engine, budget = BlockEngine(mode="both"), Budget()
    cuts, grown = [], []
    for message in history:
        message.role = ChatRole.USER
        grown.append(message)
        prompt = await fit(engine, grown, size, None, budget)
        assert engine.exact(prompt) <= size
        assert prompt[-1] is message
        cuts.append(len(grown) - len(prompt))
    assert cuts == sorted(cuts)


async def test_blocks_leave_room_for_the_next_rounds() -> None:
    engine, budget = BlockEngine(mode="both"), Budget()
    history = [ChatMessage.user("x" * 8) for _ in range(30)]
    cuts = set()
    for n in range(10, 31):
        cuts.add(n - len(await fit(engine, history[:n], 103, None, budget)))
    # with one message dropped a round there would be 21 cuts
    assert len(cuts) <= 8


async def test_counts_only_what_is_new() -> None:
    engine, budget = CountingEngine(mode="both"), Budget()
    history = [ChatMessage.user("x" * 8) for _ in range(500)]
    await fit(engine, history, 103, None, budget)
    assert engine.counted <= 12
    before, engine.measured = engine.counted, 0
    history += [ChatMessage.user("x" * 8), ChatMessage.assistant("x" * 8)]
    assert len(await fit(engine, history, 103, None, budget)) == 10
    assert engine.counted - before == 2
    assert engine.measured == 1


async def test_prompt_only_engine_is_asked_a_logarithmic_number_of_times() -> None:
    engine = CountingEngine(mode="prompt")
    history = [ChatMessage.user("x" * 8) for _ in range(500)]
    assert len(await fit(engine, history, 103)) == 10
    assert engine.measured <= 12


@pytest.mark.parametrize("mode", ["both", "prompt"])
async def test_prompts_that_a_template_refuses_are_passed_over(mode: str) -> None:
    engine = CountingEngine(mode=mode, refuses=lambda messages: not messages or messages[0].role is not ChatRole.USER)
    history = [ChatMessage.user("u" * 8) if i % 2 == 0 else ChatMessage.assistant("a" * 8) for i in range(21)]
    prompt = await fit(engine, history, 100)
    assert prompt[0].role is ChatRole.USER
    assert len(prompt) == 9
    with pytest.raises(ValueError, match="roles must alternate"):
        await fit(CountingEngine(mode=mode, refuses=lambda m: True), history, 100)


async def test_calls_stay_with_their_results() -> None:
    one = call("f", "1")
    history = [
        ChatMessage.user("u" * 10),
        calling(one),
        ChatMessage.function("f", "r" * 10, "1"),
        ChatMessage.assistant("a" * 10),
    ]
    assert texts(await fit(CountingEngine(), history, 28)) == ["a" * 10]
    assert len(await fit(CountingEngine(), history, 29)) == 3


async def test_what_does_not_fit_is_said() -> None:
    engine = CountingEngine()
    with pytest.raises(
        PromptTooLong, match=r"take 25 tokens, 5 more than the 20 .* is message 1 \(system, 20 characters\)"
    ):
        await fit(engine, [ChatMessage.user("hi")], 20, [ChatMessage.system("s" * 20)])
    with pytest.raises(PromptTooLong):
        await fit(engine, [], 20, [ChatMessage.system("s" * 20)])
    with pytest.raises(MessageTooLong, match="45 tokens, 25 more than the 20"):
        await fit(engine, [ChatMessage.user("hi"), ChatMessage.user("x" * 40)], 20)


async def test_default_count_is_the_sum_of_the_messages() -> None:
    class Bare(CountingEngine):
        prompt_len = BaseEngine.prompt_len  # type: ignore[assignment]  # the default again

    engine = Bare(size=44)
    ai = Kani(engine, system_prompt="sys", desired_response_tokens=0, chat_history=[ChatMessage.user("x" * 8)] * 9)
    assert ai.desired_response_tokens == 0
    assert len(await ai.get_prompt()) == 4
    assert await ai.prompt_token_len(ai.chat_history) == 90


async def test_the_lists_given_are_not_the_lists_returned() -> None:
    ai = Kani(CountingEngine(), system_prompt="sys")
    prompt = await ai.get_prompt()
    assert prompt == ai.always_included_messages
    assert prompt is not ai.always_included_messages


async def test_an_engine_that_counts_nothing_says_so() -> None:
    class Nothing(BaseEngine):
        max_context_size = 100

        async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
            return Completion(ChatMessage.assistant("ok"))

    with pytest.raises(ValueError, match="Nothing defines neither"):
        await Kani(Nothing()).chat_round("hi")
