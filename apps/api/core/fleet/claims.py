"""The queue: claiming runs. How places in it are told: `places`. How sessions change owners: `ownership`.

A claim is one statement. It takes a queued run that may start now: first of its session, no other run of that session
active, the session owned by nobody or by the claimer already, and neither its tenant nor its key at a limit. Tenants
take turns: first comes the one of which least is running, of those the one whose last turn is longest ago, and of its
runs the oldest (docs/adr/0021-turns.md). What may not start now costs nothing: of sessions that nobody owns a claim
looks at `runs.startable`, which triggers keep (docs/adr/0015-what-may-start.md), and there at one run of each tenant
and key; of its own ones at the first run of each.

Rows are locked FOR NO KEY UPDATE: whoever stores something that refers to them holds them FOR KEY SHARE, in an order
of its own, and a stronger lock here would pass over their sessions, or deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core.codec import decode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import Profile, clamp
from apps.api.core.config.resources import Resource
from apps.api.core.events.log import NEXT_GENERATION
from apps.api.core.fleet.ownership import Orphan, disown
from apps.api.core.lease import Lease
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.parking import Parked
from apps.api.db import Database

OTHERS_FIRST = 10.0
"""Seconds for which a run that came back to the queue is left to other instances, if there are any."""

NO_LIMIT = 2**31 - 1
"""Runs at a time of whom nobody has limited."""

STARTS_WITHIN = 0.15
"""Seconds within which a run starts, as a rule. What is queued for longer waits."""

NO_KEY = UUID(int=0)
"""In the index of what may start: the key of runs that have none, or none any more."""

QUOTA = "QUOTA"
"""SQLSTATE of what triggers refuse because of a limit."""

_KEY = f"coalesce(r.api_key_id, '{NO_KEY}'::uuid)"
_FIRST = f"""
  SELECT r.tenant_id, {_KEY} AS key_id, r.position FROM runs r WHERE r.startable AND r.status = 'queued' AND
