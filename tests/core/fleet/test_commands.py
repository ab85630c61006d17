"""Commands: durable, answered by the owner, and never a success for something that did not happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from uuid import UUID, uuid4

import pytest

from apps.api.core.events.log import Event
from apps.api.core.fleet import commands, ownership
from apps.api.core.fleet.commands import Command
from apps.api.core.lease import Lease
from apps.api.core.sessions import deletion
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.db import REQUESTS, Database
from apps.api.errors import ApiError, Conflict, NotFound
from apps.api.redis import open_redis
from tests.proxy import changed, postgres_proxy
from tests.world import PATIENCE, Relay, World, administrator, core_of, relaying, until, waiting_for_locks

_STORE = "INSERT INTO commands (id, session_id, type, payload) VALUES ($1, $2, 'answer', '{}')"


async def send(world: World, relay: Relay, session_id: UUID, tenant_id: UUID | None = None) -> tuple[str, UUID]:
    tenant_id = tenant_id or world.tenant_id
    sent = await commands.send(core_of(world, relay), tenant_id, session_id, "interrupt")
    assert sent.run_id is not None
    return sent.status, sent.run_id


class Ear:
    """Where an instance hears that there is a command for it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def deliver(self, payload: bytes) -> None:
        self.heard.append(payload)

    def gap(self) -> None:
        """Nothing to do: these tests look at the table."""


@asynccontextmanager
async def owner(world: World, relay: Relay, lease: Lease, *, applies: bool) -> AsyncIterator[list[Command]]:
    """Somebody who settles every command of the instance, as its worker would."""
    seen: list[Command] = []

    async def obey() -> None:
        while True:
            for command in await commands.pending(world.db, lease.instance_id):
                seen.append(command)
                await commands.settle(world.db, world.redis, relay.publisher, command, applied=applies, result={})
            await asyncio.sleep(0.01)

    obeying = asyncio.create_task(obey())
    try:
        yield seen
    finally:
        obeying.cancel()
        await asyncio.gather(obeying, return_exceptions=True)


async def code_of(sending: asyncio.Task[tuple[str, UUID]]) -> str:
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(sending, PATIENCE)
    return caught.value.code


