"""What is done for one session must not cost more the more is stored or queued."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from apps.api.core.codec import encode
from apps.api.core.events.log import Event
from apps.api.core.fleet import cancellation, claims, commands, instances, ownership, parked, places
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.network.outbound import Outbound
from apps.api.core.sessions import deletion, outcome, requests, runs, sessions
from apps.api.core.sessions.outcome import Outcome
from apps.api.core.sessions.requests import Asked
from apps.api.core.tasks import Loop
from apps.api.core.tenant import deliveries, idempotency
from apps.api.core.tenant.deliveries import Deliveries
from tests.world import World, administrator

NOW = datetime.now(UTC)

GROWING = (
    "commands",
    "events",
    "idempotency_keys",
    "requests",
    "runs",
    "sessions",
    "transcript_entries",
    "usage",
    "webhook_deliveries",
)

BOUND = 600
"""Pages and rows that one call may touch: it takes up to 400. To walk through any of the tables takes thousands."""

# 5,000 sessions have a run each, with what belongs to one. 100 of them are owned elsewhere, with a run and 50 queued
# ones. One, which nobody owns, has had 5,000 runs.
FILL = """
ALTER TABLE runs DISABLE TRIGGER USER;
ALTER TABLE sessions DISABLE TRIGGER USER;
INSERT INTO tenants (id, name) VALUES ('{tenant}', 'large');
INSERT INTO instances (id, hostname, version, slots, lease_expires_at)
VALUES ('{owner}', 'owner', '0', 1000, now() + interval '1 hour');
INSERT INTO sessions (id, tenant_id, sdk_session_id, owner_id, generation, last_seq)
SELECT md5(n::text)::uuid, '{tenant}', md5(n::text)::uuid, CASE WHEN n <= 100 THEN '{owner}'::uuid END, 1, 2
FROM generate_series(1, 5000) AS n;
INSERT INTO runs (id, tenant_id, session_id, status, timeout_seconds, started_at, first_seq, finished_at)
SELECT md5('run' || n)::uuid, '{tenant}', md5(n::text)::uuid, CASE WHEN n <= 100 THEN 'running' ELSE 'succeeded' END,
  60, now(), 1, CASE WHEN n > 100 THEN now() END FROM generate_series(1, 5000) AS n;
INSERT INTO runs (id, tenant_id, session_id, timeout_seconds)
SELECT gen_random_uuid(), '{tenant}', md5((1 + n % 100)::text)::uuid, 60 FROM generate_series(0, 4999) AS n;
INSERT INTO runs (id, tenant_id, session_id, status, timeout_seconds, started_at, first_seq, finished_at)
SELECT gen_random_uuid(), '{tenant}', md5('5000')::uuid, 'succeeded', 60, now(), 1, now()
FROM generate_series(1, 5000);
INSERT INTO requests (id, tenant_id, session_id, kind, data, status, expires_at, resolved_at)
SELECT gen_random_uuid(), '{tenant}', md5('5000')::uuid, 'permission', '{{}}', 'closed', now(), now()
FROM generate_series(1, 5000);
INSERT INTO events (session_id, seq, type, data)
SELECT md5('5000')::uuid, seq, 'message', '{{}}' FROM generate_series(3, 5000) AS seq;
UPDATE sessions SET last_seq = 5000 WHERE id = md5('5000')::uuid;
INSERT INTO events (session_id, seq, run_id, type, data)
SELECT md5(n::text)::uuid, seq, md5('run' || n)::uuid, 'message', '{{}}'
FROM generate_series(1, 5000) AS n, generate_series(1, 2) AS seq;
INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, entry)
SELECT md5(n::text)::uuid, 'p', md5(n::text), '{{}}' FROM generate_series(1, 5000) AS n;
INSERT INTO requests (id, tenant_id, session_id, run_id, kind, data, status, expires_at, resolved_at)
SELECT gen_random_uuid(), '{tenant}', md5(n::text)::uuid, md5('run' || n)::uuid, 'permission', '{{}}',
  CASE WHEN n <= 2500 THEN 'open' ELSE 'closed' END, now(), CASE WHEN n > 2500 THEN now() END
