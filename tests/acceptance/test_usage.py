"""Usage over HTTP: what the results told, by any instance, in every grouping, with nothing lost and nothing doubled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from apps.api.keys import USUAL_SCOPES, create_key
from tests.conftest import database_of
from tests.fleet import Fleet, Instance, Shared
from tests.world import until

BYPASS = {"permission_mode": "bypassPermissions"}


async def key_of(fleet: Fleet, tenant: str) -> tuple[str, str]:
    """Secret and id of a new key."""
    async with database_of(fleet) as db:
        key = await create_key(db, tenant=tenant, name="accountant", scopes=USUAL_SCOPES)
    return key.secret, str(key.id)


async def report(instance: Instance, **query: Any) -> dict[str, Any]:
    response = await instance.get("/usage", params=query)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


async def test_sums_agree_with_what_the_results_told_outlive_the_session_and_stay_with_its_tenant(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**BYPASS)
    results = [
        await fleet[1].ask(session_id, "say one"),
        await fleet[2].ask(session_id, "delegate say hello"),
        await fleet[0].ask(session_id, "say three", model="claude-opus-5-5"),
    ]
    cost = sum(float(result["total_cost_usd"]) for result in results)
    spent = [figures for result in results for figures in result["model_usage"].values()]
    state = (await fleet[2].get(f"/sessions/{session_id}")).json()
    for group in ("day", "key", "model", "session", "day,key,model,session"):
        answered = await report(fleet[1], group_by=group, session_id=session_id)
        assert sum(float(row["cost_usd"]) for row in answered["data"]) == pytest.approx(cost), group
        assert sum(row["input_tokens"] for row in answered["data"]) == sum(f["input_tokens"] for f in spent), group
        assert answered["totals"]["output_tokens"] == sum(f["output_tokens"] for f in spent)
        assert answered["totals"]["runs"] == 3
        assert answered["unmeasured_runs"] == 0
    assert float(state["total_cost_usd"]) == pytest.approx(cost)
    assert state["usage"]["input_tokens"] == sum(f["input_tokens"] for f in spent)
    runs = [(await fleet[0].get(f"/runs/{result['run_id']}")).json() for result in results]
    assert sum(float(used["cost_usd"]) for run in runs for used in run["model_usage"].values()) == pytest.approx(cost)
    own = (await fleet[2].get(f"/sessions/{session_id}/usage")).json()
    assert {row["model"] for row in own["data"]} == {"claude-sonnet-5-5", "claude-opus-5-5"}
    assert float(own["totals"]["cost_usd"]) == pytest.approx(cost)
    await check_usage_outlives_the_session(fleet, session_id, cost)


async def check_usage_outlives_the_session(fleet: Fleet, session_id: str, cost: float) -> None:
    assert (await fleet[2].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    answered = await report(fleet[1], session_id=session_id, group_by="session")
    [row] = answered["data"]
    assert row["session_id"] == session_id
    assert float(row["cost_usd"]) == pytest.approx(cost)
    assert (await fleet[1].get(f"/sessions/{session_id}/usage")).status_code == 404
    secret, _ = await key_of(fleet, "usage-strangers")
    async with httpx.AsyncClient(base_url=fleet[1].url, headers={"X-API-Key": secret}, timeout=60) as client:
        theirs = await report(replace(fleet[1], client=client), session_id=session_id)
    assert (theirs["data"], theirs["totals"]["runs"]) == ([], 0)


async def test_what_a_background_turn_costs_is_counted_once_wherever_it_is_shown(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    await fleet[1].ask(session_id, "run in background sleep 0.3")
    # The end of the task begins a turn of its own: inside this run when it is still active, else in a run of its own.
    await fleet[2].ask(session_id, "run for i in 1 2 3 4 5; do sleep 0.2; done")

    async def quiet() -> bool:
        return bool((await fleet[0].get(f"/sessions/{session_id}")).json()["status"] == "idle")

    await until(quiet)
    await agree(fleet[1], session_id)


async def agree(instance: Instance, session_id: str) -> None:
    """The session's totals, its runs and the report tell the same."""
    state = (await instance.get(f"/sessions/{session_id}")).json()
    runs = (await instance.get(f"/sessions/{session_id}/runs")).json()["data"]
    totals = (await instance.get(f"/sessions/{session_id}/usage")).json()["totals"]
    cost = pytest.approx(float(state["total_cost_usd"]))
    assert float(totals["cost_usd"]) == cost
    assert sum(float(run["total_cost_usd"]) for run in runs) == cost
    assert totals["runs"] == len(runs)
    assert {name: totals[name] for name in state["usage"]} == state["usage"]


async def test_a_background_run_counts_for_the_key_of_the_sessions_last_prompt(fleet: Fleet) -> None:
    secret, key_id = await key_of(fleet, "default")
    session_id = await fleet[0].session(**BYPASS)
    async with httpx.AsyncClient(base_url=fleet[1].url, headers={"X-API-Key": secret}, timeout=60) as client:
        await replace(fleet[1], client=client).ask(session_id, "run in background sleep 0.3")

    async def both() -> bool:
        return bool((await report(fleet[2], key_id=key_id, group_by="key"))["totals"]["runs"] == 2)

    await until(both)
    by_key = (await report(fleet[2], session_id=session_id, group_by="key"))["data"]
    assert [(row["key_id"], row["key_name"]) for row in by_key] == [(key_id, "accountant")]
    await agree(fleet[0], session_id)


async def test_an_interrupted_run_tells_what_it_used_until_then(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    run_id = await fleet[1].prompt(session_id, "run echo ready then stream 300 words slowly")
    async with fleet[2].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "partial" and event.data["delta"].get("text", "").startswith("word"):
                break
    assert (await fleet[2].post(f"/sessions/{session_id}/interrupt")).json()["status"] == "applied"
    run = (await fleet[0].get(f"/runs/{run_id}")).json()
    assert run["status"] == "interrupted"
    cost = float(run["total_cost_usd"])
    assert cost == pytest.approx(sum(float(used["cost_usd"]) for used in run["model_usage"].values()))
    assert cost > 0
    await agree(fleet[1], session_id)


async def test_a_run_whose_agent_is_killed_has_no_figures_and_says_so(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of(**BYPASS)
    before = float((await fleet[0].get(f"/sessions/{session_id}")).json()["total_cost_usd"])
    run_id = await fleet[1].prompt(session_id, "run kill -9 $PPID")
    assert (await fleet[1].follow(run_id))[-1].data["status"] == "failed"
    run = (await fleet[2].get(f"/runs/{run_id}")).json()
    assert (run["total_cost_usd"], run["model_usage"]) == (None, {})
    answered = await report(fleet[2], session_id=session_id)
    assert answered["unmeasured_runs"] == 1
    assert float(answered["totals"]["cost_usd"]) == pytest.approx(before)
    assert (await report(fleet[2], session_id=session_id, model="claude-sonnet-5-5"))["unmeasured_runs"] is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"group_by": "week"}, "group_by"),
        ({"group_by": "day,"}, "group_by"),
        ({"from": "2026-02-01", "to": "2026-01-01"}, "from"),
        ({"from": "2024-01-01", "to": "2026-01-01"}, "from"),
        ({"to": "0001-01-02"}, "to"),
        ({"from": "yesterday"}, "from"),
        ({"cursor": "x"}, "cursor"),
    ],
)
async def test_a_report_that_cannot_be_is_refused_with_its_field(
    fleet: Fleet, query: dict[str, str], field: str
) -> None:
    response = await fleet[0].get("/usage", params=query)
    assert response.status_code == 422
    assert response.json()["error"]["details"]["errors"][0]["field"] == field
