"""Exports: a session, or a tenant with its sessions, as one archive that another installation can import.

| member | what is in it |
|---|---|
| `manifest.json` | which format this is, and whose archive; first |
| `tenant-0001.jsonl` | presets, MCP servers, skills, commands, webhooks and names of secrets of a tenant |
| `sessions/ID/session.json` | a session's own row |
| `sessions/ID/runs-0001.jsonl`, `events-…`, `transcript-…`, `usage-…` | a line for each row, oldest first |
| `sessions/ID/files`, `home`, `output`, `history` | its directories, as they were stored last |
| `end.json` | how many members there are; without it the archive is not whole |

No value of a secret is in it, nor what answers withhold as well: values of `env` and of headers. Nor is what belongs to
an installation: keys, limits, what calls to models cost, the audit log; nor what was asked and answered in between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from apps.api import __version__, audit, clock
from apps.api.core.codec import encode
from apps.api.core.config.agent import AgentConfig
from apps.api.core.files import manifest, restoring, tarball
from apps.api.core.files.manifest import Entries
from apps.api.core.files.objects import Objects, StoreFailed
from apps.api.core.files.tarball import Packer
from apps.api.core.pages import bounded
from apps.api.core.sessions import sessions, workspaces
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound, TooLarge
from apps.api.settings import Settings
from apps.api.threads import Threads

log = structlog.get_logger(__name__)

FORMAT, VERSION = "claude-agent-api", 1

PART = 1 << 20
"""Bytes of lines that are one member, or one line that is longer."""

CHUNK = 256 * 1024
"""Bytes of an archive that are handed on at a time, about."""

ROWS = 500
SESSIONS = 100


@dataclass(frozen=True, slots=True)
class Exporter:
    """What exports need of an instance, or of a command.

    Attributes:
        threads: for what blocks.
        max_files: bytes of one session's files; None: any.
    """

    db: Database
    settings: Settings
    threads: Threads
    objects: Objects
    max_files: int | None = None


async def session(core: Exporter, tenant_id: UUID, session_id: UUID) -> AsyncGenerator[bytes]:
    """The archive of one session. What cannot be exported is said before the first bytes.

    Raises:
        NotFound: `session_not_found`.
        Conflict: `session_deleted`; `session_busy`: a run is queued or active, or has been since it began;
            `workspace_not_copied`: the store does not have the files, or fails.
        TooLarge: `workspace_too_large`.
        OSError: there is no room here for the files.
    """
    row = await _exportable(core, tenant_id, session_id)
    async with _files(core, tenant_id, row) as aside:
        async with core.db.transaction() as connection:
            await audit.note(connection, "session.exported", tenant_id, session_id)
        packer = Packer()
        async with aclosing(_framed(core, packer, "session", _session(core, packer, tenant_id, row, aside))) as chunks:
            async for chunk in chunks:
                yield chunk


async def tenant(core: Exporter, name: str) -> AsyncGenerator[bytes]:
    """The archive of a tenant. None of its sessions may be busy: suspend it first.

    Raises:
        NotFound: `tenant_not_found`.
        Conflict: `session_busy`, naming the session; `workspace_not_copied`. Then what came before is no archive.
        OSError: there is no room here for the files.
    """
    async with core.db.transaction() as connection:
        row = await connection.fetchrow("SELECT id, name, retention FROM tenants WHERE name = $1", name)
        if row is None:
            raise NotFound.of("tenant")
        await audit.note(connection, "tenant.exported", row["id"])
    packer = Packer()
    async with aclosing(_framed(core, packer, "tenant", _tenant(core, packer, row))) as chunks:
        async for chunk in chunks:
            yield chunk


async def _framed(core: Exporter, packer: Packer, kind: str, members: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """A whole archive of these members, in chunks of a size that is worth a write."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "server": __version__,
        "created_at": clock.now().isoformat(),
        "workspaces_dir": str(core.settings.workspaces_root),
    }
    chunk = bytearray(packer.file("manifest.json", encode(head)))
    async with aclosing(members):
        async for data in members:
            chunk += data
            if len(chunk) >= CHUNK:
                yield bytes(chunk)
                chunk.clear()
    chunk += packer.file("end.json", encode({"members": packer.members})) + packer.finish()
    yield bytes(chunk)


# --- one session ---------------------------------------------------------------------------------------------------

_SESSION = f"""
SELECT s.id, title, tags, metadata, config, profile, surface, end_user, agent_id, agent_version, sdk_session_id,
  parent_session_id, num_turns, total_cost_usd, usage, permission_mode, tools, created_at, updated_at, last_seq,
  expired_seq, deleted_at, stored, stored_bytes, ({sessions.CURRENT}) IS NOT NULL AS busy,
  (SELECT coalesce(max(t.id), 0) FROM transcript_entries t WHERE t.session_id = s.id) AS entry
FROM sessions s WHERE s.id = $1 AND s.tenant_id = $2
"""  # noqa: S608 - ours