FROM generate_series(1, 5000) AS n;
INSERT INTO commands (id, session_id, run_id, type, status, applied_at)
SELECT gen_random_uuid(), md5(n::text)::uuid, md5('run' || n)::uuid, 'answer', 'applied', now()
FROM generate_series(1, 5000) AS n;
INSERT INTO idempotency_keys (tenant_id, key, fingerprint, session_id, run_id)
SELECT '{tenant}', n::text, '', md5(n::text)::uuid, md5('run' || n)::uuid FROM generate_series(1, 5000) AS n;
INSERT INTO usage (run_id, model, tenant_id, session_id, day, input_tokens, output_tokens, cache_read_input_tokens,
  cache_creation_input_tokens, web_search_requests, cost_usd)
SELECT md5('run' || n)::uuid, 'm', '{tenant}', md5(n::text)::uuid, now(), 1, 1, 0, 0, 0, 0
FROM generate_series(1, 5000) AS n;
INSERT INTO webhooks (id, tenant_id, url, events, secret)
SELECT md5('hook' || n)::uuid, '{tenant}', 'http://127.0.0.1:9/', '{{}}', '' FROM generate_series(1, 1000) AS n;
INSERT INTO webhook_deliveries (webhook_id, type, payload, status)
SELECT md5('hook' || 1 + n % 1000)::uuid, 'run.queued', '{{}}', 'delivered' FROM generate_series(1, 5000) AS n;
ALTER TABLE runs ENABLE TRIGGER USER;
ALTER TABLE sessions ENABLE TRIGGER USER;
"""


@dataclass(frozen=True)
class Large:
    """A world with a large past and a long queue."""

    world: World

    async def cost(self, work: Awaitable[object]) -> int:
        """How many pages of tables and indexes and how many rows `work` touches; fails when it reads a table that grows
        from end to end."""
        before = await self._counted()
        await work
        after = await self._counted()
        walked = {table for table in GROWING if after[table] > before[table]}
        assert not walked, f"{walked} read from end to end"
        return after["touched"] - before["touched"]

    async def _counted(self) -> Counter[str]:
        # One call after the other has the same connection of the pool, which tells what it has done when it is told to.
        pool = self.world.db.pool
        await pool.execute("SELECT pg_stat_force_next_flush()")
        rows = await pool.fetch(
            "SELECT relname, seq_scan, idx_tup_fetch + heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit"
            " AS touched FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid, relname)"
            " WHERE relname = ANY($1)",
            GROWING,
        )
        walks = {row["relname"]: row["seq_scan"] for row in rows}
        return Counter(walks | {"touched": sum(row["touched"] for row in rows)})

    async def claimed(self) -> tuple[Lease, Claim]:
        """The session with a long past, owned by a new instance that runs a prompt of it."""
        await self.world.queue(LONG)
        lease = await self.world.instance()
        claim = await self.world.claim(lease)
        await ownership.note_sent(self.world.db, LONG, claim.generation, claim.run_id, True)
        return lease, claim


@pytest.fixture(scope="module")
async def filled(neighbourhood: World) -> World:
    tenant = uuid4()
    async with administrator(neighbourhood.settings) as admin:
        await admin.execute(FILL.format(tenant=tenant, owner=uuid4()))
        await admin.execute("VACUUM ANALYZE")
    return replace(neighbourhood, tenant_id=tenant)


@pytest.fixture
def large(filled: World) -> Large:
    return Large(filled)


def session(number: int) -> UUID:
    """One of those that the filling made."""
    return UUID(hashlib.md5(str(number).encode()).hexdigest())


LONG = session(5_000)


async def test_a_list_of_runs_costs_a_page_of_it_whatever_its_tenant_has(large: Large) -> None:
    world = large.world
    for filters in (
        runs.Filters(),
        runs.Filters(status="succeeded"),
        runs.Filters(status="failed"),
        runs.Filters(status="running"),
        runs.Filters(error_code="owner_lost"),
        runs.Filters(session_id=LONG),
        runs.Filters(created_after=NOW + timedelta(days=1)),
        runs.Filters(created_before=NOW - timedelta(days=1)),
    ):
        found = runs.list_of_tenant(world.db, world.tenant_id, filters, limit=20, cursor=None)
        assert await large.cost(found) < BOUND, filters


async def test_a_claim_costs_what_it_takes_whatever_is_queued_that_may_not_start(large: Large) -> None:
    world = large.world
    lease = await world.instance()
    assert await large.cost(world.claims_nothing(lease)) < BOUND
    await world.queue()
    assert await large.cost(world.claims_nothing(lease, may_take_new=False)) < BOUND
    assert await large.cost(world.claim(lease)) < BOUND


async def test_a_claim_costs_the_same_however_much_of_a_tenant_may_start(large: Large) -> None:
    world = large.world
    lease, guest = await world.instance(), replace(world, tenant_id=await world.other_tenant())
    await world.db.pool.execute(
        "INSERT INTO runs (id, tenant_id, session_id, prompt, timeout_seconds)"
        " SELECT gen_random_uuid(), tenant_id, id, '\"x\"', 60 FROM sessions WHERE tenant_id = $1 AND owner_id IS NULL",
        world.tenant_id,
    )
    assert await world.one("SELECT count(*) FROM runs WHERE startable") > 4_000
    claimed = []

    async def claim(whose: World) -> None:
        claimed.append(await world.claim(lease))
        assert claimed[-1].tenant_id == whose.tenant_id

    assert await large.cost(claim(world)) < BOUND
    await guest.queue()
    assert await large.cost(claim(guest)) < BOUND
    await world.db.pool.execute("UPDATE tenants SET limits = $2 WHERE id = $1", world.tenant_id, {"concurrent_runs": 1})
    assert await large.cost(world.claims_nothing(lease)) < BOUND
    await world.db.pool.execute("UPDATE tenants SET limits = '{}'")
    for one in claimed:
        await end(large, one)
    await world.db.pool.execute("DELETE FROM runs WHERE status = 'queued' AND prompt IS NOT NULL")


async def test_who_has_nothing_that_waits_does_not_number_the_queue(large: Large) -> None:
    db, lease = large.world.db, await large.world.instance()
    assert await large.cost(places.waiting(db, lease.instance_id)) < BOUND
    assert await large.cost(claims.kept_waiting(db, [LONG], 1)) < BOUND


async def test_a_prompt_costs_the_same_in_a_session_with_a_long_past(large: Large) -> None:
    world = large.world
    queued = await large.cost(world.queue(LONG))
    lease = await world.instance()
    claim = await world.claim(lease)
    writer = world.writer(lease, claim)
    done = Event("done", {"status": "succeeded"}, claim.run_id)
    steps = (
        writer.append(Event("message", {}, claim.run_id)),
        commands.pending(world.db, lease.instance_id),
        instances.renew(world.db.pool, lease),
        sessions.get(world.db, world.redis, world.tenant_id, LONG, "m"),
        runs.get(world.db, world.tenant_id, claim.run_id),
        outcome.finish(writer, claim.run_id, Outcome("succeeded"), done),
        claims.kept_waiting(world.db, [LONG, session(1)], 1),
        ownership.release(world.db, LONG, claim.generation),
    )
    assert max(queued, *[await large.cost(step) for step in steps]) < BOUND


async def test_a_request_and_its_answer_cost_the_same_however_many_are_open(large: Large) -> None:
    world = large.world
    _, claim = await large.claimed()
    asked = Asked(uuid4(), "permission", claim.run_id, NOW, {})

    async def ask_and_answer() -> None:
        async with world.db.transaction() as connection:
            await requests.insert(connection, world.tenant_id, LONG, asked)
            await requests.close(connection, asked.id, "withdrawn")
            await requests.go_on(connection, claim.run_id)

    assert await large.cost(ask_and_answer()) < BOUND
    assert (await world.run(claim.run_id))["status"] == "running"
    page = requests.list_page(world.db, await world.other_tenant(), None, status="answered", limit=20, cursor=None)
    assert await large.cost(page) < BOUND
    await end(large, claim)


async def end(large: Large, claim: Claim) -> None:
    async with large.world.db.transaction() as connection:
        await ownership.abandon(connection, [claim.session_id], outcome.failure("interrupted"))


async def test_a_takeover_costs_what_is_taken(large: Large) -> None:
    world = large.world
    lease, claim = await large.claimed()
    request_id = uuid4()
    async with world.db.transaction() as connection:
        await requests.insert(connection, world.tenant_id, LONG, Asked(request_id, "question", None, NOW, {}))
        await connection.execute(
            "UPDATE requests SET status = 'answered', resolved_at = now(), decision = $2, resolved_by = '{}'"
            " WHERE id = $1",
            request_id,
            encode({"decision": "allow"}).decode(),
        )
        await connection.execute(
            "INSERT INTO commands (id, session_id, type, payload) VALUES (gen_random_uuid(), $1, 'answer', $2)",
            LONG,
            {"request_id": str(request_id)},
        )
    await world.expire(lease)
    assert await large.cost(world.reap()) < BOUND
    assert (await world.run(claim.run_id))["status"] == "failed"


async def test_a_run_that_comes_back_to_the_queue_costs_the_same_however_long_that_is(large: Large) -> None:
    world = large.world
    run = await world.queue(LONG)
    lease = await world.instance()
    claim = await world.claim(lease)
    await world.expire(lease)
    assert await large.cost(world.reap()) < BOUND
    assert (claim.run_id, (await world.run(claim.run_id))["status"]) == (run.run_id, "queued")
    await world.db.pool.execute("DELETE FROM runs WHERE id = $1", run.run_id)


async def test_looking_for_what_is_parked_costs_what_is_found(large: Large) -> None:
    core = large.world.core()
    assert await large.cost(parked.expire(core, Loop("expire"))) < BOUND
    assert await large.cost(claims.kept_out(large.world.db)) < BOUND
    answer = parked.answer(core, large.world.tenant_id, LONG, uuid4(), {}, {}, _decided)
    assert await large.cost(answer) < BOUND


async def _decided(_: asyncpg.Connection) -> None:
    raise AssertionError("nothing is parked")


async def test_cancelling_and_deleting_cost_what_goes(large: Large) -> None:
    world = large.world
    run = await world.queue(session(300))
    assert await large.cost(cancellation.cancel(world.core(), world.tenant_id, run.run_id)) < BOUND
    assert await large.cost(deletion.delete(world.db, world.tenant_id, session(300))) < BOUND
    delete = "DELETE FROM {} WHERE id = $1"
    run_id = await world.one("SELECT id FROM runs WHERE session_id = $1", session(301))
    assert await large.cost(world.db.pool.execute(delete.format("runs"), run_id)) < BOUND
    assert await large.cost(world.db.pool.execute(delete.format("sessions"), session(302))) < BOUND
    key = await world.one(
        "INSERT INTO api_keys (tenant_id, name, prefix, secret_hash, scopes) VALUES ($1, 'k', '', $2, '{}')"
        " RETURNING id",
        world.tenant_id,
        "0" * 64,
    )
    assert await large.cost(world.db.pool.execute(delete.format("api_keys"), key)) < BOUND


async def test_looking_for_what_is_old_or_due_costs_little_where_nothing_is(large: Large) -> None:
    db = large.world.db
    assert await large.cost(idempotency.forget_old(db)) < BOUND
    assert await large.cost(deliveries.forget_old(db)) < BOUND
    assert await large.cost(commands.forget_old(db)) < BOUND
    assert await large.cost(Deliveries(db, large.world.settings, Outbound([])).send_due()) < BOUND
