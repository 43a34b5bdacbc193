"""Many chats on one engine, with random cancels, errors and disconnects: nothing may be left over.

    python -m tests.support.soak [--chats 1000] [--rounds 10] [--cache bmc --cache paged]

Prints what happened and raises AssertionError if a waiter, thread, task, block of cache or memory was left behind.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import psutil
import torch

from kani_lite import ChatRole, Kani
from kani_lite.engines import HuggingEngine, SamplingParams
from kani_lite.engines.runtime.kv_blocks import BlockPools
from tests.support.tiny import save_llama

_TEXTS = ["one two three", "hello there, how are you?", "the quick brown fox", "I am fine.", "jumps over the lazy dog"]
_POISON = "\x07"  # a prompt with this character breaks the forward pass
_AT_ONCE = 24
_MEMORY = 4 * 2**20  # bytes of keys and values
_GROWTH = 24 * 2**20  # bytes of memory that allocators may keep


@dataclass
class Soak:
    engine: HuggingEngine
    rng: random.Random
    happened: Counter[str] = field(default_factory=Counter)

    async def chat(self, rounds: int) -> None:
        ai = Kani(self.engine, system_prompt=self.rng.choice(_TEXTS) * 3, desired_response_tokens=16)
        for _ in range(rounds):
            kind = self.rng.choices(["whole", "cancel", "disconnect", "error"], [6, 2, 2, 1])[0]
            await getattr(self, f"_{kind}")(ai, self.rng.choice(_TEXTS))
            self.happened[kind] += 1
            self._check_history(ai)

    async def _whole(self, ai: Kani, text: str) -> None:
        assert (await ai.chat_round(text)).role is ChatRole.ASSISTANT

    async def _cancel(self, ai: Kani, text: str) -> None:
        with anyio.move_on_after(self.rng.random() * 0.03):
            await ai.chat_round(text)

    async def _disconnect(self, ai: Kani, text: str) -> None:
        left = self.rng.randint(0, 6)
        async with ai.chat_round_stream(text) as stream:
            async for _ in stream:
                if (left := left - 1) < 0:
                    break

    async def _error(self, ai: Kani, text: str) -> None:
        try:
            await ai.chat_round(_POISON + text)
        except RuntimeError as error:
            if "poison" not in str(error):
                raise
        else:
            raise AssertionError("the poison did no harm")
        # the policy takes an unanswered question back
        assert not any(_POISON in (m.text or "") for m in ai.chat_history)

    @staticmethod
    def _check_history(ai: Kani) -> None:
        roles = [message.role for message in ai.chat_history]
        for one, other in pairwise(roles):
            assert not (one is ChatRole.ASSISTANT and other is ChatRole.ASSISTANT), roles


def poison(engine: HuggingEngine) -> None:
    """Lets the model break on one token."""
    (bad,) = engine.encode(_POISON)
    engine.sampling = engine.sampling.merged(SamplingParams(logit_bias={bad: float("-inf")}))  # it may not write it

    def check(_module: Any, args: Any) -> None:
        if (args[0] == bad).any():
            raise RuntimeError("poison in the prompt")

    engine.model.get_input_embeddings().register_forward_pre_hook(check)


def make_engine(folder: Path, cache: str) -> HuggingEngine:
    """A tiny random model that breaks on one token, with memory for a few chats."""
    options: dict[str, Any] = {"max_context_size": 400, "temperature": 0.8, "max_tokens": 10, "max_batch_size": 16}
    engine = HuggingEngine(save_llama(folder), device="cpu", kv_cache_memory_gb=_MEMORY / 2**30, cache=cache, **options)
    poison(engine)
    return engine


async def soak(folder: Path, chats: int, rounds: int, cache: str = "bmc", seed: int = 0) -> Counter[str]:
    """Runs them and checks what is left."""
    engine = await anyio.to_thread.run_sync(make_engine, folder, cache)
    work = Soak(engine, random.Random(seed))
    before = await engine.generate("hello", temperature=0)
    limiter, memory = anyio.CapacityLimiter(_AT_ONCE), list[int]()
    process = await anyio.to_thread.run_sync(psutil.Process)

    async def one() -> None:
        async with limiter:
            await work.chat(rounds)

    threads = 0
    for part in range(5):
        async with anyio.create_task_group() as group:
            for _ in range(chats // 5):
                group.start_soon(one)
        gc.collect()
        memory.append((await anyio.to_thread.run_sync(process.memory_info)).rss)
        threads = threads or threading.active_count()
        assert threading.active_count() <= threads, f"threads after part {part}"
    await _check_engine(engine)
    assert (await engine.generate("hello", temperature=0)).ids == before.ids
    growth = memory[-1] - memory[1]
    assert growth < _GROWTH, f"memory grew by {growth / 2**20:.0f} MiB: {memory}"
    work.happened["memory growth, KiB"] = growth // 1024
    await engine.close()
    return work.happened


async def _check_engine(engine: HuggingEngine) -> None:
    generator = engine._running_generator()
    with anyio.fail_after(10):
        while engine.busy:  # noqa: ASYNC110  # the thread tells nobody
            await anyio.sleep(0.01)
    assert not generator.busy
    held = generator.cache.nbytes
    assert held <= _MEMORY, held
    generator.cache.clear()
    assert generator.cache.nbytes == 0
    pools = getattr(generator.runner, "_new_layer", None)
    if isinstance(pools, BlockPools):
        assert pools.held == 0, f"{pools.held} blocks that nobody has"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cache", action="append", help="a kind of cache; bmc on both loops and paged if not given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = [("asyncio", kind) for kind in args.cache or ("bmc", "paged")] + [("trio", (args.cache or ["bmc"])[0])]
    with tempfile.TemporaryDirectory() as folder:
        for backend, cache in runs:
            begun = time.monotonic()
            happened = anyio.run(soak, Path(folder), args.chats, args.rounds, cache, backend=backend)
            seconds = time.monotonic() - begun
            print(f"{backend}, {cache}: {args.chats} chats of {args.rounds} rounds in {seconds:.0f} s", dict(happened))


if __name__ == "__main__":
    main()
