"""The system calls that the guard takes from a process that is about to become a Claude CLI, and from all it starts.

Landlock closes files. This closes what leads around it (memory, descriptors, limits and scheduling of other processes
of the same user, which the server and other tenants' agents are), and the parts of the kernel that no tool of an agent
needs and that most holes were found in. A process that starts a filter cannot end it, nor can what it starts.

Part of the guard's start: standard library only, and of that as little as possible (see program.py). libseccomp's
bindings would need its shared library on every host, and more time than the whole guard.

Sources: seccomp(2), bpf(4), linux/seccomp.h, linux/filter.h, linux/audit.h, the tables of system calls of Linux 6.18,
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import os
import sys

from . import confinement

TYPE_CHECKING = False  # see confinement.py
if TYPE_CHECKING:
    Instruction = tuple[int, int, int, int]
    """Operation, jumps when true and when false, operand."""

EPERM, ENOSYS, EPROTONOSUPPORT, EOPNOTSUPP = 1, 38, 93, 95
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
"""What a filter answers: SECCOMP_RET_ALLOW; _ERRNO, to which the number is added; _KILL_PROCESS."""

NEWEST = 469
"""The last system call that was looked at, `file_setattr` of Linux 6.17. Later ones do not exist for agents: programs
do without, as they do on older kernels. Nor do those of x32, which have a high bit set."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}

FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # Memory, descriptors and pages of other processes, among them the CLI itself, which holds the model's credential.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # Where most of the kernel's holes are that need no privilege.
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "modify_ldt": (154, None),
    # Other views of the file system, and files by another way than their path.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # The machine.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
}
"""System calls that fail with EPERM: name → number on x86_64, on aarch64."""

LIMITED: dict[str, tuple[int, int]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
}
"""System calls that some arguments are taken from, see `_limits`."""

OF_NETWORK: dict[str, tuple[int, int]] = {
    "socket": (41, 198),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "listen": (50, 201),
    "io_uring_setup": (425, 425),
}
"""The same where the network is limited, see `_of_network`."""

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

# CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}. In clone(2) that of time is a bit of the signal, which no signal has.
_NEW_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
_UNIX, _INET, _INET6, _NETLINK, _ROUTE = 1, 2, 10, 16, 0
_STREAM, _DATAGRAM, _TYPES, _TCP, _FAST_OPEN = 1, 2, 0xF, 6, 0x20000000
_SECCOMP, _SET_MODE_FILTER, _GET_ACTION_AVAIL = {"x86_64": 317, "aarch64": 277}, 1, 2


def available() -> bool:
    """Whether this machine can filter system calls, and this module knows its own."""
    if not confinement.LINUX or not _machine():
        return False
    action = KILL.to_bytes(4, sys.byteorder)
    return int(confinement.libc.syscall(_SECCOMP[_machine()], _GET_ACTION_AVAIL, 0, action)) == 0


def install(made: list[Instruction] | None = None) -> None:
    """Filter the system calls of this process, which has one thread, and of all that it will start, by `program`, or by
    another filter. Of several filters the strictest holds. Raises OSError."""
    code = b"".join(
        operation.to_bytes(2, sys.byteorder) + bytes((yes, no)) + operand.to_bytes(4, sys.byteorder)
        for operation, yes, no, operand in made or program(_machine())
    )
    held = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: an unsigned short, padding, a pointer
    filtering = (len(code) // 8).to_bytes(8, sys.byteorder) + ctypes.addressof(held).to_bytes(8, sys.byteorder)
    confinement.prctl(confinement.PR_SET_NO_NEW_PRIVS, 1)
    confinement.checked(confinement.libc.syscall(_SECCOMP[_machine()], _SET_MODE_FILTER, 0, filtering))


def restrict_network(mode: str, *, unix: bool) -> None:
    """Take from this process what leads past rules of ports, see `network_program`. Raises OSError."""
    install(network_program(_machine(), mode, unix=unix))


def network_program(machine: str, mode: str, *, unix: bool) -> list[Instruction]:
    """The filter for what Landlock's rules of ports leave open.

    Args:
        machine: see `program`.
        mode: of `direct` all of the internet is left, of `open` TCP and UDP; of all others TCP alone, and of
            `model_only` nothing listens either.
        unix: whether there are Unix sockets, beside pairs of them. Of `model_only` there are none.
    """
    made = _beginning(machine)
    for name, rule in _of_network(mode, unix=unix and mode != "model_only").items():
        made += [(_EQUAL, 0, len(rule), OF_NETWORK[name][_COLUMN[machine]]), *rule]
    return [*made, _answer(ALLOW)]


def _beginning(machine: str) -> list[Instruction]:
    # First of all: numbers mean something else in programs for another processor (int 0x80).
    made = [_load(_ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT_ARCH[machine]), _answer(KILL)]
    return [*made, _load(_NUMBER), (_GREATER, 0, 1, NEWEST), _refuse(ENOSYS)]


def _of_network(mode: str, *, unix: bool) -> dict[str, list[Instruction]]:
    if mode == "direct":
        return {} if unix else {"socket": [_load(_argument(0)), (_EQUAL, 0, 1, _UNIX), _refuse(EPERM), _answer(ALLOW)]}
    # Multipath TCP, SCTP and the like are no TCP to Landlock. Programs that want them fall back to it.
    streams = [_load(_argument(2)), (_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, _TCP), _refuse(EPROTONOSUPPORT), _answer(ALLOW)]
    internet: list[Instruction] = [
        _load(_argument(1)),
        (_ANY_BIT, 1 + len(streams), 0, _TYPES & ~_STREAM),
        (_ANY_BIT, 0, len(streams), _STREAM),
        *streams,
        *([(_ANY_BIT, 1, 0, _TYPES & ~_DATAGRAM), _answer(ALLOW)] if mode == "open" else []),
        _refuse(EPERM),
    ]
    # What is sent so connects, and Landlock looks at connect(2) alone: seen with Linux 6.18. Answered as by a kernel
    # that does not offer it.
    flags: dict[str, list[Instruction]] = {
        name: [_load(_argument(at)), (_ANY_BIT, 0, 1, _FAST_OPEN), _refuse(EOPNOTSUPP), _answer(ALLOW)]
        for name, at in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))
    }
    # A socket that has no port yet is given one when it listens, and no rule is asked.
    more = {"listen": [_refuse(EPERM)]} if mode == "model_only" else {}
    # What it is told to do, among it all of the above, lies in memory.
    more["io_uring_setup"] = [_refuse(EPERM)]
    families: list[Instruction] = [
        _load(_argument(0)),
        (_EQUAL, 5, 0, _INET),
        (_EQUAL, 4, 0, _INET6),
        (_EQUAL, 1, 0, _NETLINK),  # the other filter has more to say of it
        (_EQUAL, 0, 1, _UNIX if unix else _NETLINK),
        _answer(ALLOW),
        _refuse(EPERM),
    ]
    return {"socket": [*families, *internet], **flags, **more}


