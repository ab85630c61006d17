"""Submitting prompts: what is checked, pinned and stored until a runner takes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID, uuid4

import asyncpg

from apps.api import tracing
from apps.api.core.codec import encode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.resources import Resource
from apps.api.core.context import Core
from apps.api.core.sessions import admission, names, runs, sessions
from apps.api.core.sessions.admission import NO_CHANGES, NO_CHOICE, Choice, Prompt, Wanted
from apps.api.core.sessions.names import Name, NameTaken
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant import budgets, quotas
from apps.api.core.tenant.idempotency import Earlier, Idempotency, remember, repeated, reused
from apps.api.errors import Conflict, NotFound, Problem, refuse

OnBusy = Literal["enqueue", "reject", "interrupt", "steer"]

NO_LABELS = Labels()


@dataclass(frozen=True, slots=True)
class Submission:
    """A prompt to run.

    Attributes:
        session_id: continue this session, or None to begin one.
        config: for a new session its configuration; for an existing one what changes from here on.
        on_busy: `interrupt` names the run that is in its way in `Submitted.busy_with`, for the caller to interrupt: the
            active one; where none has begun, the one that is queued first. `steer` lets it go into the turn that runs,
            see core/sessions/steering.py.
        idempotency: the client's key and a fingerprint of its request, if it sent a key.
        choice: for an existing session the same as at its creation, or nothing.
        timeout_asked: whether the client named the timeout; one that it did not name gives way to the profile's.
        kind: see `claims.Claim`.
        expand_prompt: whether slash commands and `@file` mentions in the prompt mean something.
        resources: what the workspace is given before the run.
        surface: of a new session: what kind of interface it is made through, see core/sessions/surfaces.py.
        schedule_id: of a new session: the schedule that begins it.
        session_names: what a new session is called from now on; `run_names`: what the run is called.
        within: what is done in the transaction that queues it, with what was queued. What it raises undoes all of it.
            Not done again for what an idempotency key finds.
    """

    prompt: Prompt
    timeout_seconds: float
    session_id: UUID | None = None
    config: AgentConfig = NO_CHANGES
    labels: Labels = NO_LABELS
    on_busy: OnBusy = "enqueue"
    idempotency: Idempotency | None = None
    choice: Choice = NO_CHOICE
    timeout_asked: bool = False
    kind: str = "prompt"
    expand_prompt: bool = False
    surface: str = "native"
    schedule_id: UUID | None = None
    resources: Sequence[Resource] = ()
    session_names: Sequence[Name] = ()
    run_names: Sequence[Name] = ()
    within: Callable[[asyncpg.Connection, Submitted], Awaitable[None]] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is nothing but the next prompt of a session: then one statement is enough."""
        asks_more = self.idempotency or self.on_busy == "reject" or self.timeout_asked or self.expand_prompt
        is_named = self.run_names or replace(self.labels, end_user=None) != NO_LABELS
        chooses = self.choice.profile or self.choice.agent or self.config.model_fields_set
        return not (self.session_id is None or asks_more or is_named or chooses or self.within)

    @property
    def wanted(self) -> Wanted:
        """What is judged of it."""
        asked = self.timeout_seconds if self.timeout_asked else None
        return Wanted(self.config, self.choice, self.prompt, asked, self.expand_prompt, self.resources)

    @property
    def not_for_a_turn(self) -> list[Problem]:
        """What is given with a message for a turn that runs, and cannot hold for that turn."""
        if self.on_busy != "steer":
            return []
        named = sorted(self.config.model_fields_set)
        named += [name for name in ("resources", "expand_prompt") if getattr(self, name)]
        return [Problem(name, "validation_error", "not with on_busy steer: the turn runs already") for name in named]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run in the queue. Its events come after `after`; `repeated` when an idempotency key found it."""

    session_id: UUID
    run_id: UUID
    after: int
    repeated: bool = False
    busy_with: UUID | None = None


# `refused` comes after the lock on the session, which others hold who then want its lock.
_ENQUEUE = f"""
WITH target AS (
  SELECT id, last_seq, profile, end_user, archived_at, ($9::text[] IS NULL OR profile = ANY($9)) AS usable,
    (SELECT count(*) FROM runs WHERE session_id = $1 AND status = 'queued') AS queued,
    CASE WHEN $11 = 'prompt' THEN {budgets.reached("$2", "$4", "$1")} END AS reached
  FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL FOR SHARE
), refused AS MATERIALIZED (
  SELECT run_refused($2, $4) AS why FROM target
  WHERE queued < $8 AND usable AND reached IS NULL AND archived_at IS NULL
), added AS (
  INSERT INTO runs (id, tenant_id, session_id, api_key_id, prompt, config, timeout_seconds, kind, expand_prompt,
    resources, traceparent, steer, end_user)
  SELECT $3, $2, id, $4, $5, $6, least($7, ($10::jsonb ->> profile)::float8), $11, $12, $14, $15,
    $16 AND EXISTS (SELECT 1 FROM runs WHERE session_id = $1 AND status IN ('queued','running','requires_action')),
    coalesce($17, end_user)
  FROM target JOIN refused ON refused.why IS NULL
  RETURNING id
)
SELECT s.last_seq, s.profile, s.reached, s.archived_at, refused.why AS refused, added.id AS run_id,
  CASE WHEN $13 THEN ({sessions.CURRENT}) END AS busy_with
