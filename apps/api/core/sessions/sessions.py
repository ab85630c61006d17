"""Sessions: durable conversations, each owned by one tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
from sqlalchemy import Select, Text, and_, bindparam, cast, exists, func, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, array

from apps.api.core.codec import clean_text, decode, timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.pages import Page, bounded, cut, number_of, read_cursor, write_cursor
from apps.api.core.sessions.admission import NO_PINS, Pins
from apps.api.core.tenant.presets import parse_reference
from apps.api.db import Database
from apps.api.errors import NotFound
from apps.api.models import Agent, Instance, Run, Session
from apps.api.redis import SESSION_CACHE_TTL, TOMBSTONE_TTL_MS, Redis

CURRENT = """SELECT coalesce(
  (SELECT id FROM runs WHERE session_id = s.id AND status IN ('running','requires_action')),
  (SELECT id FROM runs WHERE session_id = s.id AND status = 'queued' ORDER BY position LIMIT 1))"""
"""What a session `s` does: the run that is active; where none is, the one that is queued first."""

BUSY = f"SELECT ({CURRENT}) IS NOT NULL FROM sessions s WHERE s.id = $1"  # noqa: S608 - ours


@dataclass(frozen=True, slots=True)
class Labels:
    """What a client hangs on a session for its own use. None means: leave as it is.

    `end_user`: for whom the client asks. A session keeps the one that it was made with; a run has its own, or its
    session's.
    """

    title: str | None = None
    tags: Sequence[str] | None = None
    metadata: Mapping[str, str] | None = None
    end_user: str | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """Which sessions to list. Unset means any."""

    status: str | None = None
    tag: str | None = None
    search: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    agent: str | None = None
    profiles: Sequence[str] | None = None
    end_user: str | None = None


_STATE = """
SELECT s.id, s.title, s.tags, s.metadata, s.config, s.permission_mode, s.tools, s.num_turns, s.total_cost_usd,
  s.usage, s.last_seq, s.created_at, s.updated_at, s.last_active_at, s.parent_session_id, s.owner_id, s.profile,
  s.ports, s.surface, s.end_user, s.agent_id, s.agent_version, a.name AS agent_name, s.environment_id, s.vault_ids,
  s.archived_at, s.schedule_id,
  i.lease_expires_at > now() AS owner_alive, r.id AS run_id, r.status AS run_status,
  r.parked IS NOT NULL AND r.status = 'requires_action' AS parked,
  (SELECT count(*) FROM runs q WHERE q.session_id = s.id AND q.status = 'queued') AS queued
FROM sessions s LEFT JOIN instances i ON i.id = s.owner_id LEFT JOIN agents a ON a.id = s.agent_id
LEFT JOIN runs r ON r.session_id = s.id AND r.status IN ('running','requires_action')
WHERE s.id = ANY($1::uuid[]) AND s.tenant_id = $2 AND s.deleted_at IS NULL
"""


def _state(row: asyncpg.Record, default_model: str) -> dict[str, Any]:
    # "Running" needs a living owner, or to be parked: a dead one's run is about to be failed by a reaper.
    running = row["run_status"] if row["owner_alive"] or row["parked"] else None
    config = AgentConfig.stored(row["config"])
    return {
        "session_id": str(row["id"]),
        "status": running or ("queued" if row["queued"] else "idle"),
        "active": bool(row["owner_alive"]),
        "active_run_id": str(row["run_id"]) if running else None,
        "queued_runs": row["queued"],
        "title": row["title"],
        "tags": row["tags"],
        "metadata": row["metadata"],
        "model": config.model or default_model,
        "permission_mode": config.permission_mode or row["permission_mode"] or "default",
        "tools": config.tools if config.tools is not None else row["tools"],
        "agent": _agent(row),
        "profile": row["profile"],
        "surface": row["surface"],
        "end_user": row["end_user"],
        "environment_id": str(row["environment_id"]) if row["environment_id"] else None,
        "vault_ids": [str(id_) for id_ in row["vault_ids"] or ()],
        "archived_at": timestamp(row["archived_at"]) if row["archived_at"] else None,
        "schedule_id": str(row["schedule_id"]) if row["schedule_id"] else None,
        "config": config.public(),
        "num_turns": row["num_turns"],
        "total_cost_usd": row["total_cost_usd"],
        "usage": row["usage"],
        "last_seq": row["last_seq"],
        "parent_session_id": str(row["parent_session_id"]) if row["parent_session_id"] else None,
        "owner": str(row["owner_id"]) if row["owner_alive"] else None,
        "ports": row["ports"] if row["owner_alive"] else [],
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
        "last_active_at": timestamp(row["last_active_at"]),
    }


def _agent(row: asyncpg.Record) -> dict[str, Any] | None:
    id_ = row["agent_id"]
    return id_ and {"agent_id": str(id_), "name": row["agent_name"], "version": row["agent_version"]}


async def insert(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    config: AgentConfig,
    labels: Labels,
    session_id: UUID | None = None,
    pins: Pins = NO_PINS,
    surface: str = "native",
    schedule_id: UUID | None = None,
) -> UUID:
    """Create a session; nothing is started. `schedule_id`: what begins it. Returns its id.

    The SDK's is made when an agent starts."""
    session_id = session_id or uuid4()
    await connection.execute(
        "INSERT INTO sessions (id, tenant_id, sdk_session_id, title, tags, metadata, config, profile, agent_id,"
        " agent_version, surface, end_user, environment_id, network, vault_ids, schedule_id)"
        " VALUES ($1, $2, $1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        session_id,
        tenant_id,
        labels.title,
        list(labels.tags or ()),
        dict(labels.metadata or {}),
        config.given(),
        pins.profile,
        pins.agent_id,
        pins.agent_version,
        surface,
        labels.end_user,
        pins.environment_id,
        None if pins.network is None else dict(pins.network),
        list(pins.vault_ids) or None,
        schedule_id,
    )
    return session_id


