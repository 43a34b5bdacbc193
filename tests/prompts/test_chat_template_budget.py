"""The budget on real templates: counts are those of the prompt, the limit is kept, and as much is kept as fits."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from chat_templates import BOS, EOS, TEMPLATES, encode, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from kani_lite import AIFunction, ChatMessage, ToolCall
from kani_lite.budget import Budget, group_start
from kani_lite.engines import BaseCompletion, BaseEngine, Completion
from kani_lite.exceptions import MessageTooLong, PromptTooLong
from kani_lite.messages import ChatRole, ReasoningPart
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.jinja import JinjaChatTemplate


def f(x: str = "") -> str:
    """A function."""
    return x


FUNCTION = AIFunction(f)
PIPELINES = {
    name: ChatTemplatePromptPipeline(JinjaChatTemplate(text, bos_token=BOS, eos_token=EOS))
    for name, text in TEMPLATES.items()
}


class TemplateEngine(BaseEngine):
    """Counts whole prompts exactly, and a message as `counts` says: by what its role adds to a prompt (as HuggingEngine
    does), by its text alone, or not at all."""

    max_context_size = 10_000

    def __init__(self, name: str, counts: str) -> None:
        self.pipeline = PIPELINES[name]
        self.counts = counts
        self.around: dict[ChatRole, int] = {}

    def message_len(self, message: ChatMessage) -> int:
        if self.counts == "prompts":
            return super().message_len(message)
        shown = (message.text or "") + "".join(call.function.arguments for call in message.tool_calls or ())
        return len(encode(shown)) + (self._around(message.role) if self.counts == "measured" else 4)

    def _around(self, role: ChatRole) -> int:
        if role not in self.around:
            user, call = ChatMessage.user("a"), ToolCall.from_function("a", call_id_="a")
            message, before = {
                ChatRole.USER: (user, [user, ChatMessage.assistant("a")]),
                ChatRole.ASSISTANT: (ChatMessage.assistant("a"), [user]),
                ChatRole.FUNCTION: (
                    ChatMessage.function("a", "a", "a"),
                    [user, ChatMessage.assistant("", tool_calls=[call])],
                ),
                ChatRole.SYSTEM: (ChatMessage.system("a"), [user]),
            }[role]
            self.around[role] = max(0, self.prompt_len([*before, message]) - self.prompt_len(before) - 1)
        return self.around[role]

    def prompt_len(self, messages: list[ChatMessage], functions: list[AIFunction] | None = None, **kwargs: Any) -> int:
        return len(encode(self.pipeline(messages, functions)))

    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        return Completion(ChatMessage.assistant("ok"))


TEXT = st.sampled_from(["hi", "the user and the assistant", "what is the result of the function?" * 3, "a"])


@st.composite
def histories(draw: st.DrawFn) -> list[ChatMessage]:
    """Rounds as a chat has them: a question, perhaps calls and their results, an answer with or without reasoning."""
    history: list[ChatMessage] = []
    for number in range(draw(st.integers(1, 5))):
        history.append(ChatMessage.user(draw(TEXT)))
        for call in range(draw(st.integers(0, 2))):
            made = ToolCall.from_function("f", call_id_=f"call-{number}-{call}", x=draw(TEXT))
            history.append(ChatMessage.assistant(draw(st.sampled_from([None, "Wait."])), tool_calls=[made]))
            history.append(ChatMessage.function("f", draw(TEXT), made.id))
        thought = ReasoningPart(content=draw(TEXT))
        history.append(ChatMessage.assistant([thought, draw(TEXT)] if draw(st.booleans()) else draw(TEXT)))
    return [*history, ChatMessage.user(draw(TEXT))]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_count_is_that_of_the_prompts_tokens(name: str) -> None:
    theirs = ChatTemplatePromptPipeline(make_tokenizer(TEMPLATES[name]))

    @settings(max_examples=8)
    @given(history=histories(), functions=st.sampled_from([None, [FUNCTION]]))
    def check(history: list[ChatMessage], functions: Any) -> None:
        prompt = theirs(history, functions)
        assert TemplateEngine(name, "prompts").prompt_len(history, functions) == len(encode(prompt))
        assert theirs.tokenizer.encode(prompt, add_special_tokens=False) == encode(prompt)

    check()


@pytest.mark.parametrize("counts", ["measured", "prompts"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_budget_keeps_the_limit_and_as_much_as_fits(name: str, counts: str) -> None:
    engine = TemplateEngine(name, counts)

    @settings(max_examples=8)
    @given(
        history=histories(),
        functions=st.sampled_from([None, [FUNCTION]]),
        always=st.sampled_from([[], [ChatMessage.system("You are the assistant.")]]),
        share=st.floats(0.1, 1.1),
    )
    def check(history: list[ChatMessage], functions: Any, always: list[ChatMessage], share: float) -> None:
        size = int(engine.prompt_len([*always, *history], functions) * share)
        starts = [i for i in range(len(history)) if group_start(history, i) == i]
        fits = [i for i in starts if engine.prompt_len([*always, *history[i:]], functions) <= size]
        try:
            chosen = anyio.run(Budget().fit, engine, always, history, functions, size, {})
        except (PromptTooLong, MessageTooLong):
            assert not fits
            return
        start = len(history) - (len(chosen) - len(always))
        assert chosen == [*always, *history[start:]]
        assert engine.prompt_len(chosen, functions) <= size
        assert start in fits
        if counts == "prompts":  # see test_approximate_counts for the others
            assert not any(i in fits for i in starts[: starts.index(start)][-1:])

    check()


def test_approximate_counts() -> None:
    engine = TemplateEngine("named-llama3", "texts")
    history = [ChatMessage.user("hi"), ChatMessage.assistant("hi"), ChatMessage.user("hi")]
    size = engine.prompt_len(history[1:])
    assert size < engine.prompt_len(history)
    assert anyio.run(Budget().fit, engine, [], history, None, size, {}) == history[1:]
