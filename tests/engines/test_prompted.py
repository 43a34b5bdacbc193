"""What every engine that writes its own prompts tells of requests that it can't run."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from kani_lite import ChatMessage, Kani
from kani_lite.engines import HuggingEngine, NanoEngine
from kani_lite.engines.nano import WEIGHTS
from kani_lite.exceptions import EngineError, PromptError, PromptTooLong


@pytest.fixture(scope="module")
def nano() -> Iterator[NanoEngine]:
    engine = NanoEngine()
    yield engine
    anyio.run(engine.close)


async def test_a_prompt_that_is_too_long_names_its_longest_message(nano: NanoEngine) -> None:
    messages = [ChatMessage.system("Be brief."), ChatMessage.user("hello " * 3000), ChatMessage.user("Who?")]
    over = nano.prompt_len(messages) + 1 - nano.max_context_size
    with pytest.raises(PromptTooLong, match=rf"that is {over} more .* message 2 \(user, 18,000 characters\)"):
        await nano.predict(messages)
    ai = Kani(nano, system_prompt="hello " * 3000)
    with pytest.raises(PromptTooLong, match=r"more than the \d+ .* message 1 \(system, 17,999 characters\)"):
        await ai.chat_round("Who?")


async def test_a_chat_has_one_reply(nano: NanoEngine) -> None:
    with pytest.raises(EngineError, match="n=2 replies"):
        await nano.predict([ChatMessage.user("hello")], n=2)
    with pytest.raises(EngineError, match="n=2 replies"):
        await Kani(nano).chat_round("hello", n=2)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}", "endfor"),
        ("{{ raise_exception('no way.') }}", r"no way\. Give"),
        ("{{ nix.foo }}", "'nix' is undefined"),
    ],
)
async def test_a_wrong_template_is_told_through_a_chat(template: str, reason: str) -> None:
    engine = await anyio.to_thread.run_sync(lambda: HuggingEngine(WEIGHTS, chat_template=template))
    try:
        with pytest.raises(PromptError, match=rf"refuses these messages \(user\): .*{reason}"):
            await Kani(engine).chat_round("hello")
    finally:
        await engine.close()