"""  # noqa: S608 - ours
_IN_TURN = f"ORDER BY r.tenant_id, {_KEY}, r.position LIMIT 1"
_ACTIVE = "SELECT 1 FROM runs a WHERE a.session_id = s.id AND a.status IN ('running','requires_action')"

_PROVIDED = ("skills", "mcp_servers", "secrets")
_VERSION = "(SELECT concat_ws('/', count(*), max(updated_at)) FROM {0} WHERE tenant_id = {{tenant}}) AS {0}"
_PROVISIONS = ", ".join(map(_VERSION.format, _PROVIDED))

# `waiting` steps from one tenant and key to the next in the index, so that it looks at one run of each. Rows are locked
# in the order of `ranked`, one after the other, until there is one: the planner can join what is LATERAL in no other.
_CLAIM = f"""
WITH RECURSIVE able AS (
  SELECT id FROM instances WHERE id = $1 AND lease_expires_at > now() AND NOT draining
), waiting AS (
  ({_FIRST} $2 AND EXISTS (SELECT FROM able) {_IN_TURN})
  UNION ALL
  SELECT next.* FROM waiting w CROSS JOIN LATERAL (
    {_FIRST} (r.tenant_id, {_KEY}) > (w.tenant_id, w.key_id) {_IN_TURN}
  ) next
), mine AS (
  SELECT s.id AS session_id, r.* FROM sessions s CROSS JOIN LATERAL (
    SELECT r.tenant_id, {_KEY} AS key_id, r.position FROM runs r
    WHERE r.session_id = s.id AND r.status = 'queued' ORDER BY r.position LIMIT 1
  ) r
  WHERE s.owner_id = $1 AND s.id <> ALL($3::uuid[]) AND EXISTS (SELECT FROM able) AND NOT EXISTS ({_ACTIVE})
), running AS MATERIALIZED (
  SELECT r.tenant_id, {_KEY} AS key_id, count(*) AS runs
  FROM runs r WHERE r.status = 'running' AND r.origin = 'client' GROUP BY 1, 2
), ranked AS MATERIALIZED (
  SELECT c.* FROM (
    SELECT tenant_id, key_id, position, session_id FROM mine
    UNION ALL SELECT tenant_id, key_id, position, NULL FROM waiting
  ) c
  JOIN tenants t ON t.id = c.tenant_id
  LEFT JOIN api_keys k ON k.id = c.key_id
  LEFT JOIN (SELECT tenant_id, sum(runs) AS runs FROM running GROUP BY 1) of_tenant ON of_tenant.tenant_id = c.tenant_id
  LEFT JOIN running of_key ON of_key.tenant_id = c.tenant_id AND of_key.key_id = c.key_id
  WHERE t.suspended_at IS NULL
    AND coalesce(of_tenant.runs, 0) < coalesce((t.limits ->> 'concurrent_runs')::int, {NO_LIMIT})
    AND coalesce(of_key.runs, 0) < coalesce((k.limits ->> 'concurrent_runs')::int, {NO_LIMIT})
    AND CASE WHEN c.session_id IS NULL AND t.limits -> 'live_sessions' IS NOT NULL THEN
      (SELECT count(*) FROM sessions o WHERE o.tenant_id = t.id AND o.owner_id IS NOT NULL)
        < (t.limits ->> 'live_sessions')::int ELSE true END
    AND CASE WHEN c.session_id IS NULL AND k.limits -> 'live_sessions' IS NOT NULL THEN
      (SELECT count(*) FROM sessions o WHERE o.tenant_id = t.id AND o.taken_by = k.id AND o.owner_id IS NOT NULL)
        < (k.limits ->> 'live_sessions')::int ELSE true END
  ORDER BY coalesce(of_tenant.runs, 0), t.claimed_at NULLS FIRST, c.position
), next AS (
  SELECT s.id, nullif(c.key_id, '{NO_KEY}'::uuid) AS api_key_id FROM ranked c CROSS JOIN LATERAL (
    SELECT * FROM (
      SELECT s.id FROM sessions s
      WHERE s.id = c.session_id AND s.owner_id = $1 AND NOT EXISTS ({_ACTIVE}) FOR NO KEY UPDATE SKIP LOCKED
    ) one
    UNION ALL SELECT * FROM (
      SELECT s.id FROM runs r JOIN sessions s ON s.id = r.session_id
      WHERE c.session_id IS NULL AND r.tenant_id = c.tenant_id AND {_KEY} = c.key_id
        AND r.startable AND r.status = 'queued' AND s.owner_id IS NULL AND s.deleted_at IS NULL
        AND s.id <> ALL($3::uuid[])
        AND (r.requeued_by IS DISTINCT FROM $1 OR r.requeued_at < now() - make_interval(secs => {OTHERS_FIRST})
          OR NOT EXISTS (
            SELECT 1 FROM instances WHERE id <> $1 AND lease_expires_at > now() AND NOT draining AND slots > 0))
        AND NOT EXISTS ({_ACTIVE})
      ORDER BY r.position LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
    ) one
  ) s LIMIT 1
), owned AS (
  UPDATE sessions s
  SET owner_id = $1, last_active_at = now(),
    generation = CASE WHEN s.owner_id IS DISTINCT FROM $1 THEN {NEXT_GENERATION} ELSE s.generation END,
    taken_by = CASE WHEN s.owner_id IS DISTINCT FROM $1 THEN next.api_key_id ELSE s.taken_by END
  FROM next WHERE s.id = next.id
  RETURNING s.id, s.tenant_id, s.generation, s.last_seq, s.sdk_session_id, s.config, s.num_turns, s.profile, (
    SELECT r.id FROM runs r WHERE r.session_id = s.id AND r.status = 'queued' ORDER BY r.position LIMIT 1) AS run_id
), turn AS (
  UPDATE tenants SET claimed_at = now() WHERE id = (
    SELECT t.id FROM tenants t JOIN owned ON owned.tenant_id = t.id
    WHERE EXISTS (SELECT FROM ranked WHERE tenant_id <> owned.tenant_id) FOR NO KEY UPDATE OF t SKIP LOCKED)
)
UPDATE runs r SET status = 'running', startable = false, unsent = owned.id <> ALL($4::uuid[]),
  started_at = CASE WHEN r.parked IS NULL THEN now() ELSE r.started_at END,
  first_seq = CASE WHEN r.parked IS NULL THEN owned.last_seq + 1 ELSE r.first_seq END