async def get(db: Database, redis: Redis, tenant_id: UUID, session_id: UUID, default_model: str) -> dict[str, Any]:
    """A session's state, from the cache when it is there.

    Raises:
        NotFound: no such session of this tenant, or deleted.
    """
    key = redis.keys.session(tenant_id, session_id)

    def read(entry: bytes) -> dict[str, Any]:
        state: dict[str, Any] = orjson.loads(entry)
        if state["session_id"] != str(session_id) or "schedule_id" not in state:
            raise ValueError("of another session, or of an earlier version")
        return state

    if (cached := await redis.cached(key, read)) is not None:
        return cached
    row = await db.pool.fetchrow(_STATE, [session_id], tenant_id)
    if row is None:
        raise NotFound.of("session")
    state = _state(row, default_model)
    # NX: a tombstone, left by a write, keeps a reader that began before the write from storing what it saw.
    await redis.attempt(lambda: redis.client.set(key, orjson.dumps(state), ex=SESSION_CACHE_TTL, nx=True))
    return state


async def states(db: Database, tenant_id: UUID, ids: Sequence[UUID], default_model: str) -> dict[UUID, dict[str, Any]]:
    """The states of sessions by id, without those that are not there."""
    rows = await db.pool.fetch(_STATE, list(ids), tenant_id)
    return {row["id"]: _state(row, default_model) for row in rows}


async def forget_cached(redis: Redis, tenant_id: UUID, session_id: UUID) -> None:
    """Invalidate the cached state after a write."""
    await redis.forget(redis.keys.session(tenant_id, session_id), TOMBSTONE_TTL_MS)


async def require(db: Database, tenant_id: UUID, session_id: UUID) -> int:
    """The session's `last_seq`. Raises NotFound for an unknown, foreign or deleted session."""
    last_seq: int | None = await db.pool.fetchval(
        "SELECT last_seq FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL", session_id, tenant_id
    )
    if last_seq is None:
        raise NotFound.of("session")
    return last_seq


async def patch(
    db: Database, redis: Redis, tenant_id: UUID, session_id: UUID, labels: Labels, *, untitled: bool = False
) -> None:
    """Change title, tags or metadata (which are replaced whole). `untitled`: take the title away. Raises NotFound."""
    status = await db.pool.execute(
        "UPDATE sessions SET title = CASE WHEN $6 THEN NULL ELSE coalesce($3, title) END, tags = coalesce($4, tags),"
        " metadata = coalesce($5, metadata), updated_at = now()"
        " WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL",
        session_id,
        tenant_id,
        labels.title,
        None if labels.tags is None else list(labels.tags),
        None if labels.metadata is None else dict(labels.metadata),
        untitled,
    )
    if status != "UPDATE 1":
        raise NotFound.of("session")
    await forget_cached(redis, tenant_id, session_id)


