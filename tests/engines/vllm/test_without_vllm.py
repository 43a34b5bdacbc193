"""What happens before vLLM is needed, or where it isn't installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.vllm import VLLMEngine, VLLMServerEngine
from kani_lite.engines.vllm.core import check_not_importing
from kani_lite.exceptions import EngineError, MissingModelDependencies

no_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


def test_importing_the_engines_imports_nothing_heavy() -> None:
    program = (
        "import sys, kani_lite.engines.vllm as v\n"
        "v.VLLMEngine, v.VLLMServerEngine, v.VLLMSamplingParams\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'httpx2', 'ssl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['ssl']")


@no_vllm
@pytest.mark.parametrize("engine", [VLLMEngine, VLLMServerEngine])
def test_a_missing_vllm_is_told_with_the_extra(engine: Any) -> None:
    with pytest.raises(MissingModelDependencies, match=r"needs the package 'vllm'.*pip install 'kani-lite\[vllm\]'"):
        engine(WEIGHTS)


def test_a_missing_http_client_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingModelDependencies, match=r"'httpx2'.*pip install 'kani-lite\[vllm-server\]'"):
        VLLMServerEngine(WEIGHTS, address="http://127.0.0.1:9")


def test_a_model_is_named_once() -> None:
    with pytest.raises(EngineError, match="model_id=None and model=None mean the same"):
        VLLMServerEngine(python="python")
    with pytest.raises(EngineError, match="model_id='a' and model='b' mean the same"):
        VLLMServerEngine("a", model="b", python="python")


def test_wrong_arguments_are_told_before_anything_starts(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"no_such_thing": 1}, TypeError, "no_such_thing"),
        ({"default_sampling_params": {"no_such_thing": 1}}, TypeError, "no_such_thing"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"max_context_size": 0}, EngineError, "context of 0 tokens"),
        ({"tensor_parallel_size": 0}, EngineError, "tensor_parallel_size=0"),
        ({"adapters": {"a": tmp_path}}, EngineError, "The adapter 'a' has no"),
        ({"engine_args": {"seed": 1}, "model_load_kwargs": {"seed": 2}}, EngineError, "mean the same"),
        ({"strict_tools": True, "tool_format": "plain"}, EngineError, "strict_tools=True isn't possible for .*'plain'"),
        ({"tool_format": "nothing"}, Exception, "There is no format 'nothing'"),
        ({"gpu_memory_reserved": 1e15}, EngineError, "gpu_memory_reserved"),
    ]
    for given, error, said in wrong:
        with pytest.raises(error, match=said):
            VLLMServerEngine(WEIGHTS, python=str(tmp_path / "nothing"), **given)


def test_a_running_server_must_be_somewhere() -> None:
    with pytest.raises(EngineError, match="use_managed_server=False needs the address= or the vllm_port="):
        VLLMServerEngine(WEIGHTS, use_managed_server=False)
    with pytest.raises(EngineError, match=r"There is no server at http://127.0.0.1:9 \(.*\): check the address"):
        VLLMServerEngine(WEIGHTS, use_managed_server=False, vllm_port=9)


def program(folder: Path, text: str) -> str:
    """An executable to stand where a Python with vLLM should."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(0o755)
    return str(file)


def test_a_server_that_dies_while_it_starts_says_its_last_lines(tmp_path: Path) -> None:
    dies = program(tmp_path, "import sys\nprint('loading')\nsys.exit('ValueError: no room')")
    with pytest.raises(
        EngineError, match=r"ended while it started \(exit code 1\)(.|\n)*loading\nValueError: no room$"
    ):
        VLLMServerEngine(WEIGHTS, python=dies)


def test_a_server_that_hangs_while_it_starts_is_ended(tmp_path: Path) -> None:
    hangs = program(tmp_path, "import time\nprint('loading', flush=True)\ntime.sleep(600)")
    with pytest.raises(EngineError, match=r"wasn't up after timeout=3 seconds(.|\n)*loading$"):
        VLLMServerEngine(WEIGHTS, python=hangs, timeout=3.0)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nothing' can't be started"):
        VLLMServerEngine(WEIGHTS, python=str(tmp_path / "nothing"))


def test_the_first_error_of_a_long_log_is_told(tmp_path: Path) -> None:
    text = (
        "import sys\nprint('(Worker) MemoryError: node 0 is full')\nfor i in range(100): print('trace', i)\nsys.exit(1)"
    )
    with pytest.raises(EngineError) as caught:
        VLLMServerEngine(WEIGHTS, python=program(tmp_path, text))
    assert "Its first error was:\n(Worker) MemoryError: node 0 is full\nIts last lines were:\n" in str(caught.value)
    assert str(caught.value).endswith("trace 99")


def test_the_server_is_told_what_it_should_run(tmp_path: Path) -> None:
    tells = program(
        tmp_path, "import os, sys\nprint(*sys.argv[1:])\nprint(len(os.environ['VLLM_API_KEY']))\nsys.exit(1)"
    )
    with pytest.raises(EngineError) as caught:
        VLLMServerEngine(
            WEIGHTS,
            max_model_len=512,
            python=tells,
            vllm_port=8123,
            token="secret",
            vllm_args={"disable_log_requests": True},
        )
    said, key = str(caught.value).splitlines()[-2:]
    assert said.startswith(f"-m vllm.entrypoints.openai.api_server --model {WEIGHTS} --dtype auto --max-model-len 512")
    assert "--host 127.0.0.1 --port 8123" in said
    assert said.endswith("--disable-log-requests")
    assert "secret" not in said
    assert int(key) > 20


def test_a_spawned_process_that_imports_the_program_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    check_not_importing()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(EngineError, match="if __name__ == '__main__':"):
        check_not_importing()
