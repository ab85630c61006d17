"""What Bash in the real CLI reaches of the machine and of other sessions, by the layer of isolation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apps.api.dev.unprivileged import UNSHARE
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance
from tests.layers import ISOLATED

pytestmark = pytest.mark.slow

BYPASS = {"permission_mode": "bypassPermissions"}
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
ATTACH = "import ctypes, sys; sys.exit(ctypes.CDLL(None).shmget(int(sys.argv[1]), 0, 0) < 0)"

WITHIN_REACH = {
    "off": {"file", "metadata", "process", "command", "socket", "memory", "tmp", "shm"},
    "landlock": {"metadata", "socket", "memory"},
    "namespaces": set[str](),
}


def attacks(neighbour: Path, server: int, listening: Path, key: int) -> dict[str, str]:
    """Commands that succeed where something is in reach, by what it is."""
    return {
        "file": f"cat {neighbour}/private.txt",
        "metadata": f"stat {neighbour}/private.txt",
        "process": f"cat /proc/{server}/task/{server}/comm",
        "command": f"cat /proc/{server}/cmdline",
        "socket": f"{sys.executable} -c '{CONNECT}' {listening}",
        "memory": f"{sys.executable} -c '{ATTACH}' {key}",
        "tmp": f"ls {listening.parent}",
        "shm": "ls /dev/shm",
    }


@contextmanager
def machine() -> Iterator[tuple[Path, int]]:
    """What others have on this machine: a socket that they listen at, and the key of memory that they share."""
    with tempfile.TemporaryDirectory(prefix="layers-") as made, socket.socket(socket.AF_UNIX) as listener:
        path = Path(made, "docker.sock")
        Path(made).chmod(0o755)
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        words = ["ipcmk", "-M", "64", "-p", "0666"]
        memory = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1]
        with open("/proc/sysvipc/shm") as listed:
            key = next(int(line.split()[0]) for line in list(listed)[1:] if line.split()[1] == memory)
        try:
            yield path, key
        finally:
            subprocess.run(["ipcrm", "-m", memory], check=True)


async def started(start_fleet: StartFleet, user: str, layer: str) -> Fleet:
    if user == "root" and os.geteuid() != 0:
        pytest.skip("needs to be root")
    required = str(layer != "off")
    fleet = await start_fleet(
        0, AGENT_ISOLATION=layer, AGENT_ISOLATION_REQUIRED=required, AGENT_UNCONFINED_IN_PRODUCTION="true"
    )
    fleet.prefix = UNSHARE if user == "ordinary" and os.geteuid() == 0 else ()
    await fleet.start(1)
    return fleet


async def reached(instance: Instance, session: str, tried: dict[str, str]) -> set[str]:
    script = "; ".join(f"({command}) >/dev/null 2>&1 && echo reached-{name}" for name, command in tried.items())
    said = str((await instance.ask(session, f"run {script}; true"))["result"])
    return {name for name in tried if f"reached-{name}" in said.split()}


@pytest.mark.parametrize("user", ["root", "ordinary"])
@pytest.mark.parametrize("layer", [*ISOLATED, "off"])
async def test_what_is_within_reach_of_an_agent(start_fleet: StartFleet, user: str, layer: str) -> None:
    fleet = await started(start_fleet, user, layer)
    instance = fleet[0]
    neighbour, session = await instance.session(**BYPASS), await instance.session(**BYPASS)
    await instance.ask(neighbour, "write private.txt: secret")
    with machine() as (listening, key):
        tried = attacks(Path(fleet.env["WORKSPACES_DIR"], neighbour), instance.process.pid, listening, key)
        assert await reached(instance, session, tried) == WITHIN_REACH[layer]
    run = await instance.prompt(session, "say hello")
    [init] = [event for event in await instance.follow(run) if event.event == "init"]
    assert init.data["isolation"] == layer
    assert (await instance.client.get("/health")).json()["isolation"] == layer
