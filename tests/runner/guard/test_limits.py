"""What agents have taken, as the watchdog sees it, and what the kernel is told to refuse."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from apps.api.runner.guard import limits, processes
from apps.api.runner.guard.limits import Excess, Limits
from apps.api.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

MB = 1 << 20
HOLD = f"kept = bytearray({100 * MB}); kept[::{mmap.PAGESIZE}] = bytes([1]) * len(kept[::{mmap.PAGESIZE}])"
"""100 MB that a process has really touched."""


LEADERLESS = """
import ctypes, threading
def go_on():
    while open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z": time.sleep(0.01)
    os.write(1, b".")
    time.sleep(1000)
threading.Thread(target=go_on).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)"""
"""Ends its first thread, and goes on in another."""


def excesses(guards: list[int], memory: int, most: int) -> dict[int, Excess]:
    return limits.look(guards, memory, most).excesses


@contextmanager
def family(program: str) -> Iterator[int]:
    """A process whose only child runs `program`, which is at work once it has said so. Gives the parent's pid."""
    child = f"import os, sys, time\n{program}\nos.write(1, b'.'); time.sleep(1000)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True) as started:
        try:
            assert started.stdout is not None
            started.stdout.read(program.count("# one of") or 1)
            yield started.pid
        finally:
            for pid in (*processes.below(started.pid), started.pid):
                os.kill(pid, 9)


def test_memory_of_descendants_counts_and_that_of_the_guard_does_not() -> None:
    with family(HOLD) as guard:
        found = excesses([guard], 90 * MB, 1000)
        assert found[guard].code == limits.OUT_OF_MEMORY
        assert 100 * MB < found[guard].found < 130 * MB
        assert excesses([guard], 150 * MB, 1000) == {}
        assert 100 * MB < limits.look([guard], 150 * MB, 1000).memory < 130 * MB
        [child] = processes.below(guard)
        assert excesses([child], 1, 1000) == {}


def test_memory_that_processes_share_counts_once() -> None:
    forking = f"{HOLD}\nfor _ in range(9):\n    if os.fork() == 0: break  # one of\n" + "# one of\n" * 9
    with family(forking) as guard:
        assert len(processes.below(guard)) == 10
        simple = sum(taken for pid, _, _, taken in processes.every() if pid in processes.below(guard))
        assert simple > 900 * MB
        assert excesses([guard], 250 * MB, 1000) == {}
        assert excesses([guard], 90 * MB, 1000)[guard].found < 250 * MB


def test_memory_counts_also_when_the_first_thread_has_ended() -> None:
    """What the kernel says of the process is then 0."""
    with family(f"{HOLD}\n{LEADERLESS}") as guard:
        assert 100 * MB < excesses([guard], 90 * MB, 1000)[guard].found < 130 * MB


def test_a_process_that_has_just_ended_shares_nothing() -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert processes.share_of_memory(ended.pid) == 0
    assert processes.share_of_memory(ended.pid) == 0


def test_threads_count_as_processes_do() -> None:
    threads = "import threading\nfor _ in range(30): threading.Thread(target=time.sleep, args=(1000,)).start()"
    with family(threads) as guard:
        assert excesses([guard], 10_000 * MB, 30) == {guard: Excess(limits.TOO_MANY_PROCESSES, 31)}
        assert excesses([guard], 10_000 * MB, 31) == {}


def test_an_agent_that_has_ended_has_taken_nothing() -> None:
    assert excesses([2**22 + 1], 1, 1) == {}


def of(**given: Any) -> Limits:
    return Limits.of(Settings(_env_file=None, runner_slots=2, max_live_sessions=10, **given))


def test_the_kernel_lets_agents_have_more_than_what_they_are_ended_for() -> None:
    given = of(agent_max_processes=800, agent_max_file_bytes=10**9, agent_max_open_files=5000)
    assert (given.file_bytes, given.open_files, given.processes) == (10**9, 5000, 1600)


def test_where_the_kernel_counts_a_user_there_is_room_for_all_of_the_users() -> None:
    more = of(agent_max_processes=1600).processes_of_user - of(agent_max_processes=800).processes_of_user
    assert more == 10 * 100 + 1600
    assert of(agent_max_processes=800).processes_of_user > 10 * 100 + 1600


def test_threads_of_a_user_are_counted() -> None:
    before = processes.threads_of_user(54321)
    argv = ["/bin/sh", "-c", "printf .; exec sleep 1000"]
    if os.geteuid() != 0:
        assert processes.threads_of_user(os.getuid()) >= 1
        return
    with subprocess.Popen(argv, stdout=subprocess.PIPE, user=54321) as started:
        assert started.stdout is not None
        started.stdout.read(1)
        assert processes.threads_of_user(54321) == before + 1
        started.kill()
