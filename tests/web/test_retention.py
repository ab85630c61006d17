"""How long data is kept, over HTTP: what operators set, and what readers of removed events are told."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from apps.api.db import Database
from tests.fleet import Fleet
from tests.sockets import open_socket

FIELDS = ("events_days", "transcripts_days", "idle_sessions_days", "workspaces_days", "usage_days")


async def test_what_is_set_for_a_tenant_is_replaced_whole_and_shown(fleet: Fleet) -> None:
    name = f"t{uuid4().hex}"
    await fleet[0].post("/admin/tenants", {"name": name})
    path = f"/api/v1/admin/tenants/{name}/retention"
    nothing = dict.fromkeys(FIELDS)
    assert (await fleet[1].client.get(path)).json() == {"tenant": name, "retention": {}, "effective": nothing}
    put = await fleet[0].client.put(path, json={"events_days": 90, "usage_days": None})
    assert put.json() == (await fleet[2].client.get(path)).json()
    assert put.json()["retention"] == {"events_days": 90, "usage_days": None}
    assert put.json()["effective"] == {**nothing, "events_days": 90}
    assert (await fleet[1].client.put(path, json={})).json()["retention"] == {}
    refused: tuple[Any, ...] = ({"events_days": 0}, {"events_days": 1.5}, {"days": 1}, {"usage_days": 40_000}, [])
    for wrong in refused:
        assert (await fleet[0].client.put(path, json=wrong)).status_code == 422, wrong
    nobody = await fleet[0].client.put(path.replace(name, "nobody-at-all"), json={})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (404, "tenant_not_found")


@pytest.fixture(scope="module")
async def trimmed(fleet: Fleet, fleet_db: Database) -> dict[str, Any]:
    """A session whose first run's events are gone, and its two runs."""
    session_id = await fleet[0].session()
    first = await fleet[0].ask(session_id, "say one")
    second = await fleet[0].ask(session_id, "say two")
    end = await fleet_db.pool.fetchval("SELECT last_seq FROM runs WHERE id = $1", first["run_id"])
    await fleet_db.pool.execute("DELETE FROM events WHERE session_id = $1 AND seq <= $2", session_id, end)
    await fleet_db.pool.execute("UPDATE sessions SET expired_seq = $2 WHERE id = $1", session_id, end)
    return {"session": session_id, "first": first["run_id"], "second": second["run_id"], "end": end}


async def test_a_stream_begins_with_resync_where_the_log_does(fleet: Fleet, trimmed: dict[str, Any]) -> None:
    end, path = trimmed["end"], f"/sessions/{trimmed['session']}/events"
    for headers in ({}, {"Last-Event-ID": "2"}):
        async with fleet[1].stream(path, params={"until": "idle"}, headers=headers) as events:
            found = [event async for event in events]
        assert (found[0].event, found[0].id, found[0].data["seq"]) == ("resync", str(end), end)
        assert found[0].data["reason"] == "expired"
        stored = [event.data["seq"] for event in found[1:] if event.event != "partial"]
        assert stored == list(range(end + 1, found[-1].data["seq"] + 1))
        assert found[-1].event == "done"
    json = {"Accept": "application/json"}
    page = (await fleet[2].get(path, headers=json)).json()
    assert [(event["event"], event["data"]["reason"]) for event in page["data"]] == [("resync", "expired")]
    rest = (await fleet[2].get(path, headers=json, params={"after": page["next_cursor"]})).json()
    assert rest["data"][0]["data"]["seq"] == end + 1
    beyond = (await fleet[2].get(path, headers=json, params={"after": "9999"})).json()
    assert beyond["data"][0]["data"]["reason"] == "lost"


async def test_a_run_whose_events_are_gone_is_410_and_its_end_204(fleet: Fleet, trimmed: dict[str, Any]) -> None:
    of_session = {"path": f"/sessions/{trimmed['session']}/events", "params": {"run_id": trimmed["first"]}}
    for asked in ({"path": f"/runs/{trimmed['first']}/events"}, of_session):
        for headers in ({}, {"Last-Event-ID": "2"}, {"Accept": "application/json"}):
            gone = await fleet[1].get(**asked, headers=headers)
            assert (gone.status_code, gone.json()["error"]["code"]) == (410, "events_expired")
        assert (await fleet[1].get(**asked, headers={"Last-Event-ID": str(trimmed["end"])})).status_code == 204
    run = (await fleet[2].get(f"/runs/{trimmed['first']}")).json()
    assert run["status"] == "succeeded"
    assert [event.event for event in await fleet[0].follow(trimmed["second"])][-1] == "done"
    async with open_socket(fleet[1]) as socket:
        ids = {"session_id": trimmed["session"], "run_id": trimmed["first"]}
        assert await socket.refused("follow", **ids) == (410, "events_expired")
