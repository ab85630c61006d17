"""Forks: what is copied, where it is cut, and what is left when it fails."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from obstore.store import LocalStore

from apps.api.core.events.log import Event
from apps.api.core.files.objects import LOCAL, Objects
from apps.api.core.sessions import forks, names, prompts, stored, workspaces
from apps.api.core.sessions.forks import Fork, Forked
from apps.api.core.sessions.names import Name, NameTaken
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.errors import Conflict, NotFound, TooLarge, ValidationError
from tests.core.files.travel import Store, keep
from tests.world import World, core_of

MESSAGES = [str(UUID(int=number)) for number in range(1, 5)]


async def fork(world: World, parent: UUID, *, begins: bool = False, **cut: Any) -> Forked:
    return await forks.fork(
        core_of(world), world.tenant_id, None, Fork(prompts.Submission("say hello", 60, parent), begins, **cut)
    )


def entry(session_id: UUID, uuid: str) -> str:
    return f'{{"in":"{session_id}","id":"{uuid}"}}'


async def talked(world: World) -> UUID:
    """A session of two runs, each of a prompt and its answer, with its transcript; nothing is active."""
    lease = await world.instance()
    session_id = await world.session()
    for number in (0, 2):
        await world.queue(session_id)
        claim = await world.claim(lease)
        writer = world.writer(lease, claim)
        for uuid in MESSAGES[number : number + 2]:
            text = entry(session_id, uuid)
            await world.db.pool.execute(
                "INSERT INTO transcript_entries"
                " (session_id, project_key, sdk_session_id, subpath, uuid, entry, said_at)"
                " VALUES ($1, $2, $3, '', $4, $5, $6), ($1, $2, $3, 'subagents/a', $4, $5, $6)",
                session_id,
                f"-workspaces-{session_id}",
                str(claim.sdk_session_id),
                uuid,
                text,
                datetime(2026, 1, 31, 12, 0, int(uuid[-1]), tzinfo=UTC),
            )
            await writer.append(Event("message", {"role": "user", "content": [], "uuid": uuid}, claim.run_id))
        await finish(writer, claim.run_id, Outcome("succeeded"), Event("done", {"status": "succeeded"}, claim.run_id))
    return session_id


async def entries(world: World, session_id: UUID) -> list[tuple[str, str, str]]:
    rows = await world.db.pool.fetch(
        "SELECT subpath, uuid, entry, sdk_session_id, project_key FROM transcript_entries WHERE session_id = $1"
        " ORDER BY id",
        session_id,
    )
    assert {(r["sdk_session_id"], r["project_key"]) for r in rows} <= {(str(session_id), "")}
    return [(r["subpath"], r["uuid"], r["entry"]) for r in rows]


async def test_events_and_entries_up_to_a_message_are_copied_under_the_new_id(lone_world: World) -> None:
    parent = await talked(lone_world)
    child = (await fork(lone_world, parent, message_uuid=UUID(MESSAGES[1]))).session_id
    assert await entries(lone_world, child) == [
        (subpath, uuid, entry(child, uuid)) for uuid in MESSAGES[:2] for subpath in ("", "subagents/a")
    ]
    copied = await lone_world.events(child)
    assert [(seq, kind, data["session_id"]) for seq, kind, data in copied] == [
        (1, "message", str(child)),
        (2, "message", str(child)),
    ]
    assert await lone_world.one("SELECT last_seq FROM sessions WHERE id = $1", child) == 2
    assert await lone_world.one("SELECT count(*) FROM events WHERE session_id = $1 AND run_id IS NOT NULL", child) == 0
    whole = (await fork(lone_world, parent)).session_id
    assert len(await entries(lone_world, whole)) == 8
    assert len(await lone_world.events(whole)) == 6


async def test_a_fork_before_a_run_takes_the_names_of_its_parent(lone_world: World) -> None:
    parent = await talked(lone_world)
    chat, message = Name("chat", "c"), Name("chat", "m")
    await names.give(lone_world.db.pool, lone_world.tenant_id, chat, parent)

    async def before(run: str) -> Forked:
        submission = prompts.Submission("say hello", 60, parent, session_names=[chat], run_names=[message])
        cut = Fork(submission, begins=True, before_run=UUID(run))
        return await forks.fork(core_of(lone_world), lone_world.tenant_id, None, cut)

    child = await before(MESSAGES[2])
    assert [uuid for _, uuid, _ in await entries(lone_world, child.session_id)] == MESSAGES[:1] * 2 + MESSAGES[1:2] * 2
    found = await names.find(lone_world.db, lone_world.tenant_id, "chat", "c", "m")
    assert child.run is not None
    assert {name: (one.session_id, one.run_id) for name, one in found.items()} == {
        "c": (child.session_id, None),
        "m": (child.session_id, child.run.run_id),
    }
    with pytest.raises(NameTaken):  # it is the child's by now
        await before(MESSAGES[0])
    with pytest.raises(NotFound, match="message"):
        await before(str(uuid4()))
    assert await lone_world.one("SELECT count(*) FROM sessions") == 2


async def test_what_another_tenant_has_cannot_be_forked(lone_world: World) -> None:
    parent = await talked(lone_world)
    stranger = replace(lone_world, tenant_id=await lone_world.other_tenant())
    with pytest.raises(NotFound):
        await fork(stranger, parent)


async def test_a_message_whose_entry_was_lost_is_not_silently_forgotten(lone_world: World) -> None:
    parent = await talked(lone_world)
    await lone_world.db.pool.execute("DELETE FROM transcript_entries")
    with pytest.raises(NotFound, match="message"):
        await fork(lone_world, parent, at_seq=2)
    with pytest.raises(ValidationError):
        await fork(lone_world, parent, at_seq=7)


async def test_an_active_run_can_only_be_forked_before(lone_world: World) -> None:
    parent = await talked(lone_world)
    await lone_world.queue(parent)
    await lone_world.db.pool.execute(
        "UPDATE runs SET status = 'running', started_at = now(), first_seq = 7 WHERE status = 'queued'"
    )
    with pytest.raises(Conflict):
        await fork(lone_world, parent)
    assert await fork(lone_world, parent, at_seq=6)


async def test_files_that_cannot_be_copied_keep_a_fork_from_beginning(lone_world: World) -> None:
    parent = await talked(lone_world)
    store = Store(lone_world.settings.workspaces_root / LOCAL)
    root = workspaces.create(lone_world.settings, parent, None).root
    (root / "big").write_bytes(b"x" * 20_000)
    known = await store.take(workspaces.places(lone_world.settings, parent))
    assert known is not None
    async with lone_world.db.transaction() as connection:
        await stored.begin(connection, parent, known.name, 20_000)
    limited = replace(lone_world, settings=lone_world.settings.model_copy(update={"max_workspace_copy_bytes": 10_000}))
    with pytest.raises(TooLarge):
        await fork(limited, parent, begins=True)
    await store.objects.remove([known.name])
    with pytest.raises(Conflict):
        await fork(lone_world, parent, begins=True)
    assert await lone_world.one("SELECT count(*) FROM sessions") == 1
    assert await lone_world.one("SELECT count(*) FROM runs WHERE status = 'queued'") == 0


@pytest.mark.parametrize(("times", "made"), [(1, True), (2, False)])
async def test_files_that_are_stored_anew_meanwhile_are_not_forked_once_they_may_be_garbage(
    lone_world: World, times: int, *, made: bool
) -> None:
    """The original's manifest is its own, or the one before, until the fork is there."""
    parent = await talked(lone_world)
    workspaces.create(lone_world.settings, parent, None)
    await keep(lone_world, parent)
    generation = await lone_world.one("SELECT generation FROM sessions WHERE id = $1", parent)

    class Meanwhile(Objects):
        async def put(self, name: str, content: bytes) -> None:
            await super().put(name, content)
            for number in range(times):
                before = await lone_world.one("SELECT stored FROM sessions WHERE id = $1", parent)
                newer = f"newer-{number}"
                await stored.note(lone_world.db, parent, generation, newer, 0, before=before, over=True)

    place = lone_world.settings.workspaces_root / LOCAL
    core = replace(core_of(lone_world), objects=Meanwhile(partial(LocalStore, place, mkdir=True), str(place)))
    forking = forks.fork(core, lone_world.tenant_id, None, Fork(prompts.Submission("", 60, parent), False))
    if made:
        child = (await forking).session_id
        assert await lone_world.one("SELECT stored FROM sessions WHERE id = $1", child)
        return
    with pytest.raises(Conflict) as refused:
        await forking
    assert refused.value.code == "workspace_not_copied"
    assert await lone_world.one("SELECT count(*) FROM sessions") == 1


