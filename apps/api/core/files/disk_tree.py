"""The workspace of a session that an instance owns, on its host, where an agent may be at work meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from uuid import uuid4

from apps.api.core.files import removal, trees, views
from apps.api.core.files.snapshots import Limits, TooLarge
from apps.api.core.files.views import Condition, Item
from apps.api.errors import NotFound
from apps.api.threads import Threads

READ = 1 << 20


class DiskTree:
    """One workspace on this host."""

    def __init__(
        self, root: Path, uploads: Path, threads: Threads, limits: Limits, changed: Callable[[], Awaitable[None]]
    ) -> None:
        """`uploads`: a directory of the server's on the same disk. `changed`: is called after each change; what it
        raises is raised."""
        self._root, self._uploads, self._threads, self._limits = root, uploads, threads, limits
        self._changed = changed
        self._one = asyncio.Lock()

    async def items(self, below: str, *, recursive: bool) -> list[Item]:
        """See Tree."""
        return await self._threads.run(self._items, below, recursive)

    async def item(self, path: str) -> Item:
        """See Tree."""
        return await self._threads.run(self._existing, path)

    async def read(self, item: Item, start: int, length: int) -> AsyncIterator[bytes]:
        """See Tree."""
        opened = await self._threads.run(trees.open_file, self._root, PurePosixPath(item.path))
        if opened is None:
            raise views.not_found(item.path)
        with opened:
            await self._threads.run(opened.seek, start)
            while length and (data := await self._threads.run(opened.read, min(length, READ))):
                length -= len(data)
                yield data

    async def write(self, path: str, content: AsyncIterator[bytes], when: Condition) -> tuple[Item, bool]:
        """See Tree."""
        when.check(await self._threads.run(self._found, path))  # before the body is read
        draft = self._uploads / uuid4().hex
        await self._threads.run(trees.make_directory, self._uploads)
        try:
            size = 0
            with await self._threads.run(draft.open, "xb") as made:
                async for data in content:
                    size += len(data)
                    if size > self._limits.bytes:
                        raise TooLarge("workspace_too_large", f"More than {self._limits.bytes} bytes.")
                    await self._threads.run(made.write, data)
            async with self._one:
                item, is_new = await self._threads.run(self._place, draft, path, when)
        finally:
            with suppress(FileNotFoundError):
                await self._threads.run(draft.unlink)
        await self._changed()
        return item, is_new

    async def remove(self, path: str, when: Condition, *, recursive: bool) -> None:
        """See Tree."""
        async with self._one:
            await self._threads.run(self._remove, path, when, recursive)
        await self._changed()

    async def move(self, source: str, target: str, when: Condition, *, overwrite: bool) -> Item:
        """See Tree."""
        async with self._one:
            item = await self._threads.run(self._move, source, target, when, overwrite)
        await self._changed()
        return item

    async def merge(self, draft: Path) -> None:
        """See Tree."""
        async with self._one:
            await self._threads.run(self._merge, draft)
        await self._changed()

    # --- what blocks -------------------------------------------------------------------------------------------

    def _items(self, below: str, recursive: bool) -> list[Item]:
        try:
            with trees.closing_descriptor(trees.open_directory(self._root, PurePosixPath(below or "."))) as opened:
                found = trees.walk_from(opened) if recursive else trees.look_into(opened)
                with closing(found):
                    above = f"{below}/" if below else ""
                    items = [_item(above + entry.path, entry.info, entry) for entry in found]
        except OSError as error:
            if not below and error.errno == errno.ENOENT:
                return []
            raise _told(error, below) from error
        return sorted((item for item in items if item is not None), key=lambda item: item.path)

    def _found(self, path: str) -> Item | None:
        try:
            return self._existing(path)
        except NotFound:
            return None

    def _existing(self, path: str) -> Item:
        try:
            above, name = self._above(path)
            with trees.closing_descriptor(above):
                return self._at(above, name, path)
        except OSError as error:
            raise _told(error, path) from error

    def _above(self, path: str) -> tuple[int, str]:
        way = PurePosixPath(path)
        return trees.open_directory(self._root, way.parent), way.name

    def _at(self, above: int, name: str, path: str) -> Item:
        info = os.stat(name, dir_fd=above, follow_symlinks=False)
        item = _item(path, info, trees.Entry(above, name, path, info))
        if item is None:
            raise views.not_found(path)
        return item

    def _place(self, draft: Path, path: str, when: Condition) -> tuple[Item, bool]:
        try:
            with trees.closing_descriptor(self._way(path)) as above:
                name = PurePosixPath(path).name
                there = self._there(above, name, path)
                when.check(there)
                if there is not None and there.kind == "directory":
                    raise views.no_file(there)
                os.chmod(draft, 0o644)
                os.rename(draft, name, dst_dir_fd=above)
                return self._at(above, name, path), there is None
        except OSError as error:
            raise _told(error, path, way=True) from error

    def _merge(self, draft: Path) -> None:
        with closing(trees.walk(draft)) as found:  # what cannot be is said before anything is done
            for entry in found:
                there = self._found(entry.path)
                if there is not None and (there.kind == "directory") != stat.S_ISDIR(entry.info.st_mode):
                    raise views.exists(entry.path)
        with closing(trees.walk(draft)) as found:
            for entry in found:
                path = PurePosixPath(entry.path)
                try:
                    if stat.S_ISDIR(entry.info.st_mode):
                        os.close(self._way(f"{path}/x"))
                        continue
                    with trees.closing_descriptor(self._way(entry.path)) as above:
                        there = self._there(above, path.name, entry.path)
                        if there is not None and there.kind == "directory":
                            raise views.exists(entry.path)
                        os.rename(entry.name, path.name, src_dir_fd=entry.directory, dst_dir_fd=above)
                except OSError as error:
                    raise _told(error, entry.path, way=True) from error

    def _way(self, path: str) -> int:
        """The directory that something is to be in, opened, and made if it is not there: also the workspace."""
        trees.make_directory(self._root)
        return trees.place(self._root, PurePosixPath(path))

    def _there(self, above: int, name: str, path: str) -> Item | None:
        try:
            return self._at(above, name, path)
        except (FileNotFoundError, NotFound):
            return None

    def _remove(self, path: str, when: Condition, recursive: bool) -> None:
        try:
            above, name = self._above(path)
            with trees.closing_descriptor(above):
                item = self._at(above, name, path)
                when.check(item)
                if item.kind != "directory":
                    os.unlink(name, dir_fd=above)
                elif recursive:
                    removal.remove_in(above, name)
                else:
                    os.rmdir(name, dir_fd=above)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise views.not_empty(path) from error
            raise _told(error, path) from error

    def _move(self, source: str, target: str, when: Condition, overwrite: bool) -> Item:
        try:
            above, name = self._above(source)
            with trees.closing_descriptor(above):
                when.check(self._at(above, name, source))
                with trees.closing_descriptor(self._way(target)) as there:
                    found = self._there(there, PurePosixPath(target).name, target)
                    if found is not None and (not overwrite or found.kind == "directory"):
                        raise views.exists(target)
                    os.rename(name, PurePosixPath(target).name, src_dir_fd=above, dst_dir_fd=there)
                    return self._at(there, PurePosixPath(target).name, target)
        except OSError as error:
            raise _told(error, target, way=True) from error


def _item(path: str, info: os.stat_result, entry: trees.Entry) -> Item | None:
    mode = info.st_mode
    if stat.S_ISREG(mode):
        return Item(path, "file", info.st_size, info.st_mtime_ns)
    if stat.S_ISDIR(mode):
        return Item(path, "directory", 0, info.st_mtime_ns)
    return Item(path, "link", 0, 0, trees.leads(entry)) if stat.S_ISLNK(mode) else None


def _told(error: OSError, path: str, *, way: bool = False) -> Exception:
    """What a client is told; `way`: of a path that is to be made. Others remain what they are."""
    if error.errno == errno.ENOENT:
        return views.not_found(path)
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EEXIST):
        return views.in_the_way(path) if way else views.not_found(path)
    return error
