"""A process that others might reach: it listens in all ways, holds a secret, and writes down which signals have come.

    bystander.py FILE SECRET

FILE: where it says how it could be reached, once it can; beside it, `heard` has the signals, a socket is `b`. Standard
library only: an agent's tool runs it, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from pathlib import Path

IPC_CREAT, IPC_RMID = 0o1000, 0


def main() -> None:
    file, secret = Path(sys.argv[1]), sys.argv[2]
    os.chdir(file.parent)
    name = f"bystander-{uuid.uuid4().hex}"
    heard = open("heard", "a", buffering=1)  # noqa: SIM115 - as long as it lives
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO):
        signal.signal(number, lambda which, _frame: print(which, file=heard))
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    path, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path.bind("b")
    abstract.bind("\0" + name)
    packets.bind("\0" + name + "-datagrams")
    for listening in (path, abstract):
        listening.listen()
    held = ctypes.create_string_buffer(secret.encode(), 64)
    deleted = tempfile.TemporaryFile()  # noqa: SIM115
    deleted.write(secret.encode())
    deleted.flush()
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    sysv = libc.shmget(0, 4096, IPC_CREAT | 0o600)
    ctypes.memmove(libc.shmat(sysv, None, 0), held, 64)
    libc.shmctl(sysv, IPC_RMID, None)  # it is there for as long as it is attached
    Path("/dev/shm", name).write_text(secret)
    said = {
        "pid": os.getpid(),
        "pid_address": ctypes.addressof(held),
        "fd": deleted.fileno(),
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "abstract": name,
        "socket": str(file.parent / "b"),
        "sysv": sysv,
        "shm": name,
    }
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(said))
    draft.rename(file)
    threading.Thread(target=_answer, args=[udp], daemon=True).start()
    while True:
        signal.pause()


def _answer(udp: socket.socket) -> None:
    while True:
        _, who = udp.recvfrom(2000)
        udp.sendto(b"pong", who)


if __name__ == "__main__":
    main()
