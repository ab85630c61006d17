"""A database that has grown, and what statements on hot paths cost in it: their plans, not only their time.

Plans and pages do not depend on the machine. So tests ask for them, of a small fleet's database; `scripts/bench` shows
them, with times, of a large one's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import event

from apps.api import auth
from apps.api.core.events import log
from apps.api.core.fleet import claims, commands, firing, firings, instances, ownership, places
from apps.api.core.lease import Lease
from apps.api.core.sessions import prompts, requests, runs, sessions
from apps.api.core.sessions.sessions import Filters
from apps.api.core.tasks import Loop
from apps.api.core.tenant import budgets, deliveries, idempotency, quotas, usage
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.usage import Group, Scope
from apps.api.db import Database
from apps.api.settings import Settings
from tests.world import World

GROWING = {
    *("sessions", "runs", "events", "commands", "requests", "transcript_entries", "idempotency_keys", "usage", "spent"),
    *(
        "model_calls",
        "webhook_deliveries",
        "audit_log",
        "files",
        "api_keys",
        "webhooks",
        "schedules",
        "schedule_firings",
    ),
}
"""Tables of which no statement on a hot path may read all rows."""

FEW = 1_000
"""Rows of a table that may be read to its end: an index would be longer."""


@dataclass(frozen=True)
class Scale:
    """How much there is. The first tenant has a fifth of the sessions; `asking` are those that wait for a person."""

    sessions: int
    events: int = 10
    tenants: int = 500
    queued: int = 20_000
    instances: int = 200
    webhooks: int = 2_000
    asking: int = 20_000

    def times(self, part: float) -> Scale:
        """The same, smaller."""
        counts = {name: max(int(count * part), 10) for name, count in vars(self).items() if name != "events"}
        return replace(self, **counts)


FULL = Scale(1_000_000)
"""The one of docs/performance.md: 10,000,000 events."""

OWNED = 50
"""Sessions of each instance, of every fifth of which a run is under way."""

WAITING = 4
"""Queued runs of a session that has any."""


def _id(prefix: str, number: str) -> str:
    return f"md5('{prefix}' || {number})::uuid"


def identity(prefix: str, number: int, connection: asyncpg.Connection) -> Awaitable[UUID]:
    """The id that `fill` has given to the session (`s`), tenant (`t`), run (`r`, `q`), … with this number."""
    found: Awaitable[UUID] = connection.fetchval(f"SELECT {_id(prefix, '$1::text')}", str(number))
    return found


def _statements(scale: Scale) -> Iterator[str]:
    """Sessions are numbered: those of instances first, then those with queued runs, those that ask a person, the
    rest."""
    s, t, k, i, w = (_id(prefix, "n") for prefix in "stkiw")
    tenant = _id("t", f"(CASE WHEN n % 5 = 0 THEN 1 ELSE 1 + n % {scale.tenants} END)")
    usual, rare, large = _id("g", "1"), _id("g", "2"), _id("t", "1")
    key = _id("k", f"(CASE WHEN n % 5 = 0 THEN 1 ELSE 1 + n % {scale.tenants} END)")
    owned, queued = scale.instances * OWNED, scale.queued // WAITING
    of_person = owned + queued + scale.asking
    if of_person > scale.sessions:
        raise ValueError("more sessions are busy than there are")
    every = f"generate_series(1, {scale.sessions}) n"
    user = "CASE WHEN n % 4 = 0 THEN 'user-' || n % 20 END"
    ago = f"now() - make_interval(secs => ({scale.sessions} - n) * 2.0)"
    yield f"INSERT INTO tenants (id, name) SELECT {t}, 't' || n FROM generate_series(1, {scale.tenants}) n"
    yield (
        "INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, scopes)"
        f" SELECT {k}, {t}, 'k', 'cak_', md5('a' || n) || md5('b' || n), '{{write}}'"
        f" FROM generate_series(1, {scale.tenants}) n"
    )
    yield (
        "INSERT INTO instances (id, hostname, version, slots, lease_expires_at)"
        f" SELECT {i}, 'h' || n, '1', 8, now() + interval '1 hour' FROM generate_series(1, {scale.instances}) n"
    )
    yield (
        "INSERT INTO agents (id, tenant_id, name, version)"
        f" VALUES ({usual}, {large}, 'usual', 1), ({rare}, {large}, 'rare', 1)"
    )
    yield (
        "INSERT INTO sessions (id, tenant_id, title, tags, metadata, agent_id, agent_version, sdk_session_id, owner_id,"
        f" generation, last_seq, taken_by, end_user, created_at, updated_at, last_active_at) SELECT {s}, {tenant},"
        " 'Session ' || n, ARRAY['tag-' || n % 50], jsonb_build_object('customer', 'c' || n % 100),"
        f" CASE WHEN n % {scale.sessions // 2} = 0 THEN {rare} WHEN n % 5 = 0 THEN {usual} END,"
        " CASE WHEN n % 5 = 0 THEN 1 END, gen_random_uuid(),"
        f" CASE WHEN n <= {owned} THEN {_id('i', f'(1 + n % {scale.instances})')} END, 1, {scale.events},"
        f" CASE WHEN n <= {owned} THEN {key} END, {user}, {ago}, {ago}, {ago} FROM {every}"
    )
    # Those that are under way come first: later ones would lie where pages of finished ones have room for a small row.
    yield (
        "INSERT INTO runs (id, tenant_id, session_id, api_key_id, status, prompt, timeout_seconds, first_seq,"
        f" started_at) SELECT {_id('a', 'n')}, {tenant}, {s}, {key}, 'running', '\"hello\"', 60, 1, now()"
        f" FROM generate_series(5, {owned}, 5) n"
    )
    yield (
        "INSERT INTO runs (id, tenant_id, session_id, api_key_id, status, prompt, timeout_seconds, startable)"
        f" SELECT md5('q' || n || '-' || nth)::uuid, {tenant}, {s}, {key}, 'queued', '\"hello\"', 60, nth = 1"
        f" FROM generate_series({owned + 1}, {owned + queued}) n, generate_series(1, {WAITING}) nth"
    )
    yield (
        "INSERT INTO runs (id, tenant_id, session_id, api_key_id, status, prompt, timeout_seconds, first_seq,"
        f" started_at, parked) SELECT {_id('p', 'n')}, {tenant}, {s}, {key}, 'requires_action', '\"hello\"', 60, 1,"
        f" now(), 'x' FROM generate_series({owned + queued + 1}, {of_person}) n"
    )
    yield (
        "INSERT INTO runs (id, tenant_id, session_id, api_key_id, status, prompt, timeout_seconds, first_seq, last_seq,"
        f" total_cost_usd, end_user, created_at, started_at, finished_at) SELECT {_id('r', 'n')}, {tenant}, {s}, {key},"
        f" 'succeeded', '\"hello\"', 60, 1, {scale.events}, 0.01, {user}, {ago}, {ago}, {ago} FROM {every}"
    )
    yield (
        "INSERT INTO requests (id, tenant_id, session_id, run_id, kind, data, status, created_at, expires_at)"
        f" SELECT {_id('o', 'n')}, {tenant}, {s}, {_id('p', 'n')}, 'permission', '{{}}', 'open', {ago},"
        f" now() + interval '1 day' FROM generate_series({owned + queued + 1}, {of_person}) n"
    )
    yield (
        "INSERT INTO requests (id, tenant_id, session_id, run_id, kind, data, status, created_at, expires_at,"
        f" resolved_at) SELECT gen_random_uuid(), {tenant}, {s}, {_id('r', 'n')}, 'permission', '{{}}', 'answered',"
        f" {ago}, {ago}, {ago} FROM {every} WHERE n % 3 = 0"
    )
    yield (
        "INSERT INTO events (session_id, seq, run_id, type, data, created_at)"
        f" SELECT {s}, seq, {_id('r', 'n')}, CASE WHEN seq % 2 = 0 THEN 'message' ELSE 'tool_use' END,"
        f' \'{{"role":"user","content":"\' || repeat(\'x\', 150) || \'"}}\', {ago}'
        f" FROM {every}, generate_series(1, {scale.events}) seq ORDER BY 1, 2"
    )
    yield (
        "INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, uuid, entry)"
        f" SELECT {s}, 'p', n::text, n || '-' || nth, '{{}}' FROM {every}, generate_series(1, 2) nth"
    )
    yield (
        "INSERT INTO commands (id, session_id, type, status, created_at, applied_at)"
        f" SELECT gen_random_uuid(), {s}, 'interrupt', 'applied', {ago}, {ago} FROM {every} WHERE n % 3 = 0"
    )
    yield (
        "INSERT INTO idempotency_keys (tenant_id, key, fingerprint, session_id, run_id, created_at)"
        f" SELECT {tenant}, 'key-' || n, 'f', {s}, {_id('r', 'n')}, {ago} FROM {every} WHERE n % 3 = 0"
    )
    tokens = "10, 20, 30, 40"
    yield (
        "INSERT INTO usage (run_id, model, tenant_id, session_id, api_key_id, day, input_tokens, output_tokens,"
        " cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd, end_user, counts_run)"
        f" SELECT {_id('r', 'n')}, 'claude-sonnet-5-5', {tenant}, {s}, {key}, ({ago})::date, {tokens}, 0, 0.01,"
        f" {user}, true FROM {every}"
    )
    yield (
        "INSERT INTO usage_sums (tenant_id, day, api_key_id, model, runs, first_runs, input_tokens, output_tokens,"
        " cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd, fresh)"
        " SELECT tenant_id, day, api_key_id, model, count(*), count(*), sum(input_tokens), sum(output_tokens),"
        " sum(cache_read_input_tokens), sum(cache_creation_input_tokens), 0, sum(cost_usd::numeric), false"
        " FROM usage GROUP BY 1, 2, 3, 4"
    )
    yield (
        "INSERT INTO usage_user_sums (tenant_id, end_user, day, api_key_id, model, runs, first_runs, input_tokens,"
        " output_tokens, cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd, fresh)"
        " SELECT tenant_id, end_user, day, api_key_id, model, count(*), count(*), sum(input_tokens),"
        " sum(output_tokens), sum(cache_read_input_tokens), sum(cache_creation_input_tokens), 0,"
        " sum(cost_usd::numeric), false FROM usage WHERE end_user IS NOT NULL GROUP BY 1, 2, 3, 4, 5"
    )
    yield (
        "INSERT INTO model_calls (call_id, tenant_id, session_id, run_id, api_key_id, kind, began_at, status, seconds,"
        " model, input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens,"
        " cache_creation_1h_input_tokens, web_search_requests, complete, cost_usd)"
        f" SELECT {_id('c', 'n')}, {tenant}, {s}, {_id('r', 'n')}, {key}, 'messages', {ago}, 200, 1,"
        f" 'claude-sonnet-5-5', {tokens}, 0, 0, true, 0.01 FROM {every}"
    )
    yield (
        "INSERT INTO spent (subject, day, tenant_id, usd, tokens)"
        f" SELECT subject, current_date - day, {t}, 1, 100 FROM generate_series(1, {scale.tenants}) n,"
        f" generate_series(0, 60) day, LATERAL (VALUES ({t}), ({k})) AS of (subject)"
    )
    yield (
        "INSERT INTO webhooks (id, tenant_id, url, events, secret)"
        f" SELECT {w}, {_id('t', f'(1 + (n - 1) % {scale.tenants})')}, 'https://example.com', '{{}}', 'x'"
        f" FROM generate_series(1, {scale.webhooks}) n"
    )
    yield (
        "INSERT INTO webhook_deliveries (webhook_id, type, payload, status, created_at, delivered_at, next_attempt_at)"
        f" SELECT {_id('w', f'(1 + n % {scale.webhooks})')}, 'run.finished', '{{}}',"
        f" CASE WHEN n % 100 = 0 THEN 'pending' ELSE 'delivered' END, {ago}, {ago}, now() FROM {every}"
    )
    yield (
        "INSERT INTO schedules (id, tenant_id, cron, time_zone, prompt, spec, session, overlap, jitter_seconds,"
        f" next_at, look_at, created_at) SELECT {_id('c', 'n')},"
        f" {_id('t', f'(1 + (n - 1) % {scale.tenants})')}, '0 0 * * *',"
        " 'UTC', '\"x\"', '{}', 'new', 'skip', 0, due, due, now() FROM (SELECT n, now() + make_interval(mins =>"
        f" n - 20) AS due FROM generate_series(1, {scale.webhooks}) n) numbered"
    )
    yield (
        "INSERT INTO schedule_firings (schedule_id, fire_at, state, run_id, created_at)"
        f" SELECT {_id('c', f'(1 + n % {scale.webhooks})')}, {ago}, CASE WHEN n <= {owned} AND n % 5 = 0 THEN 'sent'"
        f" ELSE 'succeeded' END, CASE WHEN n <= {owned} AND n % 5 = 0 THEN {_id('a', 'n')} ELSE {_id('r', 'n')} END,"
        f" {ago} FROM {every}"
    )
    yield (
        "INSERT INTO audit_log (created_at, action, tenant_id, tenant, actor)"
        f" SELECT {ago}, 'key.created', {tenant}, 't', 'k' FROM {every} WHERE n % 10 = 0"
    )


# Those that no constraint stands for: an index of all rows is made faster than row by row.
_INDEXES = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS made_by
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)
"""


