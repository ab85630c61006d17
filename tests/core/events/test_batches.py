"""Appends of several sessions as one statement: each with its own fence, its own locks, and its own failures."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from apps.api.core.events import batches
from apps.api.core.events.batches import MOST_BYTES, Batches
from apps.api.core.events.log import Event, Writer
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.errors import LeaseLost
from tests.world import PATIENCE, World, administrator, until, waiting_for_locks

Owned = tuple[Lease, list[Claim], list[Writer]]


async def owned(world: World, count: int) -> Owned:
    """Sessions of one instance, whose writers append together."""
    lease, together = await world.instance(), Batches(world.db)
    for _ in range(count):
        await world.queue()
    claims = [await world.claim(lease) for _ in range(count)]
    return lease, claims, [world.writer(lease, claim, batches=together) for claim in claims]


async def transactions(world: World, claims: list[Claim]) -> list[str]:
    """Those that stored events of these sessions."""
    sql = "SELECT DISTINCT xmin::text AS x FROM events WHERE session_id = ANY($1::uuid[])"
    return [row["x"] for row in await world.db.pool.fetch(sql, [claim.session_id for claim in claims])]


async def told(world: World, claim: Claim) -> list[object]:
    return [data["n"] for _, _, data in await world.events(claim.session_id)]


async def test_what_several_sessions_append_at_once_is_one_transaction(world: World) -> None:
    _, claims, writers = await owned(world, 5)
    events = [[Event("message", {"n": n, "which": which}) for n in range(which)] for which in range(1, 6)]
    await asyncio.gather(*(writer.append(*of) for writer, of in zip(writers, events, strict=True)))
    assert len(await transactions(world, claims)) == 1
    for which, (claim, writer) in enumerate(zip(claims, writers, strict=True), 1):
        stored = await world.events(claim.session_id)
        assert [(seq, data["n"], data["which"]) for seq, _, data in stored] == [(n + 1, n, which) for n in range(which)]
        assert (
            writer.last_seq == which == await world.one("SELECT last_seq FROM sessions WHERE id = $1", claim.session_id)
        )


async def test_a_writer_that_is_fenced_out_stores_nothing_and_fails_no_other(world: World) -> None:
    _, claims, writers = await owned(world, 3)
    await world.db.pool.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", claims[1].session_id)
    results = await asyncio.gather(
        *(writer.append(Event("message", {"n": 1})) for writer in writers), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), LeaseLost, type(None)]
    assert [await told(world, claim) for claim in claims] == [[1], [], [1]]


async def test_of_two_generations_of_one_session_that_append_at_once_only_the_owner_writes(world: World) -> None:
    lease, [claim], [former] = await owned(world, 1)
    await former.append(Event("message", {"n": 1}))
    generation = await world.one(
        "UPDATE sessions SET generation = generation + 1 WHERE id = $1 RETURNING generation", claim.session_id
    )
    together = Batches(world.db)
    both = [world.writer(lease, claim, batches=together) for _ in range(2)]
    both[0].take(claim.generation, 7)  # it would write other numbers, which are free
    both[1].take(generation, 1)
    results = await asyncio.gather(
        *(writer.append(Event("message", {"n": n})) for n, writer in enumerate(both, 2)), return_exceptions=True
    )
    assert [type(result) for result in results] == [LeaseLost, type(None)]
    assert await told(world, claim) == [1, 3]


async def test_a_session_whose_row_is_locked_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SECONDS", 10 * PATIENCE)  # after which each would be stored alone
    _, claims, writers = await owned(world, 2)
    async with administrator(world.settings) as admin, world.db.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", claims[0].session_id)
        locked, free = (asyncio.create_task(writer.append(Event("message", {"n": 1}))) for writer in writers)
        await asyncio.wait_for(free, PATIENCE)
        await until(lambda: waiting_for_locks(admin, 1))
        assert not locked.done()
    await locked
    assert [await told(world, claim) for claim in claims] == [[1], [1]]


async def test_what_the_database_refuses_of_one_session_is_stored_of_the_others(world: World) -> None:
    _, claims, writers = await owned(world, 3)
    nobodys = Event("message", {"n": 1}, uuid4())
    results = await asyncio.gather(
        writers[0].append(Event("message", {"n": 1})),
        writers[1].append(nobodys),
        writers[2].append(Event("message", {"n": 1})),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), asyncpg.ForeignKeyViolationError, type(None)]
    assert [await told(world, claim) for claim in claims] == [[1], [], [1]]


@pytest.mark.parametrize(("size", "together"), [(MOST_BYTES // 2, True), (MOST_BYTES, False)])
async def test_what_is_large_goes_alone(world: World, size: int, together: bool) -> None:
    _, claims, writers = await owned(world, 2)
    await asyncio.gather(
        writers[0].append(Event("message", {"n": 1, "text": "x" * size})), writers[1].append(Event("message", {"n": 1}))
    )
    assert [await told(world, claim) for claim in claims] == [[1], [1]]
    assert (len(await transactions(world, claims)) == 1) is together
