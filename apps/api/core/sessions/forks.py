"""Forks: new sessions that begin with what another session has said, its files and its configuration.

A fork holds copies of its own, so that neither session sees what becomes of the other. What was copied of the log keeps
its numbers; its runs remain the parent's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import structlog

from apps.api.core.context import Core
from apps.api.core.files import forking, manifest, restoring
from apps.api.core.files.objects import StoreFailed
from apps.api.core.sessions import admission, names, prompts, sessions, stored, workspaces
from apps.api.core.sessions.admission import Pins, Wanted
from apps.api.core.sessions.names import NameTaken
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.sessions.sessions import Labels
from apps.api.core.sessions.stored import Stored
from apps.api.core.tenant.idempotency import remember, reused
from apps.api.errors import Conflict, NotFound, TooLarge, ValidationError

log = structlog.get_logger(__name__)

MAX_CONVERSATION = 128 * 1024 * 1024
"""Bytes of events, and as many of what the agent has written of a conversation, that are copied: each by one statement.
On two cores 100 MB took 1 to 6 s, the longer the smaller the entries; a statement may take STATEMENT_TIMEOUT."""

LOOK_BACK = 50
"""Messages before a cut among which one must be in the transcript: the newest of all may not have got there."""


@dataclass(frozen=True, slots=True)
class Fork:
    """What to fork.

    Attributes:
        submission: `session_id` is the parent's; its configuration and labels overlay the parent's. Its names become
            those of the fork and its run: they are the parent's until then, or nobody's.
        at_seq: up to this event; `message_uuid`: up to and with this message; `before_run`: up to the prompt of this
            run, and without it. None of them: all of it.
        begins: whether its prompt is to be run in the fork.
    """

    submission: prompts.Submission
    begins: bool
    at_seq: int | None = None
    message_uuid: UUID | None = None
    before_run: UUID | None = None

    @property
    def wanted(self) -> Wanted:
        """What is judged of it."""
        return self.submission.wanted if self.begins else replace(self.submission.wanted, prompt=None)


@dataclass(frozen=True, slots=True)
class Forked:
    """The fork, and its first run if it began with a prompt."""

    session_id: UUID
    run: Submitted | None


@dataclass(frozen=True, slots=True)
class _Cut:
    """Events up to `seq`, and entries of the agent's conversation up to `entry`, are copied."""

    seq: int
    sdk_session_id: UUID
    entry: int
    whole: bool = False


async def fork(core: Core, tenant_id: UUID, api_key_id: UUID | None, asked: Fork) -> Forked:
    """Make a session of another one, once per idempotency key; the caller then wakes the runners.

    Raises:
        NotFound: `session_not_found`, `message_not_found`.
        Conflict: `session_busy`: a run is active in what is to be copied; `workspace_not_copied`,
            `idempotency_key_reused`, `session_deleted`.
        NameTaken: one of its names is a third session's by now. Nothing was made.
        TooLarge: `workspace_too_large`, `conversation_too_large`.
        ValidationError, Forbidden: as `prompts.submit`.
        Busy: too many forks of this tenant wait.
    """
    async with core.db.turns.copying(tenant_id):
        return await _fork(core, tenant_id, api_key_id, asked)


async def _fork(core: Core, tenant_id: UUID, api_key_id: UUID | None, asked: Fork) -> Forked:
    parent_id = asked.submission.session_id
    assert parent_id is not None  # noqa: S101 - for the type checker
    found = await admission.problems_of_change(core, tenant_id, asked.wanted)
    async with core.db.transaction() as connection:
        if before := await _before(connection, tenant_id, asked):
            return before
        parent = await _parent(connection, tenant_id, parent_id)
        # What cannot be done is said before files are copied.
        await admission.judge_change(connection, tenant_id, asked.wanted, parent, found)
        cut = await _cut(connection, parent, asked)
        await _require_copyable(connection, parent_id, cut)
        files = await stored.find(connection, parent_id)
    session_id = uuid4()
    name = await _store_files(core, tenant_id, files, (parent_id, session_id), (cut.sdk_session_id, session_id))
    async with core.db.transaction() as connection:
        if before := await _before(connection, tenant_id, asked):
            return before
        parent = await _parent(connection, tenant_id, parent_id)
        forked = await _insert(core, connection, tenant_id, api_key_id, parent, cut, session_id, asked)
        if name is not None and files.name is not None:
            await stored.begin(connection, session_id, name, files.size)
            if not await stored.still(connection, parent_id, files.name):
                # Then it may be garbage by now, with what both name: see `files.garbage`.
                message = "The session's files were stored anew meanwhile: try it again."
                raise Conflict(message, code="workspace_not_copied")
    return forked


