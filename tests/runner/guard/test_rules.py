"""Rules of ports: what each kind leaves, and that only a guard with a ticket has them, once."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from apps.api.runner.guard import isolation
from apps.api.runner.guard.network import Network
from apps.api.runner.guard.rules import MAX_KEPT, MAX_WAITING, Kind, PortRules

pytestmark = pytest.mark.skipif(isolation.network_lacks() is not None, reason="this machine cannot limit the network")

LIMIT = """
import json, os, sys
from apps.api.runner.guard.network import Network, restrict
from tests.knocks import KINDS, attempt
reach = Network(os.environ)
restrict(reach.mode, reach.unix, reach.rules)
print(json.dumps({line: attempt(KINDS[line.split()[0]], *line.split()[1:]) for line in sys.argv[1:]}))
"""


def kind(mode: str, *, ways: tuple[int, ...] = (), closed: tuple[int, ...] = (), served: tuple[int, ...] = ()) -> Kind:
    return Kind(mode, frozenset(ways), frozenset(closed), frozenset(served))


@pytest.fixture
async def rules() -> AsyncIterator[PortRules]:
    with tempfile.TemporaryDirectory() as directory:
        made = PortRules(Path(directory) / "ports")
        made.start()
        yield made
        made.close()


def shown(rules: PortRules, ticket: str, mode: str = "open") -> dict[str, str]:
    return {"CLI_GUARD_NETWORK": mode, "CLI_GUARD_PORTS": str(rules.path), "CLI_GUARD_PORTS_TICKET": ticket}


async def limited(rules: PortRules, kind: Kind, *lines: str, **more: str) -> dict[str, str]:
    """What a process with these rules gets."""
    env = shown(rules, await rules.ticket(kind), kind.mode) | more
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", LIMIT, *lines], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def listening() -> Any:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield one.getsockname()[1], two.getsockname()[1]


@pytest.mark.parametrize("mode", ["open", "limited", "model_only"])
async def test_what_each_kind_leaves(rules: PortRules, listening: tuple[int, int], mode: str) -> None:
    way, other = listening
    open_, none = mode == "open", mode == "model_only"
    given = kind(mode, ways=(way,), served=(6000,))
    wanted = {
        f"tcp 127.0.0.1 {way}": "ok",
        f"tcp 127.0.0.1 {other}": "ok" if open_ else "EACCES",
        f"tcp ::ffff:127.0.0.1 {other}": "ok" if open_ else "EACCES",
        f"sent 127.0.0.1 {way}": "ENOTSUP",
        f"stream 127.0.0.1 {way} 6": "ok",
        f"stream 127.0.0.1 {way} 262": "EPROTONOSUPPORT",
        "tcp 127.0.0.1 80": "EACCES",
        "udp 127.0.0.1 9": "ok" if open_ else "EPERM",
        "bind 0": "EACCES" if none else "ok",
        "bind 6000": "EACCES",
        "bind 80": "EACCES",
        "listen": "EPERM" if none else "ok",
        "family 1 1": "EPERM" if none else "ok",
        "family 16 3": "ok",
        "family 2 3": "EPERM",
        "family 40 1": "EPERM",
    }
    assert await limited(rules, given, *wanted) == wanted


async def test_ports_of_databases_are_closed_at_every_address(rules: PortRules, listening: tuple[int, int]) -> None:
    port, other = listening
    wanted = {
        f"tcp 127.0.0.1 {port}": "EACCES",
        f"tcp 127.1.1.1 {port}": "EACCES",
        f"deferred 127.0.0.1 {port}": "EACCES",
        f"bind {port}": "EACCES",
        f"tcp 127.0.0.1 {other}": "ok",
    }
    assert await limited(rules, kind("open", closed=(port,)), *wanted) == wanted


async def test_unix_sockets_are_taken_from_any_mode(rules: PortRules) -> None:
    taken = await limited(rules, kind("open"), "family 1 1", "family 2 1", CLI_GUARD_UNIX_SOCKETS="off")
    assert taken == {"family 1 1": "EPERM", "family 2 1": "ok"}
    env = {"CLI_GUARD_NETWORK": "direct", "CLI_GUARD_UNIX_SOCKETS": "off"}
    command = [sys.executable, "-c", LIMIT, "family 1 1", "family 2 2", "family 2 1"]
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"family 1 1": "EPERM", "family 2 2": "ok", "family 2 1": "ok"}


async def test_a_ticket_is_good_once_and_while_its_process_lives(rules: PortRules) -> None:
    ticket, forgotten = await rules.ticket(kind("model_only")), await rules.ticket(kind("model_only"))
    rules.forget(forgotten)
    (await asyncio.to_thread(Network, shown(rules, ticket))).close()
    for refused in (ticket, forgotten, "", "guess"):
        with pytest.raises((PermissionError, ConnectionError)):
            await asyncio.to_thread(Network, shown(rules, refused or "?"))


async def test_who_shows_nothing_makes_room_for_guards(rules: PortRules) -> None:
    silent = []
    for _ in range(MAX_WAITING + 5):
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, str(rules.path))
        silent.append(one)
    (await asyncio.to_thread(Network, shown(rules, await rules.ticket(kind("model_only"))))).close()
    assert await asyncio.get_running_loop().sock_recv(silent[0], 1) == b""
    for one in silent:
        one.close()


async def test_the_newest_kinds_are_kept(rules: PortRules) -> None:
    tickets = [await rules.ticket(kind("model_only", ways=(port,))) for port in range(1, MAX_KEPT + 2)]
    for ticket in tickets[1:]:
        (await asyncio.to_thread(Network, shown(rules, ticket))).close()
    with pytest.raises((PermissionError, ConnectionError)):
        await asyncio.to_thread(Network, shown(rules, tickets[0]))
