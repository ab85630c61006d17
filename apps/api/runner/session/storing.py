"""A session's files while this instance owns it: brought to this host before an agent starts, stored when a run ends.

What is stored at the end of a run is there before its clients are told of the end. A run in which no tool was called
changes nothing, and waits for nothing; where nothing can have changed since the files came, nobody looks at them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import datetime
from operator import eq
from typing import Any, TypeVar
from uuid import UUID

import structlog

from apps.api import instruments
from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.files import manifest, paths, record, restoring, snapshots
from apps.api.core.files.disk_tree import DiskTree
from apps.api.core.files.listing import Sign
from apps.api.core.files.manifest import Entries
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.snapshots import Known, TooLarge
from apps.api.core.sessions import session_files, stored, workspaces
from apps.api.core.sessions.stored import Stored
from apps.api.db import CONNECTION_ERRORS
from apps.api.runner.agent.process import CannotStart

log = structlog.get_logger(__name__)

T = TypeVar("T")

KEEP_SECONDS = 120.0
"""What storing may take at the end of a run, and restoring before one. 200 MB in 20,000 files take some five."""

MAX_TOLD = 100
"""Files that one event names of each kind; of more their number is told."""

MAX_TOLD_BYTES = 100_000
"""Bytes of all the names in one event."""


class NotRestored(CannotStart):
    """The session's files could not be brought here. Another try may do better."""

    @property
    def code(self) -> str:
        """The failure of its run."""
        return "workspace_not_restored"