async def _before(connection: asyncpg.Connection, tenant_id: UUID, asked: Fork) -> Forked | None:
    before = await prompts.repetition(connection, tenant_id, asked.submission)
    if before is None:
        return None
    if before.session_id is None:
        raise reused()
    run = await prompts.again(connection, before) if before.run_id else None
    return Forked(before.session_id, run)


# KEY SHARE keeps a deletion waiting, and lets the owner go on.
_PARENT = """
SELECT s.id, s.config, s.profile, s.agent_id, s.agent_version, s.environment_id, s.network, s.vault_ids, s.last_seq,
  s.sdk_session_id, s.title, s.tags, s.metadata, s.end_user, s.tools, s.permission_mode, s.deleted_at, s.expired_seq,
  (SELECT coalesce(max(t.id), 0) FROM transcript_entries t WHERE t.session_id = s.id) AS entry,
  (SELECT r.first_seq FROM runs r WHERE r.session_id = s.id
    AND (r.status IN ('running','requires_action') OR r.parked IS NOT NULL)) AS busy_from,
  (SELECT r.id FROM runs r WHERE r.session_id = s.id
    AND (r.status IN ('running','requires_action') OR r.parked IS NOT NULL)) AS busy_run
FROM sessions s WHERE s.id = $1 AND s.tenant_id = $2 FOR KEY SHARE OF s
"""


async def _parent(connection: asyncpg.Connection, tenant_id: UUID, session_id: UUID) -> asyncpg.Record:
    row = await connection.fetchrow(_PARENT, session_id, tenant_id)
    if row is None:
        raise NotFound.of("session")
    if row["deleted_at"] is not None:
        raise Conflict("This session has been deleted.", code="session_deleted")
    return row


_MESSAGE = """
SELECT seq FROM events WHERE session_id = $1 AND type = 'message' AND parent_tool_use_id IS NULL
  AND subject = $2 ORDER BY seq LIMIT 1
"""

_LAST_MESSAGES = """
SELECT subject FROM events WHERE session_id = $1 AND type = 'message' AND parent_tool_use_id IS NULL AND seq <= $2
  AND seq > coalesce((
    SELECT max(seq) FROM events WHERE session_id = $1 AND type = 'status' AND subject = 'hard' AND seq <= $2), 0)
ORDER BY seq DESC LIMIT $3
"""

_ENTRY = """
SELECT id, sdk_session_id FROM transcript_entries
WHERE session_id = $1 AND subpath = '' AND uuid = ANY($2::text[]) ORDER BY id DESC LIMIT 1
"""


