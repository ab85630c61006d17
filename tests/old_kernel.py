"""A kernel that lacks a system call."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

LANDLOCK_CREATE_RULESET, SECCOMP = 444, {"x86_64": 317}.get(os.uname().machine, 277)


def without(number: int) -> Callable[[], None]:
    """What in the child before exec has seccomp answer ENOSYS to one system call, as an old kernel does."""

    def instruction(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
        return code.to_bytes(2, sys.byteorder) + bytes((jump_true, jump_false)) + k.to_bytes(4, sys.byteorder)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = ctypes.create_string_buffer(
        instruction(0x20, 0)  # load the system call's number
        + instruction(0x15, number, 0, 1)
        + instruction(0x06, 0x00050000 | 38)  # SECCOMP_RET_ERRNO
        + instruction(0x06, 0x7FFF0000)  # SECCOMP_RET_ALLOW
    )

    def install() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        zero = ctypes.c_ulong(0)
        wanted = Program(4, ctypes.addressof(program))
        unprivileged = libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero)
        if unprivileged or libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(wanted)):
            raise OSError(ctypes.get_errno(), "seccomp")

    return install
