"""Checkpoints: moments to which a session's files can be rewound, one for each prompt.

The CLI keeps copies of files under `file-history/<its session id>`, and says in the transcript which copy stands for
which file at which message: `file-history-snapshot` when a user's message comes in, `file-history-delta` when a file is
changed for the first time. Seen with the bundled CLI 2.1.332.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from apps.api.core import pages
from apps.api.core.codec import decode
from apps.api.core.pages import Page
from apps.api.core.sessions import sessions, transcripts
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound

# The prompt must be part of the session's present conversation: a hard reset begins another one.
_LIST = """
SELECT e.seq, e.data FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.type = 'checkpoint' AND e.seq > $3
  AND EXISTS (
    SELECT 1 FROM transcript_entries t
    WHERE t.session_id = s.id AND t.sdk_session_id = s.sdk_session_id::text AND t.subpath = ''
      AND t.uuid = e.subject)
ORDER BY e.seq LIMIT $4
"""


async def list_page(db: Database, tenant_id: UUID, session_id: UUID, *, limit: int, cursor: str | None) -> Page:
    """Checkpoints of a session's conversation, oldest first. Raises NotFound, ValidationError."""
    await sessions.require(db, tenant_id, session_id)
    rows = await db.pool.fetch(_LIST, session_id, tenant_id, pages.number_of(cursor) or 0, limit + 1)
    return Page(
        [decode(row["data"]) for row in rows[:limit]], str(rows[limit - 1]["seq"]) if len(rows) > limit else None
    )


_FIND = """
SELECT
  EXISTS (SELECT 1 FROM events WHERE session_id = $1 AND type = 'checkpoint' AND subject = $3) AS kept,
  EXISTS (SELECT 1 FROM transcript_entries t WHERE t.session_id = s.id AND t.sdk_session_id = s.sdk_session_id::text
    AND t.subpath = '' AND t.uuid = $3) AS said
FROM sessions s WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL
"""


async def require(db: Database, tenant_id: UUID, session_id: UUID, message_id: UUID) -> None:
    """Raises NotFound (`session_not_found`, `checkpoint_not_found`) or Conflict `checkpointing_off`."""
    row = await db.pool.fetchrow(_FIND, session_id, tenant_id, str(message_id))
    if row is None:
        raise NotFound.of("session")
    if not row["said"]:
        raise NotFound.of("checkpoint")
    if not row["kept"]:
        raise Conflict("File checkpointing was off when this message was sent.", code="checkpointing_off")


@dataclass(frozen=True, slots=True)
class Copies:
    """What the agent's program has kept of files at a checkpoint.

    Attributes:
        conversation: in whose directory the copies are.
        copies: by path in the workspace the name of the copy; None where there was no file.
    """

    conversation: UUID
    copies: dict[str, str | None]


_NEWEST = """
SELECT e.subject FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = $1 AND s.tenant_id = $2 AND e.type = 'checkpoint' AND EXISTS (
  SELECT 1 FROM transcript_entries t
  WHERE t.session_id = s.id AND t.sdk_session_id = s.sdk_session_id::text AND t.subpath = '' AND t.uuid = e.subject)
ORDER BY e.seq DESC LIMIT 1
"""


_WHERE = "SELECT sdk_session_id, config ->> 'cwd' AS cwd FROM sessions WHERE id = $1"


async def copies(db: Database, tenant_id: UUID, session_id: UUID, message_id: UUID | None) -> Copies:
    """Of a checkpoint, or of the newest. Raises NotFound, Conflict as `require`."""
    if message_id is None:
        newest = await db.pool.fetchval(_NEWEST, session_id, tenant_id)
        if newest is None:
            await sessions.require(db, tenant_id, session_id)
            raise NotFound.of("checkpoint")
        message_id = UUID(newest)
    await require(db, tenant_id, session_id, message_id)
    row = await db.pool.fetchrow(_WHERE, session_id)
    conversation, cwd = row["sdk_session_id"], row["cwd"]
    entries = await transcripts.file_history(db, session_id, conversation)
    standing = standing_for(entries, str(message_id))
    found = {inside(session_id, cwd, path): copy for path, copy in standing.items()}
    return Copies(conversation, {path: copy for path, copy in found.items() if path is not None})


def standing_for(entries: Iterable[Mapping[str, Any]], message_id: str) -> dict[str, str | None]:
    """Path → name of the copy that stands for the file at that message; None where there was no file.

    Args:
        entries: the `file-history-…` entries of the transcript. Paths are the CLI's: absolute, or of its directory.
    """
    snapshots: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["type"] == "file-history-snapshot":
            snapshots[entry["snapshot"]["messageId"]] = dict(entry["snapshot"]["trackedFileBackups"])
        elif entry["snapshotMessageId"] in snapshots:
            snapshots[entry["snapshotMessageId"]][entry["trackingPath"]] = entry["backup"]
    first: dict[str, Any] = {}
    for snapshot in snapshots.values():
        for path, copy in snapshot.items():
            if copy.get("version") == 1:
                first.setdefault(path, copy)
    return {path: copy["backupFileName"] for path, copy in {**first, **snapshots.get(message_id, {})}.items()}


def inside(session_id: UUID, cwd: str | None, path: str) -> str | None:
    """The CLI's path as one in the workspace, on whichever host the CLI was; None: it is not in there."""
    parts = PurePosixPath(posixpath.normpath(PurePosixPath("/", str(session_id), cwd or ".", path))).parts
    at = next((n for n, part in enumerate(parts) if part == str(session_id)), len(parts))
    return "/".join(parts[at + 1 :]) or None