async def _cut(connection: asyncpg.Connection, parent: asyncpg.Record, asked: Fork) -> _Cut:
    seq: int = parent["last_seq"] if asked.at_seq is None else asked.at_seq
    if (message := asked.message_uuid or asked.before_run) is not None:
        seq = await connection.fetchval(_MESSAGE, parent["id"], str(message))
        if seq is None:
            raise NotFound.of("message")
        if asked.before_run is not None:
            # What a run says before its prompt is of that run: without it nothing of an active one is copied.
            seq = (parent["busy_from"] if parent["busy_run"] == asked.before_run else seq) - 1
    elif seq < parent["expired_seq"]:
        raise ValidationError.of("at_seq", f"events up to number {parent['expired_seq']} were removed for their age")
    elif seq > parent["last_seq"]:
        raise ValidationError.of("at_seq", f"the session's newest event is number {parent['last_seq']}")
    whole = asked.at_seq is None and message is None
    if parent["busy_from"] is not None and (whole or seq >= parent["busy_from"]):
        raise Conflict("A run of this session is active: fork at an event before it, or wait.", code="session_busy")
    if whole:
        return _Cut(seq, parent["sdk_session_id"], parent["entry"], whole=True)
    rows = await connection.fetch(_LAST_MESSAGES, parent["id"], seq, LOOK_BACK)
    uuids = [row["subject"] for row in rows if row["subject"]]
    found = await connection.fetchrow(_ENTRY, parent["id"], uuids)
    if found is None and (uuids or parent["expired_seq"]):
        raise NotFound.of("message")
    return _Cut(seq, UUID(found["sdk_session_id"]), found["id"]) if found else _Cut(seq, parent["sdk_session_id"], 0)


_SIZE = """
SELECT greatest(
  (SELECT sum(octet_length(data)) FROM events WHERE session_id = $1 AND seq <= $2),
  (SELECT sum(octet_length(entry)) FROM transcript_entries WHERE session_id = $1 AND sdk_session_id = $3 AND id <= $4))
"""


async def _require_copyable(connection: asyncpg.Connection, parent_id: UUID, cut: _Cut) -> None:
    size = await connection.fetchval(_SIZE, parent_id, cut.seq, str(cut.sdk_session_id), cut.entry)
    if size is not None and size > MAX_CONVERSATION:
        message = f"The conversation is more than {MAX_CONVERSATION} bytes: fork at an earlier event."
        raise TooLarge(message, code="conversation_too_large", details={"limit_bytes": MAX_CONVERSATION})


async def _store_files(
    core: Core, tenant_id: UUID, files: Stored, sessions_: tuple[UUID, UUID], conversations: tuple[UUID, UUID]
) -> str | None:
    """Store what the parent's files are for the fork, as they were stored last; what of a fork that fails is left over
    nobody refers to. Returns the manifest's name. Raises TooLarge, Conflict."""
    limit = core.settings.max_workspace_copy_bytes
    if files.size > limit:
        message = f"The session's files are more than {limit} bytes."
        raise TooLarge(message, code="workspace_too_large", details={"limit_bytes": limit})
    if files.name is None:
        return None
    threads, places = core.blocking.copies, workspaces.places(core.settings, sessions_[0])
    try:
        entries = await restoring.read(core.objects, threads, files.name)
        forked = await threads.run(forking.fork, entries, places, sessions_, conversations)
        name = manifest.name_of(tenant_id, sessions_[1], 0)
        await core.objects.put(name, await threads.run(manifest.encode, forked))
    except StoreFailed as error:
        log.warning("forks.files_not_copied", session_id=str(sessions_[0]), error=error)
        raise Conflict("The session's files could not be copied.", code="workspace_not_copied") from error
    return name


