"""Files of deleted sessions: removed one session after the other, while agents may start."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

from apps.api.core.lease import Lease
from apps.api.core.sessions import workspaces
from apps.api.core.tasks import Loops
from apps.api.runner.worker import Worker
from tests.world import PATIENCE, World, core_of, lone_world, relaying, until

__all__ = ["lone_world"]


async def test_deleted_sessions_wait_in_one_queue_and_neither_starts_nor_forks_behind_it(lone_world: World) -> None:
    world = lone_world
    settings = world.settings.model_copy(update={"runner_slots": 0})
    gone, stubborn = [uuid4() for _ in range(20)], uuid4()
    for session_id in gone:
        workspaces.create(settings, session_id, None)
    async with relaying(world.db, world.redis) as relay:
        core = core_of(replace(world, settings=settings), relay)
        worker, loops = Worker(core, Lease(core.instance_id, 60)), Loops(60, lambda _loop: None)
        held = [asyncio.Event() for _ in range(2)]
        await until(lambda: relay.subscriptions.connected)
        await worker.start()
        worker.run_in(loops)
        try:
            loop = asyncio.get_running_loop()

            def block() -> None:
                loop.call_soon_threadsafe(held[0].set)
                asyncio.run_coroutine_threadsafe(held[1].wait(), loop).result(PATIENCE)

            blocked = asyncio.create_task(core.blocking.removal.run(block))  # a removal that takes long
            await held[0].wait()
            for session_id in (stubborn, *gone):
                core.publisher.notify(core.redis.keys.deleted, str(session_id))
            await until(lambda: worker._removal._deleted.qsize() == len(gone))  # it is at the first one
            assert await core.blocking.starts.run(workspaces.present, settings) == sorted(gone)
            assert await core.blocking.copies.run(workspaces.present, settings) == sorted(gone)
            assert await asyncio.to_thread(workspaces.present, settings) == sorted(gone)
            assert worker._removal._deleted.qsize() == len(gone)
            held[1].set()
            await blocked
            await until(lambda: workspaces.present(settings) == [])
        finally:
            held[1].set()
            await loops.stop()
            await worker.stop()
            core.blocking.close()
