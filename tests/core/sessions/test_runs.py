"""Submitting prompts: once per idempotency key, in order, within limits, and only to one's own sessions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.config.agent import AgentConfig
from apps.api.core.events.log import Event
from apps.api.core.pages import PAGE_BYTES
from apps.api.core.sessions import deletion, prompts, runs, sessions
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.core.sessions.prompts import Submission, Submitted
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant import idempotency
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.errors import ApiError, Conflict, NotFound, ValidationError
from tests.world import World


def once(key: str, *body: Any) -> Idempotency:
    return Idempotency.of(key, "/query", *body)


async def code_of(submitting: Any) -> str:
    with pytest.raises(ApiError) as caught:
        await submitting
    return caught.value.code


async def count_runs(world: World) -> int:
    found: int = await world.one("SELECT count(*) FROM runs WHERE tenant_id = $1", world.tenant_id)
    return found


async def config_of(world: World, session_id: UUID) -> dict[str, Any]:
    found: dict[str, Any] = await world.one("SELECT config FROM sessions WHERE id = $1", session_id)
    return found


# --- new and known sessions ----------------------------------------------------------------------------------------


async def test_a_prompt_without_a_session_begins_one(world: World) -> None:
    labels = Labels("Weekly", ["reports"], {"customer": "42"})
    run = await world.queue(config=AgentConfig(model="claude-x"), labels=labels)
    row = await world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", run.session_id)
    assert row["tenant_id"] == world.tenant_id
    assert (row["title"], row["tags"], row["metadata"]) == ("Weekly", ["reports"], {"customer": "42"})
    assert row["config"] == {"model": "claude-x"}
    assert run.after == 0
    state = await world.run(run.run_id)
    assert (state["status"], state["origin"], state["first_seq"]) == ("queued", "client", None)


async def test_a_prompt_for_a_session_is_followed_from_its_newest_event(world: World) -> None:
    _, claim, writer = await world.owned()
    await writer.append(Event("init", {}, claim.run_id), Event("message", {}, claim.run_id))
    assert (await world.queue(claim.session_id)).after == 2


WAYS = [{}, {"on_busy": "reject"}, {"config": AgentConfig(model="m")}, {"labels": Labels("t")}]


@pytest.mark.parametrize("more", WAYS, ids=["plain", "reject", "config", "labels"])
async def test_sessions_of_others_unknown_and_deleted_ones_take_no_prompt(world: World, more: dict[str, Any]) -> None:
    elsewhere = replace(world, tenant_id=await world.other_tenant())
    theirs, deleted = await elsewhere.session(), await world.session()
    await deletion.delete(world.db, world.tenant_id, deleted)
    assert await code_of(world.queue(theirs, **more)) == "session_not_found"
    assert await code_of(world.queue(uuid4(), **more)) == "session_not_found"
    assert await code_of(world.queue(deleted, **more)) == "session_deleted"
    assert await code_of(elsewhere.queue(deleted, **more)) == "session_not_found"
    assert await count_runs(world) == await count_runs(elsewhere) == 0
    assert await config_of(world, theirs) == {}


# --- busy sessions -------------------------------------------------------------------------------------------------


async def test_a_prompt_is_refused_by_a_busy_session_when_its_client_asks_for_that(world: World) -> None:
    lease, session_id = await world.instance(), await world.session()
    await world.queue(session_id, on_busy="reject")
    assert await code_of(world.queue(session_id, on_busy="reject")) == "session_busy"
    claim = await world.claim(lease)
    assert await code_of(world.queue(session_id, on_busy="reject")) == "session_busy"
    await finish(world.writer(lease, claim), claim.run_id, Outcome("succeeded"), Event("done"))
    await world.queue(session_id, on_busy="reject")
    await world.claim(lease)


async def test_of_twenty_prompts_at_once_that_want_an_idle_session_one_is_taken(world: World) -> None:
    session_id = await world.session()
    ended = await asyncio.gather(
        *(world.queue(session_id, on_busy="reject") for _ in range(20)), return_exceptions=True
    )
    taken = [e for e in ended if isinstance(e, Submitted)]
    assert len(taken) == 1
    assert {e.code for e in ended if isinstance(e, Conflict)} == {"session_busy"}


async def test_a_full_queue_takes_no_more(world: World) -> None:
    lease, session_id = await world.instance(), await world.session()

    async def submit(**more: Any) -> Submitted:
        request = Submission("say hello", 60, session_id, **more)
        return await prompts.submit(world.core(max_queued_runs_per_session=2), world.tenant_id, None, request)

    await submit()
    await world.claim(lease)  # what runs does not wait
    await submit()
    await submit()
    assert await code_of(submit()) == "session_busy"
    assert await code_of(submit(config=AgentConfig(model="m"))) == "session_busy"
    assert await config_of(world, session_id) == {}


# --- configuration -------------------------------------------------------------------------------------------------


async def test_a_change_of_configuration_holds_from_its_prompt_on_and_not_before(lone_world: World) -> None:
    world = lone_world
    lease, session_id = await world.instance(), await world.session(model="old", max_turns=3)
    await world.queue(session_id, "one")
    await world.queue(session_id, "two", config=AgentConfig(model="new"))
    await world.queue(session_id, "three")
    await world.queue(session_id, "four", config=AgentConfig(max_turns=9))
    seen = []
    for _ in range(4):
        claim = await world.claim(lease)
        seen.append((claim.prompt, claim.config.model, claim.config.max_turns))
        await finish(world.writer(lease, claim), claim.run_id, Outcome("succeeded"), Event("done"))
    assert seen == [("one", "old", 3), ("two", "new", 3), ("three", "new", 3), ("four", "new", 9)]
    assert await config_of(world, session_id) == {"model": "new", "max_turns": 9}


async def test_the_working_directory_is_fixed_with_the_session(world: World) -> None:
    session_id = await world.session(cwd="app")
    with pytest.raises(ValidationError):
        await world.queue(session_id, config=AgentConfig(cwd="elsewhere"))
    await world.queue(session_id, config=AgentConfig(cwd="app"))
    assert await config_of(world, session_id) == {"cwd": "app"}


async def test_labels_that_come_with_a_prompt_replace_only_what_they_name(world: World) -> None:
    session_id = await world.session(Labels("Old", ["a"], {"k": "v"}))
    await world.queue(session_id, labels=Labels(tags=["b"]))
    row = await world.db.pool.fetchrow("SELECT title, tags, metadata FROM sessions WHERE id = $1", session_id)
    assert tuple(row) == ("Old", ["b"], {"k": "v"})


# --- idempotency ---------------------------------------------------------------------------------------------------


async def test_a_repeated_request_finds_the_run_of_the_first(world: World) -> None:
    first = await world.queue(idempotency=once("a", "body"))
    again = await world.queue(idempotency=once("a", "body"))
    assert (again.session_id, again.run_id, again.repeated) == (first.session_id, first.run_id, True)
    assert not first.repeated
    assert await count_runs(world) == 1


async def test_twenty_requests_at_once_with_one_key_make_one_run_and_one_session(world: World) -> None:
    submitted = await asyncio.gather(*(world.queue(idempotency=once("a", "body")) for _ in range(20)))
    assert len({(s.session_id, s.run_id) for s in submitted}) == 1
    assert [s.repeated for s in submitted].count(False) == 1
    assert await count_runs(world) == 1
    assert await world.one("SELECT count(*) FROM sessions WHERE tenant_id = $1", world.tenant_id) == 1


async def test_twenty_prompts_at_once_with_one_key_make_one_run_in_their_session(world: World) -> None:
    session_id = await world.session()
    submitted = await asyncio.gather(*(world.queue(session_id, idempotency=once("a", "body")) for _ in range(20)))
    assert len({s.run_id for s in submitted}) == 1
    assert [s.repeated for s in submitted].count(False) == 1
    assert await count_runs(world) == 1


async def test_a_key_cannot_be_used_for_something_else(world: World) -> None:
    await world.queue(idempotency=once("a", "body"))
    assert await code_of(world.queue(idempotency=once("a", "another body"))) == "idempotency_key_reused"
    assert await code_of(_create(world, Idempotency.of("a", "/sessions", "body"))) == "idempotency_key_reused"
    assert await count_runs(world) == 1


async def test_a_key_that_made_a_session_cannot_start_a_run(world: World) -> None:
    made = await _create(world, once("a", "body"))
    assert await _create(world, once("a", "body")) == made
    assert await code_of(world.queue(idempotency=once("a", "body"))) == "idempotency_key_reused"
    assert await count_runs(world) == 0


async def _create(world: World, idempotency: Idempotency | None) -> UUID:
    return await prompts.create_session(world.core(), world.tenant_id, AgentConfig(), Labels(), idempotency)


async def test_twenty_creations_at_once_with_one_key_make_one_session(world: World) -> None:
    made = await asyncio.gather(*(_create(world, once("a")) for _ in range(20)))
    assert len(set(made)) == 1
    assert await world.one("SELECT count(*) FROM sessions WHERE tenant_id = $1", world.tenant_id) == 1


async def test_tenants_do_not_share_keys(world: World) -> None:
    elsewhere = replace(world, tenant_id=await world.other_tenant())
    mine = await world.queue(idempotency=once("a", "body"))
    theirs = await elsewhere.queue(idempotency=once("a", "body"))
    assert mine.run_id != theirs.run_id
    assert not theirs.repeated


async def test_a_request_that_failed_does_not_use_its_key_up(world: World) -> None:
    session_id = await world.session()
    assert await code_of(world.queue(uuid4(), idempotency=once("a", "body"))) == "session_not_found"
    assert not (await world.queue(session_id, idempotency=once("a", "body"))).repeated


async def test_a_key_is_forgotten_after_a_day(world: World) -> None:
    first = await world.queue(idempotency=once("a", "body"))
    age = "UPDATE idempotency_keys SET created_at = now() - $2::interval WHERE tenant_id = $1"
    await world.db.pool.execute(age.replace("$2", "'23 hours'"), world.tenant_id)
    await idempotency.forget_old(world.db)
    assert (await world.queue(idempotency=once("a", "body"))).run_id == first.run_id
    await world.db.pool.execute(age.replace("$2", "'25 hours'"), world.tenant_id)
    second = await world.queue(idempotency=once("a", "another body"))
    assert (second.run_id != first.run_id, second.repeated) == (True, False)
    assert (await world.queue(idempotency=once("a", "another body"))).run_id == second.run_id
    await world.db.pool.execute(age.replace("$2", "'25 hours'"), world.tenant_id)
    await idempotency.forget_old(world.db)
    assert await world.one("SELECT count(*) FROM idempotency_keys WHERE tenant_id = $1", world.tenant_id) == 0


async def test_a_key_whose_session_was_deleted_is_free_again(world: World) -> None:
    first = await world.queue(idempotency=once("a", "body"))
    await deletion.delete(world.db, world.tenant_id, first.session_id)
    assert not (await world.queue(idempotency=once("a", "body"))).repeated


async def test_a_repeat_is_followed_from_the_first_event_of_its_run(lone_world: World) -> None:
    world = lone_world
    lease, session_id = await world.instance(), await world.session()
    await world.queue(session_id)
    before = await world.claim(lease)
    writer = world.writer(lease, before)
    await writer.append(*(Event("message", {}, before.run_id) for _ in range(4)))
    run = await world.queue(session_id, idempotency=once("a", "body"))
    await finish(writer, before.run_id, Outcome("succeeded"), Event("done", {}, before.run_id))
    assert (await world.queue(session_id, idempotency=once("a", "body"))).after == 5  # still queued
    await world.claim(lease)
    await writer.append(Event("init", {}, run.run_id), Event("message", {}, run.run_id))
    assert (await world.queue(session_id, idempotency=once("a", "body"))).after == 5  # has begun
    await finish(writer, run.run_id, Outcome("succeeded"), Event("done", {}, run.run_id))
    repeat = await world.queue(session_id, idempotency=once("a", "body"))
    assert (repeat.run_id, repeat.after, repeat.repeated) == (run.run_id, 5, True)  # is over


# --- reading -------------------------------------------------------------------------------------------------------


async def test_runs_of_others_are_not_found(world: World) -> None:
    run = await world.queue()
    stranger = await world.other_tenant()
    for read in (runs.get, runs.extent):
        with pytest.raises(NotFound):
            await read(world.db, stranger, run.run_id)
        with pytest.raises(NotFound):
            await read(world.db, world.tenant_id, uuid4())
    with pytest.raises(NotFound):
        await runs.list_page(world.db, stranger, run.session_id, limit=10, cursor=None)


async def test_runs_are_listed_newest_first_and_paged_without_loss_while_more_come(world: World) -> None:
    session_id = await world.session()
    queued = [(await world.queue(session_id)).run_id for _ in range(7)]
    seen, cursor = [], None
    while True:
        page = await runs.list_page(world.db, world.tenant_id, session_id, limit=3, cursor=cursor)
        seen += [UUID(run["run_id"]) for run in page.data]
        await world.queue(session_id)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == queued[::-1]


async def test_a_page_of_runs_has_a_bounded_size(world: World) -> None:
    session_id = await world.session()
    queued = [(await world.queue(session_id)).run_id for _ in range(6)]
    await world.db.pool.execute(
        "UPDATE runs SET result = to_json(repeat('x', $2))::text WHERE id = ANY($1)", queued[:5], PAGE_BYTES // 3
    )
    seen: list[list[UUID]] = []
    cursor = None
    while not seen or cursor is not None:
        page = await runs.list_page(world.db, world.tenant_id, session_id, limit=200, cursor=cursor)
        seen.append([UUID(run["run_id"]) for run in page.data])
        cursor = page.next_cursor
    assert [run_id for page in seen for run_id in page] == queued[::-1]
    assert [len(page) for page in seen] == [3, 2, 1]


BAD_CURSORS = ["", "x", "-1", "1.0", "٣", "²", "9" * 19, "9" * 200, "1 ", "\x00"]


@pytest.mark.parametrize("cursor", BAD_CURSORS)
async def test_a_cursor_that_was_tampered_with_is_refused(world: World, cursor: str) -> None:
    session_id = await world.session()
    with pytest.raises(ValidationError):
        await runs.list_page(world.db, world.tenant_id, session_id, limit=10, cursor=cursor)
    with pytest.raises(ValidationError):
        await sessions.messages(world.db, world.tenant_id, session_id, limit=10, cursor=cursor)


async def test_the_extent_of_a_run_follows_its_life(lone_world: World) -> None:
    world = lone_world
    lease, session_id = await world.instance(), await world.session()
    await world.queue(session_id)
    first = await world.claim(lease)
    writer = world.writer(lease, first)
    run = await world.queue(session_id)

    async def extent() -> tuple[int, int | None, int]:
        found = await runs.extent(world.db, world.tenant_id, run.run_id)
        assert found.session_id == session_id
        return found.start, found.end, found.newest

    assert await extent() == (0, None, 0)
    await finish(writer, first.run_id, Outcome("succeeded"), Event("result"), Event("done"))
    assert await extent() == (2, None, 2)
    await world.claim(lease)
    await writer.append(Event("init"))
    assert await extent() == (2, None, 3)
    await finish(writer, run.run_id, Outcome("succeeded"), Event("done"))
    await writer.append(Event("status"))
    assert await extent() == (2, 4, 5)
    await deletion.delete(world.db, world.tenant_id, session_id)
    with pytest.raises(NotFound):
        await extent()


async def test_a_run_is_followed_from_where_its_place_in_the_queue_was_told(lone_world: World) -> None:
    world = lone_world
    lease, session_id = await world.instance(), await world.session()
    await world.queue(session_id)
    first = await world.claim(lease)
    writer = world.writer(lease, first)
    await writer.append(Event("init", {}, first.run_id))
    run = await world.queue(session_id, idempotency=once("a", "body"))
    await writer.append(Event("queued", {"position": 1}, run.run_id), Event("message", {}, first.run_id))
    await finish(writer, first.run_id, Outcome("succeeded"), Event("done", {}, first.run_id))
    for end in (None, 5):
        found = await runs.extent(world.db, world.tenant_id, run.run_id)
        assert (found.start, found.end) == (1, end)
        assert (await world.queue(session_id, idempotency=once("a", "body"))).after == 1
        if end is None:
            await world.claim(lease)
            await finish(writer, run.run_id, Outcome("succeeded"), Event("done", {}, run.run_id))


async def test_a_session_is_idle_when_no_run_waits_or_goes_on(lone_world: World) -> None:
    world = lone_world
    lease, session_id = await world.instance(), await world.session()
    assert await runs.idle_since(world.db, session_id) == 0
    await world.queue(session_id)
    assert await runs.idle_since(world.db, session_id) is None
    claim = await world.claim(lease)
    assert await runs.idle_since(world.db, session_id) is None
    await finish(world.writer(lease, claim), claim.run_id, Outcome("failed", error={}), Event("error"), Event("done"))
    assert await runs.idle_since(world.db, session_id) == 2
    assert await runs.idle_since(world.db, uuid4()) is None
