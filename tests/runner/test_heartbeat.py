"""The lease is kept whatever requests and the event loop are at, and no longer than there is a server behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from apps.api.core.events.log import Event
from apps.api.core.lease import Lease
from apps.api.core.tasks import Loops
from apps.api.errors import LeaseLost
from apps.api.runner.heartbeat import Heartbeat
from apps.api.runner.worker import Worker
from tests.proxy import postgres_proxy
from tests.world import PATIENCE, World, core_of, lone_world, relaying, until

__all__ = ["lone_world"]

SECONDS = 4.0
"""Of a lease: long enough for a busy machine, and a quarter of it is a second."""


@asynccontextmanager
async def working(world: World, seconds: float = SECONDS, slots: int = 0) -> AsyncIterator[tuple[Lease, Worker]]:
    """A worker with its loops, as the composition root makes it, without slots: it executes nothing."""
    settings = world.settings.model_copy(update={"runner_slots": slots})
    async with relaying(world.db, world.redis) as relay:
        core = replace(core_of(replace(world, settings=settings), relay), db=world.db.for_runner())
        lease, given_up = Lease(core.instance_id, seconds), list[str]()
        worker, loops = Worker(core, lease), Loops(seconds, given_up.append)
        await worker.start()
        worker.run_in(loops)
        try:
            yield lease, worker
            assert given_up == []
        finally:
            await loops.stop()
            await worker.stop()
            core.blocking.close()


async def expiry(world: World, lease: Lease) -> Any:
    """When the database says that it ends."""
    return await world.db.for_runner().pool.fetchval(
        "SELECT lease_expires_at FROM instances WHERE id = $1", lease.instance_id
    )


async def renewals(world: World, lease: Lease, count: int) -> None:
    """Wait for so many of them, without the lease being over at any time."""
    for _ in range(count):
        before = await expiry(world, lease)

        async def is_later(than: Any = before) -> bool:
            assert not lease.is_over()
            return bool(await expiry(world, lease) > than)

        await until(is_later, every=0.05)


async def test_requests_that_hold_and_want_every_connection_do_not_keep_a_lease_from_being_renewed(
    lone_world: World,
) -> None:
    world, release = lone_world, asyncio.Event()

    async def request() -> None:
        async with world.db.transaction():
            await release.wait()

    async def report() -> None:
        async with world.db.connect():
            await release.wait()

    async with working(world) as (lease, _):
        requests = [asyncio.create_task(work()) for _ in range(200) for work in (request, report)]
        try:
            await renewals(world, lease, 5)  # more than one lease
        finally:
            release.set()
            await asyncio.gather(*requests, return_exceptions=True)


async def test_an_owner_writes_and_ends_while_requests_hold_every_connection(lone_world: World) -> None:
    world = lone_world
    lease, claim, _ = await world.owned()
    writer = world.writer(lease, claim, db=world.db.for_runner())
    async with AsyncExitStack() as stack:
        while world.db.pool.get_idle_size() or world.db.pool.get_size() < world.db.pool.get_max_size():
            await stack.enter_async_context(world.db.transaction())
        await writer.append(Event("message", {"role": "assistant", "content": "hello"}, claim.run_id))
    assert [kind for _, kind, _ in await world.events(claim.session_id)] == ["message"]


async def test_an_event_loop_that_stands_still_for_longer_than_a_lease_does_not_cost_it(lone_world: World) -> None:
    world = lone_world
    async with working(world) as (lease, _):
        await renewals(world, lease, 1)
        time.sleep(SECONDS * 1.5)  # noqa: ASYNC251 - that is what is tested
        assert not lease.is_over()
        lasts = "SELECT lease_expires_at > now() FROM instances WHERE id = $1"
        assert await world.one(lasts, lease.instance_id)


async def test_a_server_whose_loop_never_comes_back_loses_its_lease(lone_world: World) -> None:
    lease = await lone_world.instance(seconds=2)
    beat = Heartbeat(lone_world.settings, lease, longest_silence=1.0)
    beat.start()
    await beat.next()
    until_then = time.monotonic() + PATIENCE
    while not lease.is_over() and time.monotonic() < until_then:
        time.sleep(0.1)  # noqa: ASYNC251 - it blocks the loop
    assert lease.is_over()
    await beat.stop()


async def test_a_lost_connection_is_replaced(lone_world: World) -> None:
    async with postgres_proxy(lone_world.settings) as (proxy, through):
        lease = await lone_world.instance(seconds=SECONDS)
        beat = Heartbeat(through, lease)
        beat.start()
        try:
            await beat.next()
            assert proxy.cut() == 1
            failed = False
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await beat.next()
                    except Exception:
                        failed = True
                        continue
                    if failed:
                        break
            assert not lease.is_over()
        finally:
            await beat.stop()


async def until_it_fails(beat: Heartbeat) -> None:
    while True:
        await beat.next()


async def test_what_a_renewal_says_is_told_once(lone_world: World) -> None:
    lease, claim, _ = await lone_world.owned(seconds=SECONDS)
    beat = Heartbeat(lone_world.settings, lease)
    beat.start()
    try:
        for _ in range(2):
            assert [o.session_id for o in (await beat.next()).owned] == [claim.session_id]
        await lone_world.expire(lease)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(LeaseLost):
                await until_it_fails(beat)
        assert lease.is_over()
    finally:
        await beat.stop()
    assert not beat._thread.is_alive()