FROM target s LEFT JOIN refused ON true LEFT JOIN added ON true
"""  # noqa: S608 - ours


async def submit(core: Core, tenant_id: UUID, api_key_id: UUID | None, submission: Submission) -> Submitted:
    """Queue a prompt; the caller then wakes the runners.

    Raises:
        NotFound: `session_not_found`, `agent_not_found`.
        Conflict: `session_deleted`, `session_busy`, `idempotency_key_reused`.
        NameTaken: one of its names is another's. Nothing was queued.
        RateLimited: `budget_reached`, `quota_exceeded`.
        ValidationError, Forbidden: as `admission.judge`, and `admission.judge_change` for an existing session.
    """
    if submission.session_id is None:
        return await _begin(core, tenant_id, api_key_id, submission)
    found = await admission.problems_of_change(core, tenant_id, submission.wanted)
    found += submission.not_for_a_turn
    if submission.is_plain:
        refuse(found)
        async with core.db.statement() as connection:
            return await enqueue(core, connection, tenant_id, api_key_id, submission, None)
    async with core.db.transaction() as connection:
        if before := await repetition(connection, tenant_id, submission):
            return await again(connection, before)
        changed = await _prepare(connection, tenant_id, submission, found)
        return await _once(core, connection, tenant_id, api_key_id, submission, changed)


async def _begin(core: Core, tenant_id: UUID, api_key_id: UUID | None, submission: Submission) -> Submitted:
    judged = await admission.judge(core, tenant_id, submission.wanted)
    async with core.db.transaction() as connection:
        # Whoever repeats a request is answered as before, whatever has become of what it names.
        if before := await repetition(connection, tenant_id, submission):
            return await again(connection, before)
        refuse(judged.problems)
        pins = judged.pins
        ahead = None if pins.are_of_its_own else core.begun_ahead(tenant_id, judged.config, pins.profile)
        session_id = await sessions.insert(
            connection,
            tenant_id,
            judged.config,
            submission.labels,
            ahead,
            pins,
            submission.surface,
            submission.schedule_id,
        )
        for name in submission.session_names:
            await _give(connection, tenant_id, name, session_id)
        submission = replace(submission, session_id=session_id, on_busy="enqueue")
        return await _once(core, connection, tenant_id, api_key_id, submission, None)


async def _once(
    core: Core,
    connection: asyncpg.Connection,
    tenant_id: UUID,
    api_key_id: UUID | None,
    submission: Submission,
    changed: AgentConfig | None,
) -> Submitted:
    """Queue a run as `enqueue` does, give it its names, and remember its idempotency key. Raises as `submit`."""
    submitted = await enqueue(core, connection, tenant_id, api_key_id, submission, changed)
    for name in submission.run_names:
        await _give(connection, tenant_id, name, submitted.session_id, submitted.run_id)
    if submission.idempotency:
        await remember(
            connection, tenant_id, submission.idempotency, session_id=submitted.session_id, run_id=submitted.run_id
        )
    if submission.within:
        await submission.within(connection, submitted)
    return submitted


async def _give(
    connection: asyncpg.Connection, tenant_id: UUID, name: Name, session_id: UUID, run_id: UUID | None = None
) -> None:
    if not await names.give(connection, tenant_id, name, session_id, run_id):
        raise NameTaken(name.text)


async def repetition(connection: asyncpg.Connection, tenant_id: UUID, submission: Submission) -> Earlier | None:
    """What the submission's idempotency key stands for. Raises Conflict, Forbidden."""
    given = submission.idempotency
    if given is None or (before := await repeated(connection, tenant_id, given)) is None:
        return None
    await admission.may_touch(connection, tenant_id, submission.choice.policy, session_id=before.session_id)
    return before


async def again(connection: asyncpg.Connection, before: Earlier) -> Submitted:
    """The run that an idempotency key stands for. Raises Conflict when it stands for something else."""
    if before.session_id is None or before.run_id is None:
        raise reused()
    # One statement: a run that starts between two would be followed from behind its first events.
    after = await connection.fetchval(
        f"SELECT {runs.BEFORE_RUN} FROM runs r JOIN sessions s ON s.id = r.session_id"  # noqa: S608 - ours
        " WHERE r.id = $1",
        before.run_id,
    )
    return Submitted(before.session_id, before.run_id, after, repeated=True)


