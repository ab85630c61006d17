"""The filter of system calls: its program in a machine of our own, and every system call with this kernel's answer."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from apps.api.runner.guard import seccomp

needs_seccomp = pytest.mark.skipif(not seccomp.available(), reason="this machine cannot filter system calls")
MACHINES = {"x86_64": 0, "aarch64": 1}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
NO, NO_SUCH = seccomp.REFUSE | errno.EPERM, seccomp.REFUSE | errno.ENOSYS
SIGCHLD, THREAD = 17, 0x3D0F00
NAMESPACES = {
    "time": 0x80,
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
HIGH = 1 << 32


def answer(program: Sequence[tuple[int, int, int, int]], number: int, args: Sequence[int], architecture: int) -> int:
    """What the kernel would do, as bpf(4) and struct seccomp_data say."""
    padded = [*args, *[0] * (6 - len(args))]
    data = b"".join(
        [
            (number & 0xFFFFFFFF).to_bytes(4, "little"),
            architecture.to_bytes(4, "little"),
            bytes(8),
            *[(arg & (1 << 64) - 1).to_bytes(8, "little") for arg in padded],
        ]
    )
    at = value = 0
    while True:
        operation, yes, no, operand = program[at]
        at += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            value = int.from_bytes(data[operand : operand + 4], "little")
        else:
            true = {0x15: value == operand, 0x25: value > operand, 0x45: bool(value & operand)}[operation]
            at += yes if true else no


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(machine: str, name: str, *args: int) -> int:
    numbers = {**seccomp.FORBIDDEN, **seccomp.LIMITED}[name]
    number = numbers[MACHINES[machine]]
    assert number is not None
    return answer(seccomp.program(machine), number, args, ARCHITECTURES[machine])


def test_what_is_forbidden_is_whatever_its_arguments_and_the_rest_is_not(machine: str) -> None:
    program, column = seccomp.program(machine), MACHINES[machine]
    forbidden = {numbers[column] for numbers in seccomp.FORBIDDEN.values()}
    limited = {numbers[column] for numbers in seccomp.LIMITED.values()}
    for number in range(seccomp.NEWEST + 1):
        for args in ([0] * 6, [(1 << 64) - 1] * 6):
            found = answer(program, number, args, ARCHITECTURES[machine])
            assert number in limited or found == (NO if number in forbidden else seccomp.ALLOW), (number, args)


def test_every_number_is_of_one_system_call(machine: str) -> None:
    every = [numbers[MACHINES[machine]] for numbers in (*seccomp.FORBIDDEN.values(), *seccomp.LIMITED.values())]
    known = [number for number in every if number is not None]
    assert len(known) == len(set(known))
    assert max(known) <= seccomp.NEWEST


def test_system_calls_that_nobody_has_looked_at_do_not_exist(machine: str) -> None:
    x32_ptrace, skipped = 0x40000000 + 521, -1
    for number in (seccomp.NEWEST + 1, 512, 546, x32_ptrace, skipped):
        assert answer(seccomp.program(machine), number, [], ARCHITECTURES[machine]) == NO_SUCH


def test_a_program_for_another_processor_is_killed(machine: str) -> None:
    other = next(value for name, value in ARCHITECTURES.items() if name != machine)
    for architecture in (I386, other, 0, 0xFFFFFFFF):
        assert answer(seccomp.program(machine), 39, [], architecture) == seccomp.KILL


@pytest.mark.parametrize("flag", NAMESPACES.values(), ids=NAMESPACES)
def test_new_namespaces_are_refused_threads_and_processes_are_not(machine: str, flag: int) -> None:
    assert ask(machine, "unshare", flag) == ask(machine, "unshare", flag | 0x400) == NO
    assert ask(machine, "clone", flag | SIGCHLD) == ask(machine, "clone", flag | THREAD) == NO
    assert ask(machine, "clone", SIGCHLD) == ask(machine, "clone", THREAD) == seccomp.ALLOW
    assert ask(machine, "unshare", 0x400) == seccomp.ALLOW  # its own table of descriptors
    assert ask(machine, "clone3", 0, 88) == NO_SUCH


@pytest.mark.parametrize("name", ["socket", "socketpair"])
def test_sockets_are_of_the_internet_or_this_machine(machine: str, name: str) -> None:
    allowed = {family for family in range(64) if ask(machine, name, family, 1, 0) == seccomp.ALLOW}
    assert allowed == {1, 2, 10, 16}
    assert ask(machine, name, HIGH + 17, 3, 0) == ask(machine, name, HIGH - 1, 3, 0) == NO
    netlink = {protocol for protocol in range(32) if ask(machine, name, 16, 3, protocol) == seccomp.ALLOW}
    assert netlink == {0}


def test_limits_are_set_for_oneself_and_read_for_all(machine: str) -> None:
    assert ask(machine, "prlimit64", 0, 4, 1 << 40, 0) == seccomp.ALLOW
    assert ask(machine, "prlimit64", 77, 4, 0, 1 << 40) == seccomp.ALLOW
    for pid, new in ((77, 1 << 40), (77, 5), (-1, 1 << 33)):
        assert ask(machine, "prlimit64", pid, 4, new, 0) == NO


def test_scheduling_is_changed_for_oneself_only(machine: str) -> None:
    for name in ("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"):
        assert ask(machine, name, 0, 5) == seccomp.ALLOW
        assert ask(machine, name, 77, 5) == ask(machine, name, -1, 5) == NO
    for name, process, others in (("setpriority", 0, (1, 2)), ("ioprio_set", 1, (0, 2, 3))):
        assert ask(machine, name, process, 0, 19) == seccomp.ALLOW
        assert ask(machine, name, process, 77, 19) == NO
        assert {ask(machine, name, kind, who, 19) for kind in others for who in (0, 77)} == {NO}


def network(machine: str, mode: str, name: str, *args: int, unix: bool = True) -> int:
    number = seccomp.OF_NETWORK[name][MACHINES[machine]]
    return answer(seccomp.network_program(machine, mode, unix=unix), number, args, ARCHITECTURES[machine])


@pytest.mark.parametrize("mode", ["open", "limited", "model_only"])
def test_rules_of_ports_hold_for_all_that_connects(machine: str, mode: str) -> None:
    """Of the internet there is TCP, to which they apply, and UDP where there are more ways out anyway."""
    flags = 0x80800  # of close-on-exec and not blocking
    other = seccomp.REFUSE | errno.EPROTONOSUPPORT
    for family in (2, 10):
        assert network(machine, mode, "socket", family, 1, 0) == seccomp.ALLOW
        assert network(machine, mode, "socket", family, 1 | flags, 6) == seccomp.ALLOW
        for protocol in (262, 132, 256, 33, -1, HIGH + 262):
            assert network(machine, mode, "socket", family, 1 | flags, protocol) == other
        for kind in (3, 4, 5, 6, 7, 9, 10, 11, 15):
            assert network(machine, mode, "socket", family, kind | flags, 6) == NO
        assert network(machine, mode, "socket", family, 2 | flags, 17) == (seccomp.ALLOW if mode == "open" else NO)
    for name, at in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        fast, usual = [0] * 6, [0] * 6
        fast[at], usual[at] = 0x20004000, 0x4000
        assert network(machine, mode, name, *fast) == seccomp.REFUSE | errno.EOPNOTSUPP
        assert network(machine, mode, name, *usual) == seccomp.ALLOW
    assert network(machine, mode, "listen", 3, 5) == (NO if mode == "model_only" else seccomp.ALLOW)
    assert network(machine, mode, "io_uring_setup", 8, 0) == NO
    families = {f for f in range(64) if network(machine, mode, "socket", f, 1, 0) == seccomp.ALLOW}
    assert families == ({2, 10, 16} if mode == "model_only" else {1, 2, 10, 16})
    assert network(machine, mode, "socket", 1, 1, 0, unix=False) == NO


def test_without_limits_only_unix_sockets_are_taken(machine: str) -> None:
    assert [network(machine, "direct", "socket", f, 3, 1, unix=False) for f in (1, 2, 17)] == [NO, *[seccomp.ALLOW] * 2]
    assert network(machine, "direct", "sendto", 0, 0, 0, 0x20000000, unix=False) == seccomp.ALLOW


TRY = """
import ctypes, json, sys
from apps.api.runner.guard import seccomp
libc = ctypes.CDLL(None, use_errno=True)
wanted = json.loads(sys.argv[1])
if sys.argv[2] == "filtered":
    seccomp.install()