async def fill(settings: Settings, scale: Scale, told: Callable[[str], None] = lambda _: None) -> None:
    """Make a database one that has grown. What triggers and foreign keys would do is done by these statements."""
    connection = await asyncpg.connect(settings.as_owner.asyncpg_dsn)
    try:
        await connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        indexes = await connection.fetch(_INDEXES)
        await connection.execute("; ".join(f"DROP INDEX {row['name']}" for row in indexes))
        for statement in (*_statements(scale), *(row["made_by"] for row in indexes), "VACUUM ANALYZE"):
            began = time.monotonic()
            done = await connection.execute(statement)
            told(f"{time.monotonic() - began:6.1f} s {done}: {statement[:70]}")
    finally:
        await connection.close()


@dataclass(frozen=True)
class Asked:
    """A statement that was sent, and with what."""

    text: str
    arguments: Sequence[Any]
    ms: float


_PLANNED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
_OF_DRIVERS = ("typeinfo_tree", "set_config('jit'", "pg_advisory", "pg_try_advisory")


@asynccontextmanager
async def recorded(db: Database) -> AsyncIterator[list[Asked]]:
    """What is asked of a database within the block, each text once."""
    asked: dict[str, Asked] = {}

    def note(text: str, arguments: Sequence[Any], seconds: float) -> None:
        if text.lstrip().split(maxsplit=1)[0] in _PLANNED and not any(word in text for word in _OF_DRIVERS):
            asked.setdefault(text, Asked(text, arguments, seconds * 1000))

    def by_pool(query: Any) -> None:
        note(query.query, query.args, query.elapsed)

    def by_engine(_connection: Any, _cursor: Any, text: str, arguments: Any, *_: Any) -> None:
        note(text, arguments, 0.0)

    connections = [await db.pool.acquire() for _ in range(db.pool.get_max_size())]
    for connection in connections:
        connection.add_query_logger(by_pool)
    for connection in connections:
        await db.pool.release(connection)
    event.listen(db.engine.sync_engine, "before_cursor_execute", by_engine)
    found: list[Asked] = []
    try:
        yield found
        await asyncio.sleep(0)  # asyncpg tells in the loop's next turn
    finally:
        event.remove(db.engine.sync_engine, "before_cursor_execute", by_engine)
        found += asked.values()


