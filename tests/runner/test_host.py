"""A sick host: its runs go back to the queue, and it takes no more until a trial start has succeeded."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.api import machine
from apps.api.core.events.batches import Batches
from apps.api.core.tasks import Loop
from apps.api.runner.agent.process import StartFailed
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.guard import trial
from apps.api.runner.host import LONGEST, LOOK_SECONDS, MAX_FAILURES, Host
from apps.api.runner.session.execution import Execution
from apps.api.runner.session.launch import Means, StartGate
from apps.api.runner.worker import Worker
from apps.api.settings import Settings
from tests.core.conftest import lone_world
from tests.world import World, administrator, until, waiting_for_locks, ways_of

__all__ = ["lone_world"]

LATER = 30.0
"""Seconds after which a test gives up; nothing here is meant to take one."""


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    made = Scratch()
    yield made
    made.close()


@pytest.fixture
def host(settings: Settings, scratch: Scratch) -> Host:
    return Host(settings, scratch)


async def test_a_trial_start_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    settings.workspaces_root.mkdir()
    assert await trial.failure(settings, tmp_path) is None
    assert list(settings.workspaces_root.iterdir()) == []
    assert os.listdir(tmp_path) == [settings.workspaces_root.name]


async def test_a_trial_start_tells_why_it_failed(settings: Settings, tmp_path: Path) -> None:
    settings.workspaces_root.write_text("")
    assert "Not a directory" in (await trial.failure(settings, tmp_path) or "")
    assert "No such file" in (await trial.failure(settings, tmp_path / "gone") or "")


async def test_a_host_that_failed_twice_starts_no_agents_until_a_trial_succeeds(host: Host, settings: Settings) -> None:
    for times in range(1, MAX_FAILURES + 1):
        assert host.starts_agents
        host.has_failed()
        assert host.failed == times
    assert not host.starts_agents
    assert host.unfit
    settings.workspaces_root.write_text("")
    for _ in range(5):
        await host.look(Loop("host"))
        assert not host.starts_agents
        assert LOOK_SECONDS <= host._pause <= LONGEST
    settings.workspaces_root.unlink()
    await host.look(Loop("host"))
    assert host.starts_agents
    assert host.unfit == []
    host.has_failed()  # what the trial does not try
    assert not host.starts_agents
    host.has_started()
    assert host.starts_agents


async def test_a_database_that_is_away_says_nothing_of_the_host(settings: Settings, scratch: Scratch) -> None:
    failures: list[Exception] = [ConnectionResetError("connection lost"), FileNotFoundError(2, "no such directory")]

    async def compare() -> list[str]:
        raise failures[0]

    host = Host(settings, scratch, compare)
    with pytest.raises(ConnectionResetError):
        await host.look(Loop("runner-host"))
    assert (host.differing, host.starts_agents) == ([], True)
    del failures[0]
    await host.look(Loop("runner-host"))
    assert "no such directory" in host.differing[0]


async def test_a_failure_is_the_hosts_where_no_session_can_have_caused_it(host: Host, settings: Settings) -> None:
    full = StartFailed("no workspace")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    theirs = StartFailed("no workspace")
    theirs.__cause__ = OSError(errno.ELOOP, "Too many levels of symbolic links")
    assert await host.is_to_blame(full)
    assert not await host.is_to_blame(theirs)
    settings.workspaces_root.write_text("")
    assert await host.is_to_blame(theirs)


def test_room_inodes_and_descriptors_that_are_nearly_used_up_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"WORKSPACES_DIR": tmp_path / "not" / "yet"}

    def told(blocks: int, free: int, files: int, unused: int) -> str:
        found = os.statvfs_result((4096, 4096, blocks, free, free, files, unused, unused, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _path: found)
        return "; ".join(machine.shortages(there))

    assert told(1000, 51, 1000, 51) == ""
    assert "no room: 0 MB" in told(1000, 49, 1000, 51)
    assert "no inodes: 49" in told(1000, 51, 1000, 49)
    assert told(1 << 40, 1 << 20, 1 << 40, 1 << 20) == ""  # 4 GB are enough for a while
    assert told(1000, 51, 0, 0) == ""  # Btrfs counts no inodes
    monkeypatch.undo()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), before[1]))
        [words] = machine.shortages(there)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in opened:
            os.close(descriptor)
    assert "descriptors" in words


async def test_a_run_that_a_sick_host_cannot_start_goes_to_another(lone_world: World, scratch: Scratch) -> None:
    world = lone_world
    lease, other = await world.instance(), await world.instance()
    run = await world.queue()
    claim = await world.claim(lease)
    host = Host(world.settings, scratch)
    scratch.root.rename(away := scratch.root.with_name(f"{scratch.root.name}-away"))
    try:
        gate, ways = StartGate(1, lambda: None), ways_of(world.core(), scratch)
        execution = Execution(world.core(), Means(lease, host, gate, ways, Batches(world.db)), claim, lambda: None)
        execution.assign(claim)
        async with asyncio.timeout(LATER):
            await execution.run()
    finally:
        away.rename(scratch.root)
    assert (await world.run(run.run_id))["status"] == "queued"
    assert await world.events(run.session_id) == []
    assert (await world.claim(other)).run_id == run.run_id
    assert host.failed == 1
    assert execution.fenced


async def test_an_instance_on_a_sick_host_claims_what_needs_no_start_alone(lone_world: World) -> None:
    world = lone_world
    lease = await world.instance()
    core = world.core()
    worker = Worker(core, lease)
    try:
        run = await world.queue()
        worker.host.has_failed()
        worker.host.has_failed()
        await worker._claim_runs(Loop("claim"))
        assert (await world.run(run.run_id))["status"] == "queued"
    finally:
        worker.scratch.close()


async def test_an_instance_that_nobody_can_wake_looks_more_often(lone_world: World) -> None:
    order = list[bool]()

    async def look(*, hears: bool) -> None:
        core = lone_world.core()
        core.subscriptions.connected = hears
        worker = Worker(core, await lone_world.instance())
        try:
            await worker._until_woken(asyncio.Event())
            order.append(hears)
        finally:
            worker.scratch.close()

    await asyncio.gather(*(look(hears=hears) for hears in (True, True, False, False)))
    assert order == [False, False, True, True]


async def test_a_run_that_is_claimed_while_a_drain_begins_is_queued_again(lone_world: World) -> None:
    world = lone_world
    lease = await world.instance()
    run = await world.queue()
    worker = Worker(world.core(), lease)
    try:
        async with administrator(world.settings) as admin:
            await admin.execute("BEGIN; SELECT FROM runs FOR UPDATE")
            claiming = asyncio.create_task(worker._claim_runs(Loop("claim")))
            await until(lambda: waiting_for_locks(admin, 1))
            await worker.drain(0)
            await admin.execute("COMMIT")
            await claiming
    finally:
        worker.scratch.close()
    assert worker.executions == {}
    state = await world.run(run.run_id)
    assert state["status"] == "queued"
    assert await world.events(run.session_id) == []


async def test_a_claim_whose_answer_was_lost_is_queued_again(lone_world: World) -> None:
    world = lone_world
    lease = await world.instance()
    run = await world.queue()
    worker = Worker(world.core(), lease)
    try:
        lost = await world.claim(lease)  # as the statement leaves it
        worker._unheard_until = asyncio.get_running_loop().time() + LATER
        worker.draining = True
        await worker._claim_runs(Loop("claim"))
    finally:
        worker.scratch.close()
    assert lost.run_id == run.run_id
    state = await world.run(run.run_id)
    assert state["status"] == "queued"
    assert await world.events(run.session_id) == []
