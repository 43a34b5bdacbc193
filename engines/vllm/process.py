"""Processes that never outlive this one: a server of our own, and those that vLLM starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kani_lite.exceptions import EngineError

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_KEPT_LINES = 1_000
_SHOWN_LINES = 20
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception): ")
_NO_ERROR = re.compile(r"\b(DEBUG|INFO|WARNING)\b|Warning: ")  # before one: a log only mentions it
_LONGEST_LINE = 2_000
_SECONDS_TO_END = 10.0  # for the server to clean up after SIGTERM
_SLACK = 5.0  # seconds beyond that for what the server has left behind


def _supervised(*arguments: str) -> list[str]:
    mode, *rest = arguments
    return [sys.executable, "-I", str(_SUPERVISOR), mode, str(os.getpid()), *rest]


class ManagedProcess:
    """A command that runs under `supervisor.py`, and ends with everything that it started: on `close`, when this object
    is freed, when this process exits, and when it is killed.

    `environment` is laid over this process's own. A program that isn't there ends at once, and says so.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        name: str = "The server",
        seconds_to_end: float = _SECONDS_TO_END,
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            _supervised("run", str(seconds_to_end), *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal ends a reply, not the server
        )
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        # it must not know this object, or that would never be freed
        self._reader = threading.Thread(
            target=_read, args=(self._process, self._lines), name=f"kani-lite log of {name}", daemon=True
        )
        self._reader.start()
        self._end = weakref.finalize(self, _end, self._process, self._reader, seconds_to_end + _SLACK)

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As a shell has it (128 + the signal's number after a signal); None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int = _SHOWN_LINES) -> str:
        """The end of what the server has written to stdout and stderr."""
        return "\n".join(list(self._lines)[-count:])

    def check_alive(self, doing: str) -> None:
        """Raises EngineError with the server's last lines if it has ended. `doing`: when, as in "while it started"."""
        if self.exit_code is not None:
            raise self.death(doing)

    def death(self, doing: str) -> EngineError:
        """The error that tells of its end."""
        self._reader.join(1.0)  # its last lines may still be on their way
        return EngineError(f"{self.name} ended {doing} (exit code {self.exit_code}). {self.said()}")

    def said(self) -> str:
        """Its last lines for an error, and the first error before them: the last one may only tell that there was one
        in another of its processes."""
        kept = list(self._lines)
        if not kept:
            return "It wrote nothing."
        first = next((line for line in kept[:-_SHOWN_LINES] if _tells_error(line)), None)
        before = f"Its first error was:\n{first}\n" if first else ""
        return f"{before}Its last lines were:\n{self.last_lines()}"

    def wait(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        until = time.monotonic() + seconds
        while self.exit_code is None and time.monotonic() < until:
            time.sleep(0.02)
        return self.exit_code is not None

    def close(self) -> None:
        """Ends it: SIGTERM, some seconds to clean up, SIGKILL. Returns when no process is left; may be called again."""
        self._end()


def _tells_error(line: str) -> bool:
    found = _ERROR.search(line)
    return found is not None and not _NO_ERROR.search(line, 0, found.start())


def _read(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line.rstrip()[:_LONGEST_LINE])


def _end(process: subprocess.Popen[str], reader: threading.Thread, seconds: float) -> None:
    _close_stdin(process)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # the command then gets SIGTERM from the kernel
        process.wait()
    reader.join(1.0)


def _close_stdin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.close()  # the sign for the supervisor
    except BrokenPipeError:
        pass  # it has ended already


class ProcessGuard:
    """Ends processes that this one has started, and what descends from them, should this one be killed before it can.

    `close` ends those that are left, and waits for that.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            _supervised("guard"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self._told: set[int] = set()
        self.close = weakref.finalize(self, _end_guard, self._process)

    def watch(self, pids: Iterable[int]) -> None:
        """Adds these processes."""
        new = sorted(set(pids) - self._told)
        if new and self.close.alive:
            self._told.update(new)
            assert self._process.stdin is not None
            self._process.stdin.write("".join(f"{pid}\n" for pid in new))
            self._process.stdin.flush()


def _end_guard(process: subprocess.Popen[str]) -> None:
    _close_stdin(process)
    try:
        process.wait(_SLACK)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