@pytest.mark.parametrize(("table", "column"), [("events", "data"), ("transcript_entries", "entry")])
async def test_a_conversation_of_more_than_can_be_copied_in_time_is_refused(
    lone_world: World, table: str, column: str
) -> None:
    parent = await talked(lone_world)
    number = "seq" if table == "events" else "id"
    await lone_world.db.pool.execute(
        f"UPDATE {table} SET {column} = repeat('x', $1) WHERE {number} = (SELECT max({number}) FROM {table})",
        forks.MAX_CONVERSATION,
    )
    with pytest.raises(TooLarge) as refused:
        await fork(lone_world, parent)
    assert refused.value.code == "conversation_too_large"
    assert await lone_world.one("SELECT count(*) FROM sessions") == 1
    assert await fork(lone_world, parent, at_seq=2)


@pytest.mark.parametrize("place", [".imports", ".exports", ".clones"])
async def test_what_somebody_left_unfinished_is_removed_when_it_is_old(lone_world: World, place: str) -> None:
    drafts = lone_world.settings.workspaces_root / place
    for name, age in (("old", workspaces.FORGOTTEN_AGE + 60), ("young", 0)):
        (drafts / name / "files").mkdir(parents=True)
        moment = (drafts / name).stat().st_mtime - age
        os.utime(drafts / name, (moment, moment))
    workspaces.discard_forgotten(lone_world.settings)
    assert os.listdir(drafts) == ["young"]


async def test_what_the_model_has_signed_is_copied_word_for_word(lone_world: World) -> None:
    parent = await talked(lone_world)
    thought = f'"message":{{"content":[{{"type":"thinking","thinking":"in /w/{parent}/a \\"cwd\\"","signature":"x"}}]}}'
    own = f'"cwd":"/w/{{0}}/sub","sessionId":"{{0}}",{thought.replace("{", "{{").replace("}", "}}")}'
    await lone_world.db.pool.execute("UPDATE transcript_entries SET entry = $1", "{" + own.format(parent) + "}")
    child = (await fork(lone_world, parent)).session_id
    assert {text for _, _, text in await entries(lone_world, child)} == {"{" + own.format(child) + "}"}
