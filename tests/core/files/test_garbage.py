"""What nothing refers to is removed, and nothing else, whatever is stored meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from obstore.store import LocalStore

from apps.api.core.files import garbage, manifest, restoring, snapshots
from apps.api.core.files.garbage import KEPT, Collected
from apps.api.core.files.objects import Found, Objects, StoreFailed
from apps.api.core.files.snapshots import Known
from apps.api.core.sessions import deletion, stored
from apps.api.core.tasks import Loop
from apps.api.core.tenant import uploads
from apps.api.core.tenant.uploads import Given
from apps.api.threads import Threads
from tests.core.files.travel import LIMITS, objects_in
from tests.world import World


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    made = Threads("test", 4)
    yield made
    made.close()


class Owner:
    """Who owns a session, and stores its files."""

    def __init__(self, world: World, objects: Objects, threads: Threads, session_id: UUID, directory: Path) -> None:
        self.world, self.objects, self.threads, self.session_id = world, objects, threads, session_id
        self.place = directory / str(session_id)
        self.known: Known | None = None
        self.place.mkdir(parents=True)

    async def store(self) -> None:
        """As `Storing` does it at the end of a run."""
        tenant_id = self.world.tenant_id
        known = self.known
        taken = await snapshots.take(self.objects, self.threads, tenant_id, {"files": self.place}, known, LIMITS)
        if taken is None:
            return
        name = manifest.name_of(tenant_id, self.session_id, 0)
        await self.objects.put(name, manifest.encode(taken.entries))
        before = known.name if known else None
        old = await stored.note(self.world.db, self.session_id, 0, name, 0, before=before, over=True)
        await self.objects.remove(old)
        self.known = Known(name, *taken)

    def forget(self) -> None:
        """Another host owns it, which has nothing of it yet but what it has brought there."""
        if self.known is not None:
            self.known = Known(self.known.name, self.known.entries, {})

    def write(self, name: str, content: bytes) -> None:
        (self.place / name).write_bytes(content)


Make = Callable[..., Any]


@pytest.fixture
def owner(world: World, threads: Threads, tmp_path: Path) -> Make:
    async def make(objects: Objects | None = None) -> Owner:
        session_id = await world.session()
        return Owner(world, objects or Objects.of(world.settings), threads, session_id, tmp_path)

    return make


def age(world: World, seconds: float = KEPT + 60) -> None:
    """Make all that is stored so much older."""
    for path in (world.settings.workspaces_root / ".store").rglob("*"):
        if path.is_file():
            before = path.stat().st_mtime
            os.utime(path, (before - seconds, before - seconds))


def there(world: World, kind: str) -> set[str]:
    directory = world.settings.workspaces_root / ".store" / manifest.below_tenant(world.tenant_id) / kind
    return {name.rpartition("/")[2] for name in objects_in(directory)}


async def collect(world: World, threads: Threads, objects: Objects | None = None) -> Collected:
    return await garbage.collect_of(world.db, objects or Objects.of(world.settings), threads, world.tenant_id)


async def lacking(world: World) -> list[str]:
    """What the database says that there is, and the store does not have."""
    root = world.settings.workspaces_root / ".store"
    query = "SELECT stored FROM sessions WHERE tenant_id = $1 AND deleted_at IS NULL AND stored IS NOT NULL"
    found = []
    for row in await world.db.pool.fetch(query, world.tenant_id):
        path = root / row["stored"]
        if not path.exists():
            found.append(row["stored"])
            continue
        entries = manifest.loads(manifest.unpack(memoryview(path.read_bytes())))
        packs = {pack for entry in entries.values() for pack, _, _ in entry.pieces}
        names = (manifest.pack_name, manifest.removed_name)
        found += [pack for pack in packs if not any((root / of(world.tenant_id, pack)).exists() for of in names)]
    return found


async def test_what_no_session_has_any_more_goes_manifests_first(world: World, owner: Make, threads: Threads) -> None:
    one = await owner()
    for content in (b"first", b"second", b"third"):
        one.write("a", content)
        await one.store()
    assert len(there(world, "sessions")) == 2, "the one before the last is for who reads it at this moment"
    lost = manifest.name_of(world.tenant_id, one.session_id, 0)
    await one.objects.put(lost, manifest.encode({}))  # of somebody who died over it
    assert await collect(world, threads) == Collected(), "all of it is young"
    age(world)
    assert await collect(world, threads) == Collected(1, 1, len(manifest.pack(b"first")))
    assert await lacking(world) == []
    await deletion.delete(world.db, world.tenant_id, one.session_id)
    assert (await collect(world, threads)).manifests == 2
    assert len(there(world, "packs")) == 2, "somebody may be reading it"
    assert (await collect(world, threads)).packs == 2
    assert len(there(world, "removed")) == 3
    age(world)
    await collect(world, threads)
    assert objects_in(world.settings.workspaces_root / ".store" / manifest.below_tenant(world.tenant_id)) == set()


async def test_what_other_sessions_have_stays(world: World, owner: Make, threads: Threads) -> None:
    gone, kept = await owner(), await owner()
    for one in (gone, kept):
        one.write("same", b"shared")
        one.write("own", str(one.session_id).encode() * 300_000)
        await one.store()
    others = await world.other_tenant()
    theirs = manifest.pack_name(others, "a" * 64)
    await gone.objects.put(theirs, b"theirs")
    age(world)
    await deletion.delete(world.db, world.tenant_id, gone.session_id)
    await collect(world, threads)
    await collect(world, threads)
    assert await lacking(world) == []
    await kept.objects.get(theirs)
    assert (world.settings.workspaces_root / ".store" / theirs).exists()
    assert there(world, "sessions") == {kept.known.name.rpartition("/")[2]}


async def test_what_a_tenant_has_uploaded_stays_until_it_is_deleted_or_its_time_is_over(
    world: World, threads: Threads
) -> None:
    objects, core = Objects.of(world.settings), world.core()

    async def upload(content: bytes, seconds: int | None = None) -> UUID:
        async def whole() -> AsyncIterator[bytes]:
            yield content

        stored_ = await snapshots.send_content(objects, threads, world.tenant_id, whole(), len(content))
        made = await uploads.add(core, world.tenant_id, None, Given("x", "text/plain", seconds), stored_, None)
        return made.id

    kept, short = await upload(b"kept" * 1000), await upload(b"short" * 1000, seconds=1)
    age(world)
    await collect(world, threads, objects)
    assert len(there(world, "packs")) == 2
    await world.db.pool.execute("UPDATE files SET expires_at = now() - interval '1 second' WHERE id = $1", short)
    await uploads.forget_old(world.db)
    age(world)
    assert (await collect(world, threads, objects)).packs == 1
    file = await uploads.find(world.db.pool, world.tenant_id, kept)
    assert [piece async for piece in uploads.read(core, world.tenant_id, file, 0, 9)] == [b"keptkeptk"]
    await uploads.delete(world.db, world.tenant_id, kept)
    age(world)
    assert (await collect(world, threads, objects)).packs == 1
    assert there(world, "packs") == set()


@pytest.mark.parametrize("of_whom", ["a session's", "nobody's"])
async def test_a_manifest_that_cannot_be_read_keeps_all_packs(
    world: World, owner: Make, threads: Threads, of_whom: str
) -> None:
    one = await owner()
    one.write("a", b"content")
    await one.store()
    await one.objects.put(manifest.pack_name(world.tenant_id, "b" * 64), b"garbage")
    name = one.known.name if of_whom == "a session's" else manifest.name_of(world.tenant_id, uuid4(), 0)
    await one.objects.put(name, b"damaged")
    age(world)
    packs = there(world, "packs")
    with pytest.raises(StoreFailed):
        await collect(world, threads)
    assert there(world, "packs") == packs
    if of_whom == "nobody's":
        assert (await collect(world, threads)).packs == 1, "it is in the way of one collection only"


async def test_a_manifest_that_is_not_there_keeps_all_packs(world: World, owner: Make, threads: Threads) -> None:
    one = await owner()
    one.write("a", b"content")
    await one.store()
    await one.objects.remove([one.known.name])
    age(world)
    with pytest.raises(restoring.Missing):
        await collect(world, threads)
    assert len(there(world, "packs")) == 1


async def test_what_is_stored_again_at_the_moment_of_its_removal_is_read_from_aside_and_taken_back(
    world: World, owner: Make, threads: Threads
) -> None:
    class Late(Objects):
        """Between a collection's last look at a pack and its removal somebody stores files."""

        async def _remove(self, name: str) -> None:
            if "/packs/" in name:
                two.write("a", b"content")
                await two.store()
            await super()._remove(name)

    one, two = await owner(), await owner()
    one.write("a", b"content")
    await one.store()
    age(world)
    await deletion.delete(world.db, world.tenant_id, one.session_id)
    await collect(world, threads)
    directory = world.settings.workspaces_root / ".store"
    late = Late(partial(LocalStore, directory), str(directory))
    assert (await collect(world, threads, late)).packs == 1
    [[(pack, _, _)]] = [entry.pieces for entry in two.known.entries.values() if entry.pieces]
    assert there(world, "packs") == set()
    assert await restoring.fetch_pack(one.objects, threads, world.tenant_id, pack) == b"content"
    age(world)
    await collect(world, threads)
    assert (there(world, "packs"), there(world, "removed")) == ({pack}, set())
    assert await lacking(world) == []


