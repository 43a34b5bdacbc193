"""No process is left behind, in whatever way a server, its owner or its supervisor ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kani_lite.engines.vllm.process import ManagedProcess, ProcessGuard
from kani_lite.exceptions import EngineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

SECONDS = 30.0  # far more than it takes, for a busy machine

# a server with two processes that no parent waits for, one in a session of its own; all of them ignore SIGTERM
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def note():
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
note()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
    note()
    time.sleep(600)
%s
"""
STAYS = STUBBORN % "time.sleep(600)"
LEAVES = (
    STUBBORN
    % """while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.02)
os._exit(7)"""
)

OWNER = """
import sys, time
from kani_lite.engines.vllm.process import ManagedProcess
server = ManagedProcess([sys.executable, "-c", sys.argv[1], sys.argv[2]], seconds_to_end=0.2)
%s
"""


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + SECONDS
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The ids that the server's processes wrote to `tmp_path / "pids"`; none of them outlives the test."""

    def read() -> list[int]:
        file = tmp_path / "pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    yield read
    for pid in filter(alive, read()):
        os.kill(pid, signal.SIGKILL)


def start(program: str, *arguments: str | Path) -> ManagedProcess:
    return ManagedProcess([sys.executable, "-c", program, *map(str, arguments)], seconds_to_end=0.2)


def all_up(noted: Callable[[], list[int]]) -> list[int]:
    assert until(lambda: len(noted()) == 3)
    pids = noted()
    assert all(map(alive, pids))
    return pids


def test_a_server_that_dies_leaves_its_last_lines_and_its_exit_code() -> None:
    server = start("import sys; print('one'); print('no room', file=sys.stderr); sys.exit(3)")
    assert server.wait(SECONDS)
    assert server.exit_code == 3
    with pytest.raises(EngineError, match=r"ended while it started \(exit code 3\)(.|\n)*one\nno room$"):
        server.check_alive("while it started")
    server.close()


def test_only_the_last_lines_are_kept() -> None:
    server = start("for i in range(10_000): print(i)")
    assert server.wait(SECONDS)
    server.close()
    assert server.last_lines(3) == "9997\n9998\n9999"
    assert len(server.last_lines(10_000).splitlines()) < 2_000


def test_a_signal_is_told_as_a_shell_tells_it() -> None:
    server = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert server.wait(SECONDS)
    assert server.exit_code == 128 + signal.SIGKILL
    assert str(server.death("while it ran")).endswith("(exit code 137). It wrote nothing.")
    server.close()


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    server = ManagedProcess([str(tmp_path / "nothing"), "serve"])
    assert server.wait(SECONDS)
    with pytest.raises(EngineError, match=r"nothing' can't be started: .*No such file"):
        server.check_alive("while it started")
    server.close()


def test_close_ends_all_even_what_ignores_sigterm_or_has_left_the_group(
    tmp_path: Path, noted: Callable[[], list[int]]
) -> None:
    server = start(STAYS, tmp_path / "pids")
    pids = all_up(noted)
    server.close()
    assert not any(map(alive, [*pids, server.pid]))
    server.close()


def test_a_server_may_clean_up_before_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "cleaned"
    program = (
        "import signal, sys, time\n"
        "def end(*_): open(sys.argv[1], 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)"
    )
    server = ManagedProcess([sys.executable, "-c", program, str(file)], seconds_to_end=SECONDS)
    assert until(lambda: server.last_lines() == "up")
    server.close()
    assert file.exists()
    assert server.exit_code == 0


def test_what_a_dead_server_has_left_behind_is_ended(tmp_path: Path, noted: Callable[[], list[int]]) -> None:
    server = start(LEAVES, tmp_path / "pids")
    pids = all_up(noted)
    (tmp_path / "pids.go").touch()
    assert server.wait(SECONDS)
    assert server.exit_code == 7
    assert not any(map(alive, pids))
    server.close()


def test_a_server_that_nobody_knows_any_more_ends(tmp_path: Path, noted: Callable[[], list[int]]) -> None:
    server = start(STAYS, tmp_path / "pids")
    pids = all_up(noted)
    del server
    gc.collect()
    assert not any(map(alive, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_supervisor_can_be_told_to_end(
    number: signal.Signals, tmp_path: Path, noted: Callable[[], list[int]]
) -> None:
    server = start(STAYS, tmp_path / "pids")
    pids = all_up(noted)
    os.kill(server.pid, number)
    assert server.wait(SECONDS)
    assert not any(map(alive, pids))
    server.close()


def owner(then: str, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process that has a server, and then does this."""
    return subprocess.Popen([sys.executable, "-c", OWNER % then, STAYS, str(tmp_path / "pids")])


def test_sigkill_of_the_owner_ends_all(tmp_path: Path, noted: Callable[[], list[int]]) -> None:
    process = owner("time.sleep(600)", tmp_path)
    pids = all_up(noted)
    process.kill()
    process.wait()
    assert until(lambda: not any(map(alive, pids)))


def test_sigkill_of_an_owner_whose_child_holds_the_pipe_ends_all(
    tmp_path: Path, noted: Callable[[], list[int]]
) -> None:
    process = owner("import os; os.fork(); time.sleep(600)", tmp_path)
    pids = all_up(noted)
    copies: list[int] = []

    def forked() -> bool:
        of = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        copies[:] = [int(pid) for pid in of if b"supervisor" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return bool(copies)

    assert until(forked)
    process.kill()
    process.wait()
    try:
        assert until(lambda: not any(map(alive, pids)))
        assert all(map(alive, copies))
    finally:
        for pid in copies:
            os.kill(pid, signal.SIGKILL)


def test_the_end_of_an_owner_that_forgot_to_close_ends_all(tmp_path: Path, noted: Callable[[], list[int]]) -> None:
    until_up = "from pathlib import Path; file = Path(sys.argv[2])\n"
    until_up += "while not file.exists() or len(file.read_text().split()) < 3: time.sleep(0.02)"
    process = owner(until_up, tmp_path)
    assert process.wait(SECONDS) == 0
    pids = noted()
    assert len(pids) == 3
    assert not any(map(alive, pids))


# ==== processes that others have started ====

GUARDED = """
import subprocess, sys, time
from kani_lite.engines.vllm.process import ProcessGuard
guard = ProcessGuard()
other = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
guard.watch([other.pid])
time.sleep(600)
"""


def test_sigkill_of_the_owner_ends_what_is_guarded(tmp_path: Path, noted: Callable[[], list[int]]) -> None:
    process = subprocess.Popen([sys.executable, "-c", GUARDED, STAYS, str(tmp_path / "pids")])
    first = all_up(noted)[0]
    time.sleep(1.0)  # it looks for descendants twice a second
    process.kill()
    process.wait()
    assert until(lambda: not any(map(alive, noted())))
    assert not alive(first)


def test_closing_the_guard_ends_what_is_left_and_nothing_else() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    watched, other = subprocess.Popen(sleep), subprocess.Popen(sleep)
    guard = ProcessGuard()
    guard.watch([watched.pid])
    guard.watch([watched.pid])
    guard.close()
    try:
        assert watched.wait(SECONDS) in (-signal.SIGTERM, -signal.SIGKILL)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    guard.watch([os.getpid()])  # after its end: nothing happens