async def begin_anew(connection: asyncpg.Connection, session_id: UUID, sdk_session_id: UUID) -> None:
    """Let the next prompt begin a conversation without history, under a new id of the SDK's."""
    await connection.execute("UPDATE sessions SET sdk_session_id = $2 WHERE id = $1", session_id, sdk_session_id)


_NOTE_AGENT = """
UPDATE sessions SET permission_mode = $3, tools = $4, sdk_session_id = $5 WHERE id = $1 AND generation = $2
"""


async def note_agent(
    db: Database,
    session_id: UUID,
    generation: int,
    permission_mode: str | None,
    tools: Sequence[str] | None,
    sdk_session_id: UUID,
) -> None:
    """Note what the agent says of itself, for the owner of `generation`. Nothing happens when it is not any more."""
    await db.pool.execute(_NOTE_AGENT, session_id, generation, permission_mode, tools, sdk_session_id)


async def reconfigure(
    connection: asyncpg.Connection | asyncpg.Pool, session_id: UUID, owner_id: UUID | None, changes: Mapping[str, Any]
) -> bool:
    """Change the configuration while `owner_id` owns the session (None: nobody). False when somebody else does."""
    status = await connection.execute(
        "UPDATE sessions SET config = config || $3, updated_at = now()"
        " WHERE id = $1 AND owner_id IS NOT DISTINCT FROM $2 AND deleted_at IS NULL",
        session_id,
        owner_id,
        dict(changes),
    )
    return bool(status == "UPDATE 1")


async def list_page(
    db: Database, tenant_id: UUID, filters: Filters, *, limit: int, cursor: str | None, default_model: str
) -> Page:
    """Sessions of a tenant, newest first: at most `limit`, and PAGE_BYTES of configurations or one."""
    query = select(Session.id, Session.created_at).where(Session.tenant_id == tenant_id, Session.deleted_at.is_(None))
    if filters.tag is not None:
        query = query.where(Session.tags.contains(cast(array([filters.tag]), ARRAY(Text))))
    if filters.metadata:
        query = query.where(Session.meta.contains(dict(filters.metadata)))
    if filters.search:
        query = query.where(func.strpos(func.lower(Session.title), filters.search.lower()) > 0)
    if filters.created_after is not None:
        query = query.where(Session.created_at > filters.created_after)
    if filters.profiles is not None:
        query = query.where(Session.profile.in_(filters.profiles))
    if filters.end_user is not None:
        query = query.where(Session.end_user == filters.end_user)
    if filters.status == "idle":
        query = query.where(~_has_run("queued"), ~_ACTIVE)
    if cursor is not None:
        query = query.where(tuple_(Session.created_at, Session.id) < tuple_(*read_cursor(cursor)))
    query = _newest(query, tenant_id, filters, limit + 1)
    share = nullcontext() if filters == Filters() else db.turns.reading(tenant_id)  # all that it has, perhaps
    async with share, db.connect() as connection:
        found = (await connection.execute(query)).mappings().all()
    states = bounded(_STATE, "config", "created_at DESC, id DESC", size="pg_column_size")
    page, more = cut(await db.pool.fetch(states, [row["id"] for row in found], tenant_id), limit)
    last = page[-1] if page else found[limit - 1] if len(found) > limit else None  # they may just have been deleted
    cursor = write_cursor(last["created_at"], last["id"]) if last and (more or len(found) > limit) else None
    return Page([_state(row, default_model) for row in page], cursor)