found = {}
for name, (number, args) in wanted.items():
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    found[name] = ctypes.get_errno() if result == -1 else 0
print(json.dumps(found))
"""
LIMITED_CALLS: dict[str, list[int]] = {
    # Refused by the kernel itself for another reason: that user and file system cannot be apart.
    "clone": [NAMESPACES["user"] | 0x200],
    "unshare": [0x7FFFFFFF],
    "clone3": [0, 0],
    "socket": [17, 3, 0],
    "socketpair": [16, 3, 4, 0],
    "prlimit64": [-1, 4, 8, 0],
    "setpriority": [2, -2, 0],
    "ioprio_set": [3, -2, 0],
    "sched_setaffinity": [-1, 0, 0],
    "sched_setattr": [-1, 0, 0],
    "sched_setparam": [-1, 0],
    "sched_setscheduler": [-1, 0, 0],
}


def tried(wanted: dict[str, Any], how: str) -> dict[str, int]:
    command = [sys.executable, "-c", TRY, json.dumps(wanted), how]
    return dict(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout))


@needs_seccomp
def test_this_kernel_answers_each_system_call_as_the_filter_says() -> None:
    column = MACHINES[os.uname().machine]
    # Arguments that no kernel accepts, so that nothing happens where nothing is filtered.
    wanted: dict[str, Any] = {
        name: (numbers[column], [-1] * 6) for name, numbers in seccomp.FORBIDDEN.items() if numbers[column] is not None
    }
    wanted |= {name: (seccomp.LIMITED[name][column], args) for name, args in LIMITED_CALLS.items()}
    wanted["later"] = (seccomp.NEWEST + 1, [])
    filtered = tried(wanted, "filtered")
    assert filtered == dict.fromkeys(wanted, errno.EPERM) | dict.fromkeys(("clone3", "later"), errno.ENOSYS)
    otherwise = tried(wanted, "unfiltered")
    same = {name for name in wanted if otherwise[name] == filtered[name]} - {"later"}
    assert os.geteuid() != 0 or same == set()  # others are refused much anyway


@needs_seccomp
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other instruction set is that of x86")
@pytest.mark.parametrize(("how", "ended"), [("unfiltered", 0), ("filtered", -signal.SIGSYS)])
def test_the_32_bit_way_into_the_kernel_is_closed(how: str, ended: int) -> None:
    code = (
        "import ctypes, mmap, sys\n"
        "from apps.api.runner.guard import seccomp\n"
        "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
        "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "sys.argv[1] == 'filtered' and seccomp.install()\n"
        "call()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, timeout=30)
    if how == "unfiltered" and done.returncode < 0:
        pytest.skip("this kernel runs no 32-bit programs")
    assert done.returncode == ended


WORK = """
import asyncio, concurrent.futures, multiprocessing, os, resource, socket, subprocess, threading
from apps.api.runner.guard import seccomp
def main():
    seccomp.install()
    for _ in range(3):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(abs, -3).result() == 3
    assert subprocess.run(["sh", "-c", "exit 7"]).returncode == 7
    resource.prlimit(0, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    os.nice(1)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    assert socket.if_nameindex() and socket.getaddrinfo("localhost", 1)
    async def talk():
        process = await asyncio.create_subprocess_exec("true")
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"" and await process.wait() == 0
        writer.close()
        server.close()
    asyncio.run(talk())
    a, b = socket.socketpair()
    a.send(b"done")
    print(b.recv(4).decode())
if __name__ == '__main__':  # not again in what is spawned
    main()
"""


@needs_seccomp
def test_threads_processes_sockets_and_ones_own_limits_work_as_before(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