# The agent finds its conversation by its id and its working directory, and both are in what it has written. The key
# that it makes of the directory is left to whoever starts it: see `Transcripts.adopt`.
# What subagents have said is stored a moment after it was said, so there the time decides where to cut.
# What the model has signed it takes back word for word or not at all: there only the entry's own fields are changed. A
# quote within a text is escaped, so that no text looks like a field.
_SIGNED = """(strpos(entry, '"signature":"') > 0 OR strpos(entry, '"type":"redacted_thinking"') > 0)"""
_COPY_TRANSCRIPT = f"""
WITH cut AS (SELECT said_at FROM transcript_entries WHERE id = $4 AND session_id = $1),
begun AS (
  SELECT DISTINCT t.subpath FROM transcript_entries t, cut
  WHERE t.session_id = $1 AND t.sdk_session_id = $3 AND t.subpath <> '' AND t.said_at <= cut.said_at
)
INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, subpath, uuid, type, said_at, entry)
SELECT $2::uuid, '', $2::uuid::text, subpath, uuid, type, said_at, CASE WHEN {_SIGNED}
  THEN regexp_replace(replace(entry, '"sessionId":"' || $3 || '"', '"sessionId":"' || $2::uuid::text || '"'),
    '("cwd":"[^"]*)' || $1::uuid::text, '\\1' || $2::uuid::text, 'g')
  ELSE replace(replace(entry, $3, $2::uuid::text), $1::uuid::text, $2::uuid::text) END
FROM transcript_entries WHERE session_id = $1 AND sdk_session_id = $3 AND CASE WHEN $5 OR subpath = '' THEN id <= $4
  ELSE subpath IN (SELECT subpath FROM begun) AND coalesce(said_at <= (SELECT said_at FROM cut), true) END
ORDER BY id
ON CONFLICT DO NOTHING
"""  # noqa: S608 - of constants

_COPY_EVENTS = """
INSERT INTO events (session_id, seq, run_id, type, parent_tool_use_id, subject, data, created_at)
SELECT $2::uuid, seq, NULL, type, parent_tool_use_id, subject, replace(data, $1::uuid::text, $2::uuid::text),
  created_at
FROM events WHERE session_id = $1 AND seq <= $3
"""

_DESCEND = """
UPDATE sessions SET parent_session_id = $2, last_seq = $3, tools = $4, permission_mode = $5, expired_seq = $6
WHERE id = $1
"""


async def _insert(
    core: Core,
    connection: asyncpg.Connection,
    tenant_id: UUID,
    api_key_id: UUID | None,
    parent: asyncpg.Record,
    cut: _Cut,
    session_id: UUID,
    asked: Fork,
) -> Forked:
    config = await admission.judge_change(connection, tenant_id, asked.wanted, parent, [])
    pins = Pins(*(parent[name] for name in ("profile", "agent_id", "agent_version", "environment_id", "network")))
    pins = replace(pins, vault_ids=tuple(parent["vault_ids"] or ()))
    labels, surface = _labels(asked.submission.labels, parent), asked.submission.surface
    await sessions.insert(connection, tenant_id, config, labels, session_id, pins, surface)
    of_agent = (parent["tools"], parent["permission_mode"])
    await connection.execute(_DESCEND, session_id, parent["id"], cut.seq, *of_agent, parent["expired_seq"])
    await connection.execute(_COPY_TRANSCRIPT, parent["id"], session_id, str(cut.sdk_session_id), cut.entry, cut.whole)
    await connection.execute(_COPY_EVENTS, parent["id"], session_id, cut.seq)
    run = None
    if asked.begins:
        begun = replace(asked.submission, session_id=session_id, on_busy="enqueue")
        run = await prompts.enqueue(core, connection, tenant_id, api_key_id, begun, None)
    await _rename(connection, tenant_id, asked, parent["id"], session_id, run)
    if asked.submission.idempotency:
        await remember(
            connection,
            tenant_id,
            asked.submission.idempotency,
            session_id=session_id,
            run_id=run.run_id if run else None,
        )
    return Forked(session_id, run)


async def _rename(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    asked: Fork,
    parent_id: UUID,
    session_id: UUID,
    run: Submitted | None,
) -> None:
    given: list[tuple[names.Name, UUID | None]] = [(name, None) for name in asked.submission.session_names]
    given += [(name, run.run_id) for name in asked.submission.run_names] if run else []
    for name, run_id in given:
        if not await names.move(connection, tenant_id, name, parent_id, session_id, run_id):
            raise NameTaken(name.text)


def _labels(given: Labels, parent: Any) -> Labels:
    return Labels(
        parent["title"] if given.title is None else given.title,
        parent["tags"] if given.tags is None else given.tags,
        parent["metadata"] if given.metadata is None else given.metadata,
        parent["end_user"] if given.end_user is None else given.end_user,
    )
