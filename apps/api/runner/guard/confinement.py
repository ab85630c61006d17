"""What the guard takes from a process that is about to become a Claude CLI: files, signals, capabilities.

Part of the guard's start: standard library only, and of that as little as possible (see program.py).

Landlock denies every path without a rule, also to root, and every TCP port (ABI 4, Linux 6.7). What it does not cover:
other protocols, TCP Fast Open and Multipath TCP (see seccomp.py), addresses, unix sockets with a path, CPU and memory,
and what can be done to a file without opening it (stat, chmod, inotify); before kernel 6.2 (ABI 3) truncating, before
6.12 (ABI 6) signalling others.

Sources: landlock(7), prctl(2), capabilities(7), the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False  # the module `typing` takes longer to import than the rest of the guard
if TYPE_CHECKING:
    from collections.abc import Iterable

LINUX = sys.platform == "linux"

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_HANDLED_BY_ABI = tuple((1 << bits) - 1 for bits in (0, 13, 14, 15, 15, 16))

READ = _EXECUTE | _READ_FILE | _READ_DIR
# Without device nodes: one of the agent's own making would be a way around every rule.
WRITE = ((1 << 16) - 1) & ~_MAKE_CHAR & ~_MAKE_BLOCK

# Not /proc as a whole: it shows the command lines of all processes, which hold other tenants' prompts and secrets.
_MACHINE_FILES = (
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys",
    "/proc/uptime",
    "/proc/version",
)
_SYSTEM_RULES = (
    (READ, ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt")),
    (READ, ("/run/systemd/resolve", "/run/resolvconf", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm")),
    (READ, _MACHINE_FILES),
    (
        _READ_FILE | _WRITE_FILE | _IOCTL_DEV,
        ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"),
    ),
    # All sessions share it, so nobody may list it: the names that programs choose there are random.
    (_READ_FILE | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE, ("/dev/shm",)),  # noqa: S108
)

# What ownership of files, processes and ports needs (capabilities(7): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
# SETGID, SETUID, NET_BIND_SERVICE). Others lead around Landlock: with PERFMON or SYS_ADMIN, kernel 6.18 shows a
# confined root the environment of every process.
_KEPT_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 10))

ABI_OF_PORTS = 4
_BIND_TCP, _CONNECT_TCP = 1, 2

libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """Version of Landlock that the running kernel offers; 0 when there is none, or it is switched off or forbidden."""
    if not LINUX:
        return 0
    abi: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(0, abi)


def prctl(option: int, value: int) -> None:
    """Call prctl(2) with one value. Raises OSError."""
    checked(libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3))


class EndsFirst:
    """Within this block the processes that are forked are those that the kernel ends first when memory runs out.

    To be made before this process hides itself (PR_SET_DUMPABLE): then its files in /proc are root's.
    """

    def __init__(self) -> None:
        self._file = -1
        try:
            self._file = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        except OSError:  # no /proc, or one that is read-only
            return

    def __enter__(self) -> None:
        if self._file >= 0:
            self._before = os.pread(self._file, 16, 0)
            os.write(self._file, b"1000")

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.write(self._file, self._before)
            os.close(self._file)


def system_paths() -> list[str]:
    """What `confine` lets everybody read."""
    return [path for rights, paths in _SYSTEM_RULES if rights == READ for path in paths]


def pin_machine_files() -> None:
    """Keep the files of /proc that `confine` allows open in this process for good, so that those rules last.

    A rule holds an inode, and procfs makes a new one once memory pressure has dropped the directory entry.
    """
    for path in filter(os.path.exists, _MACHINE_FILES):
        os.open(path, os.O_PATH)


def confine(readable: Iterable[str], writable: Iterable[str], abi: int) -> None:
    """Restrict this process, and all that it will start, to the given trees and what a system's tools need.

    Args:
        readable: files and directories to read and execute.
        writable: directories to do everything in, except making device nodes.
        abi: what `landlock_abi` said, at least 1.

    Paths that do not exist are passed over. Raises OSError when the kernel refuses.
    """
    handled = _HANDLED_BY_ABI[min(abi, len(_HANDLED_BY_ABI) - 1)]
    scoped = 3 if abi >= 6 else 0  # abstract unix sockets and signals: only within this domain
    attributes = b"".join(part.to_bytes(8, sys.byteorder) for part in (handled, 0, scoped))
    ruleset = checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for rights, paths in (*_SYSTEM_RULES, (READ, readable), (WRITE, writable)):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    if os.geteuid() == 0:
        _drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def port_rules(connect: Iterable[int], bind: Iterable[int]) -> int:
    """A descriptor of rules that allow these ports alone, at any address; see `restrict_ports`. Raises OSError.

    Whoever has it may add rules to it. A rule for each port costs a microsecond here, a quarter of that and 68 bytes of
    the kernel's memory in each process that takes them.
    """
    handled = (_BIND_TCP | _CONNECT_TCP).to_bytes(8, sys.byteorder)
    attributes = bytes(8) + handled + bytes(8)
    rules = checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    rights = dict.fromkeys(bind, _BIND_TCP)
    for port in connect:
        rights[port] = rights.get(port, 0) | _CONNECT_TCP
    for port, allowed in rights.items():
        rule = allowed.to_bytes(8, sys.byteorder) + port.to_bytes(8, sys.byteorder)
        checked(libc.syscall(_ADD_RULE, rules, 2, rule, 0))
    return rules


def restrict_ports(rules: int) -> None:
    """Restrict this process, which gains no privileges any more, and all that it will start. Raises OSError."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _OF_FILES
    rule = rights.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
    checked(libc.syscall(_ADD_RULE, ruleset, 1, rule, 0))
    os.close(opened)


def _drop_capabilities() -> None:
    capability = 0
    while (has := libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(capability))) >= 0:
        if has and capability not in _KEPT_CAPABILITIES:
            prctl(_PR_CAPBSET_DROP, capability)
        capability += 1


def checked(result: int) -> int:
    """What a function of libc returned. Raises OSError when that says that it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
