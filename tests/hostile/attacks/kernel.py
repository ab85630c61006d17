"""The kernel's own surface: namespaces, mounts, and what most of its holes were found in."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import uuid
from functools import partial
from pathlib import Path

from .calls import call, libc
from .table import Facts, add, attack

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000


@attack("be root in a user namespace", "calls")
def _(facts: Facts) -> object:
    call("unshare", NEWUSER)
    return "in a new one"


@attack("be root in a user namespace by clone", "calls")
def _(facts: Facts) -> object:
    libc.syscall.restype = ctypes.c_long
    pid = libc.syscall(
        ctypes.c_long({"x86_64": 56}.get(os.uname().machine, 220)), ctypes.c_long(NEWUSER | 17), 0, 0, 0, 0
    )
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


@attack("be root in a user namespace by clone3", "calls")
def _(facts: Facts) -> object:
    args = ctypes.create_string_buffer(struct.pack("8Q", NEWUSER, 0, 0, 0, 17, 0, 0, 0), 64)
    pid = call("clone3", args, 64)
    if pid == 0:
        os._exit(0)
    return pid


for _name, _flag in {"network": NEWNET, "mounts": NEWNS, "processes": NEWPID, "names": NEWUTS, "IPC": NEWIPC}.items():
    add(
        f"have a namespace of {_name}",
        partial(lambda flag, facts: call("unshare", flag) == 0, NEWUSER | _flag),
        "calls",
    )


@attack("mount a file system", "calls", "files")
def _(facts: Facts) -> object:
    here = Path(f"mount-{uuid.uuid4().hex[:8]}")
    here.mkdir()
    call("unshare", NEWUSER | NEWNS)
    call("mount", b"none", os.fsencode(here), b"tmpfs", 0, None)
    return "mounted"


@attack("see the machine's files by a mount of its root", "calls", "files")
def _(facts: Facts) -> object:
    here = Path(f"mount-{uuid.uuid4().hex[:8]}")
    here.mkdir()
    call("unshare", NEWUSER | NEWNS)
    call("mount", b"/", os.fsencode(here), None, 0x1000 | 0x4000, None)
    return (here / Path(facts["victim"]["workspace"]).relative_to("/") / "private.txt").read_text()


@attack("read a file of another session in a copy of the tree", "calls", "files", by_kernel=True)
def _(facts: Facts) -> object:
    call("unshare", NEWUSER | NEWNS)
    path = Path(facts["victim"]["workspace"])
    copied = call("open_tree", AT_FDCWD, os.fsencode(path.parent), 1 | 0x8000)
    return os.read(os.open(f"{path.name}/private.txt", os.O_RDONLY, dir_fd=copied), 100)


@attack("make a file system", "calls", by_kernel=True)
def _(facts: Facts) -> object:
    call("unshare", NEWUSER | NEWNS)
    return call("fsopen", b"tmpfs", 0)


@attack("have another root directory", "calls", "capabilities")
def _(facts: Facts) -> object:
    call("chroot", b".")
    return "changed"


@attack("enter the namespaces of another process", "calls", "files", "capabilities")
def _(facts: Facts) -> object:
    call("setns", os.open(f"/proc/{facts['host']['pid']}/ns/uts", os.O_RDONLY), 0)
    return "entered"


@attack("enter the namespaces of another process by its descriptor", "calls", "capabilities")
def _(facts: Facts) -> object:
    call("setns", os.pidfd_open(facts["host"]["pid"]), NEWUTS)
    return "entered"


@attack("open a file by its number", "calls", "files", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mounted = ctypes.c_int()
    path = os.fsencode(Path(facts["victim"]["workspace"]) / "private.txt")
    call("name_to_handle_at", AT_FDCWD, path, handle, ctypes.byref(mounted), 0)
    return os.read(call("open_by_handle_at", os.open(Path(path.decode()).parents[1], os.O_RDONLY), handle, 0), 100)


@attack("watch all files of the machine", "calls", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    return call("fanotify_init", 0, 0)


@attack("use io_uring", "calls", "protocols", by_kernel=True)
def _(facts: Facts) -> object:
    return call("io_uring_setup", 4, ctypes.create_string_buffer(120))


@attack("keep a key in the kernel", "calls", by_kernel=True)
def _(facts: Facts) -> object:
    return call("add_key", b"user", b"hostile", b"x", 1, -2)


@attack("join the keyring of the user", "calls", by_kernel=True)
def _(facts: Facts) -> object:
    return call("keyctl", 0, -4, 1)


@attack("load a program into the kernel", "calls", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    return call("bpf", 0, ctypes.create_string_buffer(struct.pack("5I", 1, 4, 8, 1, 0), 120), 120)


@attack("measure other processes", "calls", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0), 112)
    return call("perf_event_open", attributes, facts["victim"]["pid"], -1, -1, 0)


@attack("handle page faults of the kernel", "calls", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    return call("userfaultfd", 0)


@attack("handle page faults of one's own", "calls", by_kernel=True)
def _(facts: Facts) -> object:
    return call("userfaultfd", 1)


@attack("read the kernel's log", "calls", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    held = ctypes.create_string_buffer(1000)
    return call("syslog", 3, held, 1000)


@attack("name the machine", "calls", "capabilities", by_kernel=True)
def _(facts: Facts) -> object:
    name = os.uname().nodename.encode()
    call("sethostname", name, len(name))
    return "named as it was"


@attack("make system calls of 32 bits", "calls", "protocols", by_kernel=True)
def _(facts: Facts) -> object:
    if os.uname().machine != "x86_64":
        raise OSError("no such calls")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))() > 0


FAMILIES = {"packets": (17, 3, 0), "the kernel's cryptography": (38, 5, 0), "virtual machines": (40, 1, 0)}
NETLINK = {"audit": 9, "the firewall": 12, "the kernel's events": 15, "generic": 16}

for _what, _socket in FAMILIES.items():
    _stop = ("calls", "protocols", *(("capabilities",) if _what == "packets" else ()))
    add(
        f"have a socket for {_what}",
        partial(lambda of, facts: socket.socket(*of).fileno(), _socket),
        *_stop,
        by_kernel=True,
    )
for _what, _number in NETLINK.items():
    _run = partial(lambda number, facts: socket.socket(16, 3, number).fileno(), _number)
    add(f"have a netlink socket for {_what}", _run, "calls", by_kernel=True)


@attack("have a raw socket of the internet", "capabilities", "protocols", by_kernel=True)
def _(facts: Facts) -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).fileno()


@attack("have pairs of exotic sockets", "calls", by_kernel=True)
def _(facts: Facts) -> object:
    return socket.socketpair(30, socket.SOCK_SEQPACKET)[0].fileno()