async def test_a_pack_that_is_old_is_sent_again_and_a_young_one_is_not(
    world: World, owner: Make, threads: Threads
) -> None:
    """What is believed to stay is younger than what may be removed, by all the time that a manifest may take."""

    class Counting(Objects):
        async def put(self, name: str, content: bytes) -> None:
            sent.append(name)
            await super().put(name, content)

    directory, sent = world.settings.workspaces_root / ".store", list[str]()
    counting = Counting(partial(LocalStore, directory, mkdir=True), str(directory))

    async def stored_by_another() -> int:
        one = await owner(counting)
        one.write("a", b"content")
        sent.clear()
        await one.store()
        return len([name for name in sent if "/packs/" in name])

    assert await stored_by_another() == 1
    age(world, snapshots.FRESH - 60)
    assert await stored_by_another() == 0
    age(world, 120)
    assert await stored_by_another() == 1
    assert await stored_by_another() == 0, "it is young again"
    assert KEPT > snapshots.FRESH + snapshots.PROMPTLY


async def test_what_only_the_manifest_before_names_stays_though_neither_was_listed(
    world: World, owner: Make, threads: Threads
) -> None:
    """A fork may be made of that one at this moment."""

    class Listed(Objects):
        """Between the list and what is read of it the session stores its files twice."""

        async def below(self, prefix: str) -> AsyncGenerator[list[Found]]:
            async for page in super().below(prefix):
                if prefix.endswith("/sessions"):
                    one.write("b", b"more")
                    await one.store()
                    (one.place / "a").unlink()
                    await one.store()
                yield page

    one = await owner()
    one.write("a", b"content")
    await one.store()
    packs = there(world, "packs")
    age(world)
    directory = world.settings.workspaces_root / ".store"
    await collect(world, threads, Listed(partial(LocalStore, directory), str(directory)))
    assert packs < there(world, "packs")
    assert there(world, "removed") == set()


