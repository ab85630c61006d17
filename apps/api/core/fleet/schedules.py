"""Schedules: a prompt that is sent at times of a clock. What sends them is `firing`; what came of it `firings`.

A schedule acts for the key that made it, or that changed it last: with that key's profiles, models and budgets. So who
changes one cannot have it do more than that key may.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import audit
from apps.api.core.codec import decode, encode, timestamp
from apps.api.core.config.profiles import Policy
from apps.api.core.context import Core
from apps.api.core.fleet import firings
from apps.api.core.fleet.drafts import Draft
from apps.api.core.pages import Page, as_told, bounded, cut, read_cursor, write_cursor
from apps.api.core.sessions import admission
from apps.api.core.sessions.admission import NO_CHANGES, Choice, Wanted
from apps.api.core.sessions.prompts import NO_LABELS
from apps.api.core.tenant import idempotency
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.errors import Conflict, NotFound, ValidationError, refuse

UPCOMING = 5
"""Times that are told of a schedule."""

ATTEMPTS = 5
"""To change a schedule while it is fired or others change it."""

BY_REQUEST = "by request"
"""Why a schedule is paused that somebody has paused."""

ARCHIVED = "archived"
"""Why one is paused that never goes on: it can be read and removed, and counts for no limit but MAX_KEPT."""

MAX_KEPT = 1_000
"""Schedules of a tenant, archived ones included, where it may not have more that are not."""


@dataclass(frozen=True, slots=True)
class By:
    """Who acts: a key of a tenant, and what it may use."""

    tenant_id: UUID
    key_id: UUID
    policy: Policy


def looked_at(schedule_id: UUID, time: datetime | None, jitter_seconds: int) -> datetime | None:
    """When a time of a schedule is due: later by what of its jitter this time has, which is the same everywhere."""
    if time is None:
        return None
    drawn = hashlib.sha256(f"{schedule_id} {int(time.timestamp())}".encode()).digest()
    return time + timedelta(seconds=int.from_bytes(drawn[:8]) % (jitter_seconds + 1))


def _first(draft: Draft, now: datetime) -> datetime | None:
    """Its next time; None of one that is fired by request only. Raises ValidationError."""
    time = draft.times.next(now)
    if time is None and draft.cron is not None:
        raise ValidationError.of("cron", "there is no such time")
    return time


async def _judge(core: Core, by: By, draft: Draft) -> str | None:
    """Refuse what could not be run now; returns the profile that it would run under."""
    if draft.session_id is None:
        choice = Choice(draft.profile, by.policy, draft.agent, draft.environment, draft.vaults)
        wanted = Wanted(draft.config, choice, draft.prompt, draft.timeout_seconds, draft.expand_prompt)
        judged = await admission.judge(core, by.tenant_id, wanted)
        refuse(judged.problems)
        return judged.pins.profile
    begun = {"session": draft.session == "one", "agent": not draft.agent, "profile": not draft.profile}
    begun |= {"labels": draft.labels == NO_LABELS, "config": not draft.config.model_fields_set}
    begun |= {"environment": draft.environment is None, "vaults": not draft.vaults}
    for field, fits in begun.items():
        if not fits:
            raise ValidationError.of(field, "does not go with a session_id: that session has its own")
    choice = Choice(policy=by.policy)
    wanted = Wanted(NO_CHANGES, choice, draft.prompt, draft.timeout_seconds, draft.expand_prompt)
    found = await admission.problems_of_change(core, by.tenant_id, wanted)
    async with core.db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT config, profile, agent_id, agent_version FROM sessions"
            " WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL",
            draft.session_id,
            by.tenant_id,
        )
        if row is None:
            raise NotFound.of("session")
        await admission.judge_change(connection, by.tenant_id, wanted, row, found)
    profile: str | None = row["profile"]
    return profile


def _values(draft: Draft, profile: str | None) -> tuple[Any, ...]:
    mode = "new" if draft.session == "new" else "own" if draft.session_id is None else "given"
    when = (draft.name, draft.cron, draft.time_zone)
    what = (encode(draft.prompt).decode(), draft.spec(), profile, mode)
    return *when, *what, draft.overlap, draft.jitter_seconds, draft.pause_after_failures


_INSERT = """
INSERT INTO schedules (tenant_id, api_key_id, id, session_id, next_at, look_at, name, cron, time_zone, prompt, spec,
  profile, session, overlap, jitter_seconds, pause_after_failures)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
