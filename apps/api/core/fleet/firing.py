"""Firing: sends the prompts of schedules whose time has come, and takes note of what became of them.

Every instance does this. A claim only keeps others from doing the same work at the same moment. That there is one run
at most for a time of a schedule comes from the transaction which queues it: it counts the schedule's revision up, if
that is still the one which was claimed, and stores the firing, of which there is one for each time.

Times are the database's: what the clock of an instance shows does not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api import instruments
from apps.api.core.config.limits import read
from apps.api.core.config.profiles import Policy
from apps.api.core.context import Core
from apps.api.core.fleet import dispatch, firings, schedules
from apps.api.core.fleet.schedules import By, Draft
from apps.api.core.sessions import admission
from apps.api.core.sessions.admission import NO_CHANGES, Choice
from apps.api.core.sessions.prompts import NO_LABELS, Submission, Submitted
from apps.api.core.tasks import Loop
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.errors import ApiError, Conflict, Forbidden, NotFound, Unauthorized, Unavailable

log = structlog.get_logger(__name__)

AT_ONCE = 4
"""Schedules that an instance fires at the same time: of its connections for the runner others need some, too."""

LOOKED_AT = 1_000
"""Due schedules among which tenants have turns."""

CLAIM_SECONDS = 10.0
"""For which a claimed schedule is left to who has claimed it, who may have names to look up."""

MOST_MISSED = 1_000
"""Missed times that are counted; it stands for as many or more."""

PASSING = frozenset({"tenant_suspended", "budget_reached", "quota_exceeded"})
"""Codes of what ends without anybody's doing anything about the schedule: they do not pause it."""

SESSION_GONE = frozenset({"session_deleted", "session_not_found"})

# `turn`: the how-manieth of its tenant a schedule would be.
_CLAIM = f"""
WITH due AS (
  SELECT id, look_at, row_number() OVER (PARTITION BY tenant_id ORDER BY look_at) AS turn FROM (
    SELECT id, tenant_id, look_at FROM schedules WHERE look_at <= now() ORDER BY look_at LIMIT {LOOKED_AT}
  ) earliest WHERE id <> ALL($2::uuid[])
), chosen AS (
  SELECT id, look_at AS due_at FROM schedules WHERE look_at <= now() AND id IN (
    SELECT id FROM due ORDER BY turn, look_at LIMIT $1
  ) FOR UPDATE SKIP LOCKED
)
UPDATE schedules s SET look_at = now() + make_interval(secs => $3) FROM chosen WHERE s.id = chosen.id
RETURNING s.id, s.tenant_id, s.api_key_id, s.name, s.cron, s.time_zone, s.prompt, s.spec, s.session, s.session_id,
  s.overlap, s.jitter_seconds, s.pause_after_failures, s.next_at, s.revision, due_at, now() AS now, EXISTS (
  SELECT FROM schedule_firings f JOIN runs r ON r.id = f.run_id
  WHERE f.schedule_id = s.id AND f.state = 'sent' AND r.finished_at IS NULL
) AS busy
"""  # noqa: S608 - ours


class _Overtaken(Exception):
    """Somebody else has fired or changed the schedule meanwhile."""


async def fire_due(core: Core, loop: Loop) -> None:
    """Fire what is due, until nothing is. Any number of instances may do this at once. A schedule at which that fails
    is the loop's item."""
    while rows := await core.db.pool.fetch(_CLAIM, AT_ONCE, loop.spared, CLAIM_SECONDS):
        ends = await asyncio.gather(*(_fire_one(core, loop, row) for row in rows), return_exceptions=True)
        for end in ends:
            if end is not None:  # what passes is the loop's, once nothing of it goes on
                raise end
        if len(rows) < AT_ONCE:
            return


async def _fire_one(core: Core, loop: Loop, row: asyncpg.Record) -> None:
    with loop.one(row["id"]):
        try:
            await _fire(core, row)
        except _Overtaken:
            log.debug("schedule.overtaken", schedule_id=str(row["id"]))
        except Unavailable as error:  # it is due again when the claim is over
            log.warning("schedule.put_off", schedule_id=str(row["id"]), error=error)


async def _fire(core: Core, row: asyncpg.Record) -> None:
    draft, time = Draft.stored(row), row["next_at"]
    # Of times that nobody was there for the newest is fired; those whose jitter is not over yet are still to come.
    newest = draft.times.newest(row["now"] - timedelta(seconds=draft.jitter_seconds))
    fire_at = max(time, newest) if newest else time
    missed = 1 + draft.times.count(time, fire_at, MOST_MISSED - 1) if fire_at > time else 0
    step = _Step(row, draft, fire_at, missed)
    try:
        state = await _send_or_skip(core, step)
    except asyncpg.UniqueViolationError:  # the database's clock went back, and what it shows again was fired
        async with core.db.transaction() as connection:
            await step.advance(connection)
        return
    if missed:
        firings.count("missed", missed)
    firings.count(state)
    instruments.FIRING_LAG.observe(max((row["now"] - row["due_at"]).total_seconds(), 0))