def program(machine: str) -> list[Instruction]:
    """The filter for a machine of which `_AUDIT_ARCH` has the name."""
    column = _COLUMN[machine]
    made = _beginning(machine)
    for numbers in FORBIDDEN.values():
        number = numbers[column]
        if number is not None:
            made += [(_EQUAL, 0, 1, number), _refuse(EPERM)]
    for name, rule in _limits().items():
        made += [(_EQUAL, 0, len(rule), LIMITED[name][column]), *rule]
    return [*made, _answer(ALLOW)]


def _limits() -> dict[str, list[Instruction]]:
    refused_or_not = [_refuse(EPERM), _answer(ALLOW)]
    no_namespaces = [_load(_argument(0)), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), *refused_or_not]
    # Netlink for routes only, which can be read without privilege: without it no program can list the machine's
    # addresses, and many servers for development do so at their start.
    families: list[Instruction] = [
        _load(_argument(0)),
        (_EQUAL, 6, 0, _UNIX),
        (_EQUAL, 5, 0, _INET),
        (_EQUAL, 4, 0, _INET6),
        (_EQUAL, 0, 2, _NETLINK),
        _load(_argument(2)),
        (_EQUAL, 1, 0, _ROUTE),
        *refused_or_not,
    ]
    own_only = [_load(_argument(0)), (_EQUAL, 1, 0, 0), *refused_or_not]  # 0 is who calls
    return {
        "clone": no_namespaces,
        "unshare": no_namespaces,
        "clone3": [_refuse(ENOSYS)],  # its flags lie in memory, where no filter looks; libraries fall back to clone
        "socket": families,
        "socketpair": families,
        "sched_setaffinity": own_only,
        "sched_setattr": own_only,
        "sched_setparam": own_only,
        "sched_setscheduler": own_only,
        "setpriority": _own_process(0),  # PRIO_PROCESS
        "ioprio_set": _own_process(1),  # IOPRIO_WHO_PROCESS
        "prlimit64": [
            _load(_argument(0)),
            (_EQUAL, 5, 0, 0),
            _load(_argument(2)),
            (_EQUAL, 0, 2, 0),
            _load(_argument(2) + 4),
            (_EQUAL, 1, 0, 0),  # reads limits only
            *refused_or_not,
        ],
    }


def _own_process(kind: int) -> list[Instruction]:
    whom = [_load(_argument(1)), (_EQUAL, 1, 0, 0), _refuse(EPERM), _answer(ALLOW)]
    return [_load(_argument(0)), (_EQUAL, 0, 2, kind), *whom]


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _argument(number: int) -> int:
    """Where its lower half lies; both machines have that first."""
    return _ARGUMENTS + 8 * number


def _answer(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _refuse(error: int) -> Instruction:
    return _answer(REFUSE | error)


def _machine() -> str:
    """This machine's name in the tables above; empty when it has none there."""
    machine = os.uname().machine
    return machine if machine in _AUDIT_ARCH and sys.maxsize > 1 << 32 else ""
