"""What the framework itself costs: rounds on an engine that answers at once, beside kani 1.10 and a hand-written floor.

    python benchmarks/overhead.py [--rounds 200] [--without-kani]

Each row is the median over rounds of one kind; the three take turns within a row, so that what else the machine does
hits all of them. The floor is a loop that appends to a list and calls the engine: no framework can cost less.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median
from typing import Any

import anyio
from machine import describe
from packaging.requirements import Requirement

AIMS = {
    "text round": 0.7,
    "tool round": 0.6,
    "8 parallel tools": 0.6,
    "text round on 1,000 messages": 0.7,
    "256-chunk stream": 0.65,
    "trim 1,000 messages to 100": 0.003,
    "import": 0.8,
}
TEXT = "x" * 200  # a message of 50 tokens
CHUNKS = ["word "] * 256
Timed = Callable[[], Awaitable[float]]
"""Runs one round and gives the seconds that it took."""


def make_engine(lib: Any) -> Any:
    """The class of an engine for `lib` (kani or kani_lite) that answers at once; its `calls`, if any, come first."""
    message_class, completion = lib.ChatMessage, lib.engines.Completion
    base = import_module(f"{lib.__name__}.engines.base").BaseEngine

    class Instant(base):  # type: ignore[misc]  # one class for both
        def __init__(self, size: int) -> None:
            self.max_context_size = size
            self.calls: list[Any] = []

        def message_len(self, message: Any) -> int:
            return len(message.text or "") // 4

        def prompt_len(self, messages: list[Any], functions: Any = None, **kwargs: Any) -> int:
            return sum(self.message_len(m) for m in messages)

        async def predict(self, messages: list[Any], functions: Any = None, **kwargs: Any) -> Any:
            if self.calls and messages[-1].role is lib.ChatRole.USER:
                return completion(message_class.assistant(None, tool_calls=list(self.calls)), 10, 10)
            return completion(message_class.assistant("Fine."), 10, 10)

        async def stream(self, messages: list[Any], functions: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
            for chunk in CHUNKS:
                yield chunk
            yield completion(message_class.assistant("".join(CHUNKS)), 10, 10)

    if lib.__name__ == "kani_lite":
        del Instant.prompt_len  # the sum of message_len is its default; kani has to be told
    return Instant


async def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def add_in_thread(a: int, b: int) -> int:
    """Adds."""
    return a + b


def chat(lib: Any, size: int = 1_000_000, messages: int = 0, **kwargs: Any) -> Any:
    m = lib.ChatMessage
    history = [m.user(TEXT) if i % 2 == 0 else m.assistant(TEXT) for i in range(messages)]
    return lib.Kani(make_engine(lib)(size), chat_history=history, desired_response_tokens=1, **kwargs)


def text_round(lib: Any, messages: int = 0) -> Timed:
    ai = chat(lib, messages=messages)

    async def run() -> float:
        start = time.perf_counter()
        await ai.chat_round("How are you?")  # the history grows by two, as that of a chat does
        return time.perf_counter() - start

    return run


def tool_round(lib: Any, calls: int, function: Callable[..., Any]) -> Timed:
    ai = chat(lib, functions=[lib.AIFunction(function)])
    tool_call = import_module(f"{lib.__name__}{'.models' if lib.__name__ == 'kani' else ''}").ToolCall
    ai.engine.calls = [tool_call.from_function(function.__name__, a=i, b=1) for i in range(calls)]

    async def run() -> float:
        start = time.perf_counter()
        async for _message in ai.full_round("Add these."):
            pass
        seconds = time.perf_counter() - start
        assert len(ai.chat_history) == calls + 3
        ai.chat_history.clear()
        return seconds

    return run


def stream_round(lib: Any) -> Timed:
    ai = chat(lib)

    async def run() -> float:
        start = time.perf_counter()
        async for _token in ai.chat_round_stream("Go on."):
            pass
        seconds = time.perf_counter() - start
        ai.chat_history.clear()
        return seconds

    return run


def trim_round(lib: Any, fresh: bool) -> Timed:
    """`fresh`: the first round of a chat, which knows nothing of the messages yet."""
    ai = chat(lib, size=100 * 50 + 1, messages=1000)
    history = list(ai.chat_history)

    async def run() -> float:
        nonlocal ai
        if fresh:
            ai = lib.Kani(ai.engine, chat_history=history, desired_response_tokens=1)
        start = time.perf_counter()
        await ai.chat_round(TEXT)
        return time.perf_counter() - start

    return run


def floor_text(messages: int = 0) -> Timed:
    import kani_lite

    ai = chat(kani_lite, messages=messages)
    engine, history = ai.engine, ai.chat_history

    async def run() -> float:
        start = time.perf_counter()
        history.append(kani_lite.ChatMessage.user("How are you?"))
        completion = await engine.predict(list(history))
        history.append(completion.message)
        return time.perf_counter() - start

    return run


def floor_tools(calls: int, threads: bool) -> Timed:
    import kani_lite

    message = kani_lite.ChatMessage
    engine = make_engine(kani_lite)(1)
    name = "add_in_thread" if threads else "add"
    engine.calls = [kani_lite.ToolCall.from_function(name, a=i, b=1) for i in range(calls)]

    async def one(call: Any, results: list[Any], index: int) -> None:
        arguments = json.loads(call.function.arguments)
        if threads:
            value = await anyio.to_thread.run_sync(lambda: add_in_thread(**arguments))
        else:
            value = await add(**arguments)
        results[index] = message.function(call.function.name, str(value), call.id)

    async def run() -> float:
        start = time.perf_counter()
        history = [message.user("Add these.")]
        history.append((await engine.predict(history)).message)
        results: list[Any] = [None] * calls
        async with anyio.create_task_group() as tasks:
            for index, call in enumerate(history[-1].tool_calls or []):
                tasks.start_soon(one, call, results, index)
        history += results
        history.append((await engine.predict(history)).message)
        return time.perf_counter() - start

    return run


def floor_stream() -> Timed:
    import kani_lite

    engine = make_engine(kani_lite)(1)

    async def run() -> float:
        start = time.perf_counter()
        history = [kani_lite.ChatMessage.user("Go on.")]
        async for item in engine.stream(history):
            if not isinstance(item, str):
                history.append(item.message)  # noqa: PERF401  # a loop, as one writes it by hand
        return time.perf_counter() - start

    return run


def floor_trim() -> Timed:
    import kani_lite

    ai = chat(kani_lite, messages=1000)

    async def run() -> float:
        start = time.perf_counter()
        ai.chat_history.append(kani_lite.ChatMessage.user(TEXT))
        tokens, index = 0, len(ai.chat_history)
        while index and (tokens := tokens + ai.engine.message_len(ai.chat_history[index - 1])) <= 5000:
            index -= 1
        ai.chat_history.append((await ai.engine.predict(ai.chat_history[index:])).message)
        return time.perf_counter() - start

    return run


CASES: dict[str, tuple[Callable[[Any], Timed], Callable[[], Timed], int]] = {
    # name: (a framework's round, the floor's, how many times fewer of these rounds)
    "text round": (text_round, floor_text, 1),
    "tool round": (lambda lib: tool_round(lib, 1, add), lambda: floor_tools(1, False), 1),
    "tool round, sync tool": (lambda lib: tool_round(lib, 1, add_in_thread), lambda: floor_tools(1, True), 1),
    "8 parallel tools": (lambda lib: tool_round(lib, 8, add), lambda: floor_tools(8, False), 1),
    "8 parallel sync tools": (lambda lib: tool_round(lib, 8, add_in_thread), lambda: floor_tools(8, True), 1),
    "text round on 1,000 messages": (lambda lib: text_round(lib, 1000), lambda: floor_text(1000), 1),
    "256-chunk stream": (stream_round, floor_stream, 1),
    "trim 1,000 messages to 100": (lambda lib: trim_round(lib, False), floor_trim, 10),
    "the same, first round of a chat": (lambda lib: trim_round(lib, True), floor_trim, 10),
}


async def measure(libs: list[Any], rounds: int) -> dict[str, list[float]]:
    """For each case the median milliseconds of the floor and of each of `libs`."""
    found = {}
    for name, (make, make_floor, fewer) in CASES.items():
        runs = [make_floor(), *(make(lib) for lib in libs)]
        times: list[list[float]] = [[] for _ in runs]
        gc.collect()
        for i in range(max(5, rounds // fewer) + 3):
            for run, seconds in zip(runs, times, strict=True):
                spent = await run()
                if i >= 3:  # the first ones warm up
                    seconds.append(spent * 1000)
        found[name] = [median(seconds) for seconds in times]
    return found


def in_new_process(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def imports(names: list[str], repeats: int) -> dict[str, list[float]]:
    """Milliseconds and MiB of new processes up to having Kani in hand; the floor imports what both build on."""
    imported = ["import pydantic, anyio", *(f"from {name} import Kani" for name in names)]
    clock = "import time; start = time.perf_counter(); {}; print((time.perf_counter() - start) * 1000)"
    memory = "import resource; {}; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    times: list[list[float]] = [[] for _ in imported]
    for _ in range(repeats):
        for line, found in zip(imported, times, strict=True):
            found.append(in_new_process(clock.format(line)))
    return {
        "import": [median(found) for found in times],
        "memory after it, MiB": [in_new_process(memory.format(line)) for line in imported],
    }


def closure(name: str, seen: set[str]) -> set[str]:
    """The names of a distribution and of all that it requires without extras."""
    if name not in seen:
        seen.add(name)
        for line in distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                closure(requirement.name.lower().replace("_", "-"), seen)
    return seen


def size(name: str) -> float:
    """MiB of a distribution's files, as installed; of an editable kani_lite, of its three folders."""
    if name == "kani-lite":
        root = Path(__file__).parent.parent
        files = [p for room in ("kani_lite", "engines", "prompts") for p in (root / room).rglob("*")]
        paths = [p for p in files if "__pycache__" not in p.parts and "training" not in p.parts]
    else:
        paths = [Path(str(f.locate())) for f in distribution(name).files or [] if "__pycache__" not in str(f)]
    return sum(p.stat().st_size for p in paths if p.is_file()) / 2**20


