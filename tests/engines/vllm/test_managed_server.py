"""A server of our own: that it is ours, what it is told, and how long its errors are waited for. The program that
stands for vLLM is conftest's."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from openai_server import Exchange, Request

from kani_lite import ChatMessage
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.vllm import VLLMServerEngine
from kani_lite.engines.vllm.process import ManagedProcess
from kani_lite.exceptions import EngineError

ASK = [ChatMessage.user("hi")]
# httpx2 leaves generators of its own to the garbage collector where a stream is left, which trio warns of
pytestmark = pytest.mark.filterwarnings("ignore:.*PoolByteStream")
Python = Callable[..., str]


def build(python: str, **given: Any) -> VLLMServerEngine:
    return VLLMServerEngine(WEIGHTS, python=python, **given)


# ==== that it is ours ====


def test_a_server_of_our_own_comes_up(fake_python: Python) -> None:
    engine = build(fake_python())
    assert engine.max_context_size == 512
    anyio.run(engine.close)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_refused_before_anything_starts(taken: int, fake_python: Python, tmp_path: Any) -> None:
    python = fake_python(f"open({str(tmp_path / 'started')!r}, 'w')")
    with pytest.raises(EngineError, match=rf"vllm_port={taken} on vllm_host='127.0.0.1' can't be had \(.*in use"):
        build(python, vllm_port=taken)
    with pytest.raises(EngineError, match=r"vllm_port=70000 .* can't be had"):
        build(python, vllm_port=70_000)
    with pytest.raises(EngineError, match=r"vllm_host='no\.such\.host\.invalid' can't be had"):
        build(python, vllm_host="no.such.host.invalid")
    assert not (tmp_path / "started").exists()


def test_a_port_whose_last_server_has_just_ended_can_be_had(fake_python: Python) -> None:
    first = build(fake_python())
    port = int(first.address.rpartition(":")[2])
    anyio.run(first.close)  # its connections linger
    again = build(fake_python(), vllm_port=port)
    anyio.run(again.close)


def test_a_host_of_ipv6_is_an_address(fake_python: Python) -> None:
    with pytest.raises(EngineError) as caught:
        build(fake_python("print(*sys.argv); sys.exit(1)"), vllm_host="::1")
    if "can't be had" in str(caught.value):
        pytest.skip("this machine has no IPv6")
    assert "--host ::1 --port" in str(caught.value)


@pytest.fixture
def strangers(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that takes our port after that was looked at, and before our own server can have it."""
    from kani_lite.engines.vllm import server

    port = int(script.url.rpartition(":")[2].removesuffix("/v1"))
    monkeypatch.setattr(server, "_free_port", lambda *_: port)
    return script


def test_a_stranger_on_our_port_gets_neither_key_nor_prompt(strangers: Any, fake_python: Python) -> None:
    with pytest.raises(EngineError, match=r"Another server has taken http://127\.0\.0\.1:\d+ while ours started"):
        build(fake_python("time.sleep(60)"))
    assert [request.path for request in strangers.requests] == ["/health", "/v1/models"]
    assert all("authorization" not in request.headers for request in strangers.requests)


def test_a_server_that_dies_as_another_answers_says_why(strangers: Any, fake_python: Python) -> None:
    def late(exchange: Exchange, _: Request) -> None:
        time.sleep(2.0)
        exchange.send_bytes(b"", 200)

    strangers.step_for = lambda _: late
    with pytest.raises(EngineError, match=r"ended while it started(.|\n)*address already in use"):
        build(fake_python("sys.exit('address already in use')"))


# ==== what it is told ====


def told(fake_python: Python, **given: Any) -> str:
    """The words of its command line."""
    with pytest.raises(EngineError, match="ended while it started") as caught:
        build(fake_python("print(*sys.argv[1:]); sys.exit(1)"), **given)
    return str(caught.value).splitlines()[-1]


REPEATED: list[tuple[dict[str, Any], str]] = [
    ({"engine_args": {"served_model_name": "x"}}, "engine_args has 'served_model_name'.*give it as served_model="),
    ({"engine_args": {"served-model-name": "x"}}, "engine_args has 'served_model_name'"),
    ({"engine_args": {"generation_config": "auto"}}, "engine_args has 'generation_config'.*leave it out"),
    ({"engine_args": {"model": "x"}}, "engine_args has 'model': give it as model_id="),
    ({"model_load_kwargs": {"hf_token": "secret"}}, "engine_args has 'hf_token': give it as token="),
    ({"engine_args": {"port": 1}}, "engine_args has 'port'.*give it as vllm_port="),
    ({"vllm_args": ["--port", "1"]}, "vllm_args has 'port'.*give it as vllm_port="),
    ({"vllm_args": {"api_key": "secret"}}, "vllm_args has 'api_key'.*give it as api_key="),
    ({"vllm_args": ["--served-model-name=x"]}, "vllm_args has 'served_model_name'"),
    ({"vllm_args": {"seed": 1}, "engine_args": {"seed": 2}}, "vllm_args has 'seed'"),
    ({"vllm_args": {"enforce_eager": False}, "enforce_eager": True}, "vllm_args has 'enforce_eager'"),
    ({"vllm_args": {"max_model_len": 9}, "max_model_len": 8}, "vllm_args has 'max_model_len'.*max_context_size="),
    (
        {"vllm_args": {"gpu_memory_utilization": 0.5}, "gpu_memory_reserved": 100},
        "vllm_args has 'gpu_memory_utilization'.*gpu_memory_reserved=",
    ),
    ({"engine_args": {"max_model_len": 300}, "max_model_len": 500}, "max_model_len=300 where 500 is given by name"),
    ({"environment": {"VLLM_API_KEY": "secret"}}, "environment has VLLM_API_KEY: give the key as api_key="),
]