async def test_one_instance_at_a_time_takes_a_tenant_when_it_is_its_turn(
    world: World, owner: Make, threads: Threads
) -> None:
    one = await owner()
    await world.db.pool.execute("UPDATE tenants SET collected_at = now() WHERE id <> $1", world.tenant_id)

    async def collected() -> set[str]:
        left_over = manifest.pack_name(world.tenant_id, uuid4().hex * 2)
        await one.objects.put(left_over, b"x")
        age(world)
        loops = [Loop(f"collect-{number}") for number in range(4)]
        await asyncio.gather(*(garbage.collect(world.db, one.objects, threads, loop) for loop in loops))
        assert sum(loop.sick for loop in loops) == 0
        return there(world, "packs")

    assert await collected() == set()
    assert len(await collected()) == 1, "it has had its turn"
    await garbage.hasten(world.db.pool, world.tenant_id)
    assert len(await collected()) == 2, "not at once"
    await world.db.pool.execute(
        "UPDATE tenants SET collected_at = collected_at - make_interval(secs => $2) WHERE id = $1",
        world.tenant_id,
        garbage.SOON,
    )
    assert await collected() == set()


async def test_what_died_over_storing_is_removed(world: World, owner: Make, threads: Threads) -> None:
    """LocalStore writes to `NAME#1` first, and shows that to nobody."""
    one = await owner()
    one.write("a", b"content")
    await one.store()
    [pack] = (world.settings.workspaces_root / ".store").rglob(f"{world.tenant_id}/packs/*/*")
    pack.with_name(f"{pack.name}#1").write_bytes(b"con")
    age(world)
    pack.with_name(f"{pack.name}#2").write_bytes(b"con")
    await collect(world, threads)
    assert there(world, "packs") == {pack.name, f"{pack.name}#2"}


