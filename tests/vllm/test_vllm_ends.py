"""Starts that fail, engines that die, and processes that must not outlive their owner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from kani_lite import ChatMessage
from kani_lite.engines.vllm.supervisor import descendants
from kani_lite.exceptions import EngineError

SECONDS = 60.0
ASK = [ChatMessage.user("Count from one to one thousand.")]
LONG = {"ignore_eos": True, "max_tokens": 1900, "temperature": 0.0}


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(true: Callable[[], bool], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


# ==== starts that fail ====


@pytest.mark.parametrize("name", ["VLLMEngine", "VLLMServerEngine"])
def test_a_model_that_is_not_there_is_told_before_vllm_starts(
    name: str, build: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"There is no folder .*nothing"):
        build(name, tmp_path / "nothing")
    with pytest.raises(EngineError, match=r"has no config.json"):
        build(name, tmp_path)


def test_engine_args_that_vllm_does_not_know_are_told(build: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match=r"can't run this model as asked: .*no_such_argument"):
        build("VLLMEngine", engine_args={"no_such_argument": 1})
    with pytest.raises(EngineError, match=r"can't run this model as asked: .*max_model_len"):
        build("VLLMEngine", max_model_len=100_000)
    with pytest.raises(EngineError, match=r"gpu_memory_reserved=1e\+17 MB isn't possible: there are \d+ MB"):
        build("VLLMEngine", gpu_memory_reserved=1e17)


def test_a_server_that_dies_while_it_starts_says_why(build: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match=r"ended while it started \(exit code \d+\)(.|\n)*max_model_len") as caught:
        build("VLLMServerEngine", max_model_len=100_000)
    assert len(str(caught.value).splitlines()) > 3


def test_a_server_that_is_too_slow_is_told_and_ended(build: Callable[..., Any]) -> None:
    before = set(descendants(os.getpid()))
    with pytest.raises(EngineError, match="vLLM's server wasn't up after timeout=2 seconds"):
        build("VLLMServerEngine", timeout=2.0)
    assert until(lambda: set(descendants(os.getpid())) <= before)


# ==== cancelling, and the end of an engine ====


async def unfinished(engine: Any) -> int:
    """Requests that vLLM itself still works on."""
    if engine.__class__.__name__ == "VLLMEngine":
        return int(engine._core.unfinished)
    import httpx2

    def ask() -> str:
        return str(httpx2.get(f"{engine.address}/metrics", timeout=20).text)

    text = await anyio.to_thread.run_sync(ask)
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_")]
    counts = [float(line.rpartition(" ")[2]) for line in lines if "running{" in line or "waiting{" in line]
    assert counts
    return int(sum(counts))


async def settled(engine: Any, count: int) -> bool:
    """Whether vLLM comes to have so many requests."""
    for _ in range(600):
        if await unfinished(engine) == count:
            return True
        await anyio.sleep(0.1)
    return False


@pytest.mark.both_loops
async def test_cancelling_takes_a_request_out_of_vllm(engine: Any) -> None:
    before = (await engine.predict(ASK, max_tokens=8, temperature=0.0)).message.text
    seen = anyio.Event()

    async def long() -> None:
        while True:  # a busy server may take longer to say what runs than a request takes
            async for _ in engine.stream(ASK, **LONG):
                seen.set()

    async with anyio.create_task_group() as group:
        group.start_soon(long)
        group.start_soon(long)
        await seen.wait()
        assert await settled(engine, 2)
        group.cancel_scope.cancel()
    assert await settled(engine, 0)
    assert (await engine.predict(ASK, max_tokens=8, temperature=0.0)).message.text == before


async def test_a_stream_that_is_left_takes_its_request_out_of_vllm(engine: Any) -> None:
    for _ in range(5):  # a busy server may take longer to say what runs than a request takes
        stream = engine.stream(ASK, **LONG)
        await anext(stream)
        if await unfinished(engine) == 1:
            break
        await stream.aclose()
    else:
        raise AssertionError("vLLM has never said that a request runs")
    await stream.aclose()
    assert await settled(engine, 0)


@pytest.fixture(params=[pytest.param("VLLMEngine", marks=pytest.mark.long), "VLLMServerEngine"])
def mortal(request: pytest.FixtureRequest, build: Callable[..., Any]) -> Iterator[Any]:
    """An engine of its own for a test that ends it."""
    before = set(descendants(os.getpid()))
    made = build(request.param, gpu_memory_reserved=2_000)
    new = set(descendants(os.getpid())) - before
    # multiprocessing's own lives as long as the program
    made.started = [pid for pid in new if "resource_tracker" not in command_of(pid)]
    [made.core] = [pid for pid in made.started if "EngineCore" in command_of(pid)]
    yield made
    anyio.run(made.close)


async def test_the_death_of_vllm_ends_what_runs_and_is_told(mortal: Any) -> None:
    said: list[str] = []
    killed = False

    async def long() -> None:
        nonlocal killed
        try:
            async for _ in mortal.stream(ASK, **LONG):
                if not killed:
                    killed = True
                    os.kill(mortal.core, signal.SIGKILL)
        except EngineError as error:
            said.append(str(error))

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(long)
            group.start_soon(long)
    assert len(said) == 2
    with pytest.raises(EngineError) as caught:
        await mortal.predict(ASK, max_tokens=4)
    if mortal.__class__.__name__ == "VLLMEngine":
        assert "engine process has died" in said[0]
        assert "engine process has died" in str(caught.value)
    else:
        # the server may take its time to end after its engine has
        for text in (*said, str(caught.value)):
            assert "vLLM's server ended while" in text or "vLLM's server failed this request" in text
            assert re.search(r"Its last lines were:\n(.|\n)*(EngineDead|Engine core|EngineCore)", text)
    await mortal.close()
    assert await anyio.to_thread.run_sync(until, lambda: not any(map(alive, mortal.started)))


# ==== the end of the owner ====

OWNER = """
import sys, time
from kani_lite.engines import vllm
if __name__ == "__main__":
    engine = getattr(vllm, sys.argv[1])(sys.argv[2], dtype="float32", enforce_eager=True)
    print("up", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("name", ["VLLMEngine", "VLLMServerEngine"])
@pytest.mark.parametrize(
    "way",
    ["killed", *(pytest.param(w, marks=pytest.mark.long) for w in ("killed while it starts", "forgets to close"))],
)
def test_nothing_outlives_the_owner(name: str, way: str, model: Path, tmp_path: Path) -> None:
    program = tmp_path / "owner.py"  # a file, since vLLM's processes import it again
    program.write_text(OWNER)
    command = [sys.executable, str(program), name, str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        try:
            if way == "killed while it starts":
                assert until(lambda: len(descendants(owner.pid)) >= 3, 300)
                time.sleep(1.0)
            else:
                assert "up\n" in iter(owner.stdout.readline, "")  # vLLM writes warnings before
            started = descendants(owner.pid)
            assert any("EngineCore" in command_of(pid) for pid in started) or way == "killed while it starts"
            if way == "forgets to close":
                owner.stdin.close()
                assert owner.wait(SECONDS) == 0
            else:
                owner.kill()
                owner.wait()
            assert until(lambda: not any(map(alive, started))), [command_of(pid) for pid in started if alive(pid)]
        finally:
            for pid in [*descendants(owner.pid), owner.pid]:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
