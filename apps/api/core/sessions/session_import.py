"""The import of one session: its lines, judged one by one, and its files.

Nothing keeps its id: of the old ones each text has the new ones in place, and the new paths.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from apps.api import audit
from apps.api.core.codec import clean, encode
from apps.api.core.events.frames import event_data
from apps.api.core.events.log import Event
from apps.api.core.files import manifest as stored_files
from apps.api.core.files import snapshots
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.tarball import BadArchive, Member, Members
from apps.api.core.sessions import archive_lines as wire
from apps.api.core.sessions import sessions, stored, transcripts, workspaces
from apps.api.core.sessions.admission import Pins
from apps.api.core.sessions.importing import Imported, Importer, Refused, config_of
from apps.api.core.sessions.sessions import Labels

MAX_LINE = 300_000_000
"""Bytes of a line. One of a conversation holds what an agent has said at once, a file in base64 for example."""

MAX_HEAD = 50_000_000
"""Bytes of a member that is read as a whole: the manifest, a session with its configuration."""

ROWS = 500
ROWS_BYTES = 8 << 20
"""Lines, and bytes of them or one line, that are stored in one statement."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PART = re.compile(
    r"sessions/(?P<id>[0-9a-f-]{36})/(?:(?P<kind>runs|usage|events|transcript)-[0-9]{4,9}\.jsonl|"
    r"(?P<one>session\.json)|(?P<tree>files|home|output|history)(?:/(?P<path>.+))?)",
    re.DOTALL,
)
_ORDER = ("session", "runs", "usage", "events", "transcript", "tree")

_OF_PATHS = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOENT}
"""Why a member cannot be placed because of what it is; a full disk is none of them."""


@dataclass(slots=True)
class _Run:
    """A run of this archive: its new id, its last event, and whether its `done` was there."""

    id: UUID
    last_seq: int | None
    done: bool = False


