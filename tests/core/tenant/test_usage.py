"""Usage: recorded with the end of a run, once, and summed up in every grouping."""

from __future__ import annotations

import asyncio
from datetime import date
from itertools import combinations
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.events.log import Event
from apps.api.core.sessions import deletion, prompts, runs, sessions
from apps.api.core.sessions.outcome import Outcome, finish
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant import usage
from apps.api.core.tenant.usage import GROUPS, Group, ModelUsage, Scope
from apps.api.errors import LeaseLost
from apps.api.keys import USUAL_SCOPES, create_key
from tests.world import World

BIG, SMALL = ModelUsage("big", 100, 10, 50, 5, 1, 0.5), ModelUsage("small", 7, 3, cost_usd=0.25)
LAST_DAY = date(2026, 1, 31)


async def spend(
    world: World,
    *used: ModelUsage,
    session_id: UUID | None = None,
    key_id: UUID | None = None,
    day: date | None = None,
    end_user: str | None = None,
) -> tuple[UUID, UUID]:
    """A run that used this; returns its session and itself."""
    lease = await world.instance()
    request = prompts.Submission("say x", 60, session_id, labels=Labels(end_user=end_user))
    submitted = await prompts.submit(world.core(), world.tenant_id, key_id, request)
    claim = await world.claim(lease)
    assert claim.run_id == submitted.run_id
    outcome = Outcome("succeeded", cost_usd=sum(model.cost_usd for model in used), usage=used, num_turns=1)
    await finish(world.writer(lease, claim), claim.run_id, outcome, Event("done", {}, claim.run_id))
    await world.db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE id = $1", claim.session_id)
    if day is not None:
        await world.db.pool.execute("UPDATE usage SET day = $2 WHERE run_id = $1", claim.run_id, day)
    return claim.session_id, claim.run_id


async def rows(world: World, *groups: Any, **scope: Any) -> list[dict[str, Any]]:
    page = await usage.report(world.db, world.tenant_id, Scope(**scope), groups, limit=200, cursor=None)
    return page.data


async def test_a_run_tells_what_it_used_by_model(world: World) -> None:
    _, run_id = await spend(world, SMALL, BIG)
    assert (await world.run(run_id))["usage"] == [
        {
            "model": "big",
            "input_tokens": 100,
            "output_tokens": 10,
            "cache_read_input_tokens": 50,
            "cache_creation_input_tokens": 5,
            "web_search_requests": 1,
            "cost_usd": 0.5,
        },
        {
            "model": "small",
            "input_tokens": 7,
            "output_tokens": 3,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "web_search_requests": 0,
            "cost_usd": 0.25,
        },
    ]


async def test_every_grouping_adds_up_to_the_same(world: World) -> None:
    key = await create_key(world.db, tenant=f"usage-{uuid4()}", name="robot", scopes=USUAL_SCOPES)
    await world.db.pool.execute("UPDATE api_keys SET tenant_id = $1 WHERE id = $2", world.tenant_id, key.id)
    session_id, _ = await spend(world, BIG, SMALL, key_id=key.id, day=LAST_DAY)
    await spend(world, BIG, session_id=session_id)
    await spend(world, SMALL, key_id=key.id)
    total = (await rows(world))[0]
    assert total == {
        "runs": 3,
        "input_tokens": 214,
        "output_tokens": 26,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 10,
        "web_search_requests": 2,
        "cost_usd": 1.5,
    }
    for size in range(1, len(GROUPS)):
        for groups in combinations(GROUPS.keys() - {"end_user"}, size):
            found = await rows(world, *groups)
            for name in usage.FIGURES:
                assert sum(row[name] for row in found) == total[name], groups
    by_key = {row["key_name"]: (row["runs"], row["cost_usd"]) for row in await rows(world, "key")}
    assert by_key == {"robot": (2, 1.0), None: (1, 0.5)}
    by_model = {row["model"]: (row["runs"], row["input_tokens"]) for row in await rows(world, "model")}
    assert by_model == {"big": (2, 200), "small": (2, 14)}
    assert len(await rows(world, "day", "session", "model")) == 4


