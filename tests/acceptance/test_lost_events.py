"""A database that goes back under a running fleet: the newest run is gone, as on a standby that lagged."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from apps.api.core import tasks
from apps.api.db import Database
from tests.conftest import database_of
from tests.fleet import Fleet, Instance, Sse
from tests.world import until

RUN_SECONDS = 60.0
"""Only ends a hang."""


async def lose(db: Database, session_id: str, run_id: str, *, owner: bool) -> int:
    """Take a run out of the database, and all that it wrote into its session's log; returns the newest number left.

    `owner`: that the session has an owner is lost, too.
    """
    kept: int = await db.pool.fetchval("SELECT min(seq) - 1 FROM events WHERE run_id = $1", UUID(run_id))
    await db.pool.execute("DELETE FROM events WHERE session_id = $1 AND seq > $2", UUID(session_id), kept)
    await db.pool.execute("DELETE FROM runs WHERE id = $1", UUID(run_id))
    await db.pool.execute("UPDATE sessions SET last_seq = $2 WHERE id = $1", UUID(session_id), kept)
    if owner:
        await db.pool.execute(
            "UPDATE sessions SET owner_id = NULL, generation = generation + 1 WHERE id = $1", UUID(session_id)
        )
    return kept


async def read(instance: Instance, path: str, into: list[Sse]) -> None:
    async with asyncio.timeout(RUN_SECONDS), instance.stream(path) as events:
        async for event in events:
            into.append(event)


def durable(events: list[Sse]) -> list[tuple[str, str]]:
    return [(event.id, event.event) for event in events if event.event != "partial"]


@pytest.mark.parametrize("owner", [False, True], ids=["its owner is known", "nobody owns it"])
async def test_the_next_prompt_works_and_readers_have_what_is_stored(fleet: Fleet, owner: bool) -> None:
    """Its agent has not noticed: it is warm, and knows of a run that has never been."""
    session_id = await fleet[0].session()
    kept_run = await fleet[0].prompt(session_id, "say one")
    await fleet[0].follow(kept_run)
    lost_run = await fleet[0].prompt(session_id, "say two")
    last = (await fleet[0].follow(lost_run))[-1].id
    seen: list[Sse] = []
    reader = asyncio.create_task(read(fleet[1], f"/sessions/{session_id}/events", seen))
    await until(lambda: len(seen) > 0 and seen[-1].id == last)
    async with database_of(fleet) as db:
        kept = await lose(db, session_id, lost_run, owner=owner)
    run_id = await fleet[2].prompt(session_id, "say three")
    own = await fleet[2].follow(run_id)
    assert (own[-1].event, own[-1].data["status"]) == ("done", "succeeded")
    await until(lambda: seen[-1].event == "done" and seen[-1].data["run_id"] == run_id)
    await tasks.end(reader)
    stored = (await fleet[1].get(f"/sessions/{session_id}/events", headers={"Accept": "application/json"})).json()
    listed = [(event["id"], event["event"]) for event in stored["data"]]
    [at] = [n for n, event in enumerate(seen) if event.event == "resync"]
    assert seen[at].data["seq"] == kept
    assert durable(seen[at + 1 :]) == [entry for entry in listed if int(entry[0]) > kept]
    path = f"/sessions/{session_id}/events?until=idle"
    async with fleet[1].stream(path, headers={"Last-Event-ID": last}) as events:
        again = [event async for event in events]
    pages: list[dict[str, Any]] = []
    after: str | None = last
    while after is not None:
        page = await fleet[1].get(path, params={"after": after}, headers={"Accept": "application/json"})
        pages, after = pages + page.json()["data"], page.json()["next_cursor"]
    assert [(event["id"], event["event"]) for event in pages] == durable(again)
    assert (again[0].event, again[0].data["seq"]) == ("resync", kept)
    assert durable(again[1:]) == [entry for entry in listed if int(entry[0]) > kept]
    assert own[0].data["seq"] == kept + 1