class SessionImport:
    """One session, in the transaction of its importer; its files are aside until they are in the store."""

    def __init__(
        self, core: Importer, tenant_id: UUID, manifest: wire.Manifest, imported: Imported, *, alone: bool
    ) -> None:
        """`alone`: its tenant is there already, and has other sessions."""
        self._alone = alone
        self._core, self._tenant_id, self._manifest, self._imported = core, tenant_id, manifest, imported
        self.id = uuid4()
        self._ids: dict[str, str] = {}
        self._runs: dict[UUID, _Run] = {}
        self._line: wire.SessionLine
        self._seq = 0
        before, after = manifest.workspaces_dir.rstrip("/"), str(core.settings.workspaces_root)
        moved = before and before != after
        self._paths = re.compile(f"{re.escape(before)}/((?:[.][a-z]{{1,20}}/)?{self.id})") if moved else None

    async def discard(self) -> None:
        """Remove what was placed aside, and what was stored: of a tenant that will not be, all. Raises OSError,
        StoreFailed."""
        workspaces.discard(self._core.settings, self.id)
        tenant, own = stored_files.below_tenant(self._tenant_id), stored_files.below_session(self._tenant_id, self.id)
        await self._core.objects.remove_below(own if self._alone else tenant)

    async def take(self, reading: Members) -> None:
        """All members of the next session. Raises BadArchive, Refused, StoreFailed, OSError."""
        found = _PART.fullmatch(reading.peek().name)
        if found is None or not found["one"]:
            raise BadArchive(f"{reading.peek().name[:200]!r} does not belong here")
        old, stage = found["id"], 0
        settings = self._core.settings
        workspaces.receive(settings, self.id)
        while (found := _PART.fullmatch(reading.peek().name)) and found["id"] == old:
            member = reading.take()
            kind = "session" if found["one"] else found["kind"] or "tree"
            if _ORDER.index(kind) < stage:
                raise BadArchive(f"{member.name[:200]!r} comes too late")
            if kind != "tree" and member.kind != "file":
                raise BadArchive(f"{member.name[:200]!r} is no file")
            stage = max(_ORDER.index(kind), 1)
            if kind == "session":
                await self._begin(member, old)
            elif kind == "tree":
                self._place(member, found["tree"], found["path"])
            else:
                await self._lines(member, kind)
        self._whole()
        await self._store_files()
        workspaces.discard(settings, self.id)

    def _whole(self) -> None:
        where = f"session {self._line.id}"
        if self._seq != self._line.last_seq:
            raise BadArchive(f"{where}: events after number {self._seq} are missing")
        for old, run in self._runs.items():
            # Whoever follows a run waits for that.
            if not run.done and (run.last_seq is None or run.last_seq > self._line.expired_seq):
                raise BadArchive(f"{where}: run {old} has ended, and its event `done` is missing")

    async def _begin(self, member: Member, old: str) -> None:
        self._line = line = wire.read(wire.SessionLine, member.whole(MAX_HEAD), member.name)
        if str(line.id) != old:
            raise BadArchive(f"{member.name}: id: is not that of its directory")
        if line.id in self._imported.sessions:
            raise BadArchive(f"{member.name}: id: is there twice")
        profile = line.profile or self._core.policy.usual
        config, lacks = config_of(line.config, profile, self._core.policy, member.name)
        self._imported.lacking += [f"session {self.id}: {what}" for what in lacks]
        self._ids = {old: str(self.id), str(line.conversation): str(self.id)}
        self._seq = line.expired_seq
        agent, version = self._preset(line, member.name)
        labels = Labels(line.title, line.tags, line.metadata, line.end_user)
        pins = Pins(profile, agent, version)
        connection = self._core.connection
        await sessions.insert(connection, self._tenant_id, config, labels, self.id, pins, line.surface)
        parent = self._imported.sessions.get(line.parent_session_id) if line.parent_session_id else None
        used = (line.num_turns, line.total_cost_usd, line.usage)
        told = (line.permission_mode, line.tools, line.created_at, line.updated_at, line.last_seq, line.expired_seq)
        await connection.execute(_DESCEND, self.id, parent, *used, *told)
        await audit.note(connection, "session.imported", self._tenant_id, self.id, was=old)
        self._imported.sessions[line.id] = self.id

    def _preset(self, line: wire.SessionLine, where: str) -> tuple[UUID | None, int | None]:
        known = self._imported.presets.get(line.agent.id) if line.agent else None
        if line.agent is None or known is None:  # it was removed, or stayed where the session was
            return None, None
        if line.agent.version not in known.versions:
            raise BadArchive(f"{where}: agent.version: the preset has no version {line.agent.version}")
        return known.id, line.agent.version

    # --- lines -----------------------------------------------------------------------------------------------------

    async def _lines(self, member: Member, kind: str) -> None:
        make, query = _KINDS[kind]
        rows, size = list[tuple[Any, ...]](), 0
        where = member.name
        for number, line in member.lines(MAX_LINE):
            where = f"{member.name} line {number}"
            rows.append(make(self, line, where))
            size += len(line)
            if len(rows) >= ROWS or size >= ROWS_BYTES:
                await self._store(query, rows, where)
                rows, size = [], 0
        await self._store(query, rows, where)

    async def _store(self, query: str, rows: list[tuple[Any, ...]], where: str) -> None:
        try:
            await self._core.connection.executemany(query, rows)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
            raise BadArchive(f"{where}, or up to {ROWS} lines before it: {error}") from error
        self._imported.rows += len(rows)

    def run(self, line: bytes, where: str) -> tuple[Any, ...]:
        """The row of a run."""
        run = wire.read(wire.RunLine, line, where)
        if str(run.id) in self._ids or str(run.id) in self._imported.runs:
            raise BadArchive(f"{where}: id: is there twice")
        if max(run.first_seq or 0, run.last_seq or 0) > self._line.last_seq:
            raise BadArchive(f"{where}: first_seq, last_seq: beyond the end of the session")
        new = uuid4()
        self._runs[run.id] = _Run(new, run.last_seq)
        self._imported.runs[str(run.id)] = str(new)
        prompt, result = (text and encode(self._renamed(wire.said(text))).decode() for text in (run.prompt, run.result))
        return (
            *(new, self._tenant_id, self.id, run.kind, run.origin, run.status, prompt, run.expand_prompt),
            *(run.timeout_seconds, run.first_seq, run.last_seq, clean(run.error) if run.error else None, result),
            *(run.total_cost_usd, run.created_at, run.started_at, run.finished_at, run.end_user),
        )

    def usage(self, line: bytes, where: str) -> tuple[Any, ...]:
        """The row of what a run has used."""
        used = wire.read(wire.UsageLine, line, where)
        tokens = (used.input_tokens, used.output_tokens, used.cache_read_input_tokens, used.cache_creation_input_tokens)
        run = self._known_run(used.run_id, where)
        searches = used.web_search_requests
        whose = (self._tenant_id, self.id, used.day)
        return (run.id, used.model, *whose, *tokens, searches, used.cost_usd, used.end_user)

    def _known_run(self, run_id: UUID, where: str) -> _Run:
        if run_id not in self._runs:
            raise BadArchive(f"{where}: run_id: no run of this session has this id")
        return self._runs[run_id]

    def event(self, line: bytes, where: str) -> tuple[Any, ...]:
        """The row of an event."""
        event = wire.read(wire.EventLine, line, where)
        self._seq += 1
        if event.seq != self._seq or event.seq > self._line.last_seq:
            raise BadArchive(f"{where}: seq: {event.seq} does not follow {self._seq - 1}, or is beyond last_seq")
        fields = self._object(event.data, f"{where}: data")
        told = fields.pop("run_id", None)
        for head in ("session_id", "seq", "created_at"):
            fields.pop(head, None)
        try:
            wire.check_event(event.type, fields)
        except ValueError as error:
            raise BadArchive(f"{where}: {error}") from None
        of = self._of_run(event, told, where)
        fields = self._renamed(fields)
        data = event_data(self.id, of, event.seq, event.created_at, fields).decode()
        own = Event(event.type, fields, of if event.run_id else None)
        told_of = (own.parent_tool_use_id, own.subject)
        return (self.id, event.seq, own.run_id, event.type, *told_of, data, event.created_at)

    def _of_run(self, event: wire.EventLine, told: Any, where: str) -> UUID | None:
        """Which run its readers are told. What a fork has of its parent is of no run of its own, and tells of one."""
        if event.run_id is not None:
            run = self._known_run(event.run_id, where)
            if run.done:
                raise BadArchive(f"{where}: run_id: of a run whose `done` stands before it")
            run.done = event.type == "done"
            return run.id
        if told is None:
            return None
        try:
            old = str(UUID(told))
        except (ValueError, TypeError, AttributeError):
            raise BadArchive(f"{where}: data.run_id: is no id") from None
        return UUID(self._new(old) or self._ids.setdefault(old, str(uuid4())))

    def entry(self, line: bytes, where: str) -> tuple[Any, ...]:
        """The row of what the agent has written of the conversation."""
        entry = wire.read(wire.EntryLine, line, where)
        fields = self._object(entry.entry, f"{where}: entry")
        if '"signature":"' in entry.entry or '"type":"redacted_thinking"' in entry.entry:
            # What the model has signed it takes back word for word or not at all.
            fields = {name: self._renamed(own) if isinstance(own, str) else own for name, own in fields.items()}
        else:
            fields = self._renamed(fields)
        said = encode(fields).decode()
        return (self.id, str(self.id), entry.subpath, *transcripts.columns_of(fields), said)

    def _object(self, text: str, where: str) -> dict[str, Any]:
        try:
            found = wire.said(text)
        except ValueError as error:
            raise BadArchive(f"{where}: {error}") from None
        if not isinstance(found, dict):
            raise BadArchive(f"{where}: is no object")
        return found

    def _new(self, old: str) -> str | None:
        return self._ids.get(old) or self._imported.runs.get(old)

    def _renamed(self, value: Any) -> Any:
        """The same with the new ids in place of the old ones, and the new paths, in each text."""
        if isinstance(value, str):
            text = _UUID.sub(lambda found: self._new(found[0]) or found[0], value)
            if self._paths is None:
                return text
            return self._paths.sub(lambda found: f"{self._core.settings.workspaces_root}/{found[1]}", text)
        if isinstance(value, dict):
            return {self._renamed(name): self._renamed(inner) for name, inner in value.items()}
        return [self._renamed(inner) for inner in value] if isinstance(value, list) else value

    # --- files -----------------------------------------------------------------------------------------------------

    def _place(self, member: Member, tree: str, path: str | None) -> None:
        inside = None if path is None else PurePosixPath(path)
        leads: str = self._renamed(member.leads)
        try:
            placed = workspaces.place_received(self._core.settings, self.id, tree, inside, member, leads)
        except ValueError as error:
            raise BadArchive(f"{member.name[:300]!r}: {error}") from None
        except OSError as error:
            if error.errno not in _OF_PATHS:
                raise
            raise BadArchive(f"{member.name[:300]!r}: {error.strerror}") from None
        self._imported.files += member.kind == "file"
        self._imported.links_left_out += not placed

    async def _store_files(self) -> None:
        """Give what came to the store, under the names by which the new session knows it."""
        core, line = self._core, self._line
        workspaces.rename_received(core.settings, self.id, line.id, line.conversation)
        if not (places := workspaces.received(core.settings, self.id)):
            return  # they were missing where the session was, and the next prompt is told so
        limits = snapshots.Limits(core.settings.workspace_max_bytes, core.settings.workspace_max_files)
        try:
            async with asyncio.timeout(snapshots.PROMPTLY):
                taken = await snapshots.take(core.objects, core.threads, self._tenant_id, places, None, limits)
        except snapshots.TooLarge as error:
            raise Refused(f"session {line.id}: its files: {error}") from error
        except TimeoutError as error:
            raise StoreFailed(f"the files of session {line.id} take too long to store") from error
        entries = taken.entries if taken else {}
        name = stored_files.name_of(self._tenant_id, self.id, 0)
        await core.objects.put(name, await core.threads.run(stored_files.encode, entries))
        await stored.begin(core.connection, self.id, name, stored_files.size_of(entries.values()))