@pytest.mark.parametrize(("given", "said"), REPEATED)
def test_no_option_is_lost_without_a_word(fake_python: Python, given: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        build(fake_python("sys.exit('started')"), **given)
    assert "secret" not in str(caught.value)


def test_options_that_repeat_nothing_are_told(fake_python: Python) -> None:
    words = told(
        fake_python,
        engine_args={"seed": 3, "dtype": "float32", "max-num-seqs": 4, "max_logprobs": 5},
        vllm_args=["--enable-auto-tool-choice", "--max-model-len", "64"],
    )
    for part in ("--seed 3", "--dtype float32", "--max-num-seqs 4", "--max-logprobs 5", "--max-model-len 64"):
        assert part in words


def test_the_share_of_the_memory_is_that_of_the_servers_own_environment(fake_python: Python) -> None:
    answers = (
        "if sys.argv[1] == '-c':\n"
        "    assert 'get_device_total_memory' in sys.argv[2]\n"
        "    print('a warning'); print('kani-lite bytes:', int(os.environ['MIB']) * 2**20)\n"
        "    sys.exit(0)\n"
        "print(*sys.argv[1:]); sys.exit(1)"
    )
    with pytest.raises(EngineError, match="ended while it started") as caught:
        build(fake_python(answers), gpu_memory_reserved=1000, environment={"MIB": "4000"})
    assert "--gpu-memory-utilization 0.25 " in str(caught.value)
    with pytest.raises(EngineError, match="gpu_memory_reserved=5000 MB isn't possible: there are 4000 MB"):
        build(fake_python(answers), gpu_memory_reserved=5000, environment={"MIB": "4000"})


def test_a_memory_that_nobody_knows_is_told(fake_python: Python) -> None:
    fails = fake_python("sys.exit('ModuleNotFoundError: no vllm')")
    said = r"gpu_memory_reserved needs the size of the memory, which '.*' doesn't tell \(ModuleNotFoundError: no vllm\)"
    with pytest.raises(EngineError, match=said):
        build(fails, gpu_memory_reserved=1000)
    with pytest.raises(EngineError, match="gpu_memory_utilization"):
        build(fails + "nothing", gpu_memory_reserved=1000)


# ==== its errors ====


async def seconds_to_fail(engine: VLLMServerEngine, said: str) -> tuple[float, str]:
    begun = time.monotonic()
    with pytest.raises(EngineError, match=said) as caught:
        await engine.predict(ASK)
    seconds = time.monotonic() - begun
    await engine.close()
    return seconds, str(caught.value)


STREAM = "self.reply(200, b'data: ' + json.dumps(dict(error=dict(message='no', code={}))).encode() + b'\\n\\n')"


async def test_a_refusal_inside_a_stream_is_told_at_once_and_alone(fake_python: Python) -> None:
    old = "print('ValueError: an old one', flush=True)"
    engine = await run_sync(lambda: build(fake_python(old, STREAM.format(400))))
    seconds, said = await seconds_to_fail(engine, r"refuses this request \(400\): no")
    assert seconds < 5
    assert "old one" not in said


@pytest.mark.parametrize("post", [STREAM.format(500), "self.reply(500, b'no')"])
async def test_a_server_that_is_well_is_not_waited_for(fake_python: Python, post: str) -> None:
    engine = await run_sync(lambda: build(fake_python("print('what it logs', flush=True)", post)))
    seconds, said = await seconds_to_fail(engine, "failed this request.*: no")
    assert seconds < 5
    assert "what it logs" in said


async def test_a_server_that_dies_of_a_request_is_told_with_its_end(fake_python: Python) -> None:
    dies = "print('OSError: gone', flush=True); os._exit(3)"
    engine = await run_sync(lambda: build(fake_python(post=dies)))
    _, said = await seconds_to_fail(engine, r"ended while it ran a request \(exit code 3\)")
    assert "OSError: gone" in said


async def test_a_server_that_takes_its_time_to_end_says_its_last_words(fake_python: Python) -> None:
    # as vLLM's does: its engine is dead, it says so, and logs every question until it ends
    before = (
        "import threading\n"
        "dead = []\n"
        "def end():\n"
        "    print('EngineDeadError: gone', flush=True); dead.append(1); time.sleep(3); os._exit(0)\n"
    )
    get = "if dead: print('GET', flush=True); return self.reply(503)"
    post = f"threading.Thread(target=end).start(); time.sleep(1); {STREAM.format(500)}"
    engine = await run_sync(lambda: build(fake_python(before, post, get)))
    _, said = await seconds_to_fail(engine, r"ended while it ran a request \(exit code 0\)")
    assert "EngineDeadError: gone" in said
    assert said.count("GET") == 1


@pytest.mark.parametrize(
    "line",
    [
        "WARNING 11-21 18:44:00 [a.py:1] No plugin. ModuleNotFoundError: No module named 'x'",
        "(EngineCore pid=3) INFO 11-21 18:44:00 [a.py:1] ImportError: not needed",
        "/a.py:3: UserWarning: ignored ValueError: 3",
    ],
)
def test_a_warning_is_no_error(line: str) -> None:
    program = f"print({line!r}); print('ERROR 11-21 [b.py:2] KeyError: 5'); [print(i) for i in range(50)]"
    with_error = ManagedProcess([sys.executable, "-c", program])
    assert with_error.wait(20)
    with_error.close()
    assert with_error.said().startswith("Its first error was:\nERROR 11-21 [b.py:2] KeyError: 5\nIts last lines")
    only = ManagedProcess([sys.executable, "-c", program.replace("KeyError: 5", "no")])
    assert only.wait(20)
    only.close()
    assert only.said().startswith("Its last lines were:")