"""


async def create(core: Core, by: By, draft: Draft, repeat: Idempotency | None = None) -> UUID:
    """Make a schedule; returns its id. Its first time is the next one.

    Raises:
        Conflict: `too_many_schedules`, `idempotency_key_reused`.
        NotFound, ValidationError, Forbidden: as `admission.judge`; `session_not_found`.
    """
    profile = await _judge(core, by, draft)
    async with core.db.transaction() as connection:
        if repeat and (before := await idempotency.repeated(connection, by.tenant_id, repeat)):
            if before.object_id is None:
                raise idempotency.reused()
            return before.object_id
        # Held until the end of the transaction, so that two at once do not both find the last place free.
        await connection.execute("SELECT 1 FROM tenants WHERE id = $1 FOR NO KEY UPDATE", by.tenant_id)
        most = core.settings.max_schedules_per_tenant
        found = await connection.fetchrow(
            "SELECT now(), gen_random_uuid() AS id, count(*) AS kept,"
            " count(*) FILTER (WHERE paused_reason IS DISTINCT FROM $2) AS live FROM schedules WHERE tenant_id = $1",
            by.tenant_id,
            ARCHIVED,
        )
        if found["live"] >= most:
            raise Conflict(f"A tenant has at most {most} schedules.", code="too_many_schedules")
        if found["kept"] >= max(most, MAX_KEPT):
            raise Conflict("Too many of the schedules are archived: remove some.", code="too_many_schedules")
        schedule_id: UUID = found["id"]
        time = _first(draft, found["now"])
        due = looked_at(schedule_id, time, draft.jitter_seconds)
        given = (by.tenant_id, by.key_id, schedule_id, draft.session_id, time, due)
        await connection.execute(_INSERT, *given, *_values(draft, profile))
        told = {"cron": draft.cron, "time_zone": draft.time_zone}
        await audit.note(connection, "schedule.created", by.tenant_id, schedule_id, **told)
        if repeat:
            await idempotency.remember(connection, by.tenant_id, repeat, object_id=schedule_id)
        return schedule_id


_COLUMNS = f"""
SELECT s.id, s.tenant_id, s.api_key_id, s.name, s.cron, s.time_zone, s.prompt, s.spec, s.profile, s.session,
  s.session_id, s.overlap, s.jitter_seconds, s.pause_after_failures, s.next_at, s.look_at, s.revision, s.failures,
  s.paused_at, s.paused_reason, s.fired_at, s.created_at, s.updated_at, now() AS now, ({firings.LAST}) AS last
FROM schedules s
"""  # noqa: S608 - ours


async def find(core: Core, by: By, schedule_id: UUID) -> asyncpg.Record:
    """A schedule's row. Raises NotFound; Forbidden `profile_not_permitted`."""
    row = await core.db.pool.fetchrow(f"{_COLUMNS} WHERE s.id = $1 AND s.tenant_id = $2", schedule_id, by.tenant_id)
    if row is None:
        raise NotFound.of("schedule")
    by.policy.require(row["profile"])
    return row


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    draft = Draft.stored(row)
    return {
        "schedule_id": str(row["id"]),
        "name": draft.name,
        "status": "active" if row["paused_at"] is None else "paused",
        "cron": draft.cron,
        "time_zone": draft.time_zone,
        "prompt": draft.prompt,
        "agent": draft.agent,
        "profile": row["profile"],
        "config": draft.config.public(),
        "title": draft.labels.title,
        "tags": draft.labels.tags or [],
        "metadata": draft.labels.metadata or {},
        "timeout_seconds": draft.timeout_seconds,
        "expand_prompt": draft.expand_prompt,
        "session": draft.session,
        "session_id": row["session_id"] and str(row["session_id"]),
        "overlap": draft.overlap,
        "jitter_seconds": draft.jitter_seconds,
        "pause_after_failures": draft.pause_after_failures,
        "surface": draft.surface,
        "environment": draft.environment and str(draft.environment),
        "vaults": [str(id_) for id_ in draft.vaults],
        "data": dict(draft.data),
        "fired_at": firings.moment(row["fired_at"]),
        "key_id": row["api_key_id"] and str(row["api_key_id"]),
        "next_at": firings.moment(row["next_at"]),
        "last": row["last"] and firings.shown(decode(row["last"])),
        "failures": row["failures"],
        "paused_at": firings.moment(row["paused_at"]),
        "paused_reason": row["paused_reason"],
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
    }