async def _send_or_skip(core: Core, step: _Step) -> str:
    row = step.row
    if row["busy"] and step.draft.overlap == "skip":
        error = {"code": "overlap", "message": "A run of an earlier firing is not over yet."}
        async with core.db.transaction() as connection:
            await step.note(connection, "skipped", error)
        return "skipped"
    try:
        by = await standing(core, row["tenant_id"], row["api_key_id"])
        await _send(core, by, row, step.draft, step.sent)
    except Unavailable:
        raise
    except ApiError as error:
        async with core.db.transaction() as connection:
            await step.note(connection, "failed", {"code": error.code, "message": error.message})
            await _failed(connection, row["id"], error.code, given=row["session"] == "given")
        return "failed"
    return "sent"


class _Step:
    """One time of a schedule, as it was claimed, and the fence of what is done at it."""

    def __init__(self, row: asyncpg.Record, draft: Draft, fire_at: datetime, missed: int) -> None:
        self.row, self.draft, self.fire_at, self._missed = row, draft, fire_at, missed

    async def advance(self, connection: asyncpg.Connection, session_id: UUID | None = None) -> None:
        """Go on to the next time, as part of a transaction. Raises _Overtaken."""
        row = self.row
        following = self.draft.times.next(self.fire_at)
        due = schedules.looked_at(row["id"], following, self.draft.jitter_seconds)
        if not await connection.fetchval(_ADVANCE, row["id"], row["revision"], following, due, session_id):
            raise _Overtaken

    async def note(
        self, connection: asyncpg.Connection, state: str, error: Mapping[str, Any] | None, run: Submitted | None = None
    ) -> None:
        """Advance, and store what came of the time."""
        kept = run.session_id if run and self.row["session"] == "own" else None
        await self.advance(connection, kept)
        if self._missed:
            await firings.skip_missed(connection, self.row["id"], self.row["next_at"], self._missed)
        ids = (run.run_id, run.session_id) if run else (None, None)
        schedule_id, fire_at = self.row["id"], self.fire_at
        await firings.add(connection, schedule_id, fire_at, state, run_id=ids[0], session_id=ids[1], error=error)

    async def sent(self, connection: asyncpg.Connection, run: Submitted) -> None:
        """Of the transaction that queues the run."""
        await self.note(connection, "sent", None, run)


_ADVANCE = """
UPDATE schedules SET next_at = $3, look_at = $4, session_id = coalesce($5, session_id), revision = revision + 1
WHERE id = $1 AND revision = $2 AND paused_at IS NULL RETURNING id
"""

_STANDING = """
SELECT t.suspended_at IS NOT NULL AS suspended, t.limits AS of_tenant, k.revoked_at IS NOT NULL AS revoked,
  coalesce(k.expires_at <= now(), false) AS expired, k.scopes, k.profiles, k.limits AS of_key
FROM tenants t LEFT JOIN api_keys k ON k.id = $2 AND k.tenant_id = t.id WHERE t.id = $1
"""


async def standing(core: Core, tenant_id: UUID, key_id: UUID | None) -> By:
    """Whom a schedule acts for, with what that key may use now.

    Raises:
        Forbidden: `tenant_suspended`, `insufficient_scope`.
        Conflict: `key_revoked`.
        Unauthorized: `invalid_api_key`, it has expired.
    """
    row = await core.db.pool.fetchrow(_STANDING, tenant_id, key_id)
    if row is None or row["suspended"]:
        raise Forbidden("The operator has suspended this tenant.", code="tenant_suspended")
    if key_id is None or row["scopes"] is None or row["revoked"]:
        raise Conflict("The key that this schedule acts for has been revoked.", code="key_revoked")
    if row["expired"]:
        raise Unauthorized("The key that this schedule acts for has expired.", code="invalid_api_key")
    if not {"admin", "write"} & set(row["scopes"]):
        raise Forbidden("The key that this schedule acts for lacks the scope 'write'.")
    bound = None if row["profiles"] is None else tuple(row["profiles"])
    return By(tenant_id, key_id, admission.policy(core, bound, read(row["of_tenant"]), read(row["of_key"])))


async def _send(
    core: Core, by: By, row: Mapping[str, Any], draft: Draft, within: Any, repeat: Idempotency | None = None
) -> Submitted:
    """Queue the prompt. A session of the schedule's own that is gone is followed by another. Raises as
    `dispatch.send`."""
    new = partial(_submission, core, by, draft, within=within, repeat=repeat)
    if (session_id := row["session_id"]) is None:
        return await dispatch.send(core, by.tenant_id, by.key_id, new(None))
    try:
        return await dispatch.send(core, by.tenant_id, by.key_id, new(session_id))
    except (Conflict, NotFound) as error:
        if row["session"] != "own" or error.code not in SESSION_GONE:
            raise
    return await dispatch.send(core, by.tenant_id, by.key_id, new(None))


