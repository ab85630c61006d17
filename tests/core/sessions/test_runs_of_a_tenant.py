"""Runs of all sessions of a tenant: by status, session, preset, time and error, page by page, in order."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api import clock
from apps.api.core.config.agent import AgentConfig
from apps.api.core.sessions import runs
from apps.api.core.sessions.runs import Filters
from apps.api.errors import ValidationError
from tests.world import World


async def ids(world: World, limit: int = 100, **filters: Any) -> list[UUID]:
    """Of all pages, newest first."""
    found, cursor = list[UUID](), None
    while True:
        page = await runs.list_of_tenant(world.db, world.tenant_id, Filters(**filters), limit=limit, cursor=cursor)
        found += [UUID(run["run_id"]) for run in page.data]
        if page.next_cursor is None:
            return found
        assert len(page.data) == limit
        cursor = page.next_cursor


@pytest.fixture
async def some(world: World) -> dict[str, list[UUID]]:
    """Runs by session: three queued of one; of another one that failed, one that was stopped and one that succeeded."""
    first, second = await world.session(), await world.session()
    made = {
        "first": [(await world.queue(first)).run_id for _ in range(3)],
        "second": [(await world.queue(second)).run_id for _ in range(3)],
    }
    lost, stopped, done = made["second"]
    end = (
        "UPDATE runs SET status = $2, error = $3, started_at = now(), first_seq = 1, finished_at = now() WHERE id = $1"
    )
    for run_id, status, error in (
        (lost, "failed", {"code": "owner_lost", "message": "m", "retryable": True}),
        (stopped, "interrupted", {"code": "interrupted", "message": "m", "retryable": True}),
        (done, "succeeded", None),
    ):
        await world.db.pool.execute(end, run_id, status, error)
    # Some were made within one moment, so that their ids decide.
    await world.db.pool.execute(
        "UPDATE runs SET created_at = date_trunc('hour', now()) WHERE id = ANY($1)", made["first"]
    )
    return {**made, "sessions": [first, second]}


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_each_run_comes_once_newest_first_whatever_a_page_holds(
    world: World, some: dict[str, list[UUID]], limit: int
) -> None:
    found = await ids(world, limit)
    assert found == [*reversed(some["second"]), *sorted(some["first"], reverse=True)]


async def test_a_filter_finds_what_it_says_and_nothing_else(world: World, some: dict[str, list[UUID]]) -> None:
    lost, stopped, done = some["second"]
    assert await ids(world, status="failed") == [lost]
    assert await ids(world, status="interrupted") == [stopped]
    assert await ids(world, status="succeeded") == [done]
    assert set(await ids(world, status="queued")) == set(some["first"])
    assert await ids(world, status="running") == []
    assert await ids(world, error_code="owner_lost") == [lost]
    assert await ids(world, error_code="interrupted", status="failed") == []
    assert await ids(world, session_id=some["sessions"][1]) == [done, stopped, lost]
    hour = clock.now().replace(minute=0, second=0, microsecond=0)
    assert await ids(world, created_after=hour) == [done, stopped, lost]
    assert await ids(world, created_before=hour) == []
    assert set(await ids(world, created_before=hour + timedelta(microseconds=1))) == set(some["first"])
    assert await ids(world, profiles=["nobodys"]) == []


async def test_runs_of_another_tenant_are_not_there(world: World, some: dict[str, list[UUID]]) -> None:
    other = await world.other_tenant()
    page = await runs.list_of_tenant(world.db, other, Filters(session_id=some["sessions"][0]), limit=9, cursor=None)
    assert page.data == []


async def test_runs_of_a_preset_and_of_one_version_of_it(world: World, some: dict[str, list[UUID]]) -> None:
    agent, pool = uuid4(), world.db.pool
    await pool.execute(
        "INSERT INTO agents (id, tenant_id, name, version) VALUES ($1, $2, 'p', 2)", agent, world.tenant_id
    )
    for version, session_id in ((1, some["sessions"][0]), (2, some["sessions"][1])):
        await pool.execute(
            "INSERT INTO agent_versions (agent_id, version, config) VALUES ($1, $2, $3)",
            agent,
            version,
            AgentConfig().given(),
        )
        await pool.execute(
            "UPDATE sessions SET agent_id = $2, agent_version = $3 WHERE id = $1", session_id, agent, version
        )
    assert len(await ids(world, agent="p")) == len(await ids(world, agent=str(agent))) == 6
    assert set(await ids(world, agent="p@1")) == set(some["first"])
    assert await ids(world, agent="p@3") == await ids(world, agent="nobodys") == []


async def test_a_cursor_of_another_list_is_refused(world: World) -> None:
    with pytest.raises(ValidationError):
        await runs.list_of_tenant(world.db, world.tenant_id, Filters(), limit=1, cursor="12")
