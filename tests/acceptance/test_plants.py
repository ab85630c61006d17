"""An agent plants what it can, everywhere that it can; then its session goes through all that a session can."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from apps.api.core.files import removal
from apps.api.dev.unprivileged import UNSHARE
from tests import plants
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance
from tests.layers import ISOLATED
from tests.watch import until, watched

pytestmark = pytest.mark.slow

BYPASS = {"permission_mode": "bypassPermissions"}
SECRET = "nobody-is-to-read-this"
LOOK = "run cat $CLAUDE_CONFIG_DIR/*.json $CLAUDE_CONFIG_DIR/.*.json $CLAUDE_CONFIG_DIR/backups/.* 2>/dev/null; env"


@asynccontextmanager
async def trap() -> AsyncIterator[tuple[str, list[int]]]:
    """A listener, and who has come."""
    came: list[int] = []

    async def caught(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        writer.close()

    async with await asyncio.start_server(caught, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", came


@pytest.fixture
def tmp() -> Iterator[Path]:
    """For TMPDIR and workspaces of servers. What is left there is removed."""
    directory = Path(plants.memory_directory())
    yield directory
    removal.remove(directory)
    for link in Path("/dev/shm").glob("planted-*"):
        link.unlink(missing_ok=True)


def secrets_of(fleet: Fleet, session: str) -> list[str]:
    """Paths that lead to what is not the agent's; `session` is another one."""
    key, private = fleet.directory / "data" / "api-key", Path(session, "private.txt")
    for file in (key, *(instance.disk / private for instance in fleet.instances)):
        file.parent.mkdir(mode=0o700, parents=True)
        file.write_text(SECRET)
    return [str(key), "/proc/self/environ", str(fleet.env["WORKSPACES_DIR"] / private)]


async def clean(fleet: Fleet, instance: Instance, session: str) -> None:
    """A new process of the agent has nothing of what an earlier one has planted, and what was said is what was said."""
    seen = str((await instance.ask(session, LOOK))["result"]) + str((await instance.ask(session, "recall"))["result"])
    assert "remember my number is 4711" in seen
    for secret in (SECRET, fleet.env["DATABASE_URL"], "apiKeyHelper", plants.FORGED):
        assert secret not in seen


async def live_through(fleet: Fleet, trap: str) -> None:
    """Plant, and then reset, idle, crash, rewind, fork, move, delete and restart."""
    first = fleet[0]
    neighbour, session = await first.session(**BYPASS), await first.session(**BYPASS)
    await first.ask(session, "remember my number is 4711")
    await first.ask(session, "write a.txt: one")
    secrets = await asyncio.to_thread(secrets_of, fleet, neighbour)
    program = f"{sys.executable} -I {plants.__file__} {trap} {' '.join(secrets)}"
    assert "planted 6" in (await first.ask(session, f"run {program}", timeout_seconds=120))["result"]
    async with watched(first):
        assert (await first.post(f"/sessions/{session}/reset", {"mode": "soft"})).status_code in (200, 202)
        await clean(fleet, first, session)
        await until(lambda: owner_is(first, session, None))
        await clean(fleet, first, session)
        await crash(first, session)
        await clean(fleet, first, session)
        (checkpoint,) = (await first.get(f"/sessions/{session}/checkpoints?limit=1")).json()["data"]
        for dry_run in (True, False):
            asked = {"checkpoint_id": checkpoint["checkpoint_id"], "dry_run": dry_run}
            rewound = await first.post(f"/sessions/{session}/rewind", asked)
            assert rewound.status_code < 500, rewound.text
            assert SECRET not in rewound.text
        forked = await first.post(f"/sessions/{session}/fork", {})
        assert forked.status_code == 201, forked.text  # with what was stored last: what was planted is too much
    await fleet.start(1)
    await asyncio.to_thread(fleet.spread, neighbour)
    first.signal(signal.SIGKILL)
    second = fleet[1]
    await until(lambda: owner_is(second, session, None))
    await clean(fleet, second, session)
    async with watched(second):
        assert (await second.client.delete(f"/api/v1/sessions/{session}")).status_code == 200
        await until(lambda: asyncio.to_thread(is_gone, second.disk, session))
    killed, *more = await asyncio.to_thread(instances_of, Path(fleet.env["TMPDIR"]))
    assert len(more) == 1
    await fleet.start(1)
    await until(lambda: asyncio.to_thread(lambda: not killed.exists()))
    for instance in fleet.instances[1:]:
        assert instance.process.poll() is None
        assert "Traceback" not in instance.log.read_text()


async def owner_is(instance: Instance, session: str, owner: str | None) -> bool:
    return bool((await instance.get(f"/sessions/{session}")).json()["owner"] == owner)


async def crash(instance: Instance, session: str) -> None:
    """Kill the agent and all that it has started while a tool of it runs."""
    run = await instance.prompt(session, "run sleep 600")
    async with instance.stream(f"/runs/{run}/events") as events:
        async for event in events:
            if event.event == "message" and event.data["content"][0]["type"] == "tool_use":
                for process in instance.descendants():
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


def instances_of(tmp: Path) -> list[Path]:
    """Directories of instances, made to look old; the oldest first."""
    found = [path for path in tmp.glob("caa-*/*") if (path / "lock").exists()]
    found.sort(key=lambda path: (path / "lock").stat().st_mtime)
    for path in found:
        os.utime(path, (0, 0))
    return found


def is_gone(workspaces: Path, session: str) -> bool:
    """Whether nothing of a session is left, and nothing that waits to be removed."""
    above = [workspaces, *(path for path in workspaces.glob(".*") if path.is_dir())]
    names = [name for path in above for name in os.listdir(path)]
    return session not in names and not os.listdir(workspaces / ".removed")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("isolation", [*ISOLATED, "off"])
@pytest.mark.parametrize("user", ["root", "ordinary"])
async def test_what_an_agent_plants_harms_nobody(start_fleet: StartFleet, tmp: Path, isolation: str, user: str) -> None:
    prefix = UNSHARE if user == "ordinary" and os.geteuid() == 0 else ()
    if user == "root" and os.geteuid() != 0:
        pytest.skip("needs to be root")
    if await asyncio.to_thread(subprocess.call, [*prefix, "true"]):
        pytest.skip("needs user namespaces")
    fleet = await start_fleet(
        0,
        AGENT_ISOLATION=isolation,
        AGENT_ISOLATION_REQUIRED=str(isolation != "off"),
        AGENT_UNCONFINED_IN_PRODUCTION="true",
        AGENT_READ_PATHS=plants.__file__,
        AGENT_MAX_FILE_BYTES="20000000000",
        ENABLE_FILE_CHECKPOINTING="true",
        SESSION_IDLE_SECONDS="2",
        TMPDIR=str(tmp),
        WORKSPACES_DIR=str(tmp / "workspaces"),
    )
    fleet.prefix = prefix
    await fleet.start(1)
    async with trap() as (url, came):
        await live_through(fleet, url)
    assert came == []
