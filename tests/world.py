"""What tests of the core start from: a tenant with sessions and runs, instances with leases, writers, a live relay."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from apps.api.core.codec import decode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.context import Core
from apps.api.core.events.batches import Batches
from apps.api.core.events.follow import Followers
from apps.api.core.events.log import Writer
from apps.api.core.events.relay import Publisher, Subscriptions
from apps.api.core.files.objects import Objects
from apps.api.core.fleet import claims, instances, ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.fleet.ownership import Orphan
from apps.api.core.lease import Lease
from apps.api.core.network.outbound import Outbound
from apps.api.core.sessions import prompts, runs, sessions
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tasks import Loop, Loops
from apps.api.db import Database
from apps.api.dev.embedded import Servers
from apps.api.redis import Redis, open_redis
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.session.ways import Ways
from apps.api.settings import Settings
from tests.conftest import settings_for
from tests.invariants import logs_hold

PATIENCE = 10.0
"""Seconds after which something that was to happen counts as not happening."""


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, every: float = 0.005, seconds: float = PATIENCE
) -> None:
    """Wait for a fact that cannot be awaited. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(every)


@dataclass(frozen=True)
class World:
    """One tenant on the test's own database and Redis prefix."""

    settings: Settings
    db: Database
    redis: Redis
    tenant_id: UUID

    def core(self, **settings: Any) -> Core:
        """See `core_of`; with these settings, and with connections to this machine allowed."""
        copied = self.settings.model_copy(update=settings)
        copied.__dict__.pop("workspaces_root", None)  # found from what it was before
        return replace(core_of(self), settings=copied)

    async def other_tenant(self) -> UUID:
        name = f"tenant-{uuid4()}"
        tenant_id: UUID = await self.db.pool.fetchval("INSERT INTO tenants (name) VALUES ($1) RETURNING id", name)
        return tenant_id

    async def session(self, labels: Labels = prompts.NO_LABELS, **config: Any) -> UUID:
        async with self.db.transaction() as connection:
            return await sessions.insert(connection, self.tenant_id, AgentConfig(**config), labels)

    async def queue(self, session_id: UUID | None = None, prompt: Any = "say hello", **more: Any) -> Submitted:
        return await prompts.submit(
            self.core(), self.tenant_id, None, prompts.Submission(prompt, 60, session_id, **more)
        )

    async def reap(self) -> list[Orphan]:
        """Take sessions from dead owners, once."""
        return await ownership.reap(self.core(), Loop("reap"))

    async def instance(self, seconds: float = 60, slots: int = 4) -> Lease:
        """A member of the fleet with a fresh lease."""
        lease = Lease(uuid4(), seconds)
        await instances.register(self.db, lease, hostname="test", version="0", slots=slots)
        return lease

    async def expire(self, lease: Lease) -> None:
        """The instance is dead as far as the database can tell; its own side does not know."""
        await self.db.pool.execute(
            "UPDATE instances SET lease_expires_at = now() - interval '1 second' WHERE id = $1", lease.instance_id
        )

    async def claim(self, lease: Lease, *, may_take_new: bool = True, except_for: tuple[UUID, ...] = ()) -> Claim:
        claim = await claims.claim(self.db, lease, may_take_new=may_take_new, except_for=list(except_for))
        assert claim is not None
        return claim

    async def claims_nothing(
        self, lease: Lease, *, may_take_new: bool = True, except_for: tuple[UUID, ...] = ()
    ) -> bool:
        return await claims.claim(self.db, lease, may_take_new=may_take_new, except_for=list(except_for)) is None

    def writer(
        self,
        lease: Lease,
        claim: Claim,
        publisher: Publisher | None = None,
        db: Database | None = None,
        batches: Batches | None = None,
    ) -> Writer:
        """The owner's pen. Without `publisher` nothing reaches Redis, as if every publication were lost."""
        return Writer(
            db or self.db,
            self.redis,
            publisher or Publisher(self.redis),
            lease,
            batches or Batches(db or self.db),
            tenant_id=claim.tenant_id,
            session_id=claim.session_id,
            generation=claim.generation,
            last_seq=claim.last_seq,
        )

    async def owned(self, publisher: Publisher | None = None, seconds: float = 60) -> tuple[Lease, Claim, Writer]:
        """An instance that executes a run of a new session; its agent has the prompt."""
        lease = await self.instance(seconds)
        await self.queue()
        claim = await self.claim(lease)
        await ownership.note_sent(self.db, claim.session_id, claim.generation, claim.run_id, True)
        return lease, claim, self.writer(lease, claim, publisher)

    async def one(self, query: str, *arguments: Any) -> Any:
        """The first value of the first row."""
        return await self.db.pool.fetchval(query, *arguments)

    async def events(self, session_id: UUID) -> list[tuple[int, str, dict[str, Any]]]:
        """All that is stored: number, type, data."""
        rows = await self.db.pool.fetch(
            "SELECT seq, type, data FROM events WHERE session_id = $1 ORDER BY seq", session_id
        )
        return [(row["seq"], row["type"], decode(row["data"])) for row in rows]

    async def run(self, run_id: UUID) -> dict[str, Any]:
        return await runs.get(self.db, self.tenant_id, run_id)


