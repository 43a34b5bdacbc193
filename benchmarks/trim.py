"""Choosing what fits: 800 messages of tokenizer text through a 4,096-token context that overflows every round.

    python benchmarks/trim.py [--without-kani]

Both frameworks run on the same model folder: a tiny random Llama with the embedded model's tokenizer and template. The
time to build and tokenise the chosen prompt once, which any framework has to spend, is measured apart and not counted.
kani does no such thing apart, so one such build is taken off its time too.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import anyio
from machine import describe

from kani_lite import ChatMessage, Kani
from kani_lite.engines import HuggingEngine
from kani_lite.engines.nano import WEIGHTS

MESSAGES, CONTEXT, RESERVE, ROUNDS = 800, 4096, 256, 20


def make_model(folder: str) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    config.max_position_embeddings, config.eos_token_id, config.tie_word_embeddings = CONTEXT, 2, True
    LlamaForCausalLM(config).save_pretrained(folder)


def texts() -> list[str]:
    rng = random.Random(0)
    words = [
        "the",
        "weather",
        "in",
        "Paris",
        "is",
        "sunny",
        "and",
        "my",
        "name",
        "is",
        "Ada",
        "so",
        "please",
        "remember",
        "that",
        "room",
        "42",
        "has",
        "a",
        "blue",
        "lamp",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(MESSAGES + 2 * ROUNDS)]


async def rounds(get_prompt: Callable[[], Awaitable[Any]], add: Callable[[int], None], count: int) -> list[float]:
    """Seconds of the first choice, and of each after two more messages."""
    seconds = []
    for i in range(count):
        start = time.perf_counter()
        await get_prompt()
        seconds.append(time.perf_counter() - start)
        add(i)
    return seconds


async def ours(folder: str) -> tuple[float, float, float]:
    """(first choice, later rounds, one build of the prompt), in ms."""
    engine = HuggingEngine(folder, max_context_size=CONTEXT)
    said = texts()
    history = [ChatMessage.user(t) if i % 2 == 0 else ChatMessage.assistant(t) for i, t in enumerate(said)]
    ai = Kani(engine, chat_history=history[:MESSAGES], desired_response_tokens=RESERVE)
    spent: list[float] = []
    measure = engine.prompt_len

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return measure(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)

    engine.prompt_len = timed  # type: ignore[method-assign]  # the wrapped method
    calls: list[int] = []

    def add(i: int) -> None:
        calls.append(len(spent))
        ai.chat_history.extend(history[MESSAGES + 2 * i : MESSAGES + 2 * i + 2])

    seconds = await rounds(ai.get_prompt, add, ROUNDS)
    # the last build of each round is of the chosen prompt; builds of prompts that were not chosen do count
    built = [spent[n - 1] for n in calls]
    choosing = [(s - b) * 1000 for s, b in zip(seconds, built, strict=True)]
    await engine.close()
    return choosing[0], median(choosing[1:]), median(built) * 1000


async def kanis(folder: str, build: float) -> tuple[float, float]:
    """kani's (first choice, one later round), in ms."""
    logging.disable(logging.WARNING)  # it looks the folder up on the hub, and says so at length
    from kani import ChatMessage as Theirs
    from kani import Kani as TheirKani
    from kani.engines.huggingface import HuggingEngine as TheirEngine

    said = texts()
    history = [Theirs.user(t) if i % 2 == 0 else Theirs.assistant(t) for i, t in enumerate(said)]
    engine = TheirEngine(folder, max_context_size=CONTEXT)
    ai = TheirKani(engine, chat_history=history[:MESSAGES], desired_response_tokens=RESERVE)
    seconds = await rounds(ai.get_prompt, lambda i: ai.chat_history.extend(history[MESSAGES : MESSAGES + 2]), 2)
    return seconds[0] * 1000 - build, seconds[1] * 1000 - build


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-kani", action="store_true")
    args = parser.parse_args()
    print(describe("kani_lite", "kani", "transformers", "tokenizers"))
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        first, later, build = await ours(folder)
        print(f"\none build of the chosen prompt: {build:.1f} ms (not counted below)\n")
        print("| choosing what fits | first, ms | a later round, ms |\n|---|---|---|")
        print(f"| kani_lite | {first:.1f} | {later:.2f} |")
        if not args.without_kani:
            theirs = await kanis(folder, build)
            print(f"| kani 1.10 | {theirs[0]:.0f} | {theirs[1]:.0f} |")
            print(f"| ratio | {theirs[0] / first:.0f} | {theirs[1] / later:.0f} |")


if __name__ == "__main__":
    anyio.run(main)
