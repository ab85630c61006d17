"""A session's files, stored and restored elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID, uuid4

from apps.api.core.files import manifest, restoring, snapshots
from apps.api.core.files.manifest import Entries
from apps.api.core.files.objects import Objects
from apps.api.core.files.snapshots import Known, Limits
from apps.api.threads import Threads

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
