"""System calls by their names, as an attacker makes them: without a library in between."""

from __future__ import annotations

import ctypes
import os

NUMBERS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "process_madvise": (440, 440),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "clone3": (435, 435),
    "setns": (308, 268),
    "unshare": (272, 97),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "chroot": (161, 51),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "prlimit64": (302, 261),
    "personality": (135, 92),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "setxattr": (188, 5),
    "renameat2": (316, 276),
    "rt_sigqueueinfo": (129, 138),
    "landlock_create_ruleset": (444, 444),
}
"""Name → number on x86_64, on aarch64."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name: str, *args: object) -> int:
    """Make a system call with numbers, bytes or ctypes objects. Raises OSError."""
    number = NUMBERS[name][os.uname().machine != "x86_64"]
    given = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    ctypes.set_errno(0)
    result: int = libc.syscall(ctypes.c_long(number), *given)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result
