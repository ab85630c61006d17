"""Which ports belong to a tree of processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apps.api.runner.session.ports import listening

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ports are found through /proc")

_LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((sys.argv[1], 0))
s.listen()
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def program(address: str) -> Iterator[tuple[int, int]]:
    """A shell with a child that listens: pid of the shell, port."""
    command = ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", _LISTEN, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        try:
            yield shell.pid, int(shell.stdout.readline())
        finally:
            shell.communicate("")


@pytest.mark.parametrize(
    ("address", "reached"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.7", "127.0.0.7"), ("::1", "::1")],
)
def test_ports_of_processes_below_are_found_with_an_address_that_reaches_them(address: str, reached: str) -> None:
    with program(address) as (_, port):
        # Below the test itself there are both the shell and its child.
        assert listening(os.getpid())[port] == reached
    assert port not in listening(os.getpid())


def test_a_port_of_the_process_itself_or_of_another_tree_is_none() -> None:
    with program("127.0.0.1") as (pid, _), program("127.0.0.1") as (_, foreign), socket.create_server(("", 0)) as own:
        found = listening(os.getpid())
        assert foreign in found
        assert own.getsockname()[1] not in found
        assert foreign not in listening(pid)


@pytest.mark.parametrize(
    ("own", "foreign", "reached"),
    [
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "::1", True),
        ("::1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "127.0.0.2", True),
        ("0.0.0.0", "127.0.0.2", True),
        ("0.0.0.0", "127.0.0.1", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("127.0.0.1", "::", False),
        ("::", "::1", False),
        ("::1", "0.0.0.0", True),
        ("::ffff:127.0.0.1", "127.0.0.1", False),
    ],
)
def test_listeners_at_other_addresses_matter_where_they_could_be_reached_instead(
    own: str, foreign: str, reached: bool
) -> None:
    family = socket.AF_INET6 if ":" in foreign else socket.AF_INET
    with program(own) as (_, port), socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((foreign, port))
        other.listen()
        assert (port in listening(os.getpid())) is reached


def test_a_port_that_somebody_else_listens_on_as_well_is_none() -> None:
    with program("127.0.0.1") as (_, port), socket.socket() as intruder:
        assert port in listening(os.getpid())
        intruder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        intruder.bind(("127.0.0.1", port))
        intruder.listen()
        assert port not in listening(os.getpid())