# --- while sessions store ------------------------------------------------------------------------------------------


class Turns:
    """Calls of a store by many, one after the other, in an order that `rng` gives."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._waiting, self._come = rng, list[asyncio.Future[None]](), asyncio.Event()
        self._over = asyncio.Event()

    async def begin(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._come.set()
        await turn

    def end(self) -> None:
        self._over.set()

    async def deal(self) -> None:
        """Give turns until cancelled."""
        while True:
            await self._come.wait()
            for _ in range(20):  # let those come who can
                await asyncio.sleep(0)
            self._over.clear()
            self._waiting.pop(self._rng.randrange(len(self._waiting))).set_result(None)
            if not self._waiting:
                self._come.clear()
            await self._over.wait()


class Dealt(Objects):
    """A store whose calls are made in the order of `turns`."""

    def __init__(self, directory: Path, turns: Turns) -> None:
        super().__init__(partial(LocalStore, directory, mkdir=True), str(directory))
        self.turns = turns

    async def _one(self, call: Callable[..., Any], *arguments: Any) -> Any:
        await self.turns.begin()
        try:
            return await call(*arguments)
        finally:
            self.turns.end()

    async def put(self, name: str, content: bytes) -> None:
        await self._one(super().put, name, content)

    async def get(self, name: str) -> memoryview | None:
        found: memoryview | None = await self._one(super().get, name)
        return found

    async def modified(self, name: str) -> float | None:
        found: float | None = await self._one(super().modified, name)
        return found

    async def copy(self, name: str, to: str) -> bool:
        return bool(await self._one(super().copy, name, to))

    async def _remove(self, name: str) -> None:
        await self._one(super()._remove, name)


CONTENTS = [bytes([65 + number]) * 1000 for number in range(5)]
"""Few, so that what one removes others write again."""


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_goes_that_a_session_has_whatever_is_stored_meanwhile(
    world: World, owner: Make, threads: Threads, seed: int
) -> None:
    rng = random.Random(seed)
    objects = Dealt(world.settings.workspaces_root / ".store", turns := Turns(rng))
    dealing = asyncio.create_task(turns.deal())
    owners = [await owner(objects) for _ in range(4)]

    async def work(one: Owner) -> None:
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.3:
                one.forget()
            for name in rng.sample("abc", rng.randint(1, 3)):
                one.write(name, rng.choice(CONTENTS))
            await one.store()

    for _ in range(8):
        busy = rng.sample(owners, rng.randint(1, 3))
        await asyncio.gather(collect(world, threads, objects), *(work(one) for one in busy))
        assert await lacking(world) == []
        age(world, rng.choice((0, snapshots.FRESH / 2, snapshots.FRESH, KEPT / 2, KEPT, 2 * KEPT)))
    for _ in range(3):
        age(world)
        await collect(world, threads, objects)
    assert there(world, "removed") == set()
    assert await lacking(world) == []
    named = {pack for one in owners if one.known for e in one.known.entries.values() for pack, _, _ in e.pieces}
    before = "SELECT stored_before FROM sessions WHERE tenant_id = $1 AND stored_before IS NOT NULL"
    rows = await world.db.pool.fetch(before, world.tenant_id)
    for row in rows:
        dealt = await Objects.of(world.settings).get(row["stored_before"])
        assert dealt is not None
        entries = manifest.loads(manifest.unpack(dealt))
        named |= {pack for entry in entries.values() for pack, _, _ in entry.pieces}
    assert there(world, "packs") == named, "and what is nobody's is gone in the end"
    dealing.cancel()
