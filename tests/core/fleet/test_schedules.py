"""Schedules: each time is fired once, whatever instances and clocks do, and what came of it is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api import audit, clock
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import Policy, Profile
from apps.api.core.context import Core
from apps.api.core.fleet import firing, firings, schedules
from apps.api.core.fleet.schedules import By, Draft
from apps.api.core.sessions import deletion
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tasks import Loop
from apps.api.core.tenant import presets, webhooks
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.webhooks import Changes
from apps.api.errors import ApiError, Conflict, Forbidden, NotFound, ValidationError
from tests.world import World

HOURLY = Draft(f"{(datetime.now(UTC).minute + 30) % 60} * * * *", "UTC", "say hello")
"""No real time of it comes while a test lets hours go by."""

SET_BACK = "UPDATE schedules SET next_at = $2, look_at = $2 WHERE id = $1"
DUE = "UPDATE schedules SET next_at = now() - interval '9 s', look_at = now() - interval '9 s' WHERE id = ANY($1)"


class Kept:
    """Schedules of a tenant, and an instance that fires them."""

    def __init__(self, world: World, key_id: UUID) -> None:
        self.world, self.core = world, world.core()
        self.by = By(world.tenant_id, key_id, Policy({}))

    async def make(self, draft: Draft = HOURLY, **changes: Any) -> UUID:
        return await schedules.create(self.core, self.by, replace(draft, **changes))

    async def state(self, schedule_id: UUID) -> dict[str, Any]:
        return await schedules.get(self.core, self.by, schedule_id)

    async def pass_by(self, schedule_id: UUID, **time: float) -> None:
        """So much time goes by for a schedule: all that is known of it was so much earlier."""
        await self.world.db.pool.execute(
            "UPDATE schedules SET next_at = next_at - $2::interval, look_at = look_at - $2 WHERE id = $1",
            schedule_id,
            timedelta(**time),
        )
        # By steps, so that no two are of one time on the way.
        for row in await self.world.db.pool.fetch(
            "SELECT id FROM schedule_firings WHERE schedule_id = $1 ORDER BY fire_at", schedule_id
        ):
            await self.world.db.pool.execute(
                "UPDATE schedule_firings SET fire_at = fire_at - $2::interval, created_at = created_at - $2"
                " WHERE id = $1",
                row["id"],
                timedelta(**time),
            )

    async def fire(self, *cores: Core) -> None:
        """A look of each of these instances, at the same time."""
        looks = [firing.fire_due(core, Loop("schedules")) for core in cores or (self.core,)]
        await asyncio.gather(*looks)

    async def fired(self, schedule_id: UUID) -> list[dict[str, Any]]:
        """What came of its times, the newest first."""
        await firing.settle(self.core)
        return (await firings.list_page(self.core, schedule_id, limit=100, cursor=None)).data

    async def runs(self) -> int:
        count: int = await self.world.one("SELECT count(*) FROM runs WHERE tenant_id = $1", self.by.tenant_id)
        return count

    async def end_runs(self, status: str = "succeeded", code: str | None = None) -> None:
        await self.world.db.pool.execute(
            "UPDATE runs SET status = $2, finished_at = now(), error = $3 WHERE tenant_id = $1 AND finished_at IS NULL",
            self.by.tenant_id,
            status,
            code and {"code": code, "message": "m", "retryable": False},
        )

    async def told(self) -> list[tuple[str, str]]:
        """Types and payloads of messages to webhooks."""
        rows = await self.world.db.pool.fetch(
            "SELECT d.type, d.payload FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id"
            " WHERE w.tenant_id = $1 AND d.type LIKE 'schedule.%' ORDER BY d.position",
            self.by.tenant_id,
        )
        return [(row["type"], row["payload"]) for row in rows]


@pytest.fixture
async def kept(world: World) -> Kept:
    key_id: UUID = await world.db.pool.fetchval(
        "INSERT INTO api_keys (tenant_id, name, prefix, secret_hash, scopes) VALUES ($1, 'k', 'p', $2, '{write,read}')"
        " RETURNING id",
        world.tenant_id,
        uuid4().hex * 2,
    )
    return Kept(world, key_id)


async def test_twenty_times_of_three_instances_with_deaths_and_clocks_that_jump_are_twenty_runs(
    kept: Kept, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: clock.heard(datetime.now(UTC), clock.uptime()))
    schedule_id = await kept.make(pause_after_failures=None, overlap="queue")
    for minute in range(20):
        await kept.pass_by(schedule_id, hours=1)
        if minute % 3 == 0:  # one has claimed it and dies: others take it on when the claim is over
            claimed = await kept.world.db.pool.fetch(firing._CLAIM, 4, [], firing.CLAIM_SECONDS)
            assert [row["id"] for row in claimed] == [schedule_id]
            await kept.fire(*(kept.world.core() for _ in range(3)))
            assert await kept.runs() == minute
            await kept.world.db.pool.execute("UPDATE schedules SET look_at = now() WHERE id = $1", schedule_id)
        if minute % 3 == 1:  # one that was stopped after its claim goes on when another has fired it
            late = await kept.world.db.pool.fetchrow(firing._CLAIM, 4, [], firing.CLAIM_SECONDS)
            await kept.world.db.pool.execute("UPDATE schedules SET look_at = now() WHERE id = $1", schedule_id)
            await kept.fire(*(kept.world.core() for _ in range(3)))
            with pytest.raises(firing._Overtaken):
                await firing._fire(kept.core, late)
        clock.heard(datetime.now(UTC) + timedelta(hours=minute - 10), clock.uptime())
        await kept.fire(*(kept.world.core() for _ in range(3)))
        assert await kept.runs() == minute + 1
    fired = await kept.fired(schedule_id)
    assert [one["state"] for one in fired] == ["queued"] * 20
    assert len({one["run_id"] for one in fired}) == 20
    times = [datetime.fromisoformat(one["fire_at"]) for one in fired]
    assert [later - earlier for earlier, later in pairwise(reversed(times))] == [timedelta(hours=1)] * 19


async def test_a_time_is_fired_once_though_all_instances_have_claimed_it(kept: Kept) -> None:
    schedule_id = await kept.make()
    await kept.pass_by(schedule_id, hours=1)
    claims = []
    for _ in range(5):
        claims += await kept.world.db.pool.fetch(firing._CLAIM, 4, [], 0.0)
    assert len(claims) == 5
    ends = await asyncio.gather(*(firing._fire(kept.world.core(), row) for row in claims), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["NoneType", *["_Overtaken"] * 4]
    assert await kept.runs() == 1
    assert len(await kept.fired(schedule_id)) == 1


async def test_after_a_downtime_the_newest_time_is_fired_and_the_others_are_told_as_missed(kept: Kept) -> None:
    schedule_id = await kept.make()
    first = datetime.fromisoformat((await kept.state(schedule_id))["next_at"])
    await kept.pass_by(schedule_id, hours=31)
    await kept.fire()
    await kept.fire()
    assert await kept.runs() == 1
    newest, missed = await kept.fired(schedule_id)
    assert (newest["state"], missed["state"], missed["times"]) == ("queued", "missed", 30)
    assert datetime.fromisoformat(missed["fire_at"]) == first - timedelta(hours=31)
    assert datetime.fromisoformat(newest["fire_at"]) == first - timedelta(hours=1)
    assert datetime.fromisoformat((await kept.state(schedule_id))["next_at"]) == first


async def test_a_time_that_the_databases_clock_shows_again_is_not_fired_again(kept: Kept) -> None:
    schedule_id = await kept.make()
    await kept.pass_by(schedule_id, hours=1)
    await kept.fire()
    [fired] = await kept.fired(schedule_id)
    again = datetime.fromisoformat(fired["fire_at"])
    await kept.world.db.pool.execute(
        "UPDATE schedules SET next_at = $2, look_at = $2 WHERE id = $1", schedule_id, again
    )
    await kept.end_runs()
    await kept.fire()
    assert await kept.runs() == 1
    assert datetime.fromisoformat((await kept.state(schedule_id))["next_at"]) == again + timedelta(hours=1)


async def test_a_run_that_is_not_over_lets_the_next_time_be_skipped_or_queued(kept: Kept) -> None:
    skips, queues = await kept.make(), await kept.make(overlap="queue", session="one")
    for _ in range(2):
        for schedule_id in (skips, queues):
            await kept.pass_by(schedule_id, hours=1)
        await kept.fire()
    skipped, _ = await kept.fired(skips)
    assert (skipped["state"], skipped["error"]["code"], skipped["run_id"]) == ("skipped", "overlap", None)
    second, first = await kept.fired(queues)
    assert [first["state"], second["state"]] == ["queued", "queued"]
    assert first["session_id"] == second["session_id"]
    await kept.end_runs()
    await kept.pass_by(skips, hours=1)
    await kept.fire()
    assert [one["state"] for one in await kept.fired(skips)] == ["queued", "skipped", "succeeded"]


async def test_jitter_is_the_same_everywhere_and_within_its_bound(kept: Kept) -> None:
    schedule_id, time = uuid4(), datetime(2026, 1, 1, tzinfo=UTC)
    drawn = [schedules.looked_at(schedule_id, time + timedelta(minutes=n), 30) for n in range(200)]
    late = [(at - time).total_seconds() - 60 * n for n, at in enumerate(drawn) if at]
    assert (min(late), max(late)) == (0, 30)
    assert drawn[7] == schedules.looked_at(schedule_id, time + timedelta(minutes=7), 30)
    assert schedules.looked_at(schedule_id, time, 0) == time
    slow = await kept.make(cron="* * * * *", jitter_seconds=3600)
    await kept.world.db.pool.execute(
        "UPDATE schedules SET next_at = date_trunc('minute', now()) - interval '59 min', look_at = now() WHERE id = $1",
        slow,
    )
    await kept.fire()
    assert [one["state"] for one in await kept.fired(slow)] == ["queued"]  # those after it are still to come


async def test_it_is_paused_after_failures_in_a_row_and_told(kept: Kept) -> None:
    db, core = kept.world.db, kept.core
    await webhooks.create(db, core.settings, core.outbound, kept.by.tenant_id, Changes("http://127.0.0.1:9/"), None)
    schedule_id = await kept.make(pause_after_failures=2)
    for status, code in (("failed", "timeout"), ("succeeded", None), ("failed", "timeout"), ("failed", "timeout")):
        await kept.pass_by(schedule_id, hours=1)
        await kept.fire()
        await kept.end_runs(status, code)
        await kept.fired(schedule_id)
    state = await kept.state(schedule_id)
    assert (state["status"], state["paused_reason"], state["failures"]) == ("paused", "2 failures in a row", 2)
    assert (state["next_at"], state["upcoming"]) == (None, [])
    assert state["last"]["error"] == {"code": "timeout", "message": "m"}
    assert [kind for kind, _ in await kept.told()] == ["schedule.failed"] * 3 + ["schedule.paused"]
    assert '"error_code": "timeout"' in (await kept.told())[0][1]
    await kept.pass_by(schedule_id, hours=5)
    await kept.fire()
    assert await kept.runs() == 4
    await schedules.resume(core, kept.by, schedule_id)
    state = await kept.state(schedule_id)
    assert (state["status"], state["failures"], len(state["upcoming"])) == ("active", 0, 5)
    assert datetime.fromisoformat(state["next_at"]) > datetime.now(UTC)
    lines = await audit.list_lines(db, audit.Filters(action="schedule.paused"), limit=9, before=None)
    assert [line.details["reason"] for line in lines if line.target == str(schedule_id)] == ["2 failures in a row"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE api_keys SET revoked_at = now() WHERE tenant_id = $1", "key_revoked"),
        ("DELETE FROM api_keys WHERE tenant_id = $1", "key_revoked"),
        ("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE tenant_id = $1", "invalid_api_key"),
        ("UPDATE api_keys SET scopes = '{read}' WHERE tenant_id = $1", "insufficient_scope"),
        ("UPDATE api_keys SET profiles = '{gone}' WHERE tenant_id = $1", "validation_error"),
        ("UPDATE tenants SET suspended_at = now() WHERE id = $1", "tenant_suspended"),
        ("UPDATE tenants SET limits = '{\"usd_per_day\": 1e-9}' WHERE id = $1", "budget_reached"),
        ("UPDATE agents SET deleted_at = now() WHERE tenant_id = $1", "agent_not_found"),
    ],
)
async def test_what_cannot_be_run_is_a_failed_firing_with_a_code(kept: Kept, change: str, code: str) -> None:
    async def fine(_: Any) -> None:
        return

    await presets.create(kept.world.db, kept.by.tenant_id, "p", presets.Draft(None, None, AgentConfig()), fine)
    schedule_id = await kept.make(agent="p")
    await kept.world.db.pool.execute(
        "INSERT INTO spent (subject, day, tenant_id, usd, tokens)"
        " VALUES ($1, (now() AT TIME ZONE 'UTC')::date, $1, 1, 1)",
        kept.by.tenant_id,
    )
    await kept.world.db.pool.execute(change, kept.by.tenant_id)
    await kept.pass_by(schedule_id, hours=1)
    await kept.fire()
    [fired] = await kept.fired(schedule_id)
    assert (fired["state"], fired["error"]["code"], fired["run_id"]) == ("failed", code, None)
    assert await kept.runs() == 0
    passes = code in firing.PASSING
    assert (await kept.state(schedule_id))["failures"] == (0 if passes else 1)
    with pytest.raises(ApiError) as refused:
        await firing.run(kept.core, kept.by, schedule_id)
    assert refused.value.code == code
    assert len(await kept.fired(schedule_id)) == 1


async def test_a_session_of_its_own_is_kept_and_followed_by_another_when_it_is_deleted(kept: Kept) -> None:
    schedule_id = await kept.make(session="one", labels=Labels("Reports", ["r"], {"a": "b"}))
    seen = []
    for turn in range(3):
        await kept.pass_by(schedule_id, hours=1)
        await kept.fire()
        await kept.end_runs()
        seen.append((await kept.state(schedule_id))["session_id"])
        if turn == 1:
            await deletion.delete(kept.world.db, kept.by.tenant_id, UUID(seen[-1]))
    assert seen[0] == seen[1] != seen[2]
    row = await kept.world.db.pool.fetchrow("SELECT title, tags, metadata FROM sessions WHERE id = $1", UUID(seen[2]))
    assert tuple(row) == ("Reports", ["r"], {"a": "b"})


async def test_the_end_of_a_given_session_pauses_it(kept: Kept) -> None:
    session_id = await kept.world.session()
    schedule_id = await kept.make(session="one", session_id=session_id)
    await deletion.delete(kept.world.db, kept.by.tenant_id, session_id)
    await kept.pass_by(schedule_id, hours=1)
    await kept.fire()
    state = await kept.state(schedule_id)
    assert (state["status"], state["paused_reason"]) == ("paused", "session_deleted")
    assert state["last"]["error"]["code"] == "session_deleted"


async def test_a_session_that_is_deleted_while_it_runs_ends_the_firing(kept: Kept) -> None:
    schedule_id = await kept.make()
    await kept.pass_by(schedule_id, hours=1)
    await kept.fire()
    [fired] = await kept.fired(schedule_id)
    await deletion.delete(kept.world.db, kept.by.tenant_id, UUID(fired["session_id"]))
    [fired] = await kept.fired(schedule_id)
    assert (fired["state"], fired["error"]["code"]) == ("interrupted", "session_deleted")


async def test_it_is_fired_now_once_for_an_idempotency_key_also_while_it_is_paused(kept: Kept) -> None:
    schedule_id = await kept.make(session="one")
    await schedules.pause(kept.core, kept.by, schedule_id)
    repeat = Idempotency.of("k", "run")
    first = await firing.run(kept.core, kept.by, schedule_id, repeat)
    again = await firing.run(kept.core, kept.by, schedule_id, repeat)
    other = await firing.run(kept.core, kept.by, schedule_id)
    assert first == again != other
    assert (first["origin"], first["state"]) == ("request", "queued")
    assert first["session_id"] == other["session_id"] == (await kept.state(schedule_id))["session_id"]
    assert (await kept.state(schedule_id))["status"] == "paused"
    assert await kept.runs() == 2


async def test_who_changes_it_is_whom_it_acts_for(kept: Kept) -> None:
    schedule_id = await kept.make(session="one")
    await firing.run(kept.core, kept.by, schedule_id)
    await kept.end_runs()
    before = await kept.state(schedule_id)
    other = replace(kept.by, key_id=await _another_key(kept))
    await schedules.update(kept.core, other, schedule_id, ["prompt"], lambda draft: replace(draft, prompt="again"))
    after = await kept.state(schedule_id)
    assert (after["key_id"], after["prompt"]) == (str(other.key_id), "again")
    assert (after["session_id"], after["next_at"]) == (before["session_id"], before["next_at"])
    yearly: dict[str, Any] = {"cron": "0 0 1 1 *", "config": AgentConfig(max_turns=3)}
    await schedules.update(kept.core, other, schedule_id, ["cron"], lambda draft: replace(draft, **yearly))
    after = await kept.state(schedule_id)
    assert after["session_id"] is None
    assert after["next_at"].endswith("-01-01T00:00:00.000Z")
    await kept.pass_by(schedule_id, days=366)
    await kept.fire()
    assert (
        await kept.world.one(
            "SELECT api_key_id FROM runs WHERE tenant_id = $1 ORDER BY position DESC LIMIT 1", kept.by.tenant_id
        )
        == other.key_id
    )


async def _another_key(kept: Kept) -> UUID:
    key_id: UUID = await kept.world.db.pool.fetchval(
        "INSERT INTO api_keys (tenant_id, name, prefix, secret_hash, scopes) VALUES ($1, 'o', 'p', $2, '{write}')"
        " RETURNING id",
        kept.by.tenant_id,
        uuid4().hex * 2,
    )
    return key_id


async def test_a_change_between_claim_and_firing_holds(kept: Kept) -> None:
    schedule_id = await kept.make()
    await kept.pass_by(schedule_id, hours=1)
    claimed = await kept.world.db.pool.fetchrow(firing._CLAIM, 4, [], 0.0)
    await schedules.update(kept.core, kept.by, schedule_id, ["prompt"], lambda draft: replace(draft, prompt="new"))
    with pytest.raises(firing._Overtaken):
        await firing._fire(kept.core, claimed)
    assert await kept.runs() == 0
    claimed = await kept.world.db.pool.fetchrow(firing._CLAIM, 4, [], 0.0)
    await schedules.pause(kept.core, kept.by, schedule_id)
    with pytest.raises(firing._Overtaken):
        await firing._fire(kept.core, claimed)
    assert await kept.runs() == 0


async def test_a_tenant_with_many_that_are_due_keeps_no_other_waiting(kept: Kept, world: World) -> None:
    many = [await kept.make() for _ in range(firing.AT_ONCE * 3)]
    other = Kept(replace(world, tenant_id=await world.other_tenant()), kept.by.key_id)
    one = await other.make()
    await world.db.pool.execute(
        "UPDATE schedules SET next_at = now() - interval '9 s', look_at = now() - interval '9 s' WHERE id = ANY($1)",
        many,
    )
    await world.db.pool.execute("UPDATE schedules SET next_at = now(), look_at = now() WHERE id = $1", one)
    claimed = await world.db.pool.fetch(firing._CLAIM, firing.AT_ONCE, [], 10.0)
    assert len(claimed) == firing.AT_ONCE
    assert one in [row["id"] for row in claimed]


async def test_bounds_and_what_does_not_fit(kept: Kept) -> None:
    few = kept.world.core(max_schedules_per_tenant=1)
    repeat = Idempotency.of("key", "make")
    schedule_id = await schedules.create(few, kept.by, HOURLY, repeat)
    assert await schedules.create(few, kept.by, HOURLY, repeat) == schedule_id
    with pytest.raises(Conflict) as refused:
        await schedules.create(few, kept.by, HOURLY)
    assert refused.value.code == "too_many_schedules"
    await schedules.delete(few, kept.by, schedule_id)
    assert await schedules.create(few, kept.by, HOURLY, repeat) != schedule_id
    theirs = replace(kept.by, tenant_id=await kept.world.other_tenant())
    for call in (schedules.get, schedules.pause, schedules.resume, schedules.delete, firing.run):
        with pytest.raises(NotFound):
            await call(kept.core, theirs, schedule_id)
    session_id = await kept.world.session()
    with pytest.raises(NotFound):
        await schedules.create(kept.core, theirs, replace(HOURLY, session="one", session_id=session_id))
    given: dict[str, Any] = {"session": "one", "session_id": session_id}
    wrong: tuple[dict[str, Any], ...] = {"session": "new"}, {"agent": "p"}, {"profile": "p"}, {"labels": Labels("t")}
    for change in wrong:
        with pytest.raises(ValidationError):
            await kept.make(**given | change)
    with pytest.raises(NotFound):
        await kept.make(agent="nobody")


async def test_a_key_that_is_bound_to_profiles_sees_and_makes_those_of_its_own(kept: Kept) -> None:
    profiles = {name: Profile(description=name) for name in ("a", "b")}
    core = replace(kept.core, profiles=profiles)
    free, bound = replace(kept.by, policy=Policy(profiles)), replace(kept.by, policy=Policy(profiles, ("a",)))
    ours = await schedules.create(core, bound, HOURLY)
    theirs = await schedules.create(core, free, replace(HOURLY, profile="b"))
    none = await schedules.create(core, free, HOURLY)
    page = await schedules.list_page(core, bound, limit=9, cursor=None)
    assert [one["schedule_id"] for one in page.data] == [str(ours)]
    assert page.data[0]["profile"] == "a"
    first = await schedules.list_page(core, free, limit=2, cursor=None)
    rest = await schedules.list_page(core, free, limit=2, cursor=first.next_cursor)
    assert [one["schedule_id"] for one in [*first.data, *rest.data]] == [str(none), str(theirs), str(ours)]
    for hidden in (theirs, none):
        for call in (schedules.get, schedules.pause, schedules.resume, schedules.delete, firing.run):
            with pytest.raises(Forbidden):
                await call(core, bound, hidden)
    with pytest.raises(Forbidden):
        await schedules.create(core, bound, replace(HOURLY, profile="b"))
    given = await kept.world.session()
    with pytest.raises(Forbidden):
        await schedules.create(core, bound, replace(HOURLY, session="one", session_id=given))


async def test_old_firings_go_but_for_those_whose_run_is_not_over(kept: Kept) -> None:
    schedule_id = await kept.make()
    await kept.pass_by(schedule_id, hours=3)
    await kept.fire()
    await kept.pass_by(schedule_id, days=firings.KEEP_DAYS + 1)
    await firings.forget_old(kept.world.db)
    assert [one["state"] for one in await kept.fired(schedule_id)] == ["queued"]
    await kept.end_runs()
    await kept.fired(schedule_id)
    await firings.forget_old(kept.world.db)
    assert await kept.fired(schedule_id) == []


async def test_a_firing_ends_when_its_run_does_whenever_that_is_noted(kept: Kept) -> None:
    schedule_id = await kept.make()
    await firing.run(kept.core, kept.by, schedule_id)
    await kept.end_runs()
    await kept.world.db.pool.execute("UPDATE runs SET finished_at = finished_at - interval '9 s'")
    before = (await kept.state(schedule_id))["last"]
    assert [before] == await kept.fired(schedule_id)
    assert before["ended_at"] is not None