@dataclass(frozen=True)
class Cost:
    """What a statement costs.

    Attributes:
        ms: of each time that it was carried out.
        pages: of 8 KB that were looked at, in memory or not.
        scans: growing tables that it reads to their ends, and how many rows, if they are more than FEW.
    """

    ms: list[float]
    pages: int
    scans: dict[str, int]
    plan: str


async def cost(connection: asyncpg.Connection, asked: Asked, times: int = 1) -> Cost:
    """Carry a statement out again, and undo what it has done. One that can be carried out only once is told by its plan
    and the time that it took."""
    ms = list[float]()
    plan: Any = None
    try:
        for _ in range(times):
            plan = await _explain(connection, "ANALYZE, BUFFERS", asked)
            ms.append(plan["Execution Time"])
    except asyncpg.UniqueViolationError:
        plan, ms = await _explain(connection, "COSTS", asked), [asked.ms]
    top, scans = plan["Plan"], dict[str, int]()
    for node in _nodes(top):
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING:
            rows = node.get("Actual Rows", node["Plan Rows"]) + node.get("Rows Removed by Filter", 0)
            name = node["Relation Name"]
            scans[name] = scans.get(name, 0) + int(rows * node.get("Actual Loops", 1))
    scans = {name: rows for name, rows in scans.items() if rows > FEW}
    pages = top.get("Shared Hit Blocks", 0) + top.get("Shared Read Blocks", 0)
    return Cost(ms, pages, scans, json.dumps(plan, indent=1))