FROM owned WHERE r.id = owned.run_id AND r.status = 'queued'
RETURNING r.id AS run_id, r.kind, r.prompt, r.expand_prompt, r.timeout_seconds, r.unsent, r.parked, r.resources,
  r.traceparent,
  coalesce(r.config, owned.config) AS config,
  extract(epoch FROM now() - r.created_at)::float8 AS waited,
  owned.id AS session_id, owned.tenant_id, owned.generation, owned.last_seq, owned.sdk_session_id, owned.profile,
  {_PROVISIONS.format(tenant="owned.tenant_id")}
"""  # noqa: S608 - ours


TRIES = 5
"""Claims that are tried, where others reach a limit first. The next wake-up or poll tries again."""

NO_PROFILES: Mapping[str, Profile] = {}


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this instance must execute now, and its session as the owner needs it.

    Attributes:
        config: the session's, clamped to what its profile allows today.
        kind: `prompt`; or `rewind` or `reset`, whose `prompt` holds what to rewind to or how to reset.
        expand_prompt: whether slash commands and `@file` mentions in the prompt mean something.
        unsent: whether the database says that no agent has been given the prompt. What is claimed for an agent that
            lives already counts as sent, so that it costs no statement to say so.
        provisions: another value once the tenant has changed what its agents are given beside their configuration.
        resources: what the workspace is given before the run.
        waited: seconds since it was accepted.
        traceparent: of the request that brought it.
        parked: what it takes to go on, of a run that was parked; its prompt has been sent before.
    """

    run_id: UUID
    kind: str
    prompt: Any
    expand_prompt: bool
    timeout_seconds: float
    config: AgentConfig
    session_id: UUID
    tenant_id: UUID
    generation: int
    last_seq: int
    sdk_session_id: UUID
    unsent: bool = False
    profile: Profile | None = None
    provisions: tuple[str, ...] = ()
    parked: Parked | None = None
    resources: tuple[Resource, ...] = ()
    waited: float = 0.0
    traceparent: str | None = None


async def claim(
    db: Database,
    lease: Lease,
    *,
    may_take_new: bool,
    except_for: list[UUID],
    warm: Sequence[UUID] = (),
    profiles: Mapping[str, Profile] = NO_PROFILES,
) -> Claim | None:
    """Claim the next run, if any.

    Args:
        may_take_new: whether a session that nobody owns may be taken, or only own ones.
        except_for: sessions whose runs are not to be claimed now.
        warm: sessions that have an agent, which will be given the prompt at once.
        profiles: those of this instance, by name.

    Raises:
        LeaseLost: this instance may not claim.
        Unreadable: it claimed a run that it cannot execute; pass it to `refuse`.
    """
    row = None
    for _ in range(TRIES):
        lease.require()
        try:
            row = await db.pool.fetchrow(_CLAIM, lease.instance_id, may_take_new, except_for, list(warm))
            break
        except asyncpg.UniqueViolationError:
            return None  # a background turn of that session began meanwhile; the next look sees it
        except asyncpg.PostgresError as error:
            if error.sqlstate != QUOTA:
                raise  # else another claim has reached a limit, after this one had counted
    if row is None:
        return None
    fields = dict(row)
    given = tuple(fields.pop(name) for name in _PROVIDED)
    try:
        fields |= {"prompt": decode(row["prompt"]), "config": AgentConfig.stored(row["config"])}
        fields["resources"] = tuple(map(Resource.stored, row["resources"] or ()))
        parked = fields["parked"] = Parked.stored(row["parked"]) if row["parked"] else None
    except ValueError as error:
        raise Unreadable(row["session_id"], row["generation"]) from error
    if row["profile"] is not None:
        profile = fields["profile"] = profiles.get(row["profile"])
        if profile is None:
            raise Unreadable(row["session_id"], row["generation"], _no_profile(row["profile"]))
        # The operator's file may have changed since the session was created.
        fields["config"] = clamp(profile, fields["config"])
        fields["expand_prompt"] = row["expand_prompt"] and profile.skills
        fields["timeout_seconds"] = min(row["timeout_seconds"], profile.timeout_seconds or row["timeout_seconds"])
    if parked is not None:
        fields["timeout_seconds"] = min(fields["timeout_seconds"], parked.seconds_left)
    fields["provisions"] = _provisions(fields["config"], given)
    return Claim(**fields)


