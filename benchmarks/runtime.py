"""What the local runtime costs and saves, beside kani's engine, `model.generate` and bare forward passes.

    python benchmarks/runtime.py [--only later,tools,overflow,decode,together,batching,cancel,loop] [--repeat 3]

Random Llamas are made under build/benchmarks, once. Every figure and its peer come from one run; medians. The peers get
the same weights and the same prompts, and as many tokens to write.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import anyio
import torch
from machine import describe
from models import random_llama
from transformers import AutoModelForCausalLM

from kani_lite import ChatMessage, FunctionCall, Kani, ToolCall
from kani_lite.engines import HuggingEngine

FOLDER = Path(__file__).resolve().parents[1] / "build" / "benchmarks"
WORDS = "the weather in Paris is sunny and my name is Ada so please remember that room 42 has a blue lamp".split()


def words(count: int, seed: int) -> str:
    return " ".join(WORDS[(7 * i + i // 5 + seed) % len(WORDS)] for i in range(count))


def row(what: str, ours: float, peer: float, name: str, aim: str, unit: str = "s") -> None:
    print(
        f"| {what} | {ours:.4g} {unit} | {name} {peer:.4g} {unit} | {max(ours, peer) / min(ours, peer):.2f} | {aim} |"
    )


def kani_engine(folder: Path, **options: Any) -> Any:
    from kani.engines.huggingface import HuggingEngine as KaniHuggingEngine

    options = {"model_load_kwargs": {"device_map": None}, "do_sample": False} | options
    return KaniHuggingEngine(str(folder), **options)


def kani_messages(messages: list[ChatMessage]) -> list[Any]:
    from kani import ChatMessage as KaniMessage
    from kani import ChatRole, FunctionCall, ToolCall

    out = []
    for m in messages:
        calls = [
            ToolCall(
                id=c.id, type="function", function=FunctionCall(name=c.function.name, arguments=c.function.arguments)
            )
            for c in m.tool_calls or ()
        ]
        out.append(
            KaniMessage(
                role=ChatRole(m.role.value),
                content=m.text,
                name=m.name,
                tool_call_id=m.tool_call_id,
                tool_calls=calls or None,
            )
        )
    return out


async def first_token(stream: Any) -> float:
    """Seconds to the first piece of a reply that is broken off then."""
    begun = time.perf_counter()
    async with aclosing(stream):
        async for _ in stream:
            break
    return time.perf_counter() - begun


def long_chat(tokens: int, engine: HuggingEngine) -> list[ChatMessage]:
    """Questions and answers of about 60 tokens, `tokens` together."""
    chat = [ChatMessage.system("You are a helpful assistant.")]
    while engine.prompt_len(chat) < tokens:
        chat += [ChatMessage.user(words(25, len(chat))), ChatMessage.assistant(words(25, len(chat) + 3))]
    return chat


async def later_round(repeat: int) -> None:
    """A chat of 4,000 tokens goes on: the time of a round with 40 new tokens that ends with its first token."""
    folder = random_llama(FOLDER, "55M")
    engine, peer = HuggingEngine(folder, temperature=0, max_tokens=1), kani_engine(folder, max_new_tokens=1)
    chat = long_chat(4000, engine)
    ours, theirs, floor = [], [], []
    await engine.predict(chat)
    for i in range(repeat):
        chat.append(ChatMessage.user(words(13, i)))
        begun = time.perf_counter()
        reply = await engine.predict(chat)
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        await peer.predict(kani_messages(chat))
        theirs.append(time.perf_counter() - begun)
        floor.append(bare_prefill(engine, chat, reply.prompt_tokens - reply.cached_tokens))
        chat.append(reply.message)
    row("first token of a later round, 4,000 + 40 tokens", median(ours), median(theirs), "kani", "20")
    row("the same", median(ours), median(floor), "bare prefill of the new tokens", "at most 1.3")
    await engine.close()


def bare_prefill(engine: HuggingEngine, chat: list[ChatMessage], new: int) -> float:
    """Seconds of transformers' own forward pass for the last `new` tokens, the others being in its cache."""
    from transformers import DynamicCache

    ids = torch.tensor([engine.token_ids(engine.build_prompt(chat))])
    cache = DynamicCache(config=engine.model.config)
    with torch.inference_mode():
        engine.model(input_ids=ids[:, :-new], past_key_values=cache, logits_to_keep=1)
        begun = time.perf_counter()
        engine.model(input_ids=ids[:, -new:], past_key_values=cache, logits_to_keep=1)
        return time.perf_counter() - begun


