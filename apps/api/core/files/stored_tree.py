"""The workspace of a session that nobody owns: as it is stored. A change makes another manifest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

from apps.api import clock
from apps.api.core.files import restoring, snapshots, views
from apps.api.core.files.manifest import Entries, Entry, size_of
from apps.api.core.files.objects import Objects
from apps.api.core.files.snapshots import Limits, TooLarge
from apps.api.core.files.views import Condition, Item
from apps.api.core.tasks import jittered
from apps.api.errors import Conflict
from apps.api.threads import Threads

TRIES = 50
"""Changes on other instances that one change waits for, each an attempt."""

ROOT = "files"


class StoredView:
    """A workspace as it is stored, to be read."""

    def __init__(
        self, objects: Objects, threads: Threads, tenant_id: UUID, load: Callable[[], Awaitable[Entries]]
    ) -> None:
        """`load`: what is stored now, which nobody may change in place."""
        self._objects, self._threads, self._tenant_id, self._load = objects, threads, tenant_id, load

    async def items(self, below: str, *, recursive: bool) -> list[Item]:
        """See Tree."""
        return await self._threads.run(_items, await self._load(), below, recursive)

    async def item(self, path: str) -> Item:
        """See Tree."""
        return _existing(await self._load(), path)

    async def read(self, item: Item, start: int, length: int) -> AsyncIterator[bytes]:
        """See Tree."""
        entry = (await self._load()).get(_key(item.path))
        if entry is None or _item(item.path, entry) != item:
            raise views.not_found(item.path)
        pieces = restoring.read_pieces(self._objects, self._threads, self._tenant_id, entry.pieces, start, length)
        async for some in pieces:
            yield some


class StoredTree(StoredView):
    """What is stored of one workspace. It can be used after others have changed it."""

    def __init__(
        self,
        objects: Objects,
        threads: Threads,
        tenant_id: UUID,
        limits: Limits,
        turn: asyncio.Lock,
        load: Callable[[], Awaitable[Entries]],
        commit: Callable[[Entries], Awaitable[bool]],
    ) -> None:
        """`turn`: is held over a change. `commit`: makes other entries the session's, unless somebody has changed them
        since they were loaded, and says whether it did."""
        super().__init__(objects, threads, tenant_id, load)
        self._limits, self._turn, self._commit = limits, turn, commit

    async def write(self, path: str, content: AsyncIterator[bytes], when: Condition) -> tuple[Item, bool]:
        """See Tree."""
        when.check(_found(await self._load(), path))  # before the body is read
        sent = await snapshots.send_content(self._objects, self._threads, self._tenant_id, content, self._limits.bytes)
        made = Entry("file", 0o644, _now(), *sent)
        is_new = False

        def change(entries: Entries) -> None:
            nonlocal is_new
            there = _found(entries, path)
            when.check(there)
            if there is not None and there.kind == "directory":
                raise views.no_file(there)
            is_new = there is None
            _make_way(entries, path)
            entries[_key(path)] = made

        await self._change(change)
        return _item(path, made), is_new

    async def remove(self, path: str, when: Condition, *, recursive: bool) -> None:
        """See Tree."""

        def change(entries: Entries) -> None:
            when.check(_existing(entries, path))
            inside = [key for key in entries if key.startswith(f"{_key(path)}/")]
            if inside and not recursive:
                raise views.not_empty(path)
            for key in (_key(path), *inside):
                del entries[key]

        await self._change(change)

    async def move(self, source: str, target: str, when: Condition, *, overwrite: bool) -> Item:
        """See Tree."""

        def change(entries: Entries) -> None:
            when.check(_existing(entries, source))
            there = _found(entries, target)
            if there is not None and (not overwrite or there.kind == "directory"):
                raise views.exists(target)
            _make_way(entries, target)
            before, after = _key(source), _key(target)
            for key in [key for key in entries if key == before or key.startswith(f"{before}/")]:
                entries[after + key.removeprefix(before)] = entries.pop(key)

        return _existing(await self._change(change), target)

    async def merge(self, draft: Path) -> None:
        """See Tree."""
        places = {ROOT: draft}
        taken = await snapshots.take(self._objects, self._threads, self._tenant_id, places, None, self._limits)
        brought = {key: entry for key, entry in taken.entries.items() if key != ROOT} if taken else {}

        def change(entries: Entries) -> None:
            for key, entry in brought.items():
                there, path = entries.get(key), key.removeprefix(f"{ROOT}/")
                if there is not None and "directory" in (there.kind, entry.kind):
                    if there.kind != entry.kind:
                        raise views.exists(path)
                    continue
                _make_way(entries, path)
                entries[key] = entry

        await self._change(change)

    async def _change(self, change: Callable[[Entries], None]) -> Entries:
        async with self._turn:
            return await self._try(change)

    async def _try(self, change: Callable[[Entries], None]) -> Entries:
        for attempt in range(TRIES):
            entries = await self._threads.run(self._changed, await self._load(), change)
            if await self._commit(entries):
                return entries
            await asyncio.sleep(jittered(0.01 * min(attempt, 10)))
        raise Conflict("The session's files are being changed by others; try again.", code="files_busy")

    def _changed(self, stored: Entries, change: Callable[[Entries], None]) -> Entries:
        """What becomes of what is stored. Blocks. Raises TooLarge."""
        entries = dict(stored)
        entries.setdefault(ROOT, Entry("directory", 0o700, _now()))
        change(entries)
        if len(entries) > self._limits.entries:
            raise TooLarge("too_many_files", f"More than {self._limits.entries} files.")
        if size_of(entries.values()) > self._limits.bytes:
            raise TooLarge("workspace_too_large", f"More than {self._limits.bytes} bytes.")
        return entries


def _key(path: str) -> str:
    return f"{ROOT}/{path}" if path else ROOT


def _item(path: str, entry: Entry) -> Item:
    leads = entry.digest if entry.kind == "link" else ""
    return Item(path, entry.kind, entry.size, entry.mtime, leads)


def _found(entries: Entries, path: str) -> Item | None:
    entry = entries.get(_key(path))
    return None if entry is None else _item(path, entry)


def _existing(entries: Entries, path: str) -> Item:
    if (item := _found(entries, path)) is None:
        raise views.not_found(path)
    return item


def _items(entries: Entries, below: str, recursive: bool) -> list[Item]:
    above = entries.get(_key(below))
    if above is None and below:
        raise views.not_found(below)
    if above is not None and above.kind != "directory":
        raise views.in_the_way(below)
    begin = f"{_key(below)}/"
    keys = (key for key in entries if key.startswith(begin) and (recursive or "/" not in key[len(begin) :]))
    return [_item(key.removeprefix(f"{ROOT}/"), entries[key]) for key in sorted(keys)]


def _make_way(entries: Entries, path: str) -> None:
    names = path.split("/")[:-1]
    for depth in range(1, len(names) + 1):
        above = "/".join(names[:depth])
        entry = entries.setdefault(_key(above), Entry("directory", 0o755, _now()))
        if entry.kind != "directory":
            raise views.in_the_way(above)


def _now() -> int:
    return int(clock.timestamp() * 1e9)