async def test_a_command_that_the_owner_applied_is_answered_with_the_run(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    async with owner(world, relay, lease, applies=True) as seen:
        assert await send(world, relay, claim.session_id) == ("applied", claim.run_id)
    assert [(c.session_id, c.run_id, c.type, c.payload) for c in seen] == [
        (claim.session_id, claim.run_id, "interrupt", {})
    ]


async def test_a_command_that_the_owner_rejected_is_a_conflict(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    async with owner(world, relay, lease, applies=False):
        with pytest.raises(Conflict) as caught:
            await send(world, relay, claim.session_id)
    assert caught.value.code == "no_live_run"


async def test_a_command_that_nobody_answered_in_time_is_accepted_and_waits(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    assert await send(world, relay, claim.session_id) == ("accepted", claim.run_id)
    [waiting] = await commands.pending(world.db, lease.instance_id)
    assert waiting.run_id == claim.run_id


async def test_the_owner_is_woken_after_the_command_is_stored(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    ear = Ear()
    await relay.subscriptions.subscribe(world.redis.keys.instance(lease.instance_id), ear)
    sending = asyncio.create_task(send(world, relay, claim.session_id))
    await until(lambda: bool(ear.heard))
    [command] = await commands.pending(world.db, lease.instance_id)
    await commands.settle(world.db, world.redis, relay.publisher, command, applied=True, result={})
    assert await sending == ("applied", claim.run_id)
    assert ear.heard == [f"command:{claim.session_id}".encode()]


async def test_commands_work_without_redis(world: World) -> None:
    nowhere = changed(world.settings, redis_url="redis://127.0.0.1:1/0")
    async with open_redis(nowhere) as redis, relaying(world.db, redis) as relay:
        lease, claim, _ = await world.owned()
        async with owner(world, relay, lease, applies=True):
            assert await send(world, relay, claim.session_id) == ("applied", claim.run_id)


async def test_nothing_is_stored_when_nothing_runs(world: World, relay: Relay) -> None:
    idle = await world.session()
    lease, claim, writer = await world.owned()
    await finish(writer, claim.run_id, Outcome("succeeded"), Event("done"))
    queued = (await world.queue()).session_id
    for session_id in (idle, claim.session_id, queued):
        with pytest.raises(Conflict) as caught:
            await send(world, relay, session_id)
        assert caught.value.code == "no_live_run"
    await world.claim(lease)
    assert await world.one("SELECT count(*) FROM commands WHERE session_id = ANY($1)", [idle, queued]) == 0


async def test_a_run_whose_owner_is_dead_is_not_live(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    await world.expire(lease)
    with pytest.raises(Conflict) as caught:
        await send(world, relay, claim.session_id)
    assert caught.value.code == "no_live_run"


async def test_sessions_of_others_and_sessions_that_never_were_are_not_found(world: World, relay: Relay) -> None:
    _, claim, _ = await world.owned()
    for tenant_id, session_id in ((await world.other_tenant(), claim.session_id), (world.tenant_id, uuid4())):
        with pytest.raises(NotFound) as caught:
            await send(world, relay, session_id, tenant_id)
        assert caught.value.code == "session_not_found"


async def test_a_deleted_session_takes_no_command(world: World, relay: Relay) -> None:
    _, claim, _ = await world.owned()
    await deletion.delete(world.db, world.tenant_id, claim.session_id)
    with pytest.raises(Conflict) as caught:
        await send(world, relay, claim.session_id)
    assert caught.value.code == "session_deleted"


async def test_an_owner_that_dies_before_it_answers_is_a_conflict(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    sending = asyncio.create_task(send(world, relay, claim.session_id))
    await until(lambda: _stored(world, claim.session_id))
    await world.expire(lease)
    await world.reap()
    assert await code_of(sending) == "no_live_run"


async def _stored(world: World, session_id: UUID) -> bool:
    found: bool = await world.one("SELECT EXISTS (SELECT 1 FROM commands WHERE session_id = $1)", session_id)
    return found


async def test_a_command_is_rejected_when_its_session_is_given_back_unseen(world: World, relay: Relay) -> None:
    _, claim, writer = await world.owned()
    sending = asyncio.create_task(send(world, relay, claim.session_id))
    await until(lambda: _stored(world, claim.session_id))
    await finish(writer, claim.run_id, Outcome("succeeded"), Event("done"))
    await ownership.release(world.db, claim.session_id, claim.generation)
    assert await code_of(sending) == "no_live_run"


async def test_a_command_to_a_session_that_changes_hands_is_not_accepted(world: World, relay: Relay) -> None:
    """It finds the run live, and then has to wait for whoever is just taking the session from its owner."""
    _, claim, _ = await world.owned()
    async with administrator(world.settings) as admin, administrator(world.settings) as observer:
        async with admin.transaction():
            await admin.execute(
                "UPDATE sessions SET owner_id = NULL, generation = generation + 1 WHERE id = $1", claim.session_id
            )
            sending = asyncio.create_task(send(world, relay, claim.session_id))
            await until(lambda: waiting_for_locks(observer, 1))
        assert await code_of(sending) == "no_live_run"
    assert not await _stored(world, claim.session_id)


async def test_a_command_is_settled_once(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    async with owner(world, relay, lease, applies=True) as seen:
        await send(world, relay, claim.session_id)
    await commands.settle(world.db, world.redis, relay.publisher, seen[0], applied=False, result={"late": True})
    row = await world.db.pool.fetchrow("SELECT status, result FROM commands WHERE id = $1", seen[0].id)
    assert dict(row) == {"status": "applied", "result": {}}


async def test_an_owner_sees_commands_of_its_own_sessions_only_oldest_first(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    other_lease, other, _ = await world.owned()
    sending = []
    for count, session_id in enumerate((claim.session_id, other.session_id, claim.session_id), 1):
        sending.append(asyncio.create_task(send(world, relay, session_id)))
        await until(partial(_count, world, [claim.session_id, other.session_id], count))
    mine, theirs = [await commands.pending(world.db, one.instance_id) for one in (lease, other_lease)]
    assert [c.session_id for c in mine] == [claim.session_id] * 2
    assert [c.session_id for c in theirs] == [other.session_id]
    for command in (*mine, *theirs):
        await commands.settle(world.db, world.redis, relay.publisher, command, applied=True, result={})
    await asyncio.gather(*sending)


async def _count(world: World, session_ids: list[UUID], wanted: int) -> bool:
    found: int = await world.one("SELECT count(*) FROM commands WHERE session_id = ANY($1)", session_ids)
    return found == wanted


async def test_who_waited_for_an_answer_leaves_no_subscription_behind(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    async with owner(world, relay, lease, applies=True):
        await send(world, relay, claim.session_id)
    sending = asyncio.create_task(send(world, relay, claim.session_id))
    await until(lambda: _reply_channels(world, 1))
    sending.cancel()
    await asyncio.wait({sending})
    assert sending.cancelled()
    await until(lambda: _reply_channels(world, 0))


async def _reply_channels(world: World, count: int) -> bool:
    pattern = f"{world.redis.keys.prefix}reply:*"
    return len(await world.redis.client.pubsub_channels(pattern)) == count


HOSTILE = {"mcp_servers": [{"na\x00me": "a\x00b", "half": "\ud83d", "big": 2**64, "nan": float("nan"), "ok": [1, "x"]}]}


async def test_what_an_agent_answers_is_made_storable_and_told(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    sending = asyncio.create_task(ask(world, relay, claim.session_id, "mcp"))
    [command] = await until_pending(world, lease, 1)
    await commands.settle(world.db, world.redis, relay.publisher, command, applied=True, result=HOSTILE)
    told = {"na\ufffdme": "a\ufffdb", "half": "\ufffd", "big": 18446744073709551616.0, "nan": None, "ok": [1, "x"]}
    assert (await sending).result == {"mcp_servers": [told]}


async def test_a_command_whose_answer_is_too_large_is_rejected_and_never_stays(world: World, relay: Relay) -> None:
    lease, claim, _ = await world.owned()
    sending = asyncio.create_task(ask(world, relay, claim.session_id, "mcp"))
    [command] = await until_pending(world, lease, 1)
    much = {"tools": "x" * (commands.MAX_RESULT_BYTES + 1)}
    await commands.settle(world.db, world.redis, relay.publisher, command, applied=True, result=much)
    with pytest.raises(Conflict) as caught:
        await sending
    assert caught.value.code == "control_failed"
    assert await commands.pending(world.db, lease.instance_id) == []


async def test_a_session_with_many_commands_keeps_neither_others_nor_its_own_interrupt_waiting(
    world: World, relay: Relay
) -> None:
    lease, talkative, _ = await world.owned()
    await world.queue()
    quiet = await world.claim(lease)
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, type, created_at)"
        " SELECT gen_random_uuid(), $1, 'control', now() - interval '1 second' FROM generate_series(1, 300)",
        talkative.session_id,
    )
    asked = [asyncio.create_task(send(world, relay, c.session_id)) for c in (talkative, quiet)]
    await until(lambda: _count(world, [talkative.session_id, quiet.session_id], 302))
    first = await commands.pending(world.db, lease.instance_id)
    assert sorted((c.session_id == quiet.session_id, c.type) for c in first) == [
        (False, "control"),
        (False, "interrupt"),
        (True, "interrupt"),
    ]
    # What is being obeyed is not taken again, and nothing else of a session that is busy, but what is urgent.
    taken, busy = [c.id for c in first], [talkative.session_id]
    assert await commands.pending(world.db, lease.instance_id, taken, busy) == []
    again = asyncio.create_task(send(world, relay, talkative.session_id))
    await until(lambda: _count(world, [talkative.session_id], 302))
    urgent = await commands.pending(world.db, lease.instance_id, taken, busy)
    assert [(c.session_id, c.type) for c in urgent] == [(talkative.session_id, "interrupt")]
    await asyncio.gather(*asked, again)


@pytest.mark.parametrize("kind", ["mcp", "cancel"])
async def test_an_owner_that_answers_nothing_has_a_bounded_number_of_commands_waiting(
    world: World, relay: Relay, kind: str
) -> None:
    _, claim, _ = await world.owned()
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, run_id, type, created_at)"
        " SELECT gen_random_uuid(), $1, $2, $3, now() - make_interval(secs => $5 * (n % 2))"
        " FROM generate_series(1, 2 * $4::int) AS n",
        claim.session_id,
        claim.run_id,
        kind,
        commands.MAX_STORED,
        commands.EXPIRY + 1,
    )
    if kind == "mcp":
        with pytest.raises(ApiError) as caught:
            await ask(world, relay, claim.session_id, kind)
        assert (caught.value.status, caught.value.code) == (409, "too_many_commands")
        # Nothing keeps what is urgent from the owner, and what nobody will obey any more is gone.
        assert await send(world, relay, claim.session_id) == ("accepted", claim.run_id)
        assert await _count(world, [claim.session_id], commands.MAX_STORED + 1)
    else:
        assert (await ask(world, relay, claim.session_id, kind)).status == "accepted"
        assert await _count(world, [claim.session_id], commands.MAX_STORED)


@pytest.mark.parametrize(
    ("age", "left"),
    [(commands.PATIENCE + 1, {"control", "interrupt", "answer"}), (commands.EXPIRY + 1, {"answer"})],
    ids=["who asked has gone", "long ago"],
)
async def test_questions_expire_before_commands_and_answers_do_not(world: World, age: float, left: set[str]) -> None:
    lease, claim, _ = await world.owned()
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, type, created_at)"
        " SELECT gen_random_uuid(), $1, kind, now() - make_interval(secs => $2)"
        " FROM unnest(ARRAY['mcp', 'context', 'control', 'interrupt', 'answer']) AS kind",
        claim.session_id,
        age,
    )
    assert {c.type for c in await commands.pending(world.db, lease.instance_id)} == left


async def test_commands_that_were_settled_long_ago_are_forgotten(world: World) -> None:
    _, claim, _ = await world.owned()
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, type, status, applied_at)"
        " SELECT gen_random_uuid(), $1, 'mcp', CASE WHEN hours IS NULL THEN 'pending' ELSE 'applied' END,"
        " now() - make_interval(hours => hours) FROM unnest(ARRAY[0, $2 + 1, NULL]) AS hours",
        claim.session_id,
        commands.KEEP_HOURS,
    )
    await commands.forget_old(world.db)
    left = await world.db.pool.fetch("SELECT status FROM commands WHERE session_id = $1", claim.session_id)
    assert sorted(row["status"] for row in left) == ["applied", "pending"]


async def ask(world: World, relay: Relay, session_id: UUID, type_: str) -> commands.Sent:
    return await commands.send(core_of(world, relay), world.tenant_id, session_id, type_, any_run=True)


async def until_pending(world: World, lease: Lease, count: int) -> list[Command]:
    found: list[Command] = []

    async def there() -> bool:
        found[:] = await commands.pending(world.db, lease.instance_id)
        return len(found) == count

    await until(there)
    return found


# --- stored is not refused -----------------------------------------------------------------------------------------


async def test_what_is_stored_is_accepted_though_the_database_is_away_then(world: World, relay: Relay) -> None:
    _, claim, _ = await world.owned()
    command = Command(uuid4(), claim.session_id, None, "answer", {})
    async with postgres_proxy(world.settings) as (proxy, through), Database.open(through) as db:

        async def store() -> bool:
            await db.pool.execute(_STORE, command.id, command.session_id)
            await proxy.refuse()
            proxy.cut()
            return True

        sent = await commands.deliver(replace(core_of(world, relay), db=db), command, uuid4(), store)
    assert sent.status == "accepted"
    assert await world.one("SELECT status FROM commands WHERE session_id = $1", claim.session_id) == "pending"


async def test_what_is_stored_is_accepted_though_the_database_cannot_be_asked_any_more(
    world: World, relay: Relay
) -> None:
    """Seen: all connections were in use when the answer to a call had been stored. Its sender was told 503, and 409
    when it sent it again."""
    _, claim, _ = await world.owned()
    async with AsyncExitStack() as stack:

        async def store() -> bool:
            """And use all connections from now on: who stores has one still, which one who waits for it takes then."""
            async with world.db.transaction() as connection:
                await connection.execute(_STORE, command.id, command.session_id)
                acquire = world.db.pool.acquire
                crowd = [asyncio.create_task(stack.enter_async_context(acquire())) for _ in range(REQUESTS)]
                stack.push_async_callback(asyncio.gather, *crowd, return_exceptions=True)
                await until(lambda: sum(task.done() for task in crowd) == REQUESTS - 1)
            return True

        command = Command(uuid4(), claim.session_id, None, "answer", {})
        sent = await commands.deliver(core_of(world, relay), command, uuid4(), store)
        assert sent.status == "accepted"
    assert await world.one("SELECT status FROM commands WHERE session_id = $1", claim.session_id) == "pending"