async def tool_round(repeat: int) -> None:
    """Six calls one after the other on 2,000 tokens of context: seven prompts, each longer by a call and its result.

    The model's replies are cut to 8 tokens; the calls are put in by hand, the same for both engines.
    """
    folder = random_llama(FOLDER, "55M")
    engine, peer = HuggingEngine(folder, temperature=0, max_tokens=8), kani_engine(folder, max_new_tokens=8)
    chat = [*long_chat(2000, engine), ChatMessage.user("What is the weather in six cities?")]
    await engine.predict(chat[:-1])
    ours, theirs = [], []
    for _ in range(repeat):
        for times, run in ((ours, engine.predict), (theirs, lambda m: peer.predict(kani_messages(m)))):
            now, begun = list(chat), time.perf_counter()
            for i in range(7):
                await run(now)
                call = ToolCall(
                    id=f"c{i}", type="function", function=FunctionCall.with_args("get_weather", city=WORDS[i])
                )
                now += [
                    ChatMessage.assistant(None, tool_calls=[call]),
                    ChatMessage.function("get_weather", words(12, i), call.id),
                ]
            times.append(time.perf_counter() - begun)
    row("a round of 6 calls on 2,000 tokens", median(ours), median(theirs), "kani", "8")
    await engine.close()


async def overflow(rounds: int) -> None:
    """The first token of later rounds when the context of 4,096 tokens overflows in every round."""
    folder = random_llama(FOLDER, "55M")
    engine = HuggingEngine(folder, max_context_size=4096, temperature=0, max_tokens=8)
    ai = Kani(engine, chat_history=long_chat(6000, engine), desired_response_tokens=64)
    await ai.chat_round_str("hello")
    ours = []
    for i in range(rounds):
        begun = time.perf_counter()
        stream = ai.chat_round_stream(words(25, i))
        async for _ in stream:
            break
        ours.append(time.perf_counter() - begun)
        await stream.message()
    await engine.close()
    peer = kani_engine(folder, max_context_size=4096, max_new_tokens=1)
    fitting = kani_messages(long_chat(3900, engine_of_length(folder)))
    theirs = []
    for _ in range(2):  # its choice of what fits, tens of seconds (benchmarks/trim.py), isn't counted here
        begun = time.perf_counter()
        await peer.predict(fitting)
        theirs.append(time.perf_counter() - begun)
    row(f"first token when the context overflows, median of {rounds}", median(ours), median(theirs), "kani", "20")


def engine_of_length(folder: Path) -> HuggingEngine:
    return HuggingEngine(folder, temperature=0, max_tokens=1)


async def decode(repeat: int) -> None:
    """Tokens a second of one chat, bf16, 430 M parameters, beside `model.generate`. One after the other: OpenMP slows
    both of two models down that threads of their own run, even if one is idle."""
    folder = random_llama(FOLDER, "430M", torch.bfloat16)
    engine = HuggingEngine(folder, temperature=0)
    ids, new = engine.encode(words(60, 0)), 40
    ours, theirs = [], []
    for _ in range(repeat):
        result = (await engine.generate(ids, max_tokens=new, ignore_eos=True)).choices[0]
        ours.append(1 / (result.seconds_per_token or 1))
    await engine.close()
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    for _ in range(repeat):
        seconds = [generate(peer, ids, n) for n in (1, new)]
        theirs.append((new - 1) / (seconds[1] - seconds[0]))
    row("one chat, bf16, 430 M", median(ours), median(theirs), "generate", "1.3", "tokens/s")


