"""Leaves no process behind, whatever becomes of the process that wanted it: a program of its own, with nothing but the
standard library, so that it starts at once. Its stdin is a pipe whose other end the owner holds.

`python -I supervisor.py run OWNER_PID SECONDS COMMAND...` runs a command. It ends it when the owner closes the pipe, or
is gone (by SIGKILL, too), and on SIGTERM, SIGINT or SIGHUP: the command gets SIGTERM and `SECONDS` to clean up. However
the command has ended, every process that descends from it then gets SIGTERM, and soon SIGKILL.

`python -I supervisor.py guard OWNER_PID` does the same for processes that others have started: the owner writes their
ids to the pipe, one a line, and the program ends them, and what descends from them, when the owner is gone.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

_CHECK = 0.5  # seconds between two looks at the owner
_LAST = 1.0  # seconds from SIGTERM to SIGKILL for what the command has left behind
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # of Linux' prctl


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; [] if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may have spaces and brackets


def descendants(root: int) -> list[int]:
    """The ids of all processes that descend from `root`, parents first; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(entry.name)):  # else it has just ended
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _send(way: Callable[[int, int], None], target: int, number: int) -> None:
    try:
        way(target, number)
    except (ProcessLookupError, PermissionError):
        pass  # it ended first, and its id may be another's by now


def end_all(left: Callable[[], Iterable[int]]) -> None:
    """Ends processes, SIGTERM first, until `left` finds none."""
    end = time.monotonic() + _LAST
    while pids := list(left()):
        for pid in pids:
            _send(os.kill, pid, signal.SIGKILL if time.monotonic() > end else signal.SIGTERM)
        time.sleep(0.05)


class Owner:
    """The process that holds the other end of stdin."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._told_to_end = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_end = True

    def wait(self, seconds: float) -> bytes | None:
        """What it writes within so many seconds; None once it is gone or this process is told to end."""
        said = b""
        if select.select([sys.stdin], [], [], seconds)[0]:
            said = os.read(sys.stdin.fileno(), 65_536)
            if not said:
                return None
        # a copy of the pipe's end may live on in another process
        return None if self._told_to_end or os.getppid() != self._pid else said


class Supervisor:
    """One command and what descends from it."""

    def __init__(self, owner: Owner, seconds: float, command: list[str]) -> None:
        self._owner, self._seconds = owner, seconds
        self._code: int | None = None  # of the command, once it has ended
        libc = _libc()
        if libc is not None:  # processes whose parent ends become children of this one, and are found
            libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._command = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # the last net: the command hears of a SIGKILL of this process
            preexec_fn=None if libc is None else lambda: libc.prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )

    def run(self) -> int:
        """Until the command has ended and nothing is left of it. Returns its exit code, as a shell has it."""
        while self._reap() is None and self._owner.wait(_CHECK / 5) is not None:
            pass
        if self._code is None:
            os.kill(self._command.pid, signal.SIGTERM)  # it wasn't waited for, so the id is still its own
            self._wait(self._seconds)
        end_all(self._left)
        if sys.platform != "linux":
            _send(os.killpg, self._command.pid, signal.SIGKILL)  # it leads its group
        return 1 if self._code is None else self._code if self._code >= 0 else 128 - self._code

    def _reap(self) -> int | None:
        """Lets go of children that have ended; returns the command's exit code, if it is among them or was before."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self._code
            if pid == 0:
                return self._code
            if pid == self._command.pid:
                self._code = os.waitstatus_to_exitcode(status)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._reap() is None and time.monotonic() < end:
            time.sleep(0.02)

    def _left(self) -> list[int]:
        self._reap()
        return descendants(os.getpid())


class Guard:
    """Processes of the owner, and what descends from them, each known by its id and its start time."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._told: set[int] = set()
        self._known: dict[int, str] = {}
        self._rest = b""

    def run(self) -> int:
        while (said := self._owner.wait(_CHECK)) is not None:
            *lines, self._rest = (self._rest + said).split(b"\n")
            self._told.update(map(int, lines))
            self._look()
        self._look()
        end_all(lambda: [pid for pid in self._known if self._lives(pid)])
        return 0

    def _look(self) -> None:
        """Notes those that are new; ids are used again, so one that has ended isn't looked at any more."""
        for told in list(self._told):
            for pid in (told, *descendants(told)):
                if (stat := _stat(pid)) and pid not in self._known:
                    self._known[pid] = stat[19]
            if not self._lives(told):
                self._told.discard(told)

    def _lives(self, pid: int) -> bool:
        stat = _stat(pid)
        return bool(stat) and stat[19] == self._known.get(pid) and stat[0] != "Z"


def main(mode: str, owner: str, *rest: str) -> int:
    if mode == "guard":
        return Guard(Owner(int(owner))).run()
    seconds, *command = rest
    try:
        supervisor = Supervisor(Owner(int(owner)), float(seconds), command)
    except OSError as error:
        print(f"{command[0]!r} can't be started: {error}", file=sys.stderr)
        return 127
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
