"""How much memory a server of vLLM has, asked of the environment that it runs in."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from kani_lite.exceptions import EngineError

_ASK = (
    "from vllm.platforms import current_platform\n"
    "print('kani-lite bytes:', int(current_platform.get_device_total_memory()), flush=True)"
)
_ANSWER = re.compile(r"^kani-lite bytes: (\d+)$", re.MULTILINE)
_SECONDS = 180.0  # to import vLLM from a slow disk


def device_bytes(python: str, environment: Mapping[str, str]) -> int:
    """The memory of the first GPU that vLLM finds there, on a CPU that of the machine. Another process looks, so CUDA
    doesn't start in this one. Raises EngineError if it can't be known."""
    try:
        done = subprocess.run(
            [python, "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **environment},
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unknown(python, str(error)) from error
    answer = _ANSWER.search(done.stdout)
    if answer is None or int(answer[1]) == 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _unknown(python, said[-1][:300] if said else f"exit code {done.returncode}")
    return int(answer[1])


def _unknown(python: str, why: str) -> EngineError:
    return EngineError(
        f"gpu_memory_reserved needs the size of the memory, which {python!r} doesn't tell ({why}): give "
        "engine_args={'gpu_memory_utilization': ...} in its place."
    )
