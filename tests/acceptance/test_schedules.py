"""A schedule over a fleet whose instances are killed, and one of which has a clock that is set."""

from __future__ import annotations

import importlib.util
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from apps.api.db import Database
from tests.conftest import StartFleet, database_of
from tests.fleet import PROGRAM
from tests.world import until

TIMES = 20
SECONDS = 60.0


async def an_hour_goes_by(db: Database, schedule_id: UUID) -> None:
    """For a schedule: all that is known of it was an hour earlier."""
    async with db.transaction() as connection:
        await connection.execute(
            "UPDATE schedules SET next_at = next_at - interval '1 h', look_at = look_at - interval '1 h' WHERE id = $1",
            schedule_id,
        )
        rows = await connection.fetch(
            "SELECT id FROM schedule_firings WHERE schedule_id = $1 ORDER BY fire_at", schedule_id
        )
        for row in rows:  # one by one: no two are of the same time on the way
            await connection.execute(
                "UPDATE schedule_firings SET fire_at = fire_at - interval '1 h' WHERE id = $1", row["id"]
            )


def clock(path: Path) -> dict[str, str]:
    """Settings of a process whose time of day is off by what the file says; none where that does not work."""
    found = importlib.util.find_spec("libfaketime")
    library = next(Path(found.origin).parent.rglob("libfaketime.so.1"), None) if found and found.origin else None
    path.write_text("+0")
    if library is None:
        return {}
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


@pytest.mark.slow
async def test_each_time_is_fired_once_while_instances_are_killed_and_clocks_are_set(
    start_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet = await start_fleet(2, RUNNER_SLOTS="0")  # whoever serves fires, also where no agent runs
    shown = tmp_path / "clock"
    await fleet.add({"RUNNER_SLOTS": "0", **clock(shown)}, program=PROGRAM)
    minute = (datetime.now(UTC).minute + 30) % 60  # so that no real time of it comes in the middle
    body = {"cron": f"{minute} * * * *", "prompt": "say hello", "overlap": "queue"}
    schedule_id = UUID((await fleet[0].post("/schedules", body)).json()["schedule_id"])
    async with database_of(fleet) as db:
        count = "SELECT count(*) >= $1 FROM runs"

        for time in range(TIMES):
            killed = fleet[time % 3] if time % 4 == 0 else None
            if time % 3 == 0:
                draft = shown.with_suffix(".new")
                draft.write_text(f"{'-' if time % 2 else '+'}{time * 600}")
                draft.replace(shown)
            await an_hour_goes_by(db, schedule_id)
            if killed is not None:
                killed.signal(signal.SIGKILL)

            async def fired(wanted: int = time + 1) -> bool:
                return bool(await db.pool.fetchval(count, wanted))

            await until(fired, seconds=SECONDS)
            if killed is not None:
                await killed.ended()
                await fleet.again(killed)
        assert await db.pool.fetchval("SELECT count(*) FROM runs") == TIMES
    told = (await fleet[1].get(f"/schedules/{schedule_id}/runs?limit=200")).json()["data"]
    assert [one["state"] for one in told] == ["queued"] * TIMES
    assert len({one["run_id"] for one in told}) == len({one["session_id"] for one in told}) == TIMES
    times = [datetime.fromisoformat(one["fire_at"]) for one in told]
    assert times == [times[0] - timedelta(hours=n) for n in range(TIMES)]
    after = (await fleet[2].get(f"/schedules/{schedule_id}")).json()
    assert datetime.fromisoformat(after["next_at"]) == times[0] + timedelta(hours=1)
    assert (len(after["upcoming"]), after["last"]["run_id"]) == (5, told[0]["run_id"])
