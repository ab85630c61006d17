"""What instances must have in common: the one that differs executes nothing, and says in what it differs."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from apps.api import doctor
from apps.api.core.fleet import facts
from apps.api.core.lease import Lease
from apps.api.core.tasks import Loop
from apps.api.doctor import Check
from apps.api.runner.worker import Worker
from tests.proxy import changed
from tests.world import World


@pytest.fixture
def world(lone_world: World) -> World:
    return lone_world


async def compared(world: World, lease: Lease, **settings: Any) -> list[str]:
    return await facts.compare(world.core(**settings), lease.instance_id)


async def test_instances_of_one_fleet_differ_in_nothing(world: World) -> None:
    for _ in range(3):
        assert await compared(world, await world.instance()) == []


async def test_who_came_later_differs_as_long_as_the_elder_lives(world: World, tmp_path: Path) -> None:
    elder, later = await world.instance(), await world.instance()
    assert await compared(world, elder) == []
    [told] = await compared(world, later, workspaces_dir=tmp_path / "elsewhere")
    assert "WORKSPACES_DIR" in told
    assert str(tmp_path / "elsewhere") in told
    assert await compared(world, elder) == []
    [check] = [
        check
        for check in await doctor.examine(changed(world.settings, workspaces_dir=tmp_path / "elsewhere"))
        if check.subject == "Fleet"
    ]
    assert (check.verdict, check.finding) == ("FAIL", told)
    await world.expire(elder)
    assert await compared(world, later, workspaces_dir=tmp_path / "elsewhere") == []


async def test_ports_of_one_host_are_known_by_its_instances(world: World) -> None:
    assert await facts.ports(world.db, "here") == set()
    for hostname, port in (("here", 54000), ("here", 54001), ("here", 0), ("there", 54002)):
        lease = await world.instance()
        await world.db.pool.execute("UPDATE instances SET hostname = $2 WHERE id = $1", lease.instance_id, hostname)
        assert await compared(world, lease, port=port) == []
    assert await facts.ports(world.db, "here") == {54000, 54001}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory that is the store of `storing`."""
    (directory := tmp_path / "store").mkdir()
    return directory


@pytest.fixture
def storing(world: World, store: Path) -> World:
    """Instances whose store is not on their disk."""
    return replace(world, settings=changed(world.settings, workspace_store_url=f"file://{store}"))


def swap(directory: Path) -> None:
    """Put another directory in its place, or that which it took the place of."""
    away, found = directory.with_name(f"{directory.name}-away"), directory.with_name("swapped")
    if directory.exists():
        directory.rename(found)
    if away.exists():
        away.rename(directory)
    if found.exists():
        found.rename(away)


async def fleet_check(world: World) -> Check:
    return next(check for check in await doctor.examine(world.settings) if check.subject == "Fleet")


async def test_disks_of_their_own_are_no_difference_where_the_store_is_one(storing: World, store: Path) -> None:
    for _ in range(3):
        assert (await fleet_check(storing)).verdict == "ok"
        assert await compared(storing, await storing.instance()) == []
        swap(storing.settings.workspaces_root)
    assert os.listdir(store) == ["fleet"]


async def test_a_share_that_is_not_mounted_is_another_store(storing: World, store: Path) -> None:
    assert await compared(storing, await storing.instance()) == []
    swap(store)
    os.mkdir(store)
    later = await storing.instance()
    assert (await fleet_check(storing)).verdict == "ok"
    assert os.listdir(store) == [], "doctor marks nothing"
    [told] = await compared(storing, later)
    assert "mounted" in told
    assert await fleet_check(storing) == Check("FAIL", "Fleet", told)
    swap(store)
    assert await compared(storing, later) == []


async def test_where_no_store_is_given_the_disk_is_the_store(world: World) -> None:
    assert await compared(world, await world.instance()) == []
    swap(world.settings.workspaces_root)
    [told] = await compared(world, await world.instance())
    assert "WORKSPACE_STORE_URL" in told


async def test_a_store_that_cannot_be_seen_is_no_other_and_doctor_tells_it(storing: World, store: Path) -> None:
    elder, later = await storing.instance(), await storing.instance()
    assert await compared(storing, elder) == []
    swap(store)
    assert await compared(storing, later) == []
    check = await fleet_check(storing)
    assert check.verdict == "FAIL"
    assert "WORKSPACE_STORE_URL" in check.finding
    assert "store" not in os.listdir(store.parent)
    assert await compared(storing, elder) == []
    swap(store)
    assert await compared(storing, later) == [], "what the elder cannot see is no difference, either"


async def test_of_instances_that_mark_a_store_at_once_none_differs(storing: World) -> None:
    leases = [await storing.instance() for _ in range(5)]
    assert await asyncio.gather(*(compared(storing, lease) for lease in leases)) == [[]] * 5


async def test_keys_that_are_rotated_are_in_common_and_others_are_not(world: World) -> None:
    one, two, three = (SecretStr(name * 3) for name in ("one", "two", "three"))
    assert await compared(world, await world.instance(), encryption_keys=(one, two)) == []
    assert await compared(world, await world.instance(), encryption_keys=(three, one)) == []
    later = await world.instance()
    for keys in ((), (SecretStr("four"),)):
        [told] = await compared(world, later, encryption_keys=keys)
        assert "ENCRYPTION_KEYS" in told


async def test_an_instance_without_slots_may_do_without_the_files(world: World, tmp_path: Path) -> None:
    assert await compared(world, await world.instance()) == []
    assert await compared(world, await world.instance(), runner_slots=0, workspaces_dir=tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


async def test_an_instance_that_differs_claims_nothing_and_is_unfit(world: World, tmp_path: Path) -> None:
    assert await compared(world, await world.instance()) == []
    later = await world.instance()
    run = await world.queue()
    worker = Worker(world.core(workspaces_dir=tmp_path / "elsewhere"), later)
    try:
        await worker.host.begin()
        await worker._claim_runs(Loop("claim"))
        assert (await world.run(run.run_id))["status"] == "queued"
        assert any("WORKSPACES_DIR differs" in words for words in worker.host.unfit)
    finally:
        worker.scratch.close()