async def get(core: Core, by: By, schedule_id: UUID) -> dict[str, Any]:
    """A schedule, with the next times of one that is not paused. Raises NotFound, Forbidden."""
    row = await find(core, by, schedule_id)
    first, more = row["next_at"], list[datetime]()
    if first is not None:
        more = [first, *islice(Draft.stored(row).times.after(first), UPCOMING - 1)]
    return {**_shown(row), "upcoming": [timestamp(time) for time in more]}


@dataclass(frozen=True, slots=True)
class Sought:
    """Which schedules; None: any.

    Attributes:
        archived: those, too.
        paused: whether they are; archived ones are not.
        agent_id: the preset that they name by its id.
        since, until: when they were made, as it is told.
    """

    surface: str | None = None
    archived: bool = True
    paused: bool | None = None
    agent_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


_PAGE = bounded(
    _COLUMNS + "WHERE s.tenant_id = $1 AND ($2::text[] IS NULL OR s.profile = ANY($2))"
    " AND ($3::timestamptz IS NULL OR (s.created_at, s.id) < ($3, $4::uuid))"
    " AND ($6::text IS NULL OR s.spec ->> 'surface' = $6) AND ($7 OR s.paused_reason IS DISTINCT FROM $8)"
    " AND ($9::bool IS NULL OR (s.paused_at IS NOT NULL AND s.paused_reason <> $8) = $9)"
    " AND ($10::text IS NULL OR split_part(s.spec ->> 'agent', '@', 1) = $10)"
    " AND ($11::timestamptz IS NULL OR s.created_at >= $11) AND ($12::timestamptz IS NULL OR s.created_at < $12)"
    " ORDER BY s.created_at DESC, s.id DESC LIMIT $5",
    "prompt",
    "created_at DESC, id DESC",
)

ALL = Sought()


async def list_page(core: Core, by: By, *, limit: int, cursor: str | None, sought: Sought = ALL) -> Page:
    """Schedules that the key may see, newest first, without their next times. Raises ValidationError."""
    bound: Sequence[str] | None = by.policy.bound
    before = read_cursor(cursor) if cursor else (None, None)
    rows = await core.db.pool.fetch(
        _PAGE,
        by.tenant_id,
        bound and list(bound),
        *before,
        limit + 1,
        sought.surface,
        sought.archived,
        ARCHIVED,
        sought.paused,
        sought.agent_id and str(sought.agent_id),
        sought.since and as_told(">=", sought.since)[1],
        sought.until and as_told("<=", sought.until)[1],
    )
    page, more = cut(rows, limit)
    last = page[-1] if more else None
    return Page([_shown(row) for row in page], write_cursor(last["created_at"], last["id"]) if last else None)


_UPDATE = """
UPDATE schedules SET api_key_id = $3, session_id = $4, next_at = $5, look_at = $6, name = $7, cron = $8, time_zone = $9,
  prompt = $10, spec = $11, profile = $12, session = $13, overlap = $14, jitter_seconds = $15,
  pause_after_failures = $16, failures = 0, revision = revision + 1, updated_at = now()
WHERE id = $1 AND revision = $2 RETURNING id
"""


async def update(
    core: Core, by: By, schedule_id: UUID, fields: Sequence[str], change: Callable[[Draft], Draft]
) -> None:
    """Change its draft; from now on it acts for who changes it. `fields`: what the audit log names.

    Raises:
        NotFound, Forbidden, ValidationError: as `create`.
        Conflict: `schedule_busy`, others go on changing it; `schedule_archived`.
    """
    for _ in range(ATTEMPTS):
        row = await find(core, by, schedule_id)
        require_live(row)
        before = Draft.stored(row)
        draft = change(before)
        profile = await _judge(core, by, draft)
        session_id = row["session_id"] if draft.begins == before.begins else draft.session_id
        time = row["next_at"]
        if row["paused_at"] is None and (draft.cron, draft.time_zone) != (before.cron, before.time_zone):
            time = _first(draft, row["now"])
        due = looked_at(schedule_id, time, draft.jitter_seconds)
        given = (schedule_id, row["revision"], by.key_id, session_id, time, due)
        async with core.db.transaction() as connection:
            if await connection.fetchval(_UPDATE, *given, *_values(draft, profile)):
                await audit.note(connection, "schedule.changed", by.tenant_id, schedule_id, fields=list(fields))
                return
    raise Conflict("This schedule is changed or fired at this moment; send it again.", code="schedule_busy")