class Storing:
    """The files of one session on this host and in the store.

    Attributes:
        touched: whether something may have changed that is not stored.
    """

    def __init__(self, core: Core, writer: Writer) -> None:
        self._core, self._writer = core, writer
        self._session_id, self._tenant_id = writer.session_id, writer.tenant_id
        self._places = workspaces.places(core.settings, writer.session_id)
        self._limits = session_files.limits(core.settings)
        self._known: Known | None = None
        self._told: Entries = {}
        self._base: str | None = None
        self._here = self._unread = False
        self._unsure = True
        self._one = asyncio.Lock()
        root, uploads = self._places["files"], core.settings.workspaces_root / workspaces.UPLOADS
        self._tree = DiskTree(root, uploads, core.blocking.stores, self._limits, self.store_now)
        self._noting: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self.touched = False

    # --- before an agent starts --------------------------------------------------------------------------------

    async def bring(self, run_id: UUID | None) -> bool:
        """Make this host's copy what is stored, unless it is that already, and tell what was lost on the way.

        Returns whether there are files that an earlier agent may have left. Raises NotRestored, LeaseLost, Unavailable.
        """
        async with self._one:
            return self._here or await self._bring(run_id)

    async def _bring(self, run_id: UUID | None) -> bool:
        core, threads = self._core, self._core.blocking.stores
        found = await self._writer.repeat(lambda: stored.find(core.db.pool, self._session_id))
        copy = await threads.run(record.name, core.settings, self._session_id)
        same = copy is not None and copy == found.name
        if same and found.unstored_since is not None:  # it was changed, here or on another host
            same = await threads.run(record.is_touched, core.settings, self._session_id)
        if found.name is not None and not same:
            try:
                known = self._known = await self._restore(found.name, found, run_id)
                if found.unstored_since is not None:
                    await self._tell_lost(known, found.at, found.unstored_since, run_id)
            except restoring.Missing as error:
                log.error("storing.missing", session_id=str(self._session_id), error=error)
                await self._writer.append(Event("status", {"status": "workspace_missing"}, run_id))
                self.touched = True  # from now on what is here is stored, whatever it is
            except StoreFailed as error:
                log.error("storing.not_restored", session_id=str(self._session_id), error=error)
                raise NotRestored("The session's files could not be brought to the instance that runs it.") from error
        else:
            self.touched = found.unstored_since is not None
            self._unread = found.name is not None
            if found.name is None and copy is not None:
                await self._forget_copy()
        self._told, self._base = (self._known.entries, self._known.name) if self._known else ({}, None)
        self._unsure, self._here = self.touched or found.name is None, True
        return found.name is not None

    async def _restore(self, name: str, found: Stored, run_id: UUID | None) -> Known:
        core, threads, began = self._core, self._core.blocking.stores, time.monotonic()
        known = await threads.run(record.read, core.settings, self._session_id)
        entries = await _bounded(restoring.read(core.objects, threads, name))
        planned = await _bounded(threads.run(restoring.plan, self._places, entries, known))
        told = {"bytes": planned.size, "files": len(planned.fetched), "stored_at": found.at}
        await self._writer.append(Event("status", {"status": "restoring", **told}, run_id))
        await _bounded(threads.run(record.forget, core.settings, self._session_id))
        try:
            restored = restoring.restore(core.objects, threads, self._tenant_id, self._places, entries, planned)
            done = await _bounded(restored)
        except restoring.Missing:
            await _bounded(threads.run(self._put_away))
            raise
        made = await threads.run(self._made, name, entries, known, done)
        instruments.RESTORE_SECONDS.observe(time.monotonic() - began)
        return made

    def _made(self, name: str, entries: Entries, known: Known | None, done: dict[str, Sign]) -> Known:
        """What there is on this host after a restoration. Blocks."""
        kept = {path: sign for path, sign in (known.signs if known else {}).items() if path in entries}
        now = Known(name, entries, kept | done, manifest.frames(entries))
        self._on_disk(record.write, now)
        return now

    async def _read_copy(self) -> None:
        """What is known of this host's copy, which is what is stored, once somebody wants to know."""
        if self._unread:
            known = await self._core.blocking.stores.run(record.read, self._core.settings, self._session_id)
            if known is not None:
                self._known, self._told, self._base = known, known.entries, known.name
            self._unread = False

    async def _forget_copy(self) -> None:
        """What was stored of the session was removed for its age, and so is the copy of it that was left here."""
        core = self._core
        try:
            await core.blocking.stores.run(workspaces.remove, core.settings, self._session_id)
        except OSError as error:
            raise NotRestored("What is left of the session's old files could not be removed.") from error

    def _put_away(self) -> None:
        """Rather no files than some with holes in them. Blocks. Raises OSError."""
        for place in self._places.values():
            workspaces.put_away(self._core.settings, place)

    async def _tell_lost(self, known: Known, at: datetime | None, since: datetime, run_id: UUID | None) -> None:
        """What is stored gets another name: the host where the rest was lost may come back, with a copy that has it."""
        lost = await self._writer.repeat(lambda: stored.lost_runs(self._core.db, self._session_id, since))
        told = {"stored_at": at, "unstored_since": since, "lost_run_ids": lost}
        await self._writer.append(Event("status", {"status": "workspace_restored", **told}, run_id))
        await self._name(known)

    # --- while one is at work ----------------------------------------------------------------------------------

    def will_change(self) -> None:
        """An agent begins to do something that may change files."""
        self._unsure = True
        if not self.touched:
            self.touched = True
            self._noting = asyncio.create_task(self._note_touched(), name=f"touched-{self._session_id}")

    def may_change(self) -> None:
        """Something has begun that may change files at any time, as programs do that an agent starts with."""
        self._unsure = True

    async def _note_touched(self) -> None:
        core = self._core
        await core.blocking.stores.run(self._on_disk, record.begin)
        try:
            await stored.note_touched(core.db, self._session_id, self._writer.generation, True)
        except CONNECTION_ERRORS as error:  # what it is for: to tell of changes that a dead owner has not stored
            log.warning("storing.not_noted", session_id=str(self._session_id), error=error)

    # --- when a run has ended ----------------------------------------------------------------------------------

    async def keep(self, run_id: UUID | None, *, always: bool = False) -> list[Event]:
        """Store what has changed. Returns what clients are told of it. Raises LeaseLost, Unavailable.

        `always`: also when no tool was called since the last time.
        """
        if not self._here or not (self.touched or always):
            return []
        if self._noting is not None:
            await self._noting
        try:
            async with self._one:
                await self._keep(over=True)
        except (TooLarge, StoreFailed) as error:
            log.warning("storing.not_stored", session_id=str(self._session_id), error=error)
            reason, words = "store_failed", "The store of files does not answer, or refuses."
            if isinstance(error, TooLarge):
                reason, words = error.code, str(error)
            failed = {"status": "workspace_not_stored", "reason": reason, "message": words}
            return [Event("status", failed, run_id)]
        if self._known is None:
            return []
        told = await self._core.blocking.stores.run(changes, self._told, self._known.entries)
        self._told, self._base = self._known.entries, self._known.name
        return [Event("files", told, run_id)] if told else []

    async def tree(self) -> DiskTree:
        """The workspace, for clients. What they change is stored before they are told that it is.

        Raises NotRestored, LeaseLost, Unavailable.
        """
        await self.bring(None)
        return self._tree

    async def store_now(self) -> None:
        """Store what somebody else than an agent has changed. Raises TooLarge, StoreFailed, LeaseLost, Unavailable."""
        async with self._one:
            await self._keep(over=not self.touched)

    async def give_back(self) -> None:
        """Store what has changed, since the session may go to another host. Raises LeaseLost, Unavailable."""
        if told := await self.keep(None, always=self._unsure):
            await self._writer.append(*told)

    async def _keep(self, *, over: bool) -> None:
        """`over`: what was at work has ended, so that nothing is left that is not stored."""
        await self._read_copy()
        core, threads, known = self._core, self._core.blocking.stores, self._known
        taken = await _bounded(
            snapshots.take(core.objects, threads, self._tenant_id, self._places, known, self._limits)
        )
        before, generation = known.entries if known else {}, self._writer.generation
        if taken is None or await threads.run(eq, taken.entries, before):
            if taken is not None and known is not None:
                known.signs = taken.signs
            if over and self.touched:
                await self._writer.repeat(lambda: stored.note_touched(core.db, self._session_id, generation, False))
                await threads.run(self._on_disk, record.settle)
                self.touched = False
            return
        await self._name(now := Known("", *taken), over=over)
        self._known, self.touched = now, self.touched and not over

    async def _remove(self, nobodys: list[str]) -> None:
        """Remove manifests that are the session's no more, which nobody waits for. What resists is found as garbage."""
        with suppress(StoreFailed):  # which is logged
            await self._core.objects.remove(nobodys)

    async def _name(self, known: Known, *, over: bool = True) -> None:
        """Store the manifest of what is known, under a new name. Raises StoreFailed, LeaseLost, Unavailable."""
        core, threads, generation = self._core, self._core.blocking.stores, self._writer.generation
        name = manifest.name_of(self._tenant_id, self._session_id, generation)
        before = self._known or known
        frames = known.frames = await threads.run(manifest.frames, known.entries, before.entries, before.frames)
        await _bounded(core.objects.put(name, b"".join(frames)))
        size = await threads.run(manifest.size_of, known.entries.values())
        whose = (core.db, self._session_id, generation)
        nobodys = await self._writer.repeat(lambda: stored.note(*whose, name, size, before=self._base, over=over))
        known.name = name
        await threads.run(self._on_disk, record.write, known)
        if not over:
            await threads.run(self._on_disk, record.begin)
        if nobodys:
            self._removing = asyncio.create_task(self._remove(nobodys), name=f"unstoring-{self._session_id}")

    def _on_disk(self, note: Callable[..., None], *more: Any) -> None:
        """Note something beside this host's copy. Without it changes are taken for those of another host, and what is
        here is compared anew, and fetched."""
        try:
            note(self._core.settings, self._session_id, *more)
        except OSError as error:
            log.warning("storing.not_recorded", session_id=str(self._session_id), error=error)