@pytest.fixture(scope="module")
async def neighbourhood(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A database that the tests of one file share."""
    name = f"world_{uuid4().hex}"
    await servers.create_database(name, template)
    workspaces = tmp_path_factory.mktemp("workspaces")
    settings = settings_for(servers, name, redis_key_prefix=f"{name}:", workspaces_dir=workspaces)
    async with Database.open(settings) as db, open_redis(settings) as redis:
        yield World(settings, db, redis, uuid4())


@pytest.fixture
async def world(request: pytest.FixtureRequest, neighbourhood: World) -> AsyncIterator[World]:
    """A tenant of the test's own, among those of its file's other tests. The queue, which all share, is empty."""
    await neighbourhood.db.pool.execute("DELETE FROM runs WHERE status = 'queued'")
    mine = replace(neighbourhood, tenant_id=await neighbourhood.other_tenant())
    yield mine
    if not request.node.get_closest_marker("breaks_logs"):
        await logs_hold(mine.db, tenant_id=mine.tenant_id, by_instances=False)


@pytest.fixture
async def lone_world(
    request: pytest.FixtureRequest, settings: Settings, db: Database, redis: Redis
) -> AsyncIterator[World]:
    """A database of the test's own: for the queue, which all tenants share, and for tests that break things."""
    tenant_id: UUID = await db.pool.fetchval("INSERT INTO tenants (name) VALUES ('ours') RETURNING id")
    yield World(settings, db, redis, tenant_id)
    if not request.node.get_closest_marker("breaks_logs"):
        async with Database.open(settings) as again:  # the test may have cut off its own connections
            await logs_hold(again, by_instances=False)


async def left_by(db: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID, owner: UUID, count: int) -> list[UUID]:
    """Sessions of one instance: of three one is idle, one has a run, and one's run waits for a person."""
    rows = await db.fetch(
        """
        WITH made AS (
          INSERT INTO sessions (id, tenant_id, sdk_session_id, owner_id, generation)
          SELECT gen_random_uuid(), $1, gen_random_uuid(), $2, 1 FROM generate_series(1, $3) RETURNING id
        ), numbered AS (SELECT id, row_number() OVER () % 3 AS kind FROM made), busy AS (
          INSERT INTO runs (id, tenant_id, session_id, status, timeout_seconds, started_at, first_seq)
          SELECT gen_random_uuid(), $1, id, CASE kind WHEN 1 THEN 'running' ELSE 'requires_action' END, 60, now(), 1
          FROM numbered WHERE kind > 0 RETURNING id, session_id, status
        ), asked AS (
          INSERT INTO requests (id, tenant_id, session_id, run_id, kind, data, expires_at)
          SELECT gen_random_uuid(), $1, session_id, id, 'permission', '{}', now() FROM busy WHERE status <> 'running'
        )
        SELECT id FROM numbered
        """,
        tenant_id,
        owner,
        count,
    )
    return [row["id"] for row in rows]


@dataclass(frozen=True)
class Relay:
    """The live relay of one instance, running."""

    publisher: Publisher
    subscriptions: Subscriptions
    followers: Followers


@cache
def _outbound() -> Outbound:
    """One for all tests: a tenth of a second goes into reading the system's certificates."""
    return Outbound(["127.0.0.1"])


def core_of(world: World, relay: Relay | None = None) -> Core:
    """The core of an instance as its composition root builds it; without `relay` nothing of it runs."""
    if relay is None:
        subscriptions = Subscriptions(world.redis)
        relay = Relay(Publisher(world.redis), subscriptions, Followers(world.db, world.redis, subscriptions))
    return Core(
        settings=world.settings,
        instance_id=uuid4(),
        db=world.db,
        redis=world.redis,
        publisher=relay.publisher,
        subscriptions=relay.subscriptions,
        followers=relay.followers,
        outbound=_outbound(),
        profiles={},
        objects=Objects.of(world.settings),
    )


@asynccontextmanager
async def relaying(db: Database, redis: Redis, *, check_interval: float = 15.0) -> AsyncIterator[Relay]:
    """The three tasks that the composition root runs for each instance."""
    publisher, subscriptions = Publisher(redis), Subscriptions(redis)
    followers = Followers(db, redis, subscriptions, check_interval=check_interval)
    loops = Loops(math.inf, lambda _loop: None)
    loops.keep("publisher", publisher.run)
    loops.keep("subscriber", subscriptions.run)
    loops.start("followers", followers.check, followers.until_next_check)
    try:
        yield Relay(publisher, subscriptions, followers)
        assert [(loop.name, loop.failures) for loop in loops.all if loop.failures] == []
    finally:
        async with asyncio.timeout(PATIENCE):
            await loops.stop()


@pytest.fixture
async def relay(world: World) -> AsyncIterator[Relay]:
    """The live relay of an instance in this world."""
    async with relaying(world.db, world.redis) as running:
        yield running


@asynccontextmanager
async def administrator(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the database's owner that no test of ours breaks."""
    named = {"application_name": "administrator"}
    connection = await asyncpg.connect(settings.as_owner.asyncpg_dsn, server_settings=named)
    try:
        yield connection
    finally:
        await connection.close()


async def terminate_backends(admin: asyncpg.Connection) -> int:
    """Break every connection to this test's database but administrators', whatever it is doing; returns how many."""
    rows = await admin.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name <> 'administrator'"
    )
    return len(rows)


async def terminate_ours(admin: asyncpg.Connection) -> int:
    """Break the connections of the code under test, and not those with which a test holds it up."""
    rows = await admin.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'claude-agent-api'"
    )
    return len(rows)


async def waiting_for_locks(admin: asyncpg.Connection, count: int) -> bool:
    """Whether so many statements in this test's database wait for somebody else's lock."""
    found: int = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return found >= count


def ways_of(core: Core, scratch: Scratch) -> Ways:
    """Ways that listen nowhere, for sessions whose agents use none."""
    return Ways(replace(core, settings=core.settings.model_copy(update={"agent_network": "direct"})), scratch)
