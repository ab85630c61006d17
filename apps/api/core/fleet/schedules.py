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
from typing import Any, Literal
from uuid import UUID

import asyncpg

from apps.api import audit
from apps.api.core.codec import decode, encode, timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.cron import Times
from apps.api.core.config.profiles import Policy
from apps.api.core.context import Core
from apps.api.core.fleet import firings
from apps.api.core.pages import Page, bounded, cut, read_cursor, write_cursor
from apps.api.core.sessions import admission
from apps.api.core.sessions.admission import NO_CHANGES, Choice, Prompt, Wanted
from apps.api.core.sessions.prompts import NO_LABELS
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant import idempotency
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.errors import Conflict, NotFound, ValidationError, refuse

Overlap = Literal["skip", "queue"]
SessionMode = Literal["new", "one"]

UPCOMING = 5
"""Times that are told of a schedule."""

ATTEMPTS = 5
"""To change a schedule while it is fired or others change it."""

BY_REQUEST = "by request"
"""Why a schedule is paused that somebody has paused."""


@dataclass(frozen=True, slots=True)
class By:
    """Who acts: a key of a tenant, and what it may use."""

    tenant_id: UUID
    key_id: UUID
    policy: Policy


@dataclass(frozen=True, slots=True)
class Draft:
    """A schedule as a client gives it.

    Attributes:
        cron, time_zone: see `config.cron`.
        agent: a preset, by name or id, perhaps with `@version`; without that the newest of then.
        session: a new one for each time, or one that is kept.
        session_id: the one that is kept; None: the first firing begins it.
        overlap: what to do at a time at which a run of the schedule is not over yet.
        jitter_seconds: it is fired up to so many seconds after its time, always as many after the same time.
        pause_after_failures: failures in a row after which it is paused; None: never.
        labels, surface: of sessions that it begins.
    """

    cron: str
    time_zone: str
    prompt: Prompt
    name: str | None = None
    agent: str | None = None
    profile: str | None = None
    config: AgentConfig = NO_CHANGES
    labels: Labels = NO_LABELS
    timeout_seconds: float | None = None
    expand_prompt: bool = False
    session: SessionMode = "new"
    session_id: UUID | None = None
    overlap: Overlap = "skip"
    jitter_seconds: int = 0
    pause_after_failures: int | None = 5
    surface: str = "native"

    @property
    def begins(self) -> tuple[Any, ...]:
        """What its sessions begin with: of another one than before it wants a new session."""
        return self.session, self.session_id, self.agent, self.profile, self.config, self.surface

    @property
    def times(self) -> Times:
        return Times.of(self.cron, self.time_zone)

    def spec(self) -> dict[str, Any]:
        """What is stored as one."""
        return {
            "agent": self.agent,
            "profile": self.profile,
            "config": self.config.given(),
            "title": self.labels.title,
            "tags": None if self.labels.tags is None else list(self.labels.tags),
            "metadata": None if self.labels.metadata is None else dict(self.labels.metadata),
            "timeout_seconds": self.timeout_seconds,
            "expand_prompt": self.expand_prompt,
            "surface": self.surface,
        }

    @classmethod
    def stored(cls, row: Mapping[str, Any]) -> Draft:
        """What a row of `schedules` holds."""
        spec = row["spec"]
        return cls(
            row["cron"],
            row["time_zone"],
            decode(row["prompt"]),
            name=row["name"],
            agent=spec["agent"],
            profile=spec["profile"],
            config=AgentConfig.stored(spec["config"]) if spec["config"] else NO_CHANGES,
            labels=Labels(spec["title"], spec["tags"], spec["metadata"]),
            timeout_seconds=spec["timeout_seconds"],
            expand_prompt=spec["expand_prompt"],
            session="new" if row["session"] == "new" else "one",
            session_id=row["session_id"] if row["session"] == "given" else None,
            overlap=row["overlap"],
            jitter_seconds=row["jitter_seconds"],
            pause_after_failures=row["pause_after_failures"],
            surface=spec["surface"],
        )