def require_live(row: Mapping[str, Any]) -> None:
    """Raises Conflict `schedule_archived`. `row`: of `schedules`."""
    if row["paused_reason"] == ARCHIVED:
        raise Conflict("This schedule is archived and changes no more.", code="schedule_archived")


async def pause(core: Core, by: By, schedule_id: UUID, reason: str = BY_REQUEST) -> None:
    """Fire it no more until it is resumed. What it has queued goes on. Raises NotFound, Forbidden; Conflict
    `schedule_archived`."""
    require_live(await find(core, by, schedule_id))
    async with core.db.transaction() as connection:
        await stop(connection, schedule_id, reason)


async def stop(connection: asyncpg.Connection, schedule_id: UUID, reason: str) -> None:
    """Pause it, unless it is paused: as part of a transaction."""
    tenant_id = await connection.fetchval(
        "UPDATE schedules SET paused_at = now(), paused_reason = $2, next_at = NULL, look_at = NULL,"
        " revision = revision + 1, updated_at = now() WHERE id = $1 AND paused_at IS NULL RETURNING tenant_id",
        schedule_id,
        reason,
    )
    if tenant_id is not None:
        await audit.note(connection, "schedule.paused", tenant_id, schedule_id, reason=reason)


_RESUME = """
UPDATE schedules SET paused_at = NULL, paused_reason = NULL, failures = 0, next_at = $3, look_at = $4,
  revision = revision + 1, updated_at = now()
WHERE id = $1 AND revision = $2 RETURNING id
"""


async def resume(core: Core, by: By, schedule_id: UUID) -> None:
    """Fire it again, from its next time on: those while it was paused are not made up for. Raises NotFound, Forbidden;
    Conflict `schedule_busy`, `schedule_archived`."""
    for _ in range(ATTEMPTS):
        row = await find(core, by, schedule_id)
        require_live(row)
        if row["paused_at"] is None:
            return
        draft = Draft.stored(row)
        time = _first(draft, row["now"])
        due = looked_at(schedule_id, time, draft.jitter_seconds)
        async with core.db.transaction() as connection:
            if await connection.fetchval(_RESUME, schedule_id, row["revision"], time, due):
                await audit.note(connection, "schedule.resumed", by.tenant_id, schedule_id)
                return
    raise Conflict("This schedule is changed at this moment; send it again.", code="schedule_busy")


_ARCHIVE = """
UPDATE schedules SET paused_at = now(), paused_reason = $3, next_at = NULL, look_at = NULL, revision = revision + 1,
  updated_at = now() WHERE id = $1 AND tenant_id = $2 AND paused_reason IS DISTINCT FROM $3 RETURNING id
"""


async def archive(core: Core, by: By, schedule_id: UUID) -> None:
    """Fire and change it no more; it can be read. Once is enough. What it has queued goes on. Raises NotFound,
    Forbidden."""
    await find(core, by, schedule_id)
    async with core.db.transaction() as connection:
        if await connection.fetchval(_ARCHIVE, schedule_id, by.tenant_id, ARCHIVED):
            await audit.note(connection, "schedule.archived", by.tenant_id, schedule_id)


async def delete(core: Core, by: By, schedule_id: UUID) -> None:
    """Remove a schedule with what is known of its firings. Their sessions and runs stay. Raises NotFound, Forbidden."""
    await find(core, by, schedule_id)
    async with core.db.transaction() as connection:
        status = await connection.execute(
            "DELETE FROM schedules WHERE id = $1 AND tenant_id = $2", schedule_id, by.tenant_id
        )
        if status != "DELETE 1":
            raise NotFound.of("schedule")
        await idempotency.forget(connection, by.tenant_id, schedule_id)
        await audit.note(connection, "schedule.deleted", by.tenant_id, schedule_id)