def _provisions(config: AgentConfig, given: tuple[str, ...]) -> tuple[str, ...]:
    return given if config.servers() else given[:1]


async def provisions(db: Database, tenant_id: UUID, config: AgentConfig) -> tuple[str, ...]:
    """What a claim for this configuration would say of `Claim.provisions` now."""
    return _provisions(config, tuple(await db.pool.fetchrow("SELECT " + _PROVISIONS.format(tenant="$1"), tenant_id)))


class Unreadable(Exception):
    """What is stored of a claimed run is not for this instance: another version or other settings made it."""

    def __init__(self, session_id: UUID, generation: int, error: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"session {session_id}: its run cannot be read")
        self.session_id, self.generation, self.error = session_id, generation, error or _UNREADABLE


def _no_profile(name: str) -> dict[str, Any]:
    message = f"The session was created under the profile {name}, which the operator has removed. Create a new session."
    return failure("profile_removed", message)


_UNREADABLE = failure(
    "agent_start_failed", "This instance is of a version that cannot read the configuration of this run."
)


async def refuse(db: Database, instance_id: UUID, claimed: Unreadable) -> Orphan | None:
    """Give back a session whose run was claimed and cannot be executed here. Another version may be able to: the run
    is queued again; it fails when none can, or its profile is gone."""
    again = claimed.error is _UNREADABLE
    return await disown(db, instance_id, claimed.session_id, claimed.generation, claimed.error, again=again)


async def unheard(db: Database, instance_id: UUID, known: Sequence[UUID]) -> list[tuple[UUID, int, UUID]]:
    """Runs that this instance has claimed by the database's word and does not know: session, generation, run."""
    rows = await db.pool.fetch(
        "SELECT r.id, s.id AS session_id, s.generation FROM sessions s JOIN runs r ON r.session_id = s.id"
        " WHERE s.owner_id = $1 AND r.status = 'running' AND r.origin = 'client' AND r.id <> ALL($2::uuid[])",
        instance_id,
        known,
    )
    return [(row["session_id"], row["generation"], row["id"]) for row in rows]


async def begin_background(
    db: Database, session_id: UUID, tenant_id: UUID, generation: int, run_id: UUID, seconds: float
) -> bool:
    """Make a run for a turn that a background task of the agent began. False when the session has an active run.

    `seconds` is its deadline. Its key is that of the last prompt, so that what it costs is counted there.
    Safe to repeat with the same `run_id`.
    """
    try:
        status = await db.pool.execute(
            "INSERT INTO runs (id, tenant_id, session_id, api_key_id, status, origin, timeout_seconds, started_at,"
            " first_seq) SELECT $4, $2, id, (SELECT api_key_id FROM runs WHERE session_id = $1 AND origin = 'client'"
            " AND started_at IS NOT NULL ORDER BY position DESC LIMIT 1), 'running', 'background', $5, now(),"
            " last_seq + 1 FROM sessions WHERE id = $1 AND tenant_id = $2 AND generation = $3 FOR SHARE"
            " ON CONFLICT (id) DO UPDATE SET id = excluded.id",
            session_id,
            tenant_id,
            generation,
            run_id,
            seconds,
        )
    except asyncpg.UniqueViolationError:
        return False
    return bool(status == "INSERT 0 1")


async def kept_out(db: Database) -> bool:
    """Whether a run waits that may start, in a session that nobody owns, for longer than it takes to find a place."""
    kept: bool = await db.pool.fetchval(
        "SELECT EXISTS (SELECT 1 FROM runs WHERE startable AND status = 'queued'"
        " AND created_at <= now() - make_interval(secs => $1))",
        STARTS_WITHIN,
    )
    return kept


async def kept_waiting(db: Database, session_ids: Sequence[UUID], seconds: float) -> set[UUID]:
    """Which of these sessions have runs that have been queued for so long."""
    rows = await db.pool.fetch(
        "SELECT DISTINCT session_id FROM runs WHERE session_id = ANY($1::uuid[]) AND status = 'queued'"
        " AND created_at <= now() - make_interval(secs => $2)",
        session_ids,
        seconds,
    )
    return {row["session_id"] for row in rows}
