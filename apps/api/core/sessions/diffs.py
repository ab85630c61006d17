"""What has changed in a session's workspace: since the last run that changed something, or since a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import UUID

from apps.api.core.context import Core
from apps.api.core.files import paths as names
from apps.api.core.files import restoring, trees
from apps.api.core.files.disk_tree import DiskTree
from apps.api.core.files.manifest import Entries
from apps.api.core.files.patches import Change
from apps.api.core.files.stored_tree import ROOT, StoredView
from apps.api.core.files.views import Item, Tree
from apps.api.core.sessions import checkpoints, stored, workspaces
from apps.api.errors import NotFound, ValidationError

MAX_CHANGED, MAX_DIFFED, MAX_DIFFED_BYTES = 1_000, 100, 500_000
"""Files that are named as changed; whose contents are compared; and bytes of one of them."""

COPY = re.compile(r"[0-9a-f]{16}@v[0-9]{1,9}")
"""Names of the copies that the agent's program keeps of files."""


@dataclass(slots=True)
class Changed:
    """What has changed in a workspace.

    Attributes:
        paths: of files, the first MAX_CHANGED.
        contents: what the first of them were and are.
        omitted: whether the contents of some are left out.
    """

    paths: list[str]
    contents: list[Change]
    omitted: bool


async def since_run(core: Core, tenant_id: UUID, session_id: UUID, now: Tree) -> Changed:
    """What has changed since the last run began that changed files. Raises what reading the two raises."""
    found = await stored.find(core.db.pool, session_id)
    before = _view(core, tenant_id, await _entries(core, found.before))
    ours, theirs = await _files(now), await _files(before)
    paths = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
    changed = Changed([names.shown(path) for path in paths[:MAX_CHANGED]], [], len(paths) > MAX_DIFFED)
    for path in paths[:MAX_DIFFED]:
        was, item = theirs.get(path), ours.get(path)
        if any(one is not None and one.size > MAX_DIFFED_BYTES for one in (was, item)):
            changed.omitted = True
            continue
        # A patch goes from `now` to `then`: this one from then to now.
        change = Change(names.shown(path), await _content(before, was), await _content(now, item))
        changed.contents.append(change)
    return changed


async def since_checkpoint(
    core: Core, tenant_id: UUID, session_id: UUID, now: Tree, checkpoint_id: UUID | None
) -> Changed:
    """What has changed since a checkpoint, or the newest one, of the files that the agent has changed by its own tools.

    Raises NotFound, Conflict (as `checkpoints.require`), and what reading the files raises.
    """
    kept = await checkpoints.copies(core.db, tenant_id, session_id, checkpoint_id)
    read, changed = await _reader(core, tenant_id, session_id, kept.conversation, now), Changed([], [], False)
    changed.omitted = len(kept.copies) > MAX_CHANGED
    for path, copy in sorted(kept.copies.items())[:MAX_CHANGED]:
        try:
            item: Item | None = await now.item(names.checked(path))
        except NotFound:
            item = None
        except ValidationError:  # the agent's program says what it likes
            continue
        if item is not None and (item.kind != "file" or item.size > MAX_DIFFED_BYTES):
            changed.omitted = True
            continue
        before = await read(copy) if copy is not None and COPY.fullmatch(copy) else None
        if copy is not None and before is None:
            changed.omitted = True
        elif (after := await _content(now, item)) != before:
            changed.paths.append(names.shown(path))
            if len(changed.contents) < MAX_DIFFED:
                changed.contents.append(Change(names.shown(path), before, after))
    changed.omitted |= len(changed.paths) > len(changed.contents)
    return changed


async def _reader(
    core: Core, tenant_id: UUID, session_id: UUID, conversation: UUID, now: Tree
) -> Callable[[str], Awaitable[bytes | None]]:
    """Reads copies that the agent's program has kept, where the workspace is: None of what is not there, or too
    large."""
    threads = core.blocking.stores
    if isinstance(now, DiskTree):
        place = workspaces.places(core.settings, session_id)["history"]
        path = PurePosixPath(str(conversation))
        return lambda copy: threads.run(trees.read, place, path / copy, MAX_DIFFED_BYTES)
    found = await stored.find(core.db.pool, session_id)
    entries = {
        f"{ROOT}{key.removeprefix('history')}": entry
        for key, entry in (await _entries(core, found.name)).items()
        if key == "history" or key.startswith("history/")
    }
    view = _view(core, tenant_id, entries)

    async def read(copy: str) -> bytes | None:
        try:
            item = await view.item(f"{conversation}/{copy}")
        except NotFound:
            return None
        return await _content(view, item) if item.kind == "file" and item.size <= MAX_DIFFED_BYTES else None

    return read


async def _entries(core: Core, name: str | None) -> Entries:
    return await restoring.read(core.objects, core.blocking.stores, name) if name else {}


def _view(core: Core, tenant_id: UUID, entries: Entries) -> StoredView:
    async def load() -> Entries:
        return entries

    return StoredView(core.objects, core.blocking.stores, tenant_id, load)


async def _files(tree: StoredView | Tree) -> dict[str, Item]:
    return {item.path: item for item in await tree.items("", recursive=True) if item.kind == "file"}


async def _content(tree: StoredView | Tree, item: Item | None) -> bytes | None:
    return None if item is None else b"".join([piece async for piece in tree.read(item, 0, item.size)])