async def _explain(connection: asyncpg.Connection, how: str, asked: Asked) -> Any:
    transaction = connection.transaction()
    await transaction.start()
    try:
        told = await connection.fetchval(f"EXPLAIN ({how}, FORMAT JSON) {asked.text}", *asked.arguments)
    finally:
        await transaction.rollback()
    return (json.loads(told) if isinstance(told, str) else told)[0]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)


Call = Callable[[], Awaitable[Any]]


async def paths(world: World, scale: Scale) -> dict[str, Call]:
    """What an instance and its clients do all the time, of the tenant with a fifth of all sessions."""
    core, db, redis = world.core(), world.db, world.redis
    async with db.pool.acquire() as connection:

        async def id_of(prefix: str, number: int) -> UUID:
            return await identity(prefix, number, connection)

        tenant, small, key = await id_of("t", 1), await id_of("t", 3), await id_of("k", 1)
        owner = Lease(await id_of("i", 1 + 5 % scale.instances), 3600.0)
        owned, busy = await id_of("s", 5 * scale.instances + 5), await id_of("s", 5)
        idle, run, asked = await id_of("s", scale.sessions), await id_of("r", scale.sessions), await id_of("s", 10)
        webhook, schedule = await id_of("w", 1), await id_of("c", 1)
        secret = await connection.fetchval("SELECT secret_hash FROM api_keys LIMIT 1")
    lease = await world.instance()
    owner.renewed(time.monotonic())
    model = "claude-sonnet-5-5"

    def listed(filters: Filters, of: UUID = tenant) -> Call:
        return lambda: sessions.list_page(db, of, filters, limit=20, cursor=None, default_model=model)

    def requested(status: str | None) -> Call:
        return lambda: requests.list_page(db, tenant, None, status=status, limit=20, cursor=None)

    async def abandoned() -> None:
        async with db.transaction() as connection:
            await requests.abandon(connection, [asked], "instance_lost")
            await requests.go_on(connection, run)

    async def appended() -> None:
        async with db.transaction() as connection:
            await log.append(connection, idle, 1, scale.events, [log.Event("message", {"text": "x"}, run)])

    def submitted(session_id: UUID | None, key: str | None = None) -> Call:
        submission = prompts.Submission("say hello", 60, session_id, idempotency=Idempotency.given(key, "x"))
        return lambda: prompts.submit(core, tenant, None, submission)

    filters = {
        "all": Filters(),
        **{f"status={status}": Filters(status=status) for status in ("idle", "queued", "running", "requires_action")},
        "tag": Filters(tag="tag-5"),
        "tag of nobody": Filters(tag="missing"),
        "metadata": Filters(metadata={"customer": "c5"}),
        "metadata of nobody": Filters(metadata={"customer": "missing"}),
        "search": Filters(search="session 5"),
        "agent of nobody": Filters(agent="missing"),
        "agent of nearly all": Filters(agent="usual"),
        "agent of few": Filters(agent="rare"),
        "end user": Filters(end_user="user-4"),
        "end user of nobody": Filters(end_user="missing"),
    }

    users = Scope(of_end_users=True)

    def of_user(name: str) -> Awaitable[Any]:
        return runs.list_of_tenant(db, tenant, runs.Filters(end_user=name), limit=20, cursor=None)

    def used(*groups: Group, of: UUID | None = None) -> Call:
        return lambda: usage.report(db, tenant, Scope(session_id=of), groups, limit=50, cursor=None)

    return {
        "a key that is not cached": lambda: auth.of_hash(db, redis, secret, None),
        "a prompt for a session": submitted(idle, "a-key"),
        "a prompt for a new session": submitted(None),
        "a claim": lambda: claims.claim(db, lease, may_take_new=True, except_for=[]),
        "a claim of an owner of many": lambda: claims.claim(db, owner, may_take_new=False, except_for=[]),
        "places in the queue": lambda: places.waiting(db, lease.instance_id),
        "the queue in all": lambda: places.in_all(db),
        "whether any is kept out": lambda: claims.kept_out(db),
        "runs that an owner does not know": lambda: claims.unheard(db, owner.instance_id, []),
        "commands that wait": lambda: commands.pending(db, owner.instance_id),
        "a heartbeat": lambda: instances.renew(db.pool, owner),
        "sessions of the dead": lambda: ownership.reap(core, Loop("reap")),
        "what is open of a dead owner": abandoned,
        "events appended": appended,
        "events read": lambda: log.read(db, tenant, busy, 0),
        "the newest of some kinds": lambda: log.newest(db, tenant, busy, ("result",), limit=1),
        "messages of a session": lambda: sessions.messages(db, tenant, busy, limit=20, cursor=None),
        "a session that is not cached": lambda: sessions.get(db, redis, tenant, owned, model),
        "a run": lambda: runs.get(db, tenant, run),
        "where a run's events are": lambda: runs.extent(db, tenant, run),
        "runs of a session": lambda: runs.list_page(db, tenant, busy, limit=20, cursor=None),
        **{f"sessions, {name}": listed(these) for name, these in filters.items()},
        "sessions of a small tenant, queued": listed(Filters(status="queued"), small),
        **{f"requests, {status or 'all'}": requested(status) for status in ("open", "answered", "closed", None)},
        "usage": used(),
        "usage by day": used("day"),
        "usage by model": used("model"),
        "usage by key": used("key"),
        "usage by session": used("session"),
        "usage of a session": used(of=busy),
        "usage by end user": lambda: usage.report(db, tenant, users, ["end_user"], limit=50, cursor=None),
        "usage of an end user": lambda: usage.report(db, tenant, Scope(end_user="user-4"), (), limit=1, cursor=None),
        "runs of an end user": lambda: of_user("user-4"),
        "runs of an end user that nobody is": lambda: of_user("missing"),
        "runs without figures": lambda: usage.unmeasured(db, tenant, Scope()),
        "quotas": lambda: quotas.used(db, tenant, key),
        "budgets": lambda: budgets.of(db, tenant, key, busy),
        "deliveries of a webhook": lambda: deliveries.list_page(db, tenant, webhook, limit=20, cursor=None),
        "schedules that are due": lambda: db.pool.fetch(firing._CLAIM, firing.AT_ONCE, [], firing.CLAIM_SECONDS),
        "ends of what schedules have sent": lambda: firing.settle(core),
        "firings of a schedule": lambda: firings.list_page(core, schedule, limit=20, cursor=None),
        "old firings forgotten": lambda: firings.forget_old(db),
        "the fleet": lambda: instances.list_all(db),
        "settled commands forgotten": lambda: commands.forget_old(db),
        "idempotency keys forgotten": lambda: idempotency.forget_old(db),
    }


async def costs(world: World, scale: Scale, times: int = 1) -> AsyncIterator[tuple[str, list[tuple[Asked, Cost]]]]:
    """Do all of `paths`, and carry each statement of them out again: what is done, and its statements."""
    for name, call in (await paths(world, scale)).items():
        async with recorded(world.db) as asked:
            await call()
        async with world.db.pool.acquire() as connection:
            found = [(statement, await cost(connection, statement, times)) for statement in asked]
        yield name, found
