"""Ports for servers that a test is about to start.

The kernel gives a port that it chose itself (port 0), and that was given back, to anybody's next connection, so a
server that needs a second to start may find it taken. These ports lie below the kernel's own range.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path

_FIRST = 16_384
_KERNELS = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_SHARE = (min(_KERNELS, 32_768) - _FIRST) // 8
# Workers that run side by side have a share each.
_START = _FIRST + _SHARE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8)

_given = random.randrange(_SHARE)


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports at which nothing listens; others each time until all had their turn."""
    global _given
    while True:
        if _given + count > _SHARE:
            _given = 0
        first, _given = _START + _given, _given + count
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first


def free_port() -> int:
    """A port at which nothing listens."""
    return free_ports(1)