def generate(model: Any, ids: list[int], new: int) -> float:
    tensor = torch.tensor([ids])
    begun = time.perf_counter()
    model.generate(
        tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - begun


async def together(repeat: int) -> None:
    """16 chats at once and one after the other, fp32, on both sizes; all texts must be the same."""
    for size, new in (("55M", 32), ("430M", 8)):
        engine = HuggingEngine(
            random_llama(FOLDER, size), temperature=0, max_cached_prompts=0, max_tokens=new, ignore_eos=True
        )
        prompts = [engine.encode(words(20 + 3 * i, i)) for i in range(16)]
        at_once, in_turn = [], []
        for _ in range(repeat):
            begun = time.perf_counter()
            alone = [(await engine.generate(prompt)).ids for prompt in prompts]
            in_turn.append(16 * new / (time.perf_counter() - begun))
            begun = time.perf_counter()
            results = await engine.generate_batch(prompts)
            at_once.append(16 * new / (time.perf_counter() - begun))
            same = sum(result.ids == ids for result, ids in zip(results, alone, strict=True))
        row(
            f"16 chats together, {size} fp32, {same} of 16 equal",
            median(at_once),
            median(in_turn),
            "one after the other",
            "6",
            "tokens/s",
        )
        await engine.close()


async def batching(repeat: int) -> None:
    """8 requests that share 256 of their 272 tokens, 16 new ones each, beside a static batch and transformers'
    continuous batching, whose first call, with the start of its manager, has a row of its own."""
    from transformers import GenerationConfig

    folder = random_llama(FOLDER, "55M")
    engine = HuggingEngine(folder, temperature=0, ignore_eos=True, max_tokens=16, max_cached_prompts=0)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    config = GenerationConfig(max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
    ours, theirs, static = [], [], []
    texts = [
        [engine.encode(words(400, i))[:256] + engine.encode(words(40, i + j))[:16] for j in range(8)]
        for i in range(repeat + 1)
    ]
    for prompts in texts:
        begun = time.perf_counter()
        await engine.generate_batch(prompts)
        ours.append(time.perf_counter() - begun)
    await engine.close()  # its threads would slow the others down
    for prompts in texts:
        begun = time.perf_counter()
        run = partial(peer.generate_batch, prompts, config, progress_bar=False, persistent_manager=True)
        await anyio.to_thread.run_sync(run)
        theirs.append(time.perf_counter() - begun)
        tensor = torch.tensor(prompts)
        begun = time.perf_counter()
        peer.generate(tensor, attention_mask=torch.ones_like(tensor), generation_config=config)
        static.append(time.perf_counter() - begun)
    row("8 requests that share 256 of 272 tokens", median(ours), median(theirs[1:]), "transformers' generate_batch", "")
    row("the same", median(ours), theirs[0], "the first call of that", "")
    row("the same", median(ours), median(static), "a static batch", "")


async def cancel(repeat: int) -> None:
    """From a cancel to a model that is free for the next request, beside a decode step."""
    engine = HuggingEngine(random_llama(FOLDER, "430M"), temperature=0, ignore_eos=True)
    steps, waits = [], []
    for _ in range(3 * repeat):
        result = (await engine.generate("hello", max_tokens=8)).choices[0]
        steps.append(result.seconds_per_token or 0)
        async with aclosing(engine.generations("hello", max_tokens=200)) as stream:
            async for _ in stream:
                break
        begun = time.perf_counter()
        while engine.busy:  # noqa: ASYNC110  # the thread tells nobody
            await anyio.sleep(0.0005)
        waits.append(time.perf_counter() - begun)
    row("from a cancel to a free engine, 430 M fp32", median(waits), median(steps), "a decode step", "at most 1.5")
    await engine.close()


async def loop_gap(_: int) -> None:
    """Gaps of the event loop while 4 chats generate."""
    engine = HuggingEngine(random_llama(FOLDER, "55M"), temperature=0, ignore_eos=True, max_tokens=64)
    gaps: list[float] = []

    async def tick() -> None:
        before = time.perf_counter()
        while True:
            await anyio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - before - 0.001)
            before = now

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await engine.generate_batch([words(40, i) for i in range(4)])
        group.cancel_scope.cancel()
    await engine.close()
    peer = kani_engine(random_llama(FOLDER, "55M"), max_new_tokens=64)
    begun = time.perf_counter()
    await peer.predict(kani_messages([ChatMessage.user(words(40, 0))]))
    whole = time.perf_counter() - begun
    row(
        "gap of the event loop, 99th percentile",
        1000 * quantiles(gaps, n=100)[98],
        1000 * whole,
        "kani: all of it",
        "5 ms",
        "ms",
    )
    row("gap of the event loop, longest", 1000 * max(gaps), 1000 * whole, "kani: all of it", "50 ms", "ms")


PARTS: dict[str, Callable[[int], Any]] = {
    "later": later_round,
    "tools": tool_round,
    "overflow": lambda repeat: overflow(20),
    "decode": decode,
    "together": together,
    "batching": batching,
    "cancel": cancel,
    "loop": loop_gap,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(describe("torch", "transformers", "kani"), f"{torch.get_num_threads()} torch threads", sep=", ")
    print("\n| | kani_lite | peer | ratio | aim |\n|---|---:|---:|---:|---:|")
    for name in args.only.split(","):
        anyio.run(PARTS[name], args.repeat)


if __name__ == "__main__":
    main()