async def test_a_report_covers_its_first_and_its_last_day(world: World) -> None:
    await spend(world, BIG, day=LAST_DAY)
    await spend(world, SMALL, day=date(2026, 1, 1))
    january = {"first": date(2026, 1, 1), "last": LAST_DAY}
    assert [row["day"] for row in await rows(world, "day", **january)] == ["2026-01-01", "2026-01-31"]
    assert (await rows(world, first=date(2026, 1, 2), last=date(2026, 1, 30)))[0]["runs"] == 0
    assert (await rows(world, first=LAST_DAY, last=LAST_DAY))[0]["cost_usd"] == 0.5


async def test_a_report_can_be_about_one_session_key_or_model(world: World) -> None:
    session_id, _ = await spend(world, BIG, SMALL)
    await spend(world, BIG)
    assert (await rows(world, session_id=session_id))[0]["cost_usd"] == 0.75
    assert (await rows(world, model="big"))[0]["cost_usd"] == 1.0
    assert (await rows(world, key_id=uuid4()))[0]["runs"] == 0


async def test_a_report_is_paged(world: World) -> None:
    for number in range(5):
        await spend(world, ModelUsage(f"m{number}", 1))
    seen, cursor = [], None
    while True:
        page = await usage.report(world.db, world.tenant_id, Scope(), ["model"], limit=2, cursor=cursor)
        seen += [row["model"] for row in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["m0", "m1", "m2", "m3", "m4"]


async def test_usage_outlives_its_session(world: World) -> None:
    session_id, run_id = await spend(world, BIG)
    await deletion.delete(world.db, world.tenant_id, session_id)
    assert (await rows(world, "session"))[0]["session_id"] == str(session_id)
    assert (await world.run(run_id))["usage"][0]["input_tokens"] == 100


async def test_nobody_sees_the_usage_of_another_tenant(world: World) -> None:
    session_id, _ = await spend(world, BIG)
    scope, other = Scope(session_id=session_id), await world.other_tenant()
    assert (await usage.report(world.db, other, scope, ["session"], limit=10, cursor=None)).data == []
    assert await usage.unmeasured(world.db, other, Scope()) == 0


async def test_a_writer_that_lost_the_session_records_nothing(world: World) -> None:
    _, claim, writer = await world.owned()
    await world.db.pool.execute("UPDATE sessions SET generation = generation + 1 WHERE id = $1", claim.session_id)
    with pytest.raises(LeaseLost):
        await finish(writer, claim.run_id, Outcome("succeeded", cost_usd=0.5, usage=[BIG]), Event("done"))
    assert (await rows(world))[0]["runs"] == 0


async def test_runs_without_figures_are_counted_and_not_estimated(world: World) -> None:
    _, claim, writer = await world.owned()
    await finish(writer, claim.run_id, Outcome("failed", error={"code": "agent_crashed"}), Event("done"))
    await spend(world, BIG)
    run = await world.run(claim.run_id)
    assert (run["total_cost_usd"], run["usage"]) == (None, [])
    today = await world.one("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert await usage.unmeasured(world.db, world.tenant_id, Scope()) == 1
    assert await usage.unmeasured(world.db, world.tenant_id, Scope(today, today)) == 1
    assert await usage.unmeasured(world.db, world.tenant_id, Scope(LAST_DAY, LAST_DAY)) == 0
    assert await usage.unmeasured(world.db, world.tenant_id, Scope(session_id=uuid4())) == 0
    assert (await rows(world))[0]["runs"] == 1


async def kinds(world: World) -> list[dict[str, Any]]:
    """Rows of the sums, the newest last."""
    query = "SELECT day, api_key_id, model, runs, first_runs, cost_usd FROM usage_sums WHERE tenant_id = $1 ORDER BY id"
    return [dict(row) for row in await world.db.pool.fetch(query, world.tenant_id)]


async def agree(world: World) -> None:
    """Sums are what the rows of all sessions add up to, in every grouping without sessions."""
    sessions = "SELECT DISTINCT session_id FROM usage WHERE tenant_id = $1"
    ids = [row["session_id"] for row in await world.db.pool.fetch(sessions, world.tenant_id)]
    wanted: list[tuple[Group, ...]] = [(), ("day",), ("key",), ("model",), ("day", "key", "model")]
    for groups in wanted:
        expected: dict[tuple[Any, ...], dict[str, Any]] = {}
        for session_id in ids:
            for row in await rows(world, *groups, session_id=session_id):
                group = tuple(str(row.pop(name)) for names in groups for name in GROUPS[names])
                known = expected.setdefault(group, dict.fromkeys(row, 0))
                expected[group] = {name: known[name] + row[name] for name in row}
        found = {tuple(str(row.pop(n)) for g in groups for n in GROUPS[g]): row for row in await rows(world, *groups)}
        assert found.keys() == expected.keys()
        for group, row in expected.items():
            assert found[group] == pytest.approx(row), (groups, group)


async def test_sums_are_right_before_and_after_they_are_added_up(world: World) -> None:
    key = await create_key(world.db, tenant=f"usage-{uuid4()}", name="robot", scopes=USUAL_SCOPES)
    for number in range(3):
        await spend(world, BIG, SMALL, key_id=key.id if number else None)
        await spend(world, SMALL, day=LAST_DAY)
    await agree(world)
    await usage.add_up(world.db)
    await agree(world)
    today = [
        (row["model"], int(row["runs"]), int(row["first_runs"])) for row in await kinds(world) if row["api_key_id"]
    ]
    assert sorted(today) == [("big", 2, 2), ("small", 2, 0)]
    assert len(await kinds(world)) == 5  # each once: big and small with and without a key, and small of the last day
    await spend(world, BIG)
    await agree(world)
    assert (await rows(world, model="big"))[0]["runs"] == 4


async def test_what_goes_is_taken_away_to_the_last_cent(world: World) -> None:
    tenth, third = ModelUsage("m", 1, cost_usd=0.1), ModelUsage("m", 1, cost_usd=1 / 3)
    gone, first = await spend(world, tenth)
    _, second = await spend(world, third)
    session_id, third_run = await spend(world, ModelUsage("m", 1, cost_usd=0.2), BIG)
    await usage.add_up(world.db)
    await deletion.delete(world.db, world.tenant_id, gone)
    await world.db.pool.execute("DELETE FROM runs WHERE id = $1", first)  # and usage with it
    await agree(world)
    await world.db.pool.execute("DELETE FROM usage WHERE run_id = $1", second)
    await deletion.delete(world.db, world.tenant_id, session_id)
    await usage.add_up(world.db)
    await agree(world)
    assert (await rows(world))[0]["cost_usd"] == 0.7
    await world.db.pool.execute("DELETE FROM runs WHERE id = $1", third_run)
    assert (await rows(world))[0] == dict.fromkeys((await rows(world))[0], 0)
    await usage.add_up(world.db)
    assert await kinds(world) == []


async def test_a_key_that_goes_leaves_its_usage_to_nobody(world: World) -> None:
    key = await create_key(world.db, tenant=f"usage-{uuid4()}", name="robot", scopes=USUAL_SCOPES)
    await spend(world, BIG, key_id=key.id)
    await usage.add_up(world.db)
    await world.db.pool.execute("DELETE FROM api_keys WHERE id = $1", key.id)
    await agree(world)
    await usage.add_up(world.db)
    assert [(row["key_id"], row["runs"]) for row in await rows(world, "key")] == [(None, 1)]


async def test_what_is_stored_while_others_add_up_counts_once(world: World) -> None:
    """By several at once, while runs end, and old ones go."""
    for _ in range(5):
        await spend(world, BIG, day=LAST_DAY)
    old = [
        row["run_id"]
        for row in await world.db.pool.fetch("SELECT run_id FROM usage WHERE tenant_id = $1", world.tenant_id)
    ]

    async def forget() -> None:
        for run_id in old:
            await world.db.pool.execute("DELETE FROM usage WHERE run_id = $1", run_id)

    async def add_up() -> None:
        for _ in range(20):
            await usage.add_up(world.db)
            assert (await rows(world, first=LAST_DAY))[0]["runs"] >= 0

    async def work() -> None:
        for _ in range(5):
            await spend(world, BIG, SMALL)

    await asyncio.gather(forget(), add_up(), add_up(), add_up(), work())
    await agree(world)
    await usage.add_up(world.db)
    await agree(world)
    assert [(row["model"], int(row["runs"])) for row in await kinds(world)] in (
        [("big", 5), ("small", 5)],
        [("small", 5), ("big", 5)],
    )


async def test_nobody_waits_for_a_run_of_the_same_tenant_that_is_about_to_end(world: World) -> None:
    _, run_id = await spend(world)
    _, other = await spend(world)
    async with world.db.transaction() as connection:
        await usage.record(connection, run_id, [BIG])
        async with asyncio.timeout(10):
            async with world.db.transaction() as second:
                await usage.record(second, other, [BIG])
            await usage.add_up(world.db)
        assert (await rows(world))[0]["runs"] == 1
    assert (await rows(world))[0]["runs"] == 2
    await agree(world)


async def of_users(world: World, *groups: Group, **scope: Any) -> list[dict[str, Any]]:
    return await rows(world, "end_user", *groups, of_end_users=True, **scope)


async def test_usage_is_told_by_end_user(world: World) -> None:
    session_id, _ = await spend(world, BIG, SMALL, end_user="ada")
    await spend(world, SMALL, session_id=session_id)  # its session's
    await spend(world, SMALL, session_id=session_id, end_user="bob")
    await spend(world, BIG)
    expected = [("ada", 2, 1.0), ("bob", 1, 0.25)]
    for _ in range(2):
        assert [(row["end_user"], row["runs"], row["cost_usd"]) for row in await of_users(world)] == expected
        assert [row["runs"] for row in await of_users(world, "model", end_user="ada")] == [1, 2]
        assert (await rows(world, end_user="ada"))[0]["runs"] == 2
        assert (await rows(world, of_end_users=True))[0]["runs"] == 3
        assert (await rows(world))[0]["runs"] == 4
        by_session = await of_users(world, "session")
        assert [(row["end_user"], row["runs"]) for row in by_session] == [("ada", 2), ("bob", 1)]
        assert await rows(world, end_user="nobody") == [dict.fromkeys((await rows(world))[0], 0)]
        await usage.add_up(world.db)
    await world.db.pool.execute("DELETE FROM usage WHERE end_user = 'ada'")
    assert [row["end_user"] for row in await of_users(world)] == ["bob"]
    await usage.add_up(world.db)
    left = "SELECT count(*) FROM usage_user_sums WHERE tenant_id = $1"
    assert await world.one(left, world.tenant_id) == 1
    other = await world.other_tenant()
    page = await usage.report(world.db, other, Scope(of_end_users=True), ["end_user"], limit=9, cursor=None)
    assert page.data == []


async def test_lists_find_an_end_users_sessions_and_runs(world: World) -> None:
    session_id, run_id = await spend(world, BIG, end_user="ada")
    _, other_run = await spend(world, BIG, session_id=session_id, end_user="bob")
    await spend(world, BIG)

    async def runs_of(name: str) -> list[str]:
        filters = runs.Filters(end_user=name)
        page = await runs.list_of_tenant(world.db, world.tenant_id, filters, limit=9, cursor=None)
        return [run["run_id"] for run in page.data]

    async def sessions_of(name: str) -> list[str]:
        filters = sessions.Filters(end_user=name)
        page = await sessions.list_page(
            world.db, world.tenant_id, filters, limit=9, cursor=None, default_model="claude-x"
        )
        return [session["session_id"] for session in page.data]

    assert (await runs_of("ada"), await runs_of("bob"), await runs_of("nobody")) == (
        [str(run_id)],
        [str(other_run)],
        [],
    )
    assert (await sessions_of("ada"), await sessions_of("bob")) == ([str(session_id)], [])
