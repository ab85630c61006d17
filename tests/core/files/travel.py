"""A session's files, stored and restored elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID, uuid4

from apps.api.core.files import manifest, restoring, snapshots
from apps.api.core.files.manifest import Entries
from apps.api.core.files.objects import Objects
from apps.api.core.files.snapshots import Known, Limits
from apps.api.core.sessions import stored, workspaces
from apps.api.settings import Settings
from apps.api.threads import Threads
from tests.world import World

LIMITS = Limits(1 << 30, 100_000)

Places = Mapping[str, Path]


class Store:
    """A store in a directory, and one tenant."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects, self.threads, self.tenant_id = Objects.in_directory(directory), Threads("test", 4), uuid4()

    async def take(self, places: Places, known: Known | None = None, limits: Limits = LIMITS) -> Known | None:
        """What is there now, stored; None when nothing has changed."""
        taken = await snapshots.take(self.objects, self.threads, self.tenant_id, places, known, limits)
        if taken is None:
            return None
        name = manifest.name_of(self.tenant_id, UUID(int=0), 1)
        await self.objects.put(name, manifest.encode(taken.entries))
        return Known(name, *taken)

    async def restore(self, entries: Entries, places: Places, known: Known | None = None) -> Known:
        """Make the directories what `entries` says."""
        planned = restoring.plan(places, entries, known)
        signs = await restoring.restore(self.objects, self.threads, self.tenant_id, places, entries, planned)
        return Known("", entries, (known.signs if known else {}) | signs)

    async def move(
        self, source: Places, target: Places, change: Callable[[Entries], Entries] = lambda entries: entries
    ) -> Entries:
        """Store what is in `source`, and make `target` the same, or what `change` makes of it."""
        known = await self.take(source)
        assert known is not None
        entries = change(await restoring.read(self.objects, self.threads, known.name))
        await self.restore(entries, target)
        return entries

    def packs(self) -> dict[str, int]:
        """Names of all packs that are stored, and their sizes."""
        return {path.name: path.stat().st_size for path in self.directory.rglob("packs/*/*")}


async def keep(world: World, session_id: UUID) -> str:
    """Store what a session has on this host, as its owner does at the end of a run. Returns the manifest's name."""
    objects, threads = Objects.of(world.settings), Threads("test", 4)
    places = workspaces.places(world.settings, session_id)
    tenant_id = await world.one("SELECT tenant_id FROM sessions WHERE id = $1", session_id)
    taken = await snapshots.take(objects, threads, tenant_id, places, None, LIMITS)
    assert taken is not None
    name = manifest.name_of(tenant_id, session_id, 1)
    await objects.put(name, manifest.encode(taken.entries))
    async with world.db.transaction() as connection:
        await stored.begin(connection, session_id, name, manifest.size_of(taken.entries.values()))
    threads.close()
    return name


async def bring(world: World, settings: Settings, session_id: UUID) -> bool:
    """Restore a session's files in its places here. Returns whether it has any."""
    found = await stored.find(world.db.pool, session_id)
    if found.name is None:
        return False
    store = Store(settings.workspaces_root / ".store")
    store.tenant_id = await world.one("SELECT tenant_id FROM sessions WHERE id = $1", session_id)
    entries = await restoring.read(store.objects, store.threads, found.name)
    await store.restore(entries, workspaces.places(settings, session_id))
    return True


def objects_in(directory: Path) -> set[str]:
    """Names of all objects that are stored in a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