async def _exportable(core: Exporter, tenant_id: UUID, session_id: UUID) -> asyncpg.Record:
    row = await core.db.pool.fetchrow(_SESSION, session_id, tenant_id)
    if row is None:
        raise NotFound.of("session")
    if row["deleted_at"] is not None:
        raise Conflict("This session has been deleted.", code="session_deleted")
    if row["busy"]:
        raise _busy(session_id)
    return row


def _busy(session_id: UUID) -> Conflict:
    return Conflict(f"A run of session {session_id} is queued or active.", code="session_busy")


_MARKS = ("last_seq", "expired_seq", "sdk_session_id", "entry", "stored")


async def _require_same(core: Exporter, tenant_id: UUID, before: asyncpg.Record) -> None:
    """What was read in many statements is of one moment only if nothing has happened meanwhile."""
    after = await _exportable(core, tenant_id, before["id"])
    if any(after[name] != before[name] for name in _MARKS):
        raise _busy(before["id"])


# --- its files -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _files(core: Exporter, tenant_id: UUID, row: asyncpg.Record) -> AsyncIterator[dict[str, Path]]:
    """A session's directories as they were stored last, in a place of their own for as long as the block takes: what
    there is on this host may be older, and an agent's. Without files there are none. Raises TooLarge, Conflict,
    OSError."""
    if row["stored"] is None:
        yield {}
        return
    _require_small(core, row["stored_bytes"])
    above, places = workspaces.aside(core.settings)
    try:
        entries = await restoring.read(core.objects, core.threads, row["stored"])
        _require_small(core, manifest.weight_of(entries.values()))
        own = {part: place for part, place in places.items() if part in entries}
        await _restore(core, tenant_id, own, entries)
        yield own
    except StoreFailed as error:
        log.error("exports.files_not_read", session_id=str(row["id"]), error=error)
        message = f"The files of session {row['id']} could not be read from the store."
        raise Conflict(message, code="workspace_not_copied") from error
    finally:
        await core.threads.run(workspaces.put_away, core.settings, above)


async def _restore(core: Exporter, tenant_id: UUID, places: dict[str, Path], entries: Entries) -> None:
    planned = await core.threads.run(restoring.plan, places, entries, None)
    await restoring.restore(core.objects, core.threads, tenant_id, places, entries, planned)


def _require_small(core: Exporter, size: int) -> None:
    if core.max_files is not None and size > core.max_files:
        message = f"The session's files are more than {core.max_files} bytes."
        raise TooLarge(message, code="workspace_too_large", details={"limit_bytes": core.max_files})


# --- one session, with its files -----------------------------------------------------------------------------------


async def _session(
    core: Exporter, packer: Packer, tenant_id: UUID, row: asyncpg.Record, places: dict[str, Path]
) -> AsyncGenerator[bytes]:
    session_id, name = row["id"], f"sessions/{row['id']}"
    own = dict(row)
    for left_out in ("deleted_at", "busy", "entry", "agent_id", "agent_version", "stored", "stored_bytes"):
        own.pop(left_out)
    own["config"] = AgentConfig.stored(row["config"]).public()
    own["conversation"] = own.pop("sdk_session_id")
    own["agent"] = row["agent_id"] and {"id": str(row["agent_id"]), "version": row["agent_version"]}
    yield packer.file(f"{name}/session.json", encode(_plain(own)))
    queries: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
        ("runs", _RUNS, ()),
        ("usage", _USAGE, ()),
        ("events", _EVENTS, ()),
        ("transcript", _TRANSCRIPT, (str(row["sdk_session_id"]),)),
    )
    for kind, query, more in queries:
        async for lines in _parts(core, packer, f"{name}/{kind}", _rows(core.db, query, session_id, *more)):
            yield lines
    for part, place in places.items():
        chunks = _in_threads(core, tarball.tree(packer, place, f"{name}/{part}"))
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    await _require_same(core, tenant_id, row)


# Each gives the rows after a key, $2, which they have as `key`: the next page begins where the last one has ended.
_RUNS = """
SELECT position AS key, id, kind, origin, end_user, status, prompt, expand_prompt, timeout_seconds, first_seq, last_seq,
  error, result, total_cost_usd, created_at, started_at, finished_at
FROM runs WHERE session_id = $1 AND position > $2 AND finished_at IS NOT NULL ORDER BY position LIMIT $3
"""

_USAGE = """
SELECT row_number() OVER (ORDER BY run_id, model) + $2 AS key, run_id, model, end_user, day, input_tokens,
  output_tokens, cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd
FROM usage WHERE tenant_id = (SELECT tenant_id FROM sessions WHERE id = $1) AND session_id = $1
ORDER BY run_id, model OFFSET $2 LIMIT $3
"""

