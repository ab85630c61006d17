"""The fleet's clock is the database's, however far the machine's own is off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from apps.api import auth, clock, doctor, keys
from apps.api.clock import Clock, uptime
from apps.api.core.events.log import Event
from apps.api.core.fleet import instances
from apps.api.errors import Unauthorized
from tests.core.conftest import lone_world
from tests.world import World

__all__ = ["lone_world"]

HOURS = timedelta(hours=2)


class _Wrong(datetime):
    """What the machine believes to be the time."""

    by = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.by


@pytest.fixture(params=[-HOURS, HOURS], ids=["slow", "fast"])
def wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> timedelta:
    """The clock of the machine is two hours off, and this process has just begun."""
    monkeypatch.setattr(_Wrong, "by", request.param)
    monkeypatch.setattr(clock, "datetime", _Wrong)
    fresh = Clock()
    for name in ("now", "heard", "offset"):
        monkeypatch.setattr(clock, name, getattr(fresh, name))
    by: timedelta = request.param
    return by


async def database(world: World) -> datetime:
    now: datetime = await world.one("SELECT now()")
    return now


async def test_a_heartbeat_brings_the_time(lone_world: World, wrong: timedelta) -> None:
    assert abs(clock.now() - await database(lone_world)) > HOURS / 2
    lease = await lone_world.instance()
    assert abs(clock.now() - await database(lone_world)) < HOURS / 100
    await instances.renew(lone_world.db.pool, lease)
    assert abs(clock.offset() - wrong.total_seconds()) < 60


async def test_events_of_servers_whose_clocks_are_off_are_dated_in_order(lone_world: World, wrong: timedelta) -> None:
    _, claim, writer = await lone_world.owned()
    before = await database(lone_world)
    await writer.append(Event("message", {}, claim.run_id))
    [(_, _, data)] = await lone_world.events(claim.session_id)
    assert (
        before - timedelta(seconds=5)
        <= datetime.fromisoformat(data["created_at"])
        <= await database(lone_world) + timedelta(seconds=5)
    )


async def test_keys_expire_by_the_database(lone_world: World, wrong: timedelta) -> None:
    world = lone_world
    await world.instance()
    made = await keys.create_key(
        world.db, tenant=f"t{uuid4().hex}", name="k", scopes=keys.USUAL_SCOPES, expires_in_days=1
    )
    for age, good in (("1 hour", False), ("-1 hour", True)):
        await world.db.pool.execute("UPDATE api_keys SET expires_at = now() - $1::text::interval", age)
        await world.redis.client.flushdb()
        if good:
            await auth.authenticate(world.db, world.redis, made.secret)
        else:
            with pytest.raises(Unauthorized):
                await auth.authenticate(world.db, world.redis, made.secret)


async def test_doctor_tells_a_clock_that_is_off(lone_world: World, wrong: timedelta) -> None:
    [found] = [check for check in await doctor.examine(lone_world.settings) if check.subject == "Clock"]
    assert found.verdict == "warn"
    assert ("ahead" if wrong > timedelta(0) else "behind") in found.finding


def test_what_an_answer_corrects_by_little_does_not_make_the_time_go_back() -> None:
    ours, told = Clock(), datetime.now(UTC)
    ours.heard(told, uptime())
    first = ours.now()
    ours.heard(told - timedelta(seconds=0.2), uptime())
    assert ours.now() >= first
    ours.heard(told - HOURS, uptime())  # another server, of another time
    assert ours.now() < first
    ours.heard(told + HOURS, uptime() - 5)  # an answer that took long says little
    assert ours.now() < first
