"""An agent that takes more of the machine than it may is ended, with a clear reason, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from apps.api.dev.unprivileged import UNSHARE
from apps.api.runner.guard.cgroups import NotDelegated, delegated
from apps.api.runner.guard.limits import TOO_MANY_PROCESSES
from apps.api.settings import Settings
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance
from tests.layers import ISOLATED

pytestmark = pytest.mark.slow

BYPASS = {"permission_mode": "bypassPermissions"}
MEMORY, PROCESSES = 500_000_000, 120

MEMORY_BOMB = f"run {sys.executable} -c 'kept = [bytes([1]) * 10**7 for _ in range(90)]; import time; time.sleep(60)'"
FORK_BOMB = "run b() { [ $1 -gt 0 ] && { b $(($1 - 1)) & b $(($1 - 1)) & }; sleep 60; }; b 7"
"""Both stop growing, for the sake of the tests beside them: at 900 MB and at 255 processes."""

GREED = {"agent_out_of_memory": MEMORY_BOMB, "agent_too_many_processes": FORK_BOMB}


async def started(start_fleet: StartFleet, user: str, **settings: str) -> Fleet:
    if user == "root" and os.geteuid() != 0:
        pytest.skip("needs to be root")
    fleet = await start_fleet(0, AGENT_MEMORY_BYTES=str(MEMORY), AGENT_MAX_PROCESSES=str(PROCESSES), **settings)
    fleet.prefix = UNSHARE if user == "ordinary" and os.geteuid() == 0 else ()
    await fleet.start(1)
    return fleet


def has_groups() -> bool:
    """Whether the kernel may be the one that ends agents here."""
    with suppress(NotDelegated):
        return bool(delegated(Settings(_env_file=None)))
    return False


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.1)


def left_of(instance: Instance, session_id: str) -> list[psutil.Process]:
    found = []
    for process in instance.agent_of(session_id):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("user", ["root", "ordinary"])
@pytest.mark.parametrize("layer", ISOLATED)
@pytest.mark.parametrize("code", GREED)
async def test_an_agent_that_takes_too_much_is_ended_and_nobody_else_notices(
    start_fleet: StartFleet, user: str, layer: str, code: str
) -> None:
    grouped = has_groups()
    if grouped and code == TOO_MANY_PROCESSES:
        pytest.skip("the kernel gives it no more processes here, and ends nothing")
    fleet = await started(start_fleet, user, AGENT_ISOLATION=layer, AGENT_ISOLATION_REQUIRED="true")
    instance = fleet[0]
    greedy, neighbour = await instance.session(**BYPASS), await instance.session(**BYPASS)
    await instance.ask(neighbour, "run touch mine")
    run = await instance.prompt(greedy, GREED[code])
    beside = asyncio.create_task(instance.ask(neighbour, "stream 300 words every 10 ms"))
    told = await instance.follow(run)
    assert [(e.event, e.data.get("code"), e.data.get("status")) for e in told[-2:]] == [
        ("error", code, None),
        ("done", None, "failed"),
    ]
    assert not told[-2].data["retryable"]
    await until(lambda: not left_of(instance, greedy))
    assert (await beside)["status"] == "succeeded"
    assert "mine" in (await instance.ask(neighbour, "run ls"))["result"]
    assert "recovered" in (await instance.ask(greedy, "say recovered"))["result"]
    assert grouped or "watch.agent_ended" in instance.log.read_text()
    assert instance.process.poll() is None