async def _prepare(
    connection: asyncpg.Connection, tenant_id: UUID, submission: Submission, found: list[Problem]
) -> AgentConfig:
    row = await connection.fetchrow(
        "SELECT config, profile, agent_id, agent_version, archived_at FROM sessions"
        " WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE",
        submission.session_id,
        tenant_id,
    )
    if row is None:
        raise await _missing(connection, tenant_id, submission.session_id)
    if row["archived_at"] is not None:
        raise archived()
    # The lock makes "is it busy" and "then queue this" one step; but only a statement that begins after the lock was
    # granted sees what those have queued who had it before.
    if submission.on_busy == "reject" and await connection.fetchval(sessions.BUSY, submission.session_id):
        raise Conflict("Another run of this session is queued or running.", code="session_busy")
    config = await admission.judge_change(connection, tenant_id, submission.wanted, row, found)
    labels = submission.labels
    await connection.execute(
        "UPDATE sessions SET config = $2, title = coalesce($3, title), tags = coalesce($4, tags),"
        " metadata = coalesce($5, metadata), updated_at = now() WHERE id = $1",
        submission.session_id,
        config.given(),
        labels.title,
        None if labels.tags is None else list(labels.tags),
        None if labels.metadata is None else dict(labels.metadata),
    )
    # Runs that are queued already keep the configuration they were queued with.
    await connection.execute(
        "UPDATE runs SET config = $2 WHERE session_id = $1 AND status = 'queued' AND config IS NULL",
        submission.session_id,
        row["config"],
    )
    return config


def archived() -> Conflict:
    """409 `session_archived`."""
    return Conflict("This session is archived: it can be read, and takes nothing any more.", code="session_archived")


async def _missing(connection: asyncpg.Connection, tenant_id: UUID, session_id: UUID | None) -> Exception:
    known = await connection.fetchval("SELECT 1 FROM sessions WHERE id = $1 AND tenant_id = $2", session_id, tenant_id)
    if known:
        return Conflict("This session has been deleted.", code="session_deleted")
    return NotFound.of("session")


async def enqueue(
    core: Core,
    connection: asyncpg.Connection,
    tenant_id: UUID,
    api_key_id: UUID | None,
    submission: Submission,
    config: AgentConfig | None,
) -> Submitted:
    """Queue a run of the session that it names, with `config` instead of the session's. Raises as `submit`."""
    assert submission.session_id is not None  # noqa: S101 - for the type checker
    run_id, policy, max_queued = uuid4(), submission.choice.policy, core.settings.max_queued_runs_per_session
    row = await connection.fetchrow(
        _ENQUEUE,
        submission.session_id,
        tenant_id,
        run_id,
        api_key_id,
        encode(submission.prompt).decode(),
        config.given() if config else None,
        submission.timeout_seconds,
        max_queued,
        None if policy.bound is None else list(policy.bound),
        policy.timeouts(),
        submission.kind,
        submission.expand_prompt,
        submission.on_busy == "interrupt",
        [resource.given() for resource in submission.resources] or None,
        tracing.current(),
        submission.on_busy == "steer",
        submission.labels.end_user,
    )
    if row is None:
        raise await _missing(connection, tenant_id, submission.session_id)
    policy.require(row["profile"])
    if row["archived_at"] is not None:
        raise archived()
    if row["reached"] is not None:
        raise budgets.refusal(row["reached"])
    if row["refused"] is not None:
        raise quotas.refusal(row["refused"])
    if row["run_id"] is None:
        raise Conflict(f"This session has {max_queued} queued runs already.", code="session_busy")
    tracing.queued(submission.session_id, run_id)
    return Submitted(submission.session_id, run_id, row["last_seq"], busy_with=row["busy_with"])


async def change(
    core: Core, tenant_id: UUID, session_id: UUID, changes: AgentConfig, choice: Choice, *, while_busy: bool
) -> None:
    """Change the configuration of a session from its next prompt on, without sending one.

    Raises:
        NotFound: `session_not_found`.
        Conflict: `session_deleted`, `session_archived`; `session_busy`, unless `while_busy`.
        ValidationError, Forbidden: as `admission.judge_change`.
    """
    busy: OnBusy = "enqueue" if while_busy else "reject"
    asked = Submission("", 0.0, session_id, changes, on_busy=busy, choice=choice)
    found = await admission.problems_of_change(core, tenant_id, Wanted(changes, choice))
    async with core.db.transaction() as connection:
        await _prepare(connection, tenant_id, asked, found)
    await sessions.forget_cached(core.redis, tenant_id, session_id)


async def create_session(
    core: Core,
    tenant_id: UUID,
    config: AgentConfig,
    labels: Labels,
    idempotency: Idempotency | None,
    choice: Choice = NO_CHOICE,
    surface: str = "native",
) -> UUID:
    """Create a session without a prompt, once per idempotency key. `surface`: see Submission.

    Raises:
        Conflict: the idempotency key was for another request.
        NotFound, ValidationError, Forbidden: as `admission.judge`.
    """
    judged = await admission.judge(core, tenant_id, Wanted(config, choice))
    async with core.db.transaction() as connection:
        if idempotency and (before := await repeated(connection, tenant_id, idempotency)):
            if before.session_id is None:
                raise reused()
            await admission.may_touch(connection, tenant_id, choice.policy, session_id=before.session_id)
            return before.session_id
        refuse(judged.problems)
        session_id = await sessions.insert(
            connection, tenant_id, judged.config, labels, pins=judged.pins, surface=surface
        )
        if idempotency:
            await remember(connection, tenant_id, idempotency, session_id=session_id)
        return session_id