def _submission(
    core: Core, by: By, draft: Draft, session_id: UUID | None, *, within: Any, repeat: Idempotency | None
) -> Submission:
    begins = session_id is None
    policy: Policy = by.policy
    return Submission(
        prompt=draft.prompt,
        timeout_seconds=draft.timeout_seconds or core.settings.request_timeout,
        session_id=session_id,
        config=draft.config if begins else NO_CHANGES,
        labels=draft.labels if begins else NO_LABELS,
        choice=Choice(draft.profile, policy, draft.agent) if begins else Choice(policy=policy),
        timeout_asked=draft.timeout_seconds is not None,
        expand_prompt=draft.expand_prompt,
        surface=draft.surface,
        idempotency=repeat,
        within=within,
    )


async def run(core: Core, by: By, schedule_id: UUID, repeat: Idempotency | None = None) -> dict[str, Any]:
    """Fire a schedule now, paused or not, whatever of it runs already; its times stay as they are. Returns the firing.

    Raises:
        NotFound: no such schedule.
        Conflict, Forbidden, Unauthorized, RateLimited, ValidationError: what a firing would have failed with; `by` may
            not see it; `schedule_busy`.
    """
    for _ in range(schedules.ATTEMPTS):
        row = await schedules.find(core, by, schedule_id)
        acts = await standing(core, by.tenant_id, row["api_key_id"])
        try:
            queued = await _send(core, acts, row, Draft.stored(row), partial(_requested, row), repeat)
        except _Overtaken:
            continue
        if (firing := await firings.of_run(core, queued.run_id)) is None:
            raise NotFound.of("schedule")  # removed meanwhile, or with what this key of a repeat has made
        return firing
    raise Conflict("This schedule is changed or fired at this moment; send it again.", code="schedule_busy")


_KEEP = """
UPDATE schedules SET session_id = CASE WHEN session = 'own' THEN $3 ELSE session_id END WHERE id = $1
  AND session_id IS NOT DISTINCT FROM $2 RETURNING clock_timestamp()
"""


async def _requested(row: asyncpg.Record, connection: asyncpg.Connection, run: Submitted) -> None:
    now = await connection.fetchval(_KEEP, row["id"], row["session_id"], run.session_id)
    if now is None:
        raise _Overtaken
    ids = (run.run_id, run.session_id)
    await firings.add(connection, row["id"], now, "sent", origin="request", run_id=ids[0], session_id=ids[1])
    firings.count("sent")


# --- what became of them -------------------------------------------------------------------------------------------

# Run by run, of those that are not known to have ended: never by reading all runs.
_ENDED = """
SELECT f.id, f.schedule_id, f.origin, coalesce(r.status, 'interrupted') AS state, r.error,
  coalesce(r.finished_at, now()) AS ended_at
FROM schedule_firings f LEFT JOIN LATERAL (SELECT * FROM runs WHERE id = f.run_id LIMIT 1) r ON true
WHERE f.state = 'sent' AND (r.id IS NULL OR r.finished_at IS NOT NULL) LIMIT $1 FOR UPDATE OF f SKIP LOCKED
"""


async def settle(core: Core) -> None:
    """Note the ends of runs that schedules have queued. Any number of instances may do this at once."""
    while True:
        async with core.db.transaction() as connection:
            rows = await connection.fetch(_ENDED, firings.AT_ONCE)
            for row in sorted(rows, key=lambda ended: ended["schedule_id"].int):
                await _settle(connection, row)
        if len(rows) < firings.AT_ONCE:
            return


async def _settle(connection: asyncpg.Connection, row: asyncpg.Record) -> None:
    error = row["error"] and {name: row["error"].get(name) for name in ("code", "message")}
    await connection.execute(
        "UPDATE schedule_firings SET state = $2, error = $3, ended_at = $4 WHERE id = $1",
        row["id"],
        row["state"],
        error,
        row["ended_at"],
    )
    if row["origin"] != "schedule":
        return
    if row["state"] == "failed":
        await _failed(connection, row["schedule_id"], error["code"] if error else None, given=False)
    elif row["state"] == "succeeded":
        await connection.execute("UPDATE schedules SET failures = 0 WHERE id = $1 AND failures > 0", row["schedule_id"])


async def _failed(connection: asyncpg.Connection, schedule_id: UUID, code: str | None, *, given: bool) -> None:
    """Count a failure, and pause a schedule that has had too many, or whose session, which was `given`, is gone."""
    if given and code in SESSION_GONE:
        await schedules.stop(connection, schedule_id, "session_deleted")
    if code in PASSING:
        return
    row = await connection.fetchrow(
        "UPDATE schedules SET failures = failures + 1 WHERE id = $1"
        " RETURNING coalesce(failures >= pause_after_failures, false) AS enough, failures",
        schedule_id,
    )
    if row and row["enough"]:
        await schedules.stop(connection, schedule_id, f"{row['failures']} failures in a row")
