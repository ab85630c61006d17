"""What is removed for its age, and what is not; readers are told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.config.retention import Retention
from apps.api.core.context import Core
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.log import Event
from apps.api.core.events.replay import Followed
from apps.api.core.files import manifest, record
from apps.api.core.files.objects import Objects
from apps.api.core.files.snapshots import Known
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import deletion, forks, retention, runs, workspaces
from apps.api.core.sessions.forks import Fork
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.core.sessions.prompts import Submission
from apps.api.core.tasks import Loop
from apps.api.errors import Gone, NotFound, ValidationError
from tests.core.files.travel import keep as keep_files
from tests.world import Relay, World, core_of

ALL = Retention(events_days=10, transcripts_days=10, idle_sessions_days=10, workspaces_days=10, usage_days=10)


async def name_of(world: World) -> str:
    return str(await world.one("SELECT name FROM tenants WHERE id = $1", world.tenant_id))


async def keep(world: World, wanted: Retention) -> None:
    await retention.put(world.db, await name_of(world), wanted)


async def sweep(world: World, **settings: Any) -> None:
    loop = Loop("sweep")
    await world.db.pool.execute("UPDATE tenants SET swept_at = NULL WHERE id = $1", world.tenant_id)
    await retention.sweep(world.core(**settings), loop)
    assert loop.sick == 0


async def age(world: World, session_id: UUID, days: int) -> None:
    """Make all of a session so much older."""
    for table, columns, where in (
        ("sessions", ("created_at", "updated_at", "last_active_at", "deleted_at"), "id"),
        ("runs", ("created_at", "started_at", "finished_at"), "session_id"),
        ("events", ("created_at",), "session_id"),
        ("transcript_entries", ("created_at",), "session_id"),
        ("requests", ("created_at", "resolved_at"), "session_id"),
        ("model_calls", ("began_at",), "session_id"),
    ):
        sets = ", ".join(f"{column} = {column} - make_interval(days => $2)" for column in columns)
        await world.db.pool.execute(f"UPDATE {table} SET {sets} WHERE {where} = $1", session_id, days)
    await world.db.pool.execute("UPDATE usage SET day = day - $2::int WHERE session_id = $1", session_id, days)


async def ran(world: World, session_id: UUID | None = None, prompt: str = "say it") -> Claim:
    """A run of a session that has ended: five events, a line of a transcript, usage, and a call."""
    await world.queue(session_id, prompt)
    lease = await world.instance()
    claim = await world.claim(lease)
    writer = world.writer(lease, claim)
    said: dict[str, Any] = {"role": "assistant", "content": [], "uuid": str(uuid4()), "parent_tool_use_id": None}
    for event in ("init", "message", "status"):
        await writer.append(Event(event, said if event == "message" else {}, claim.run_id))
    outcome = Outcome("succeeded", '{"result":"it"}', cost_usd=0.1, num_turns=1)
    await finish(writer, claim.run_id, outcome, Event("result", {}, claim.run_id), Event("done", {}, claim.run_id))
    await world.db.pool.execute(
        "INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, entry) VALUES ($1, 'p', $2, '{}')",
        claim.session_id,
        str(claim.sdk_session_id),
    )
    await world.db.pool.execute(
        "INSERT INTO usage SELECT $1, 'm', $2, $3, NULL, current_date, 1, 1, 1, 1, 1, 1", claim.run_id, world.tenant_id,
        claim.session_id,
    )  # fmt: skip
    await world.db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE id = $1", claim.session_id)
    return claim


async def counted(world: World, session_id: UUID) -> dict[str, int]:
    return {
        table: await world.one(f"SELECT count(*) FROM {table} WHERE session_id = $1", session_id)
        for table in ("events", "transcript_entries", "usage", "runs")
    }


WHOLE = {"events": 5, "transcript_entries": 1, "usage": 1, "runs": 1}


async def test_nothing_goes_where_nothing_was_said_and_a_null_outlives_the_servers_setting(world: World) -> None:
    claim = await ran(world)
    await age(world, claim.session_id, 1000)
    await sweep(world)
    assert await counted(world, claim.session_id) == WHOLE
    await keep(world, Retention(**dict.fromkeys(Retention.model_fields)))
    server = dict.fromkeys(("retention_events_days", "retention_idle_sessions_days", "retention_usage_days"), 10)
    await sweep(world, **server)
    assert await counted(world, claim.session_id) == WHOLE
    await keep(world, Retention())
    await sweep(world, **server)
    assert await counted(world, claim.session_id) == {**WHOLE, "events": 0, "transcript_entries": 0, "usage": 0}


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        (Retention(events_days=10), {"events": 0}),
        (Retention(transcripts_days=10), {"transcript_entries": 0, "events": 6}),
        (Retention(usage_days=10), {"usage": 0}),
        (Retention(idle_sessions_days=10), {"events": 0, "transcript_entries": 0}),
        (Retention(workspaces_days=10), {}),
        (Retention(idle_sessions_days=10, usage_days=10), {"events": 0, "transcript_entries": 0, "usage": 0}),
    ],
)
async def test_each_kind_goes_after_its_days_and_no_other(world: World, kept: Retention, left: dict[str, int]) -> None:
    old, young = (await ran(world)).session_id, (await ran(world)).session_id
    await age(world, old, 11)
    await age(world, young, 9)
    await keep(world, kept)
    await sweep(world)
    assert await counted(world, old) == {**WHOLE, **left}
    assert await counted(world, young) == WHOLE


async def test_what_a_run_was_asked_goes_with_its_events_and_so_do_answered_requests(world: World) -> None:
    claim = await ran(world)
    await world.db.pool.execute(
        "INSERT INTO requests (id, tenant_id, session_id, kind, data, status, remember, expires_at, resolved_at)"
        " SELECT gen_random_uuid(), $1, $2, 'permission', '{}', 'answered', remember, now(), now()"
        " FROM unnest('{true,false}'::bool[]) AS remember",
        world.tenant_id,
        claim.session_id,
    )
    await age(world, claim.session_id, 11)
    await keep(world, Retention(events_days=10))
    await sweep(world)
    row = await world.db.pool.fetchrow("SELECT prompt, result, total_cost_usd FROM runs WHERE id = $1", claim.run_id)
    assert tuple(row) == (None, None, 0.1)
    assert await world.one("SELECT array_agg(remember) FROM requests WHERE session_id = $1", claim.session_id) == [True]
    assert (await world.run(claim.run_id))["result"] is None


async def test_a_session_that_runs_or_waits_keeps_everything(world: World) -> None:
    waits, works, owned = [(await ran(world)).session_id for _ in range(3)]
    lease = await world.instance()
    await world.queue(works)
    await world.claim(lease)
    await world.queue(waits)
    await world.db.pool.execute("UPDATE sessions SET owner_id = $2 WHERE id = $1", owned, lease.instance_id)
    for session_id in (waits, works, owned):
        await age(world, session_id, 11)
    await keep(world, Retention(events_days=10, transcripts_days=10, idle_sessions_days=10))
    await sweep(world)
    for session_id in (waits, works):
        assert await counted(world, session_id) == {**WHOLE, "runs": 2}
    assert await counted(world, owned) == {**WHOLE, "events": 0}, "its owner has the conversation, and needs no events"


async def test_what_is_left_of_deleted_sessions_goes_with_usage(world: World) -> None:
    session_id = (await ran(world)).session_id
    await deletion.delete(world.db, world.tenant_id, session_id)
    kept = (await ran(world)).session_id
    for id_ in (session_id, kept):
        await age(world, id_, 11)
    await keep(world, Retention(usage_days=10))
    await sweep(world)
    assert await world.one("SELECT count(*) FROM sessions WHERE id = $1", session_id) == 0
    assert await counted(world, session_id) == dict.fromkeys(WHOLE, 0)
    assert await counted(world, kept) == {**WHOLE, "usage": 0}


async def test_what_budgets_count_goes_where_none_asks_for_it_any_more(world: World) -> None:
    gone, kept = (await ran(world)).session_id, (await ran(world)).session_id
    await deletion.delete(world.db, world.tenant_id, gone)
    for subject in (gone, kept, world.tenant_id):
        for days in (0, 9, 70):
            await world.db.pool.execute(
                "INSERT INTO spent (subject, day, tenant_id, usd, tokens)"
                " VALUES ($1, (now() AT TIME ZONE 'UTC')::date - $2::int, $3, 1, 1)", subject, days, world.tenant_id,
            )  # fmt: skip
    await sweep(world, retention_usage_days=0)
    assert await world.one("SELECT count(*) FROM spent") == 9
    await keep(world, Retention(usage_days=10))
    await sweep(world)
    rows = await world.db.pool.fetch("SELECT subject, (now() AT TIME ZONE 'UTC')::date - day AS days FROM spent")
    young = {(subject, days) for subject in (gone, kept, world.tenant_id) for days in (0, 9)}
    assert {(row["subject"], row["days"]) for row in rows} == young | {(kept, 70)}


async def test_the_agent_begins_anew_and_the_log_says_so_without_a_sign_of_life(world: World) -> None:
    claim = await ran(world)
    await age(world, claim.session_id, 11)
    before = await world.one("SELECT last_active_at FROM sessions WHERE id = $1", claim.session_id)
    await keep(world, Retention(transcripts_days=10))
    await sweep(world)
    row = await world.db.pool.fetchrow(
        "SELECT sdk_session_id, last_active_at, generation FROM sessions WHERE id = $1", claim.session_id
    )
    assert row["sdk_session_id"] != claim.sdk_session_id
    assert row["last_active_at"] == before
    assert row["generation"] > claim.generation, "fenced, should anybody think that it is the owner"
    assert (await world.events(claim.session_id))[-1][1:] == (
        "status", {**(await world.events(claim.session_id))[-1][2], "status": "conversation_expired"},
    )  # fmt: skip
    await sweep(world)
    assert len(await world.events(claim.session_id)) == 6, "once"


async def test_one_instance_at_a_time_takes_a_tenant_once_an_hour(world: World) -> None:
    claim = await ran(world)
    await age(world, claim.session_id, 11)
    await keep(world, ALL)
    loops = [Loop(f"sweep-{number}") for number in range(4)]
    await asyncio.gather(*(retention.sweep(world.core(), loop) for loop in loops))
    assert sum(loop.sick for loop in loops) == 0
    lines = "SELECT count(*) FROM audit_log WHERE tenant_id = $1 AND action = 'session.deleted'"
    assert await world.one(lines, world.tenant_id) == 1
    assert await world.one("SELECT details ->> 'reason' FROM audit_log WHERE target = $1", str(claim.session_id)) == (
        "retention"
    )
    again = await ran(world)
    await age(world, again.session_id, 11)
    await retention.sweep(world.core(), Loop("sweep"))
    assert await counted(world, again.session_id) == WHOLE, "its tenant has had its turn"
    await world.db.pool.execute(
        "UPDATE tenants SET swept_at = swept_at - interval '1 h' WHERE id = $1", world.tenant_id
    )
    await retention.sweep(world.core(), Loop("sweep"))
    assert (await counted(world, again.session_id))["events"] == 0


async def test_many_sessions_and_events_go_in_pages_and_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE", 2)
    monkeypatch.setattr(retention, "BATCH", 2)
    sessions = [(await ran(world)).session_id for _ in range(5)]
    for session_id in sessions:
        await age(world, session_id, 11)
    await keep(world, Retention(events_days=10, transcripts_days=10, usage_days=10))
    await sweep(world)
    for session_id in sessions:
        assert await counted(world, session_id) == {"events": 1, "transcript_entries": 0, "usage": 0, "runs": 1}


# --- readers -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def trimmed(world: World) -> tuple[UUID, Claim, Claim]:
    """A session whose first run's events are gone, 1 to 5, and whose second run's, 6 to 10, are there."""
    first = await ran(world)
    await age(world, first.session_id, 11)
    second = await ran(world, first.session_id)
    await keep(world, Retention(events_days=10))
    await sweep(world)
    return first.session_id, first, second


async def told(core: Core, followed: Followed, after: int, run_id: UUID | None = None) -> list[tuple[str, int]]:
    """What a reader hears who follows from there, up to the end."""
    newest = await core.db.pool.fetchval("SELECT last_seq FROM sessions WHERE id = $1", followed.session_id)
    found: list[Frame] = []
    async with aclosing(core.followers.follow(followed, Position(after), run_id=run_id)) as batches:
        async for frames in batches:
            found += frames
            if found and found[-1].seq >= newest:
                break
    return [(frame.type, frame.seq) for frame in found]


async def test_readers_from_before_are_told_and_go_on(
    world: World, relay: Relay, trimmed: tuple[UUID, Claim, Claim]
) -> None:
    session_id, _, second = trimmed
    core, followed = core_of(world, relay), Followed(world.tenant_id, session_id)
    rest = [("init", 6), ("message", 7), ("status", 8), ("result", 9), ("done", 10)]
    async with asyncio.timeout(20):
        assert await told(core, followed, 0) == [("resync", 5), *rest]
        assert await told(core, followed, 3) == [("resync", 5), *rest]
        assert await told(core, followed, 3, second.run_id) == [("resync", 5), *rest]
        assert await told(core, followed, 5) == rest
        assert await told(core, followed, 7) == rest[2:]
    assert await core.followers.start(followed, Position(0), 10) == Position(5)
    assert await core.followers.start(followed, Position(5), 10) == Position(5)
    assert await core.followers.start(followed, Position(99), 10) == Position(10)


async def test_a_run_whose_events_are_gone_is_gone(world: World, trimmed: tuple[UUID, Claim, Claim]) -> None:
    _, first, second = trimmed
    lies = await runs.extent(world.db, world.tenant_id, first.run_id)
    with pytest.raises(Gone):
        lies.require_any(lies.start)
    lies.require_any(5)  # whoever has seen its end
    lies = await runs.extent(world.db, world.tenant_id, second.run_id)
    lies.require_any(0)
    assert (lies.start, lies.end) == (5, 10)


async def test_a_run_in_the_middle_of_which_the_line_falls_is_kept(world: World) -> None:
    first = await ran(world)
    second = await ran(world, first.session_id)
    await age(world, first.session_id, 11)
    await world.db.pool.execute(
        "UPDATE events SET created_at = now() WHERE session_id = $1 AND seq > 7", first.session_id
    )
    await world.db.pool.execute("UPDATE runs SET finished_at = now() WHERE id = $1", second.run_id)
    await keep(world, Retention(events_days=10))
    await sweep(world)
    assert [seq for seq, _, _ in await world.events(first.session_id)] == [6, 7, 8, 9, 10]
    assert (await runs.extent(world.db, world.tenant_id, second.run_id)).start == 5


async def test_a_fork_lacks_what_its_parent_lacks(world: World, trimmed: tuple[UUID, Claim, Claim]) -> None:
    session_id, _, _ = trimmed
    core = world.core()
    forked = await forks.fork(core, world.tenant_id, None, Fork(Submission("", 60, session_id), False))
    assert await world.one("SELECT expired_seq FROM sessions WHERE id = $1", forked.session_id) == 5
    assert [seq for seq, _, _ in await world.events(forked.session_id)] == [6, 7, 8, 9, 10]
    with pytest.raises(ValidationError, match="removed for their age"):
        await forks.fork(core, world.tenant_id, None, Fork(Submission("", 60, session_id), False, at_seq=3))
    with pytest.raises(NotFound):
        await forks.fork(core, world.tenant_id, None, Fork(Submission("", 60, session_id), False, at_seq=6))


# --- files ---------------------------------------------------------------------------------------------------------


def made(world: World, session_id: UUID) -> Path:
    workspace = workspaces.create(world.settings, session_id, None)
    (workspace.root / "file.txt").write_text("x")
    (workspace.home / "file.txt").write_text("x")
    return workspace.root


async def test_files_of_sessions_that_nothing_happens_in_go(world: World) -> None:
    old, young, busy, gone = [(await ran(world)).session_id for _ in range(4)]
    roots = {session_id: made(world, session_id) for session_id in (old, young, busy, gone)}
    for session_id in (old, busy):
        await age(world, session_id, 11)
    await world.queue(busy)
    loop = Loop("sweep")

    async def sweep_files(**settings: Any) -> None:
        present = workspaces.present(world.settings)
        await retention.sweep_files(world.core(**settings), loop, [id_ for id_ in present if id_ in roots])
        assert loop.sick == 0

    await sweep_files()
    assert all(root.exists() for root in roots.values())
    await keep(world, Retention(workspaces_days=10))
    await sweep_files()
    assert [session_id for session_id, root in roots.items() if not root.exists()] == [old]
    assert old not in workspaces.present(world.settings)
    assert not list((world.settings.workspaces_root / ".removed").iterdir())
    await keep(world, Retention(workspaces_days=None))
    await age(world, young, 11)
    await sweep_files(retention_workspaces_days=10)
    assert roots[young].exists()
    await keep(world, Retention())
    await sweep_files(retention_workspaces_days=10)
    assert [session_id for session_id, root in roots.items() if root.exists()] == [busy, gone]


async def test_a_session_that_is_being_claimed_keeps_its_files(world: World) -> None:
    session_id = (await ran(world)).session_id
    root = made(world, session_id)
    await age(world, session_id, 11)
    await keep(world, Retention(workspaces_days=10))
    async with world.db.transaction() as claiming:
        await claiming.execute("SELECT 1 FROM sessions WHERE id = $1 FOR NO KEY UPDATE", session_id)
        await retention.sweep_files(world.core(), Loop("sweep"), [session_id])
        assert root.exists()
    assert workspaces.move_away(world.settings, session_id, 0.0) == [], "and whoever is late moves nothing"
    await retention.sweep_files(world.core(), Loop("sweep"), [session_id])
    assert not root.exists()


async def named(world: World, session_id: UUID) -> tuple[str | None, ...]:
    row = await world.db.pool.fetchrow("SELECT stored, stored_before FROM sessions WHERE id = $1", session_id)
    return tuple(row)


async def test_stored_files_go_on_any_instance_also_one_that_has_no_copy(world: World) -> None:
    old, young, busy = [(await ran(world)).session_id for _ in range(3)]
    names = {}
    for session_id in (old, young, busy):
        made(world, session_id)
        names[session_id] = await keep_files(world, session_id)
        workspaces.remove(world.settings, session_id)
    for session_id in (old, busy):
        await age(world, session_id, 11)
    await world.queue(busy)
    await world.db.pool.execute("UPDATE tenants SET collected_at = now() WHERE id = $1", world.tenant_id)
    await sweep(world)
    assert [await named(world, one) for one in names] == [(name, None) for name in names.values()]
    await keep(world, Retention(workspaces_days=10))
    await sweep(world)
    assert [(await named(world, one))[0] for one in names] == [None, names[young], names[busy]]
    store = world.settings.workspaces_root / ".store"
    assert [(store / name).exists() for name in names.values()] == [False, True, True]
    soon = "SELECT collected_at < now() - interval '4 h' FROM tenants WHERE id = $1"
    assert await world.one(soon, world.tenant_id), "what the manifest named is collected next"
    assert await counted(world, old) == WHOLE


async def test_stored_files_go_with_the_copy_on_a_host(world: World) -> None:
    session_id = (await ran(world)).session_id
    root = made(world, session_id)
    name = await keep_files(world, session_id)
    record.write(world.settings, session_id, Known(name, {}, {}, manifest.frames({})))
    await age(world, session_id, 11)
    await keep(world, Retention(workspaces_days=10))
    await retention.sweep_files(world.core(), Loop("sweep"), workspaces.present(world.settings))
    assert not root.exists()
    assert await named(world, session_id) == (None, None)
    assert session_id not in workspaces.present(world.settings)
    assert record.read(world.settings, session_id) is None
    assert not (world.settings.workspaces_root / ".store" / name).exists()


async def test_a_store_that_fails_keeps_no_files_from_being_forgotten(world: World, tmp_path: Path) -> None:
    session_id = (await ran(world)).session_id
    made(world, session_id)
    await keep_files(world, session_id)
    await age(world, session_id, 11)
    await keep(world, Retention(workspaces_days=10))
    (tmp_path / "file").touch()
    broken = replace(world.core(), objects=Objects.in_directory(tmp_path / "file" / "store"))
    loop = Loop("sweep")
    await world.db.pool.execute("UPDATE tenants SET swept_at = NULL WHERE id = $1", world.tenant_id)
    await retention.sweep(broken, loop)
    assert loop.sick == 0
    assert await named(world, session_id) == (None, None), "the manifest is garbage now"


def test_a_record_alone_is_found_and_removed(world: World) -> None:
    session_id = uuid4()
    record.write(world.settings, session_id, Known("x", {}, {}, manifest.frames({})))
    assert session_id in workspaces.present(world.settings)
    workspaces.remove(world.settings, session_id)
    assert session_id not in workspaces.present(world.settings)