async def _bounded(work: Awaitable[T]) -> T:
    """Work with files or the store. Raises TooLarge, StoreFailed of whatever else goes wrong in time or not."""
    try:
        async with asyncio.timeout(KEEP_SECONDS):
            return await work
    except (OSError, TimeoutError) as error:
        raise StoreFailed(f"{type(error).__name__}: {error}") from error


def changes(before: Entries, after: Entries) -> dict[str, Any]:
    """What has changed in the workspace: names of files and links that were created, changed and deleted, sorted, and
    how many there are. Empty: nothing. Blocks."""
    old, new = _files_of(before), _files_of(after)
    found = {
        "created": sorted(new.keys() - old.keys()),
        "changed": sorted(path for path in new.keys() & old.keys() if not new[path].same_content(old[path])),
        "deleted": sorted(old.keys() - new.keys()),
    }
    if not any(found.values()):
        return {}
    room = [MAX_TOLD_BYTES]
    named = {kind: list(_named(found[kind], room)) for kind in found}
    return {**named, "counts": {kind: len(paths) for kind, paths in found.items()}}


def _files_of(entries: Entries) -> Entries:
    return {path: entry for path, entry in entries.items() if entry.kind != "directory" and path.startswith("files/")}


def _named(found: list[str], room: list[int]) -> Iterator[str]:
    for path in found[:MAX_TOLD]:
        name = paths.shown(path.removeprefix("files/"))
        room[0] -= len(name.encode())
        if room[0] < 0:
            return
        yield name
