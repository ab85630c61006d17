"""Sessions: seen only by their tenant, listed without loss, and gone when they are deleted."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from apps.api.core.config.agent import AgentConfig
from apps.api.core.events import log
from apps.api.core.events.log import Event
from apps.api.core.fleet import cancellation, commands, control, ownership
from apps.api.core.pages import PAGE_BYTES, Page
from apps.api.core.sessions import deletion, prompts, runs, sessions
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.core.sessions.sessions import Filters, Labels
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.errors import ApiError, Conflict, NotFound, ValidationError
from apps.api.lanes import AT_ONCE
from apps.api.redis import open_redis
from tests.proxy import changed, redis_proxy
from tests.world import World, administrator, core_of, until, waiting_for_locks

MODEL = "claude-default"


async def state(world: World, session_id: UUID) -> dict[str, Any]:
    """As stored, not as cached."""
    await sessions.forget_cached(world.redis, world.tenant_id, session_id)
    return await sessions.get(world.db, world.redis, world.tenant_id, session_id, MODEL)


async def page(world: World, cursor: str | None = None, limit: int = 100, **filters: Any) -> Page:
    return await sessions.list_page(
        world.db, world.tenant_id, Filters(**filters), limit=limit, cursor=cursor, default_model=MODEL
    )


async def listed(world: World, **filters: Any) -> set[UUID]:
    return {UUID(session["session_id"]) for session in (await page(world, **filters)).data}


# --- the state of one session --------------------------------------------------------------------------------------


async def test_a_new_session_is_idle_and_shows_its_configuration_without_secrets(world: World) -> None:
    session_id = await world.session(Labels("Weekly", ["a"], {"k": "v"}), env={"TOKEN": "s3cret"}, tools=["Read"])
    found = await state(world, session_id)
    assert (found["status"], found["active"], found["owner"], found["queued_runs"]) == ("idle", False, None, 0)
    assert (found["title"], found["tags"], found["metadata"]) == ("Weekly", ["a"], {"k": "v"})
    assert (found["model"], found["permission_mode"], found["tools"]) == (MODEL, "default", ["Read"])
    assert found["config"] == {"env": {"TOKEN": "***"}, "tools": ["Read"]}
    assert b"s3cret" not in orjson.dumps(found)


async def test_the_state_follows_the_runs(world: World) -> None:
    lease, session_id = await world.instance(), await world.session()

    async def now() -> tuple[Any, ...]:
        found = await state(world, session_id)
        assert await listed(world, status=found["status"]) == {session_id}
        for other in {"idle", "queued", "running", "requires_action"} - {found["status"]}:
            assert await listed(world, status=other) == set()
        return found["status"], found["active"], found["active_run_id"], found["queued_runs"]

    assert await now() == ("idle", False, None, 0)
    run = await world.queue(session_id)
    assert await now() == ("queued", False, None, 1)
    claim = await world.claim(lease)
    await ownership.note_sent(world.db, session_id, claim.generation, claim.run_id, True)
    await world.queue(session_id)
    assert await now() == ("running", True, str(run.run_id), 1)
    await world.db.pool.execute("UPDATE runs SET status = 'requires_action' WHERE id = $1", run.run_id)
    assert await now() == ("requires_action", True, str(run.run_id), 1)
    await world.expire(lease)  # nobody is running it: a reaper is about to say so
    assert await now() == ("queued", False, None, 1)
    await world.db.pool.execute("UPDATE runs SET status = 'running' WHERE id = $1", run.run_id)
    assert await now() == ("queued", False, None, 1)
    await world.reap()
    assert await now() == ("queued", False, None, 1)
    lease = await world.instance()
    second = await world.claim(lease)
    writer = world.writer(lease, second)
    await finish(writer, second.run_id, Outcome("succeeded", cost_usd=0.5, num_turns=1), Event("done"))
    assert await now() == ("idle", True, None, 0)
    found = await state(world, session_id)
    assert (found["num_turns"], found["total_cost_usd"], found["last_seq"]) == (1, 0.5, 3)
    assert claim.generation < second.generation


async def test_a_cached_state_is_forgotten_by_every_write(world: World) -> None:
    _, claim, writer = await world.owned()
    args = (world.db, world.redis, world.tenant_id, claim.session_id)
    await sessions.get(*args, MODEL)
    assert (await sessions.get(*args, MODEL))["title"] is None
    await sessions.patch(*args, Labels("New"))
    assert (await sessions.get(*args, MODEL))["title"] == "New"
    await writer.append(Event("init"))
    assert (await sessions.get(*args, MODEL))["last_seq"] == 1


async def test_a_slow_reader_cannot_put_an_outdated_state_into_the_cache(world: World) -> None:
    session_id = await world.session(Labels("Old"))
    key = world.redis.keys.session(world.tenant_id, session_id)
    await sessions.forget_cached(world.redis, world.tenant_id, session_id)  # a write that the reader did not see
    await sessions.get(world.db, world.redis, world.tenant_id, session_id, MODEL)
    assert await world.redis.client.get(key) == b""


async def test_a_write_that_redis_was_not_told_of_invalidates_the_cache_once_it_is_back(world: World) -> None:
    """While an instance leaves Redis alone for a moment, the others still read from it."""
    session_id = await world.session(Labels("Old"))
    async with redis_proxy(world.settings) as (proxy, through), open_redis(through) as redis:
        here, elsewhere = (world.db, redis, world.tenant_id), (world.db, world.redis, world.tenant_id)
        assert (await sessions.get(*elsewhere, session_id, MODEL))["title"] == "Old"
        await proxy.refuse()
        assert (await sessions.get(*here, session_id, MODEL))["title"] == "Old"
        await proxy.start()
        await sessions.patch(*here, session_id, Labels("New"))
        assert (await sessions.get(*here, session_id, MODEL))["title"] == "New"

        async def is_new() -> bool:
            return bool((await sessions.get(*elsewhere, session_id, MODEL))["title"] == "New")

        await until(is_new)
        assert not redis.tombstones


async def test_sessions_are_read_and_written_without_redis(world: World) -> None:
    session_id = await world.session(Labels("Old"))
    async with open_redis(changed(world.settings, redis_url="redis://127.0.0.1:1/0")) as redis:
        args = (world.db, redis, world.tenant_id, session_id)
        assert (await sessions.get(*args, MODEL))["title"] == "Old"
        await sessions.patch(*args, Labels("New"))
        assert (await sessions.get(*args, MODEL))["title"] == "New"


async def test_a_patch_replaces_what_it_names_and_leaves_the_rest(world: World) -> None:
    session_id = await world.session(Labels("Old", ["a", "b"], {"k": "v", "l": "w"}))
    await sessions.patch(world.db, world.redis, world.tenant_id, session_id, Labels(metadata={"m": "x"}))
    found = await state(world, session_id)
    assert (found["title"], found["tags"], found["metadata"]) == ("Old", ["a", "b"], {"m": "x"})
    await sessions.patch(world.db, world.redis, world.tenant_id, session_id, Labels(tags=[]))
    assert (await state(world, session_id))["tags"] == []


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_filters_find_what_they_say(world: World) -> None:
    reports = await world.session(Labels("Weekly Report 100%", ["reports", "it's"], {"customer": "42", "env": "prod"}))
    other = await world.session(Labels("weekly sync", ["meetings"], {"customer": "43"}))
    plain = await world.session()
    assert await listed(world) == {reports, other, plain}
    assert await listed(world, tag="reports") == {reports}
    assert await listed(world, tag="it's") == {reports}
    assert await listed(world, tag="report") == set()
    assert await listed(world, search="WEEKLY") == {reports, other}
    assert await listed(world, search="100%") == {reports}
    assert await listed(world, search="%") == {reports}
    assert await listed(world, search="_") == set()
    assert await listed(world, metadata={"customer": "42"}) == {reports}
    assert await listed(world, metadata={"customer": "42", "env": "test"}) == set()
    assert await listed(world, metadata={"customer": "4"}) == set()
    assert await listed(world, tag="meetings", search="weekly", metadata={"customer": "43"}) == {other}


async def test_sessions_are_found_by_when_they_were_created(world: World) -> None:
    old, new = await world.session(), await world.session()
    await world.db.pool.execute("UPDATE sessions SET created_at = now() - interval '2 days' WHERE id = $1", old)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert await listed(world, created_after=yesterday) == {new}
    assert await listed(world, created_after=yesterday - timedelta(days=2)) == {new, old}


async def test_deleted_sessions_are_not_listed(world: World) -> None:
    kept, deleted = await world.session(), await world.session()
    await deletion.delete(world.db, world.tenant_id, deleted)
    assert await listed(world) == {kept}


async def walk(world: World, limit: int, between: Callable[[], Awaitable[object]] | None = None) -> list[UUID]:
    seen, cursor = [], None
    while True:
        found = await page(world, cursor, limit)
        seen += [UUID(session["session_id"]) for session in found.data]
        cursor = found.next_cursor
        if cursor is None:
            return seen
        if between:
            await between()


async def test_pages_hold_every_session_once_newest_first(world: World) -> None:
    elsewhere = replace(world, tenant_id=await world.other_tenant())
    created = []
    for _ in range(7):
        created.append(await world.session())
        await elsewhere.session()
    for limit in (1, 2, 3, 7, 100):
        assert await walk(world, limit) == created[::-1]
        assert len((await page(world, limit=limit)).data) == min(limit, 7)


async def test_sessions_created_at_the_same_moment_are_paged_without_loss(world: World) -> None:
    async with world.db.transaction() as connection:  # one transaction has one now()
        created = {await sessions.insert(connection, world.tenant_id, AgentConfig(), Labels()) for _ in range(11)}
    seen = await walk(world, 3)
    assert len(seen) == 11
    assert set(seen) == created


async def test_a_page_of_sessions_has_a_bounded_size(world: World) -> None:
    subagents = {f"a{n}": {"description": "d", "prompt": token_hex(25_000)} for n in range(5)}
    made = [str(await world.session(agents=subagents)) for _ in range(6)]
    listed, cursor = list[str](), None
    while not listed or cursor:
        page = await sessions.list_page(
            world.db, world.tenant_id, Filters(), limit=200, cursor=cursor, default_model="m"
        )
        assert 1 <= len(page.data) <= 2
        listed, cursor = listed + [state["session_id"] for state in page.data], page.next_cursor
    assert listed == made[::-1]


async def test_sessions_that_come_while_a_client_turns_pages_do_not_shift_them(world: World) -> None:
    created = [await world.session() for _ in range(7)]
    assert await walk(world, 2, between=world.session) == created[::-1]


def cursor_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()


BAD_CURSORS = {
    "empty": "",
    "no base64": "%%%",
    "not ascii": "é",
    "binary": base64.urlsafe_b64encode(b"\xff\xfe\x00").decode(),
    "no id": cursor_of("2026-01-31T12:00:00+00:00"),
    "no moment": cursor_of(f"|{uuid4()}"),
    "no time zone": cursor_of(f"2026-01-31T12:00:00|{uuid4()}"),
    "before all time": cursor_of(f"0001-01-01T00:00:00+14:00|{uuid4()}"),
    "after all time": cursor_of(f"9999-12-31T23:59:59-14:00|{uuid4()}"),
    "no uuid": cursor_of("2026-01-31T12:00:00+00:00|1; DROP TABLE sessions"),
    "NUL": cursor_of(f"2026-01-31T12:00:00+00:00|{uuid4()}\x00"),
}


@pytest.mark.parametrize("cursor", BAD_CURSORS.values(), ids=BAD_CURSORS.keys())
async def test_a_cursor_that_was_tampered_with_is_refused(world: World, cursor: str) -> None:
    with pytest.raises(ValidationError):
        await page(world, cursor)


async def test_a_cursor_of_another_tenant_shows_only_ones_own(world: World) -> None:
    elsewhere = replace(world, tenant_id=await world.other_tenant())
    mine = await world.session()
    for _ in range(3):
        await elsewhere.session()
    theirs = (await page(elsewhere, limit=1)).next_cursor
    assert {UUID(s["session_id"]) for s in (await page(world, theirs)).data} == {mine}


# --- tenants -------------------------------------------------------------------------------------------------------


async def test_no_function_tells_a_tenant_of_anothers_session(world: World) -> None:
    lease, claim, writer = await world.owned()
    await writer.append(Event("message", {"role": "user", "content": []}, claim.run_id))
    session_id, stranger = claim.session_id, await world.other_tenant()
    db, redis = world.db, world.redis
    key = redis.keys.session(world.tenant_id, session_id)
    await redis.client.delete(key)
    await sessions.get(db, redis, world.tenant_id, session_id, MODEL)
    assert await redis.client.get(key)  # what is cached must not be told either
    core = core_of(world)
    attempts: dict[str, Awaitable[object]] = {
        "get": sessions.get(db, redis, stranger, session_id, MODEL),
        "require": sessions.require(db, stranger, session_id),
        "patch": sessions.patch(db, redis, stranger, session_id, Labels("mine now")),
        "messages": sessions.messages(db, stranger, session_id, limit=10, cursor=None),
        "delete": deletion.delete(db, stranger, session_id),
        "submit": prompts.submit(core, stranger, None, prompts.Submission("hi", 1, session_id)),
        "run": runs.get(db, stranger, claim.run_id),
        "extent": runs.extent(db, stranger, claim.run_id),
        "runs": runs.list_page(db, stranger, session_id, limit=10, cursor=None),
        "command": commands.send(core, stranger, session_id, "interrupt"),
        "cancel": cancellation.cancel(core, stranger, claim.run_id),
        "control": control.reconfigure(core, stranger, session_id, {"model": "m"}),
    }
    for name, attempt in attempts.items():
        with pytest.raises(ApiError) as caught:
            await attempt
        assert isinstance(caught.value, NotFound), name
    assert not (await log.read(db, stranger, session_id, 0)).frames
    assert await listed(replace(world, tenant_id=stranger)) == set()
    found = await state(world, session_id)
    assert (found["title"], found["status"], found["owner"]) == (None, "running", str(lease.instance_id))


# --- the conversation ----------------------------------------------------------------------------------------------


def said(role: str, content: list[dict[str, Any]], parent: str | None = None) -> Event:
    return Event("message", {"role": role, "content": content, "parent_tool_use_id": parent})


async def test_the_conversation_is_paged_and_subagents_stand_under_their_caller(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(
        Event("init"),
        said("user", [{"type": "text", "text": "half a pair \ud83d, NUL \x00"}]),
        said("assistant", [{"type": "tool_use", "id": "toolu_1", "name": "Task", "input": {}}]),
        said("user", [{"type": "text", "text": "sub work"}], "toolu_1"),
        said("assistant", [{"type": "text", "text": "sub done"}], "toolu_1"),
        said("user", [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "done", "is_error": False}]),
        Event("status"),
        said("assistant", [{"type": "text", "text": "all done"}]),
    )
    seen, cursor, sizes = [], None, []
    while True:
        found = await sessions.messages(world.db, world.tenant_id, claim.session_id, limit=2, cursor=cursor)
        seen += found.data
        sizes.append(len(found.data))
        cursor = found.next_cursor
        if cursor is None:
            break
    assert sizes == [2, 2]
    assert [m["seq"] for m in seen] == [2, 3, 6, 8]
    assert seen[0]["content"][0]["text"] == "half a pair \ud83d, NUL \x00"
    assert [[sub["seq"] for sub in m["subagent_messages"]] for m in seen] == [[], [4, 5], [], []]


async def test_a_page_of_the_conversation_has_a_bounded_size(world: World) -> None:
    _, claim, writer = await world.owned()
    text = [{"type": "text", "text": "x" * (PAGE_BYTES // 3)}]
    await writer.append(*(said("user", text) for _ in range(5)))
    cursor, seen = None, []
    while True:
        found = await sessions.messages(world.db, world.tenant_id, claim.session_id, limit=200, cursor=cursor)
        seen.append([message["seq"] for message in found.data])
        cursor = found.next_cursor
        if cursor is None:
            break
    assert seen == [[1, 2], [3, 4], [5]]


async def test_what_subagents_said_has_a_bounded_size_and_who_misses_some_is_told(world: World) -> None:
    _, claim, writer = await world.owned()
    text = [{"type": "text", "text": "x" * (sessions.MAX_SUBAGENT_BYTES // 3)}]
    calls = [[{"type": "tool_use", "id": f"call {n}\x00", "name": "Task", "input": {}}] for n in range(2)]
    await writer.append(*(said("assistant", call) for call in calls))
    await writer.append(*(said("assistant", text, f"call {n}\x00") for n in (0, 0, 1)))
    page = await sessions.messages(world.db, world.tenant_id, claim.session_id, limit=10, cursor=None)
    shown = [(len(m["subagent_messages"]), m["subagent_messages_omitted"]) for m in page.data]
    assert shown == [(2, False), (0, True)]


async def test_a_session_without_messages_has_an_empty_conversation(world: World) -> None:
    found = await sessions.messages(world.db, world.tenant_id, await world.session(), limit=2, cursor=None)
    assert (found.data, found.next_cursor) == ([], None)


# --- deletion ------------------------------------------------------------------------------------------------------


async def test_a_deleted_session_leaves_nothing_of_its_content(world: World) -> None:
    lease, session_id = await world.instance(), await world.session(Labels("Secret", ["t"], {"k": "v"}), model="m")
    done = await world.queue(session_id, "secret prompt")
    first = await world.claim(lease)
    writer = world.writer(lease, first)
    outcome = Outcome("succeeded", '{"result":"secret"}', cost_usd=0.5, num_turns=1)
    await finish(writer, done.run_id, outcome, said("assistant", []), Event("done"))
    running = await world.queue(session_id, "secret too", idempotency=Idempotency.of("a"))
    await world.claim(lease)
    waiting = await world.queue(session_id, "secret three", config=AgentConfig(model="n"))
    await world.db.pool.execute(
        "INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, entry)"
        " VALUES ($1, 'p', 's', 'secret')",
        session_id,
    )
    await world.db.pool.execute(
        "INSERT INTO commands (id, session_id, run_id, type) VALUES ($1, $2, $3, 'interrupt')",
        uuid4(),
        session_id,
        running.run_id,
    )
    gone = await deletion.delete(world.db, world.tenant_id, session_id)
    assert (gone.owner, gone.whole, lease.instance_id in gone.instances) == (lease.instance_id, True, True)
    counted = {table: (rows, bool(size)) for table, (rows, size) in gone.removed.items()}
    assert counted.pop("events")[1]
    assert counted == {
        "runs": (3, True), "transcript_entries": (1, True), "commands": (1, False), "idempotency_keys": (1, False),
    }  # fmt: skip
    for table in ("events", "transcript_entries", "commands", "idempotency_keys"):
        assert await world.one(f"SELECT count(*) FROM {table} WHERE session_id = $1", session_id) == 0, table
    row = await world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", session_id)
    assert (row["title"], row["tags"], row["metadata"], row["config"]) == (None, [], {}, {})
    assert row["owner_id"] is None
    assert row["generation"] > first.generation
    rows = await world.db.pool.fetch("SELECT * FROM runs WHERE session_id = $1 ORDER BY position", session_id)
    assert [r["id"] for r in rows] == [done.run_id, running.run_id, waiting.run_id]
    assert [r["status"] for r in rows] == ["succeeded", "interrupted", "interrupted"]
    assert rows[0]["total_cost_usd"] == 0.5  # what a report of usage needs
    for run in rows:
        assert (run["prompt"], run["result"], run["config"]) == (None, None, None)
    assert await world.claims_nothing(lease)


async def test_a_session_is_deleted_once(world: World) -> None:
    session_id = await world.session()
    async with administrator(world.settings) as admin, administrator(world.settings) as observer:
        async with admin.transaction():
            await admin.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session_id)
            deleting = asyncio.gather(
                *(deletion.delete(world.db, world.tenant_id, session_id) for _ in range(4)), return_exceptions=True
            )
            await until(lambda: waiting_for_locks(observer, AT_ONCE))
        refused = [ended for ended in await deleting if isinstance(ended, Exception)]
    assert [type(ended) for ended in refused] == [Conflict] * 3
    with pytest.raises(NotFound):
        await state(world, session_id)
    with pytest.raises(NotFound):
        await sessions.require(world.db, world.tenant_id, session_id)
    with pytest.raises(NotFound):
        await sessions.patch(world.db, world.redis, world.tenant_id, session_id, Labels("x"))
    with pytest.raises(NotFound):
        await deletion.delete(world.db, world.tenant_id, uuid4())


async def test_files_of_deleted_and_unknown_sessions_can_be_told_from_those_in_use(world: World) -> None:
    kept, deleted, unknown = await world.session(), await world.session(), uuid4()
    await deletion.delete(world.db, world.tenant_id, deleted)
    assert set(await deletion.deleted_among(world.db, [kept, deleted, unknown])) == {deleted, unknown}
    assert await deletion.deleted_among(world.db, []) == []


async def test_sessions_of_a_preset_are_listed_newest_first_in_pages(world: World) -> None:
    """Those of its name, of a version, of one that has been deleted and of the one that has its name now."""
    old, new, other = uuid4(), uuid4(), uuid4()
    for id_, name, gone in ((old, "p", True), (new, "p", False), (other, "q", False)):
        await world.db.pool.execute(
            "INSERT INTO agents (id, tenant_id, name, deleted_at) VALUES ($1, $2, $3, CASE WHEN $4 THEN now() END)",
            *(id_, world.tenant_id, name, gone),
        )
    made = []
    for agent, version in ((old, 1), (new, 1), (other, 1), (new, 2), (old, 1), (None, None), (new, 2)):
        made.append(session_id := await world.session())
        query = "UPDATE sessions SET agent_id = $2, agent_version = $3 WHERE id = $1"
        await world.db.pool.execute(query, session_id, agent, version)
    await world.queue(made[3])
    await world.queue(made[2])

    async def listed(limit: int = 50, cursor: str | None = None, **filters: Any) -> list[int]:
        page = await sessions.list_page(
            world.db, world.tenant_id, Filters(**filters), limit=limit, cursor=cursor, default_model=MODEL
        )
        numbers = [made.index(UUID(row["session_id"])) for row in page.data]
        if page.next_cursor is not None:
            numbers += await listed(limit, page.next_cursor, **filters)
        return numbers

    assert await listed(agent="p") == [6, 4, 3, 1, 0]
    assert await listed(2, agent="p") == [6, 4, 3, 1, 0]
    assert await listed(agent=f"{new}") == [6, 3, 1]
    assert await listed(agent="p@2") == [6, 3]
    assert await listed(agent="p@3") == await listed(agent="nobody") == []
    assert await listed(agent="p", status="queued") == [3]
    assert await listed(agent="p", status="idle") == [6, 4, 1, 0]
    assert await listed(1, status="queued") == [3, 2]
