"""Exports: of one moment or none at all, whatever is written meanwhile, and importable by what has written it."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from apps.api.core.events.log import Event
from apps.api.core.files.objects import Objects
from apps.api.core.sessions import exports, workspaces
from apps.api.core.sessions.exports import Exporter
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.errors import ApiError, Conflict, NotFound, TooLarge
from apps.api.settings import Settings
from apps.api.threads import Threads
from tests.core.files.travel import bring, keep
from tests.core.sessions.test_imports import here, load, name_of, state
from tests.world import World

__all__ = ["here"]


@pytest.fixture
async def exporter(world: World) -> AsyncIterator[Exporter]:
    threads = Threads("export", 2)
    yield Exporter(world.db, world.settings, threads, Objects.of(world.settings))
    threads.close()


async def whole(archive: AsyncGenerator[bytes]) -> bytes:
    async with aclosing(archive):
        return b"".join([chunk async for chunk in archive])


async def rest(archive: AsyncGenerator[bytes], begun: list[bytes]) -> None:
    async for chunk in archive:
        begun.append(chunk)


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return opened.getnames()


async def talked(world: World, *said: str) -> UUID:
    """A session of one run that is over, which nobody owns, with a workspace."""
    lease, claim, writer = await world.owned()
    for text in said:
        fields = {"role": "user", "content": [{"type": "text", "text": text}], "parent_tool_use_id": None, "uuid": None}
        await writer.append(Event("message", fields, claim.run_id))
    done = Event("done", {"status": "succeeded"}, claim.run_id)
    await finish(writer, claim.run_id, Outcome("succeeded"), done)
    await world.db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE id = $1", claim.session_id)
    workspaces.create(world.settings, claim.session_id, None)
    assert lease
    return claim.session_id


async def refused(archive: AsyncGenerator[bytes]) -> str:
    with pytest.raises(ApiError) as why:
        await whole(archive)
    return why.value.code


async def test_what_is_much_comes_in_parts_and_is_imported(
    world: World, here: Settings, exporter: Exporter, tmp_path: Path
) -> None:
    session_id = await talked(world, *(os.urandom(200_000).hex() for _ in range(6)), "\ud800\x00 odd")
    (workspaces.root_of(world.settings, session_id) / "large").write_bytes(os.urandom(2_000_000))
    await keep(world, session_id)
    workspaces.remove(world.settings, session_id)
    data = await whole(exports.session(exporter, world.tenant_id, session_id))
    assert len([name for name in names(data) if "/events-" in name]) > 1
    imported = await load(here, data, await name_of(world), tmp_path)
    new = imported.sessions[session_id]
    query = "SELECT seq, type, octet_length(data) FROM events WHERE session_id = $1 ORDER BY seq"
    assert await world.db.pool.fetch(query, new) == await world.db.pool.fetch(query, session_id)
    assert await bring(world, here, new)
    assert (workspaces.root_of(here, new) / "large").stat().st_size == 2_000_000
    assert imported.lacking == []


async def test_a_session_without_files_is_known_to_lack_them(
    world: World, here: Settings, exporter: Exporter, tmp_path: Path
) -> None:
    empty, lacking = await talked(world), await talked(world)
    await keep(world, empty)
    for session_id, there in ((empty, True), (lacking, False)):
        data = await whole(exports.session(exporter, world.tenant_id, session_id))
        new = (await load(here, data, await name_of(world), tmp_path)).sessions[session_id]
        assert await bring(world, here, new) is there


async def test_nothing_is_exported_while_something_is_at_work(world: World, exporter: Exporter) -> None:
    _, claim, _ = await world.owned()
    of = (exporter, world.tenant_id, claim.session_id)
    assert await refused(exports.session(*of)) == "session_busy"
    parked = "UPDATE runs SET status = 'requires_action', parked = '{}' WHERE id = $1"
    await world.db.pool.execute(parked, claim.run_id)
    await world.db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE id = $1", claim.session_id)
    assert await refused(exports.session(*of)) == "session_busy", "nor while it waits for a person without a process"
    assert await refused(exports.tenant(exporter, await name_of(world))) == "session_busy"
    await world.db.pool.execute("UPDATE runs SET status = 'failed', finished_at = now() WHERE id = $1", claim.run_id)
    queued = await world.session()
    await world.queue(queued)
    assert await refused(exports.session(exporter, world.tenant_id, queued)) == "session_busy"


async def test_only_what_is_the_tenants_is_exported(world: World, exporter: Exporter) -> None:
    session_id = await talked(world)
    assert await refused(exports.session(exporter, await world.other_tenant(), session_id)) == "session_not_found"
    assert await refused(exports.session(exporter, world.tenant_id, uuid4())) == "session_not_found"
    assert await refused(exports.tenant(exporter, "nobody")) == "tenant_not_found"
    await world.db.pool.execute("UPDATE sessions SET deleted_at = now() WHERE id = $1", session_id)
    assert await refused(exports.session(exporter, world.tenant_id, session_id)) == "session_deleted"
    assert session_id.hex not in str(names(await whole(exports.tenant(exporter, await name_of(world)))))


QUEUE = """
INSERT INTO runs (id, tenant_id, session_id, timeout_seconds)
SELECT gen_random_uuid(), tenant_id, id, 1 FROM sessions WHERE id = $1
"""


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sessions SET last_seq = last_seq + 1 WHERE id = $1",
        "UPDATE sessions SET expired_seq = 1 WHERE id = $1",
        "UPDATE sessions SET sdk_session_id = gen_random_uuid() WHERE id = $1",
        "INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, entry) VALUES ($1, '', '', '{}')",
        QUEUE,
    ],
)
@pytest.mark.breaks_logs
async def test_what_happens_meanwhile_ends_the_archive(world: World, exporter: Exporter, change: str) -> None:
    session_id = await talked(world)
    (workspaces.root_of(world.settings, session_id) / "large").write_bytes(os.urandom(2_000_000))
    await keep(world, session_id)
    begun = list[bytes]()
    archive = exports.session(exporter, world.tenant_id, session_id)
    async with aclosing(archive):
        begun.append(await anext(archive))
        await world.db.pool.execute(change, session_id)
        with pytest.raises(Conflict, match="A run of session"):
            await rest(archive, begun)
    assert len(begun) > 1
    with pytest.raises(EOFError):
        gzip.decompress(b"".join(begun))


async def test_too_many_bytes_are_refused_before_anything_is_fetched_holes_counted(
    world: World, exporter: Exporter
) -> None:
    session_id = await talked(world)
    with (workspaces.root_of(world.settings, session_id) / "hole").open("wb") as file:
        file.truncate(30_000_000)
    name = await keep(world, session_id)
    bounded = replace(exporter, max_files=1_000_000)
    with pytest.raises(TooLarge, match="more than 1000000 bytes"):
        await anext(exports.session(bounded, world.tenant_id, session_id))
    await exporter.objects.remove([name])
    with pytest.raises(TooLarge):
        await anext(exports.session(bounded, world.tenant_id, session_id))


async def test_many_small_files_count_what_they_take_on_a_disk(world: World, exporter: Exporter) -> None:
    session_id = await talked(world)
    for number in range(50):
        (workspaces.root_of(world.settings, session_id) / str(number)).write_text("x")
    await keep(world, session_id)
    with pytest.raises(TooLarge):
        await anext(exports.session(replace(exporter, max_files=100_000), world.tenant_id, session_id))
    assert await whole(exports.session(replace(exporter, max_files=300_000), world.tenant_id, session_id))


@pytest.mark.parametrize("lost", ["manifest", "pack", "all"])
async def test_files_that_the_store_does_not_have_are_told_before_the_first_byte(
    world: World, exporter: Exporter, tmp_path: Path, lost: str
) -> None:
    session_id = await talked(world)
    (workspaces.root_of(world.settings, session_id) / "a").write_text("content")
    name = await keep(world, session_id)
    before = await state(world)
    if lost == "manifest":
        await exporter.objects.remove([name])
    elif lost == "pack":
        await exporter.objects.remove_below(f"tenants/{world.tenant_id}/packs")
    else:
        (tmp_path / "file").touch()
        exporter = replace(exporter, objects=Objects.in_directory(tmp_path / "file" / "store"))
    with pytest.raises(Conflict, match="could not be read") as why:
        await anext(exports.session(exporter, world.tenant_id, session_id))
    assert why.value.code == "workspace_not_copied"
    assert (await state(world))[0] == before[0], "nor does the audit log tell of an archive"
    with pytest.raises(Conflict):
        await whole(exports.tenant(exporter, await name_of(world)))
    assert not list((world.settings.workspaces_root / ".exports").iterdir())


async def test_what_was_stored_meanwhile_ends_the_archive(world: World, exporter: Exporter) -> None:
    session_id = await talked(world, *(os.urandom(200_000).hex() for _ in range(3)))
    await keep(world, session_id)
    archive = exports.session(exporter, world.tenant_id, session_id)
    async with aclosing(archive):
        begun = [await anext(archive)]
        (workspaces.root_of(world.settings, session_id) / "new").write_text("new")
        await keep(world, session_id)
        with pytest.raises(Conflict, match="A run of session"):
            await rest(archive, begun)


async def test_who_leaves_in_the_middle_leaves_nothing_open(world: World, exporter: Exporter) -> None:
    session_id = await talked(world)
    root = workspaces.root_of(world.settings, session_id)
    (root / "large").write_bytes(os.urandom(5_000_000))
    await keep(world, session_id)
    before = len(os.listdir("/proc/self/fd"))
    at_work, go_on = threading.Event(), threading.Event()

    class Slow(Threads):
        async def run(self, work, *args, **kwargs):  # type: ignore[no-untyped-def]
            def held():  # type: ignore[no-untyped-def]
                if work.__name__ == "some":
                    at_work.set()
                    go_on.wait()
                return work(*args, **kwargs)

            return await super().run(held)

    slow = Slow("slow", 4)
    task = asyncio.create_task(
        whole(exports.session(Exporter(world.db, world.settings, slow, exporter.objects), world.tenant_id, session_id))
    )
    await asyncio.to_thread(at_work.wait)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow._executor.shutdown(wait=True)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # a connection of the pool, perhaps
    assert not list((world.settings.workspaces_root / ".exports").iterdir())


async def test_an_export_changes_nothing_but_the_audit_log(world: World, exporter: Exporter) -> None:
    session_id = await talked(world)
    await keep(world, session_id)
    rows, places = await state(world)
    await whole(exports.session(exporter, world.tenant_id, session_id))
    rows["audit_log"] += 1
    assert await state(world) == (rows, places)
    with pytest.raises(NotFound):
        await whole(exports.session(exporter, world.tenant_id, uuid4()))
    assert await state(world) == (rows, places)
