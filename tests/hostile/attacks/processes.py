"""Other processes: their memory, descriptors, environment, limits and scheduling, and signals to them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
from functools import partial
from pathlib import Path

from .calls import call
from .table import Facts, Held, add, attack

PTRACE_SEIZE, KCMP_FILES = 0x4206, 2

TARGETS = {
    "the agent's program": ("own", "cli"),
    "the guard": ("own", "guard"),
    "another session's program": ("victim", "cli"),
    "another session's tool": ("victim", "pid"),
    "the server": ("server", "pid"),
    "a service of the machine": ("host", "pid"),
}
"""Whose process → where the facts have its number. The first is in the same confinement, the others are not."""


class Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _pid(who: tuple[str, str], facts: Facts) -> int:
    return int(facts[who[0]][who[1]])


def _address(who: tuple[str, str], facts: Facts) -> int:
    found = facts[who[0]].get(f"{who[1]}_address")
    if not found:
        raise Held("nothing is known of its memory")
    return int(found)


def _traces(who: tuple[str, str], facts: Facts) -> object:
    call("ptrace", PTRACE_SEIZE, _pid(who, facts), 0, 0)
    return "attached"


def _peeks(name: str, who: tuple[str, str], facts: Facts) -> object:
    """Read 32 bytes, and for `process_vm_writev` write the same ones back."""
    pid, there = _pid(who, facts), Span(_address(who, facts), 32)
    held = ctypes.create_string_buffer(32)
    here = Span(ctypes.addressof(held), 32)
    if name == "process_vm_writev":
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(there.start)
            held.raw = memory.read(32)
    call(name, pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return held.raw


def _takes_descriptor(who: tuple[str, str], facts: Facts) -> object:
    theirs = int(facts[who[0]].get("fd", 1)) if who[1] == "pid" else 1
    taken = call("pidfd_getfd", call("pidfd_open", _pid(who, facts), 0), theirs, 0)
    return os.readlink(f"/proc/self/fd/{taken}") if os.access("/proc/self/fd", os.R_OK) else f"descriptor {taken}"


def _compares(who: tuple[str, str], facts: Facts) -> object:
    call("kcmp", _pid(who, facts), os.getpid(), KCMP_FILES, 0, 0)
    return "compared"


def _reads(name: str, who: tuple[str, str], facts: Facts) -> object:
    with open(f"/proc/{_pid(who, facts)}/{name}", "rb") as file:
        if name == "mem":
            file.seek(_address(who, facts))
        return file.read(32)


def _writes_output(who: tuple[str, str], facts: Facts) -> object:
    os.close(os.open(f"/proc/{_pid(who, facts)}/fd/1", os.O_WRONLY | os.O_NONBLOCK))
    return "opened for writing"


def _enters(who: tuple[str, str], facts: Facts) -> object:
    return f"{len(os.listdir(f'/proc/{_pid(who, facts)}/cwd'))} files"


def _signals(how: str, who: tuple[str, str], facts: Facts) -> object:
    """Ask whether a signal would come through: the kernel checks that one as every other."""
    pid = _pid(who, facts)
    if how == "pidfd":
        signal.pidfd_send_signal(os.pidfd_open(pid), 0)
    else:
        os.kill(pid, 0)
    return "a signal would come through"


for _who, _where in TARGETS.items():
    # Landlock forbids to trace what is not in the same confinement.
    _own = ("calls",) if _where == ("own", "cli") else ("calls", "files", "namespaces")
    add(f"trace {_who}", partial(_traces, _where), *_own)
    add(f"read the memory of {_who}", partial(_peeks, "process_vm_readv", _where), *_own)
    add(f"write to the memory of {_who}", partial(_peeks, "process_vm_writev", _where), "files", *_own)
    add(f"take a descriptor of {_who}", partial(_takes_descriptor, _where), *_own)
    add(f"compare oneself with {_who}", partial(_compares, _where), *_own)
    for _name in ("environ", "cmdline", "mem", "maps"):
        add(f"read {_name} of {_who}", partial(_reads, _name, _where), "files")
    add(f"write to the output of {_who}", partial(_writes_output, _where), "files", by_kernel=True)
    if _where != ("own", "cli"):  # that is the agent's own
        add(f"look into the directory of {_who}", partial(_enters, _where), "files")
        add(f"signal {_who}", partial(_signals, "kill", _where), "scopes", "namespaces")
        add(f"signal {_who} by a descriptor", partial(_signals, "pidfd", _where), "scopes", "namespaces")


@attack("have the kernel signal a service of the machine", "scopes", "namespaces")
def _(facts: Facts) -> object:
    """Whoever owns a socket is signalled when it has something to read."""
    one, other = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETSIG, signal.SIGUSR1)
    fcntl.fcntl(one, fcntl.F_SETOWN, facts["host"]["pid"])
    fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC)
    other.send(b"x")
    return "seen by who is signalled"


@attack("slow a service of the machine down", "calls", "dropped", "namespaces")
def _(facts: Facts) -> object:
    os.setpriority(os.PRIO_PROCESS, facts["host"]["pid"], 1)
    return os.getpriority(os.PRIO_PROCESS, facts["host"]["pid"])


@attack("choose the processors of a service of the machine", "calls", "dropped", "namespaces")
def _(facts: Facts) -> object:
    pid = facts["host"]["pid"]
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return "chosen"


@attack("schedule another session's program", "calls", "namespaces")
def _(facts: Facts) -> object:
    os.sched_setscheduler(facts["victim"]["cli"], os.SCHED_BATCH, os.sched_param(0))
    os.sched_setscheduler(facts["victim"]["cli"], os.SCHED_OTHER, os.sched_param(0))
    return "scheduled"


@attack("let another session's program write less", "calls", "namespaces")
def _(facts: Facts) -> object:
    call("ioprio_set", 1, facts["victim"]["cli"], (2 << 13) | 4)
    return "set"


@attack("change the limits of a service of the machine", "calls", "namespaces")
def _(facts: Facts) -> object:
    pid = facts["host"]["pid"]
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE))


@attack("change the limits of the agent's program", "calls")
def _(facts: Facts) -> object:
    pid = facts["own"]["cli"]
    return resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))


@attack("see the processes of all sessions", "files", "namespaces")
def _(facts: Facts) -> object:
    return str(facts["victim"]["cli"]) in os.listdir("/proc")


@attack("be spared when memory runs out", "files", by_kernel=True)
def _(facts: Facts) -> object:
    Path("/proc/self/oom_score_adj").write_text("0")
    return Path("/proc/self/oom_score_adj").read_text() == "0\n"


def _dumps() -> object:
    child = os.fork()
    if child == 0:
        os.abort()
    _, status = os.waitpid(child, 0)
    for core in Path.cwd().glob("core*"):
        core.unlink()
    return os.WCOREDUMP(status)


@attack("leave a core dump", "guard", by_kernel=True)
def _(facts: Facts) -> object:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
    return _dumps()


@attack("allow oneself core dumps", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # as the guard does
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    except ValueError as error:
        raise Held(str(error)) from error
    return _dumps()


@attack("leave a signal in the queue of a service of the machine", "scopes", "namespaces")
def _(facts: Facts) -> object:
    """`sigqueue` to a service of the machine; what it says of its sender is forged."""
    forged = ctypes.create_string_buffer(128)
    forged.raw = (
        int(signal.SIGUSR2).to_bytes(4, "little") + bytes(4) + (-1).to_bytes(4, "little", signed=True) + bytes(116)
    )
    call("rt_sigqueueinfo", facts["host"]["pid"], int(signal.SIGUSR2), forged)
    return "sent"
