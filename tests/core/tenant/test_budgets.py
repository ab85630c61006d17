"""Budgets of sessions, keys and tenants: what counts for them, and what one that is used up refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from apps.api import keys
from apps.api.core.config.agent import AgentConfig
from apps.api.core.sessions import prompts
from apps.api.core.sessions.prompts import Submission, Submitted
from apps.api.core.tenant import budgets, model_calls
from apps.api.core.tenant.budgets import Gate
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.model_calls import Call, Used
from apps.api.errors import RateLimited
from tests.world import World


class Place:
    """A tenant with a key and a session with a run of that key."""

    def __init__(self, world: World, key_id: UUID, run: Submitted) -> None:
        self.world, self.key_id, self.run = world, key_id, run
        self.gate = Gate(world.db)

    async def limit(self, what: str, **fields: Any) -> None:
        """Limits of the `key` or the `tenant`."""
        table, id_ = ("api_keys", self.key_id) if what == "key" else ("tenants", self.world.tenant_id)
        await self.world.db.pool.execute(f"UPDATE {table} SET limits = $2 WHERE id = $1", id_, fields)

    def call(self, usd: float, tokens: int = 0, **more: Any) -> Call:
        at, used = datetime.now(UTC), Used("claude-sonnet-5-5", output_tokens=tokens, complete=True)
        made = Call(
            self.world.tenant_id, self.run.session_id, self.run.run_id, "messages", at, 200, 0.1, 0.2, used, usd
        )
        return replace(made, **more)

    async def spend(self, usd: float, tokens: int = 0, *, days_ago: int = 0, **more: Any) -> None:
        await model_calls.record(self.world.db, self.call(usd, tokens, **more))
        if days_ago:
            moved = "UPDATE spent SET day = day - $1::int WHERE subject = ANY($2)"
            await self.world.db.pool.execute(moved, days_ago, list(self.subjects))

    @property
    def subjects(self) -> set[UUID]:
        return {self.world.tenant_id, self.key_id, self.run.session_id}

    async def spent(self) -> dict[UUID, tuple[float, int]]:
        rows = await self.world.db.pool.fetch("SELECT * FROM spent WHERE subject = ANY($1)", list(self.subjects))
        return {row["subject"]: (row["usd"], row["tokens"]) for row in rows}

    async def check(self, most: float | None = None) -> list[list[str]]:
        return await self.gate.check(self.world.tenant_id, self.run.session_id, self.run.run_id, most)

    async def send(self, **more: Any) -> Submitted:
        submission = Submission("say hello", 60, self.run.session_id, **more)
        return await prompts.submit(self.world.core(), self.world.tenant_id, self.key_id, submission)

    async def refused(self) -> dict[str, Any]:
        """What both say of the budget that is used up."""
        with pytest.raises(RateLimited) as by_gate:
            await self.check()
        with pytest.raises(RateLimited) as by_admission:
            await self.send()
        assert by_gate.value.code == by_admission.value.code == "budget_reached"
        assert by_gate.value.details == by_admission.value.details
        return by_gate.value.details


@pytest.fixture
async def place(world: World) -> Place:
    name = await world.one("SELECT name FROM tenants WHERE id = $1", world.tenant_id)
    key = await keys.create_key(world.db, tenant=name, name="k", scopes=keys.USUAL_SCOPES)
    run = await prompts.submit(world.core(), world.tenant_id, key.id, Submission("say hello", 60, None))
    return Place(world, key.id, run)


async def test_a_call_counts_once_for_its_session_its_key_and_its_tenant(place: Place) -> None:
    call = place.call(0.25, 100)
    for _ in range(2):
        await model_calls.record(place.world.db, call)
    await model_calls.record(place.world.db, place.call(0.5, 10, run_id=None))
    await model_calls.record(place.world.db, place.call(0.0, 0))
    assert await place.spent() == dict.fromkeys(place.subjects, (0.75, 110))
    assert await place.world.one("SELECT count(*) FROM model_calls WHERE api_key_id = $1", place.key_id) == 3


async def test_calls_that_end_at_once_are_all_counted(place: Place) -> None:
    await asyncio.gather(*(place.spend(0.125, 1) for _ in range(40)))
    assert await place.spent() == dict.fromkeys(place.subjects, (5.0, 40))


@pytest.mark.parametrize("scope", ["key", "tenant"])
@pytest.mark.parametrize(
    ("field", "limit", "below", "at"),
    [
        ("usd_per_day", 1.0, {"usd": 0.99}, {"usd": 0.01}),
        ("usd_per_month", 1.0, {"usd": 0.99}, {"usd": 0.01}),
        ("tokens_per_day", 100, {"usd": 5, "tokens": 99}, {"usd": 0, "tokens": 1}),
        ("tokens_per_month", 100, {"usd": 5, "tokens": 99}, {"usd": 0, "tokens": 1}),
    ],
)
async def test_a_budget_lets_everything_through_until_it_is_reached(
    place: Place, scope: str, field: str, limit: float, below: dict[str, Any], at: dict[str, Any]
) -> None:
    await place.limit(scope, **{field: limit})
    await place.spend(**below)
    await place.check()
    await place.send()
    await place.spend(**at)
    details = await place.refused()
    assert (details["scope"], details["name"]) == (scope, field)
    if field.startswith("usd"):
        assert (details["limit_usd"], details["used_usd"]) == ("1", "1")
    else:
        assert (details["limit"], details["used"]) == (100, 100)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    resets_at = datetime.fromisoformat(details["resets_at"])
    assert resets_at == (next_month if field.endswith("month") else today + timedelta(days=1))
    await place.limit(scope, **{field: limit * 2})
    await place.check()
    await place.send()


async def test_a_new_day_has_a_new_budget_and_a_new_month_too(place: Place) -> None:
    await place.limit("tenant", usd_per_day=1, usd_per_month=7)
    await place.spend(5, days_ago=32)
    await place.spend(5, days_ago=datetime.now(UTC).day)  # the last day of last month
    await place.check()
    await place.send()
    await place.spend(5)
    assert (await place.refused())["name"] == "usd_per_day"
    await place.spend(5)
    assert (await place.refused())["name"] == "usd_per_month", "the one that lasts longer"


async def test_another_key_and_another_tenant_have_their_own(place: Place) -> None:
    await place.limit("key", usd_per_day=1)
    await place.spend(5)
    name = await place.world.one("SELECT name FROM tenants WHERE id = $1", place.world.tenant_id)
    other = await keys.create_key(place.world.db, tenant=name, name="other", scopes=keys.USUAL_SCOPES)
    submission = Submission("say hello", 60, place.run.session_id)
    await prompts.submit(place.world.core(), place.world.tenant_id, other.id, submission)
    assert (await place.refused())["scope"] == "key"
    await place.limit("tenant", usd_per_day=1)
    with pytest.raises(RateLimited):
        await prompts.submit(place.world.core(), place.world.tenant_id, other.id, submission)
    await prompts.submit(place.world.core(), await place.world.other_tenant(), None, Submission("say hello", 60, None))


async def test_a_session_has_one_for_all_its_days(place: Place) -> None:
    session_id = await place.world.session(max_session_usd=1)
    place.run = await place.world.queue(session_id)
    await place.spend(0.75, days_ago=40)
    await place.check()
    await place.spend(0.25)
    details = await place.refused()
    assert details == {
        "scope": "session",
        "name": "max_session_usd",
        "limit_usd": "1",
        "used_usd": "1",
        "resets_at": None,
    }
    await place.send(config=AgentConfig(max_session_usd=2.0))
    await place.check()
    with pytest.raises(RateLimited):
        await place.check(most=1.0)


async def test_what_asks_no_model_is_not_refused_and_a_repeated_request_is_answered_as_before(place: Place) -> None:
    given = Idempotency("key", "fingerprint")
    first = await place.send(idempotency=given)
    await place.limit("key", usd_per_day=1)
    await place.spend(5)
    again = await place.send(idempotency=given)
    assert (again.run_id, again.repeated) == (first.run_id, True)
    await place.send(kind="reset")


async def test_a_new_session_is_refused_as_a_whole(place: Place) -> None:
    await place.limit("key", usd_per_day=1)
    await place.spend(5)
    before = await place.world.one("SELECT count(*) FROM sessions")
    submission = Submission("say hello", 60, None)
    with pytest.raises(RateLimited):
        await prompts.submit(place.world.core(), place.world.tenant_id, place.key_id, submission)
    assert await place.world.one("SELECT count(*) FROM sessions") == before


async def test_an_instance_knows_for_a_while_that_a_run_has_no_budget(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.check()
    await place.limit("tenant", usd_per_day=1)
    await place.spend(5)
    await place.check()
    monkeypatch.setattr(budgets, "KEEP_SECONDS", 0.0)
    place.gate = Gate(place.world.db)
    with pytest.raises(RateLimited):
        await place.check()


async def test_what_is_left_can_be_read(place: Place) -> None:
    await place.limit("key", usd_per_day=1, tokens_per_month=10)
    await place.limit("tenant", usd_per_month=2)
    await place.spend(0.5, 7)
    found = await budgets.of(place.world.db, place.world.tenant_id, place.key_id)
    resets_at = [budget.pop("resets_at") for budget in found]
    assert None not in resets_at
    assert found == [
        {"scope": "key", "name": "tokens_per_month", "limit": 10, "used": 7, "left": 3},
        {"scope": "key", "name": "usd_per_day", "limit_usd": "1", "used_usd": "0.5", "left_usd": "0.5"},
        {"scope": "tenant", "name": "usd_per_month", "limit_usd": "2", "used_usd": "0.5", "left_usd": "1.5"},
    ]


async def test_the_lists_of_models_of_tenant_and_key_are_told(place: Place) -> None:
    await place.limit("key", models=["claude-haiku-5-5"])
    await place.limit("tenant", models=["*haiku*", "*sonnet*"], usd_per_day=5)
    assert await place.check() == [["*haiku*", "*sonnet*"], ["claude-haiku-5-5"]]
    await place.limit("key")
    assert await place.check() == [["*haiku*", "*sonnet*"]]