def looked_at(schedule_id: UUID, time: datetime | None, jitter_seconds: int) -> datetime | None:
    """When a time of a schedule is due: later by what of its jitter this time has, which is the same everywhere."""
    if time is None:
        return None
    drawn = hashlib.sha256(f"{schedule_id} {int(time.timestamp())}".encode()).digest()
    return time + timedelta(seconds=int.from_bytes(drawn[:8]) % (jitter_seconds + 1))


def _first(draft: Draft, now: datetime) -> datetime:
    time = draft.times.next(now)
    if time is None:
        raise ValidationError.of("cron", "there is no such time")
    return time


async def _judge(core: Core, by: By, draft: Draft) -> str | None:
    """Refuse what could not be run now; returns the profile that it would run under."""
    if draft.session_id is None:
        choice = Choice(draft.profile, by.policy, draft.agent)
        wanted = Wanted(draft.config, choice, draft.prompt, draft.timeout_seconds, draft.expand_prompt)
        judged = await admission.judge(core, by.tenant_id, wanted)
        refuse(judged.problems)
        return judged.pins.profile
    begun = {"session": draft.session == "one", "agent": not draft.agent, "profile": not draft.profile}
    begun |= {"labels": draft.labels == NO_LABELS, "config": not draft.config.model_fields_set}
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
            "SELECT now(), gen_random_uuid() AS id, (SELECT count(*) FROM schedules WHERE tenant_id = $1)", by.tenant_id
        )
        if found["count"] >= most:
            raise Conflict(f"A tenant has at most {most} schedules.", code="too_many_schedules")
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
  s.paused_at, s.paused_reason, s.created_at, s.updated_at, now() AS now, ({firings.LAST}) AS last
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


_PAGE = bounded(
    _COLUMNS + "WHERE s.tenant_id = $1 AND ($2::text[] IS NULL OR s.profile = ANY($2))"
    " AND ($3::timestamptz IS NULL OR (s.created_at, s.id) < ($3, $4::uuid))"
    " ORDER BY s.created_at DESC, s.id DESC LIMIT $5",
    "prompt",
    "created_at DESC, id DESC",
)


async def list_page(core: Core, by: By, *, limit: int, cursor: str | None) -> Page:
    """Schedules that the key may see, newest first, without their next times. Raises ValidationError."""
    bound: Sequence[str] | None = by.policy.bound
    before = read_cursor(cursor) if cursor else (None, None)
    rows = await core.db.pool.fetch(_PAGE, by.tenant_id, bound and list(bound), *before, limit + 1)
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
        Conflict: `schedule_busy`, others go on changing it.
    """
    for _ in range(ATTEMPTS):
        row = await find(core, by, schedule_id)
        before = Draft.stored(row)
        draft = change(before)
        profile = await _judge(core, by, draft)
        session_id = row["session_id"] if draft.begins == before.begins else draft.session_id
        time = row["next_at"]
        if time is not None and (draft.cron, draft.time_zone) != (before.cron, before.time_zone):
            time = _first(draft, row["now"])
        due = looked_at(schedule_id, time, draft.jitter_seconds)
        given = (schedule_id, row["revision"], by.key_id, session_id, time, due)
        async with core.db.transaction() as connection:
            if await connection.fetchval(_UPDATE, *given, *_values(draft, profile)):
                await audit.note(connection, "schedule.changed", by.tenant_id, schedule_id, fields=list(fields))
                return
    raise Conflict("This schedule is changed or fired at this moment; send it again.", code="schedule_busy")


async def pause(core: Core, by: By, schedule_id: UUID, reason: str = BY_REQUEST) -> None:
    """Fire it no more until it is resumed. What it has queued goes on. Raises NotFound, Forbidden."""
    await find(core, by, schedule_id)
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
    Conflict `schedule_busy`."""
    for _ in range(ATTEMPTS):
        row = await find(core, by, schedule_id)
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