def sizes(names: list[str]) -> dict[str, list[float]]:
    packages = [name.replace("_", "-") for name in names]
    return {
        "installed, MiB": [0.0, *(size(p) for p in packages)],
        "with what it requires, MiB": [0.0, *(sum(map(size, closure(p, set()))) for p in packages)],
    }


def table(found: dict[str, list[float]]) -> list[str]:
    lines = ["| ms | floor | kani_lite | kani 1.10 | share | aim |", "|---|---:|---:|---:|---:|---:|"]
    for name, (floor, ours, *theirs) in found.items():
        kani = f"{theirs[0]:.3f} | {ours / theirs[0]:.3f}" if theirs else "- | -"
        lines.append(f"| {name} | {floor:.3f} | {ours:.3f} | {kani} | {AIMS.get(name, '')} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--without-kani", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    names = ["kani_lite"]
    try:
        distribution("kani")
        names += [] if args.without_kani else ["kani"]
    except PackageNotFoundError:
        print("kani is not installed: pip install -r benchmarks/requirements.txt")
    print(describe("kani_lite", "kani", "pydantic", "anyio"))
    found = imports(names, max(5, args.rounds // 20))
    rounds = anyio.run(measure, [import_module(name) for name in names], args.rounds)
    print("\n".join(["", *table(rounds | found | sizes(names))]))


if __name__ == "__main__":
    main()