_DESCEND = """
UPDATE sessions SET parent_session_id = $2, num_turns = $3, total_cost_usd = $4, usage = $5, permission_mode = $6,
  tools = $7, created_at = $8, updated_at = $9, last_seq = $10, expired_seq = $11 WHERE id = $1
"""

_INSERT_RUN = """
INSERT INTO runs (id, tenant_id, session_id, kind, origin, status, prompt, expand_prompt, timeout_seconds, first_seq,
  last_seq, error, result, total_cost_usd, created_at, started_at, finished_at, end_user)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
"""

_INSERT_USAGE = """
INSERT INTO usage (run_id, model, tenant_id, session_id, day, input_tokens, output_tokens, cache_read_input_tokens,
  cache_creation_input_tokens, web_search_requests, cost_usd, end_user)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""

_INSERT_EVENT = """
INSERT INTO events (session_id, seq, run_id, type, parent_tool_use_id, subject, data, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

# The key that the agent makes of its directory is left to whoever starts it: see `Transcripts.adopt`.
_INSERT_ENTRY = """
INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, subpath, uuid, type, said_at, entry)
VALUES ($1, '', $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
"""

_KINDS: dict[str, tuple[Callable[[SessionImport, bytes, str], tuple[Any, ...]], str]] = {
    "runs": (SessionImport.run, _INSERT_RUN),
    "usage": (SessionImport.usage, _INSERT_USAGE),
    "events": (SessionImport.event, _INSERT_EVENT),
    "transcript": (SessionImport.entry, _INSERT_ENTRY),
}
