"""Budgets stop: a run in the middle, the next one at the door, in every dialect; and they count what was spent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from apps.api.core.codec import usd
from tests.conftest import StartFleet, database_of
from tests.fleet import NO_TLS, Fleet
from tests.sockets import open_socket

BYPASS = {"permission_mode": "bypassPermissions"}
PROMPT = "read a.txt then read b.txt then say done"
"""Three calls to the model, each of which costs some 0.02 USD by what the demo model tells."""

SMALL = {"usd_per_day": 0.01}


Headers = dict[str, str]


async def poor(fleet: Fleet, **limits: Any) -> tuple[Headers, UUID]:
    """A key of a new tenant with these limits, and its id."""
    tenant = f"poor-{uuid4().hex}"
    assert (await fleet[0].post("/admin/tenants", {"name": tenant})).status_code == 201
    made = (await fleet[0].post("/admin/keys", {"tenant": tenant, "name": "k", "limits": limits or SMALL})).json()
    return {"X-API-Key": made["secret"]}, UUID(made["key_id"])


async def limit(fleet: Fleet, key_id: UUID, **limits: Any) -> None:
    """Give a key limits in place of those that it has."""
    patched = await fleet[0].client.patch(f"/api/v1/admin/keys/{key_id}", json={"limits": limits})
    assert patched.status_code == 200, patched.text


async def calls_of(fleet: Fleet, key_id: UUID) -> list[Any]:
    async with database_of(fleet) as db:
        return list(await db.pool.fetch("SELECT * FROM model_calls WHERE api_key_id = $1 ORDER BY id", key_id))


def at(fleet: Fleet, dialect: str, headers: Headers) -> httpx.AsyncClient:
    url = f"{fleet[0].url}/compat/{dialect}"
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60, verify=NO_TLS)


async def data_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


def is_told(details: dict[str, Any], limit: float = 0.01) -> None:
    """Whether details say which budget it is, and when there is a new one."""
    assert (details["scope"], details["name"], details["limit_usd"]) == ("key", "usd_per_day", str(limit))
    assert float(details["used_usd"]) >= limit
    assert details["resets_at"].endswith("T00:00:00+00:00")


async def test_a_waiting_request_hears_of_it_and_all_three_counts_agree(fleet: Fleet) -> None:
    headers, key_id = await poor(fleet)
    answer = await fleet[0].post("/query/single", {"prompt": PROMPT, **BYPASS}, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (429, "budget_reached")
    is_told(error["details"])
    # In the middle: the first call was made, and its tool ran; the second was not.
    made, *refused = await calls_of(fleet, key_id)
    assert (made["status"], made["complete"]) == (200, True)
    assert [call["status"] for call in refused] == [0]
    told = float(error["details"]["result"]["total_cost_usd"])
    assert made["cost_usd"] == pytest.approx(told)
    run = (await fleet[0].get(f"/runs/{error['details']['run_id']}", headers=headers)).json()
    assert (run["status"], run["error"]["code"], run["error"]["details"]["scope"]) == (
        "failed",
        "budget_reached",
        "key",
    )
    ledger = float((await fleet[0].get("/usage?group_by=key", headers=headers)).json()["totals"]["cost_usd"])
    async with database_of(fleet) as db:
        spent = await db.pool.fetchval("SELECT usd FROM spent WHERE subject = $1", key_id)
    [budget] = (await fleet[0].get("/usage", headers=headers)).json()["budgets"]
    assert (budget["scope"], budget["used_usd"], float(budget["left_usd"])) == ("key", usd(spent), 0)
    shown = (await fleet[0].get("/limits", headers=headers)).json()["data"]
    [shown_budget] = [state for state in shown if state["name"] == "usd_per_day"]
    assert (shown_budget["limit_usd"], shown_budget["used_usd"]) == ("0.01", usd(spent))
    assert spent == pytest.approx(ledger) == pytest.approx(told) == pytest.approx(float(error["details"]["used_usd"]))
    again = await fleet[0].post("/query/single", {"prompt": "say hello"}, headers=headers)
    assert (again.status_code, again.json()["error"]["code"]) == (429, "budget_reached")
    is_told(again.json()["error"]["details"])
    assert 0 < int(again.headers["retry-after"]) <= 86_400


async def test_a_stream_hears_of_it(fleet: Fleet) -> None:
    headers, _ = await poor(fleet)
    body = {"prompt": PROMPT, **BYPASS}
    async with fleet[0].client.stream("POST", "/api/v1/query", json=body, headers=headers) as response:
        events = [json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: ")]
    [error] = [event for event in events if event.get("code") == "budget_reached"]
    is_told(error["details"])
    assert events[-1]["status"] == "failed"
    again = await fleet[0].post("/query", body, headers=headers)
    assert (again.status_code, again.json()["error"]["code"]) == (429, "budget_reached")


async def test_a_websocket_hears_of_it(fleet: Fleet) -> None:
    headers, _ = await poor(fleet)
    async with open_socket(fleet[0], headers) as socket:
        run = await socket.ask("prompt", prompt=PROMPT, **BYPASS)
        error = (await socket.of_run(run["run_id"], "error"))["data"]
        assert error["code"] == "budget_reached"
        is_told(error["details"])
        assert (await socket.of_run(run["run_id"]))["data"]["status"] == "failed"
        assert await socket.refused("prompt", prompt="say hello") == (429, "budget_reached")


async def test_clients_of_the_chat_server_hear_of_it(fleet: Fleet) -> None:
    headers, key_id = await poor(fleet)
    async with at(fleet, "chat-server", headers) as client:
        async with client.stream("POST", "/chat", json={"prompt": PROMPT}) as response:
            told = [data async for data in data_of(response)]
        [error] = [data for data in told if data.get("type") == "error"]
        assert "usd_per_day is used up" in error["error"]
        [complete] = [data for data in told if data.get("type") == "complete"]
        assert complete["exit_code"] == 1
        again = await client.post("/chat", json={"prompt": "say hello"})
        assert again.status_code == 429
        assert "usd_per_day is used up" in again.json()["detail"]
    assert [call["status"] for call in await calls_of(fleet, key_id)] == [200, 0]


async def test_clients_of_the_code_server_hear_of_it(fleet: Fleet) -> None:
    headers, key_id = await poor(fleet)
    async with at(fleet, "code-server", headers) as client:
        answer = await client.post("/query", json={"prompt": PROMPT})
        assert answer.status_code == 500
        assert "usd_per_day is used up" in answer.json()["detail"]
        again = await client.post("/query", json={"prompt": "say hello"})
        assert (again.status_code, "usd_per_day is used up" in again.json()["detail"]) == (429, True)
    assert [call["status"] for call in await calls_of(fleet, key_id)] == [200, 0]


async def test_clients_of_the_execute_server_hear_of_it(fleet: Fleet) -> None:
    headers, key_id = await poor(fleet)
    async with at(fleet, "execute-server", headers) as client:
        session_id = (await client.post("/execute/", json={"prompt": PROMPT})).json()["session_id"]
        [run] = (await fleet[0].get(f"/sessions/{session_id}/runs", headers=headers)).json()["data"]
        await fleet[0].follow(run["run_id"], headers=headers)
        found = (await client.get(f"/status/{session_id}")).json()
        assert found["status"] == "error"
        assert "usd_per_day is used up" in found["error"]
        again = await client.post("/execute/", json={"prompt": "say hello"})
        assert (again.status_code, "usd_per_day is used up" in again.json()["detail"]) == (429, True)
    assert [call["status"] for call in await calls_of(fleet, key_id)] == [200, 0]


async def test_a_sessions_own_budget_ends_it_until_it_is_raised(fleet: Fleet) -> None:
    session_id = await fleet[0].session(max_session_usd=0.01, **BYPASS)
    body = {"session_id": session_id, "prompt": PROMPT}
    error = (await fleet[1].post("/query/single", body)).json()["error"]
    assert (error["code"], error["details"]["scope"]) == ("budget_reached", "session")
    again = await fleet[0].post("/query/single", body)
    assert (again.status_code, again.json()["error"]["details"]["resets_at"]) == (429, None)
    assert "retry-after" not in again.headers
    [budget] = (await fleet[0].get(f"/sessions/{session_id}/usage")).json()["budgets"]
    assert (budget["name"], budget["limit_usd"], float(budget["left_usd"])) == ("max_session_usd", "0.01", 0)
    assert "recall" not in (await fleet[0].ask(session_id, "say done", max_session_usd=10))["result"]
    assert "1. " + PROMPT in (await fleet[2].ask(session_id, "recall"))["result"]
    assert (await fleet[1].post("/query/single", {**body, "max_session_usd": 0.02})).status_code == 429
    assert (await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "soft"})).status_code == 200
    assert (await fleet[0].ask(session_id, "say free", max_session_usd=None))["result"].endswith("free")


async def test_a_tenants_budget_is_for_all_its_keys_and_one_that_is_raised_lets_the_next_call_through(
    fleet: Fleet,
) -> None:
    headers, key_id = await poor(fleet, usd_per_day=100)
    who = (await fleet[0].get("/whoami", headers=headers)).json()
    path, body = f"/api/v1/admin/tenants/{who['tenant']}/limits", {"prompt": PROMPT, **BYPASS}
    assert (await fleet[0].client.put(path, json=SMALL)).status_code == 200
    error = (await fleet[1].post("/query/single", body, headers=headers)).json()["error"]
    assert (error["code"], error["details"]["scope"]) == ("budget_reached", "tenant")
    other = (await fleet[0].post("/admin/keys", {"tenant": who["tenant"], "name": "other"})).json()
    refused = await fleet[2].post("/query/single", body, headers={"X-API-Key": other["secret"]})
    assert refused.json()["error"]["details"]["scope"] == "tenant"
    assert (await fleet[0].client.put(path, json={"usd_per_day": 100, "tokens_per_month": 10**9})).status_code == 200
    again = {**body, "session_id": error["details"]["session_id"]}
    assert (await fleet[1].post("/query/single", again, headers=headers)).status_code == 200
    assert len(await calls_of(fleet, key_id)) > 2


@pytest.mark.slow
async def test_twenty_runs_at_once_go_beyond_it_by_one_call_each(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, RUNNER_SLOTS="20")
    headers, key_id = await poor(fleet, usd_per_day=0.2)
    prompt = " then ".join(f"read {n}.txt" for n in range(20))
    sessions = [(await fleet[0].post("/sessions", BYPASS, headers=headers)).json()["session_id"] for _ in range(20)]
    sent = await asyncio.gather(
        *(fleet[0].post(f"/sessions/{id_}/query", {"prompt": prompt}, headers=headers) for id_ in sessions)
    )
    run_ids = [answer.json()["run_id"] for answer in sent]
    ended = await asyncio.gather(*(fleet[0].follow(run_id, headers=headers) for run_id in run_ids))
    assert {events[-1].data["status"] for events in ended} == {"failed"}
    calls = [call for call in await calls_of(fleet, key_id) if call["cost_usd"]]
    dearest = max(call["cost_usd"] for call in calls)
    spent = sum(call["cost_usd"] for call in calls)
    assert 0.2 <= spent <= 0.2 + 20 * dearest
    async with database_of(fleet) as db:
        assert await db.pool.fetchval("SELECT usd FROM spent WHERE subject = $1", key_id) == pytest.approx(spent)