def _newest(page: Select[UUID, datetime], tenant_id: UUID, filters: Filters, count: int) -> Select[UUID, datetime]:
    """The newest of a page's sessions. Where few may be in question, the planner is not given the choice to go through
    all that the tenant has: what waits is found by its tenant, and a preset's sessions are in order by an index. (A
    name has had other presets before, each of which has its sessions.)"""
    if filters.status in _ALSO:
        named: Any = bindparam("status", filters.status, literal_execute=True)  # the indexes are of those with one
        found = select(Run.session_id.label("id")).where(Run.tenant_id == tenant_id, Run.status == named).distinct()
        page = page.where(_ALSO[filters.status])
        if filters.status != "queued":
            page = page.where(Session.id.in_(found))
    ordered = page.order_by(Session.created_at.desc(), Session.id.desc()).limit(count)
    if filters.agent is not None:
        id_, name, version = parse_reference(filters.agent)
        agents = select(Agent.id).where(Agent.tenant_id == tenant_id, Agent.id == id_ if id_ else Agent.name == name)
        if version is not None:
            page, ordered = (query.where(Session.agent_version == version) for query in (page, ordered))
    if filters.status == "queued":
        if filters.agent is not None:
            page = page.where(Session.agent_id.in_(agents))
        first = found.subquery()
        own = page.where(Session.id == first.c.id).offset(0).correlate(first).lateral()
    elif filters.agent is not None:
        first = agents.subquery()
        own = ordered.where(Session.agent_id == first.c.id).correlate(first).lateral()
    else:
        return ordered
    whole = select(own.c.id, own.c.created_at).select_from(first.join(own, true()))
    return whole.order_by(own.c.created_at.desc(), own.c.id.desc()).limit(count)


def _has_run(*statuses: str) -> Any:
    return exists().where(Run.session_id == Session.id, Run.status.in_(statuses))


_OWNER_LIVES = exists().where(Instance.id == Session.owner_id, Instance.lease_expires_at > func.now())
_PARKED = exists().where(Run.session_id == Session.id, Run.status == "requires_action", Run.parked.is_not(None))
_ACTIVE = or_(and_(_has_run("running", "requires_action"), _OWNER_LIVES), _PARKED)
_ALSO: dict[str, Any] = {"queued": ~_ACTIVE, "running": _OWNER_LIVES, "requires_action": or_(_OWNER_LIVES, _PARKED)}


_MESSAGES = bounded(
    """
SELECT e.seq, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.type = 'message' AND e.parent_tool_use_id IS NULL AND e.seq > $3
ORDER BY e.seq LIMIT $4
""",
    "data",
    "seq",
)

# What does not fit is found without what was said: its caller is to be told that something was left out.
_NESTED = """
SELECT parent_tool_use_id, CASE WHEN up_to <= $4 THEN data END AS data, up_to FROM (
  SELECT seq, parent_tool_use_id, data, sum(octet_length(data)) OVER (ORDER BY seq) AS up_to FROM events
  WHERE session_id = $1 AND type = 'message' AND parent_tool_use_id = ANY($2::text[]) ORDER BY seq LIMIT $3
) AS sized ORDER BY seq
"""

MAX_SUBAGENT_MESSAGES = 1_000
"""Messages of subagents that one page carries. `subagent_messages_omitted` says where some were left out."""

MAX_SUBAGENT_BYTES = 4 * 1024 * 1024
"""The same in bytes."""


async def messages(db: Database, tenant_id: UUID, session_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """The conversation, oldest first; a subagent's messages stand under the message that called it.

    Raises:
        NotFound: no such session.
        ValidationError: the cursor is not one of this list.
    """
    await require(db, tenant_id, session_id)
    async with db.turns.reading(tenant_id):
        rows = await db.pool.fetch(_MESSAGES, session_id, tenant_id, number_of(cursor) or 0, limit + 1)
        page, more = cut(rows, limit)
        data = [_shown(row) for row in page]
        callers, room, size = _callers(data), MAX_SUBAGENT_MESSAGES, MAX_SUBAGENT_BYTES
        while callers and room > 0:  # one round for each level of subagents
            by_column = {clean_text(call): message for call, message in callers.items()}
            found = await db.pool.fetch(_NESTED, session_id, [*by_column], room + 1, size)
            nested = [row for row in found[:room] if row["data"] is not None]
            for row in found[len(nested) :]:
                by_column[row["parent_tool_use_id"]]["subagent_messages_omitted"] = True
            messages = [*map(_shown, nested)]
            for message in messages:
                callers[message["parent_tool_use_id"]]["subagent_messages"].append(message)
            room = room - len(found) if len(nested) == len(found) else 0
            callers, size = _callers(messages), size - (nested[-1]["up_to"] if nested else 0)
    return Page(data, str(data[-1]["seq"]) if more else None)


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    return {**decode(row["data"]), "subagent_messages": [], "subagent_messages_omitted": False}


def _callers(messages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        block["id"]: message
        for message in messages
        if isinstance(message["content"], list)
        for block in message["content"]
        if block.get("type") == "tool_use" and isinstance(block["id"], str)
    }
