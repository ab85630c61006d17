"""Wake-ups: who looks for a run that waits, and who leaves it to another."""

from __future__ import annotations

import asyncio
from random import Random
from uuid import UUID, uuid4

from apps.api.core.fleet import instances
from apps.api.runner.wakes import COURTESY, LONGEST, Wakes
from tests.world import World, lone_world

__all__ = ["lone_world"]


class Asked:
    """One instance, that owns what it is told, and what it does about wake-ups."""

    def __init__(self, *owned: UUID, chance: Random | None = None) -> None:
        self.id, self.looks, self.said = uuid4(), 0, list[UUID]()
        self.looked = asyncio.Event()
        self.wakes = Wakes(self.id, self._look, owned.__contains__, self.said.append, chance)

    def _look(self) -> None:
        self.looks += 1
        self.looked.set()


class Last(Random):
    """Chance that always chooses the latest moment."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def wake(session_id: UUID) -> str:
    return f"{uuid4()}:{session_id}"


async def test_a_run_of_nobodys_session_is_looked_for() -> None:
    one = Asked()
    one.wakes.heard(wake(uuid4()))
    assert one.looks == 0, "not before those that have more to do with it"
    await asyncio.wait_for(one.looked.wait(), 5)
    assert (one.looks, one.said) == (1, [])


async def test_nobody_looks_for_what_another_has_taken() -> None:
    one, taken, left = Asked(), uuid4(), uuid4()
    for session_id in (taken, left):
        one.wakes.heard(wake(session_id))
    timer = one.wakes._waiting[taken]
    one.wakes.taken(str(taken))
    assert timer.cancelled()
    await asyncio.wait_for(one.looked.wait(), 5)
    assert one.looks == 1


async def test_an_owner_looks_at_once_and_tells_the_others() -> None:
    session_id = uuid4()
    one = Asked(session_id)
    one.wakes.heard(wake(session_id))
    assert (one.looks, one.said) == (1, [session_id])


async def test_an_owner_that_has_taken_the_request_tells_the_others_too() -> None:
    session_id = uuid4()
    one = Asked(session_id)
    one.wakes.heard(f"{one.id}:{session_id}")
    assert (one.looks, one.said) == (0, [session_id]), "it has looked already"


async def test_of_many_instances_few_look_before_they_can_hear_of_each_other() -> None:
    """In a window that grows with the fleet, and is never longer than the time to a look without any wake-up."""
    loop, session_id = asyncio.get_running_loop(), uuid4()
    waits = []
    for fleet in (1, 100, 1_000):
        one = Asked(chance=Last())
        one.wakes.fleet = fleet
        one.wakes.heard(wake(session_id))
        (timer,) = one.wakes._waiting.values()
        waits.append(timer.when() - loop.time())
        one.wakes.close()
    assert waits[0] <= 1.5 * COURTESY < 0.2 < waits[1] < waits[2] <= LONGEST + COURTESY


async def test_where_wake_ups_may_have_been_lost_all_look_whoever_has_taken_what() -> None:
    one = Asked()
    one.wakes.heard("")
    one.wakes.taken("")
    await asyncio.wait_for(one.looked.wait(), 5)


async def test_one_that_ends_looks_no_more() -> None:
    one = Asked()
    one.wakes.heard(wake(uuid4()))
    (timer,) = one.wakes._waiting.values()
    one.wakes.close()
    assert timer.cancelled()


async def test_an_instance_knows_how_many_may_take_a_run(lone_world: World) -> None:
    """Without those that take none, and that are gone."""
    one, drained, gone = [await lone_world.instance() for _ in range(3)]
    await lone_world.instance(slots=0)
    await instances.set_draining(lone_world.db, drained.instance_id)
    await instances.unregister(lone_world.db, gone.instance_id)
    assert (await instances.renew(lone_world.db.pool, one)).fleet == 1
