"""A tenant is suspended in the middle of its work: the whole fleet stops for it, and goes on when it is resumed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

import psutil

from apps.api.db import Database
from tests.acceptance.asking import ASKING, COMMAND, all_asked
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse
from tests.world import until

SECONDS = 15.0
"""Within which all of it is to have stopped."""


async def tenant_of(fleet: Fleet) -> tuple[str, dict[str, str]]:
    """A new tenant, and headers with a key of it that may write."""
    name = f"t{uuid4().hex}"
    assert (await fleet[0].post("/admin/tenants", {"name": name})).status_code == 201
    made = await fleet[0].post("/admin/keys", {"tenant": name, "name": "k"})
    return name, {"X-API-Key": made.json()["secret"]}


async def refused(instance: Instance, headers: dict[str, str]) -> bool:
    answer = await instance.get("/whoami", headers=headers)
    return (answer.status_code, answer.json().get("error", {}).get("code")) == (403, "tenant_suspended")


def soon(condition: Callable[[], bool | Awaitable[bool]]) -> Awaitable[None]:
    return until(condition, every=0.05, seconds=SECONDS)


async def test_all_that_a_tenant_does_stops_everywhere_and_another_day_goes_on(
    fleet: Fleet, fleet_db: Database
) -> None:
    tenant, headers = await tenant_of(fleet)
    session_id = (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]
    asked = await fleet[0].post("/query/single", {"prompt": "say plum", "session_id": session_id}, headers=headers)
    assert asked.status_code == 200
    owner = await fleet.by_id((await fleet[0].get(f"/sessions/{session_id}", headers=headers)).json()["owner"])
    waiting = (await fleet[0].post("/sessions", ASKING, headers=headers)).json()["session_id"]
    needs = await fleet[1].post(f"/sessions/{waiting}/query", {"prompt": COMMAND}, headers=headers)
    await all_asked(fleet[0], f"/sessions/{waiting}/events", 1, headers=headers)
    path = f"/sessions/{session_id}/query"
    running = (await fleet[1].post(path, {"prompt": "stream 3000 words slowly"}, headers=headers)).json()["run_id"]
    queued = (await fleet[1].post(path, {"prompt": "say never"}, headers=headers)).json()["run_id"]
    processes = owner.agent_of(session_id)
    assert processes
    begun, told = asyncio.Event(), list[Sse]()

    async def follow() -> None:
        async with fleet[2].stream(f"/runs/{running}/events", headers=headers) as events:
            async for event in events:
                told.append(event)
                if event.event == "partial":
                    begun.set()

    following = asyncio.create_task(follow())
    async with asyncio.timeout(60):
        await begun.wait()
    answer = await fleet[1].post(f"/admin/tenants/{tenant}/suspend")
    assert answer.json()["suspended_at"] is not None, answer.text
    again = await fleet[2].post(f"/admin/tenants/{tenant}/suspend")
    assert again.json() == answer.json()
    for instance in fleet.instances:
        await soon(partial(refused, instance, headers))
    await asyncio.wait_for(following, SECONDS)
    # The stream is ended; or the run was before, and said so itself.
    assert [event.data["code"] for event in told if event.event == "error"] == ["tenant_suspended"]
    assert (told[-1].event, told[-1].id) == ("error", "") or told[-1].event == "done"
    await asyncio.to_thread(psutil.wait_procs, processes, SECONDS)
    assert not [process for process in processes if process.is_running()]

    async def over() -> bool:
        query = "SELECT bool_and(finished_at IS NOT NULL) FROM runs WHERE session_id = ANY($1::uuid[])"
        return bool(await fleet_db.pool.fetchval(query, [session_id, waiting]))

    await soon(over)

    assert (await fleet[0].post(f"/admin/tenants/{tenant}/resume")).json()["suspended_at"] is None

    async def run(run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await fleet[2].get(f"/runs/{run_id}", headers=headers)).json()
        return {"status": found["status"], "code": (found["error"] or {}).get("code")}

    failed = {"status": "failed", "code": "tenant_suspended"}
    assert await run(running) == await run(needs.json()["run_id"]) == failed
    assert await run(queued) == {"status": "interrupted", "code": "tenant_suspended"}
    said = {"prompt": "say what I told you", "session_id": session_id}
    goes_on = await fleet[2].post("/query/single", said, headers=headers)
    assert goes_on.status_code == 200, goes_on.text
    recalled = await fleet[2].post("/query/single", {**said, "prompt": "recall"}, headers=headers)
    assert "plum" in recalled.text


async def test_an_instance_without_redis_suspends_for_those_that_have_it(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    await fleet.start(1, REDIS_URL="redis://127.0.0.1:1")
    tenant, headers = await tenant_of(fleet)
    assert (await fleet[0].get("/whoami", headers=headers)).status_code == 200  # and its Redis has it
    assert (await fleet[1].post(f"/admin/tenants/{tenant}/suspend")).status_code == 200
    for instance in fleet.instances:
        await soon(partial(refused, instance, headers))
    assert (await fleet[1].post(f"/admin/tenants/{tenant}/resume")).status_code == 200
    for instance in fleet.instances:
        assert (await instance.get("/whoami", headers=headers)).status_code == 200


async def test_only_other_tenants_are_suspended(fleet: Fleet) -> None:
    own = (await fleet[0].get("/whoami")).json()["tenant"]
    refusal = await fleet[1].post(f"/admin/tenants/{own}/suspend")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (409, "own_tenant")
    assert (await fleet[1].get(f"/admin/tenants/{own}")).json()["suspended_at"] is None
    for act in ("suspend", "resume"):
        assert (await fleet[2].post(f"/admin/tenants/nobody-{uuid4().hex}/{act}")).status_code == 404