_EVENTS = bounded(
    """
SELECT seq AS key, seq, run_id, type, data, created_at FROM events
WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
""",
    "data",
    "key",
)

_TRANSCRIPT = bounded(
    """
SELECT id AS key, subpath, entry FROM transcript_entries
WHERE session_id = $1 AND id > $2 AND sdk_session_id = $4 ORDER BY id LIMIT $3
""",
    "entry",
    "key",
)

_COUNTED = ("key", "up_to", "nth", "found")


async def _rows(db: Database, query: str, session_id: UUID, *more: Any) -> AsyncIterator[dict[str, Any]]:
    key = 0
    while rows := await db.pool.fetch(query, session_id, key, ROWS, *more):
        for row in rows:
            yield {name: value for name, value in row.items() if name not in _COUNTED}
        key = rows[-1]["key"]


async def _parts(
    core: Exporter, packer: Packer, name: str, rows: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Rows as lines, in as many members as it takes: tar wants to know a size before what has it."""
    lines, number = bytearray(), 1
    async for row in rows:
        line = encode(_plain(row)) + b"\n"
        if lines and len(lines) + len(line) > PART:
            yield await core.threads.run(packer.file, f"{name}-{number:04}.jsonl", bytes(lines))
            lines, number = bytearray(), number + 1
        lines += line
    if lines:
        yield await core.threads.run(packer.file, f"{name}-{number:04}.jsonl", bytes(lines))


async def _in_threads(core: Exporter, chunks: Generator[bytes]) -> AsyncGenerator[bytes]:
    """What a generator that blocks yields, some of it at a time."""
    turn = Lock()  # a thread goes on when whoever waits for it is cancelled, and a generator bears no second one

    def some() -> bytes:
        found = bytearray()
        with turn:
            for chunk in chunks:
                found += chunk
                if len(found) >= CHUNK:
                    break
        return bytes(found)

    def close() -> None:
        with turn:
            chunks.close()

    try:
        while found := await core.threads.run(some):
            yield found
    finally:
        await core.threads.run(close)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    return value.isoformat() if hasattr(value, "isoformat") else value


# --- what a tenant has beside its sessions -------------------------------------------------------------------------

_OF_TENANT = {
    "preset": "SELECT id, name, description, version FROM agents WHERE tenant_id = $1 AND deleted_at IS NULL"
    " ORDER BY name",
    "preset_version": "SELECT v.agent_id, v.version, v.profile, v.config, v.created_at FROM agents a"
    " JOIN agent_versions v ON v.agent_id = a.id WHERE a.tenant_id = $1 AND a.deleted_at IS NULL"
    " ORDER BY v.agent_id, v.version",
    "mcp_server": "SELECT name, spec FROM mcp_servers WHERE tenant_id = $1 ORDER BY name",
    "skill": "SELECT kind, name, description, files FROM skills WHERE tenant_id = $1 ORDER BY kind, name",
    "webhook": "SELECT url, description, events FROM webhooks WHERE tenant_id = $1 ORDER BY created_at, id",
    "secret": "SELECT name FROM secrets WHERE tenant_id = $1 ORDER BY name",
}
"""Bounded for each tenant, so each is read at once. Specifications of MCP servers hold no values of env or headers."""

_IDS = """
SELECT id, created_at FROM sessions
WHERE tenant_id = $1 AND deleted_at IS NULL AND ($2::timestamptz IS NULL OR (created_at, id) > ($2, $3::uuid))
ORDER BY created_at, id LIMIT $4
"""


async def _tenant(core: Exporter, packer: Packer, row: asyncpg.Record) -> AsyncGenerator[bytes]:
    async def lines() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "tenant", "name": row["name"], "retention": row["retention"]}
        for kind, query in _OF_TENANT.items():
            for found in await core.db.pool.fetch(query, row["id"]):
                given = dict(found)
                if kind == "preset_version":
                    given["config"] = AgentConfig.stored(found["config"]).public()
                yield {"type": kind, **({"of": given.pop("kind")} if kind == "skill" else {}), **given}

    async for part in _parts(core, packer, "tenant", lines()):
        yield part
    after: tuple[datetime | None, UUID | None] = (None, None)
    while rows := await core.db.pool.fetch(_IDS, row["id"], *after, SESSIONS):
        for found in rows:
            try:
                own = await _exportable(core, row["id"], found["id"])
            except (NotFound, Conflict) as error:
                if error.code == "session_busy":
                    raise
                continue  # deleted meanwhile
            async with (
                _files(core, row["id"], own) as aside,
                aclosing(_session(core, packer, row["id"], own, aside)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk
        after = (rows[-1]["created_at"], rows[-1]["id"])
