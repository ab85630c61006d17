"""What becomes of an open request when something dies, and of an answer that is given meanwhile."""

from __future__ import annotations

import asyncio
import signal

from apps.api.dev.embedded import Servers
from tests.acceptance.asking import ASKING, COMMAND, asked, decide, path_of, request_state, resolutions
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse


async def waiting(fleet: Fleet) -> tuple[str, str, Sse, Instance, Instance]:
    """A run that waits for a person: session, run, request, its owner, and another instance."""
    session_id = await fleet[0].session(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    owner = await fleet.owner_of(session_id)
    return session_id, run_id, request, owner, (await fleet.others(owner))[0]


async def closed_for(other: Instance, request: Sse) -> str:
    """Why the system closed a request; a late answer is told so."""
    late = await other.post(path_of(request), {"decision": "allow"})
    assert late.status_code == 409, late.text
    error = late.json()["error"]
    assert (error["code"], error["details"]["status"]) == ("request_resolved", "closed")
    assert error["details"]["resolved_by"]["type"] == "system"
    return str(error["details"]["resolved_by"]["reason"])


async def test_a_killed_owner_closes_its_request_and_the_session_goes_on_elsewhere(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id, run_id, request, owner, other = await waiting(fleet)
    owner.signal(signal.SIGKILL)
    events = await other.follow(run_id)
    assert [e.event for e in events[-3:]] == ["action_resolved", "error", "done"]
    assert resolutions(events) == [("closed", "owner_lost")]
    assert events[-2].data["code"] == "owner_lost"
    assert await closed_for(other, request) == "owner_lost"
    run_id = await other.prompt(session_id, COMMAND)
    await decide(other, await asked(other, run_id), decision="allow")
    assert "made" in (await other.follow(run_id))[-2].data["result"]


async def test_an_answer_that_the_owner_did_not_live_to_take_is_told_when_it_is_found_dead(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(2)
    _, run_id, request, owner, other = await waiting(fleet)
    owner.signal(signal.SIGSTOP)
    answer = await other.post(path_of(request), {"decision": "deny", "message": "no"})
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted"), answer.text
    owner.signal(signal.SIGKILL)
    events = await other.follow(run_id)
    assert resolutions(events) == [("deny", "key")]
    assert events[-2].data["code"] == "owner_lost"
    assert (await request_state(other, request))["decision"] == "deny"


async def test_a_drain_closes_requests_after_its_grace(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, SHUTDOWN_GRACE_SECONDS="0.5")
    session_id, run_id, request, owner, other = await waiting(fleet)
    owner.signal(signal.SIGTERM)
    events = await other.follow(run_id)
    assert resolutions(events) == [("closed", "shutdown")]
    assert events[-2].data["code"] == "shutdown"
    assert await closed_for(other, request) == "shutdown"
    assert await owner.ended() == 0
    assert (await other.ask(session_id, "say still here"))["result"].endswith("still here")


async def test_an_answer_within_the_grace_of_a_drain_counts(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    _, run_id, request, owner, other = await waiting(fleet)
    owner.signal(signal.SIGTERM)
    await decide(other, request, decision="allow")
    events = await other.follow(run_id)
    assert "made" in events[-2].data["result"]
    assert await owner.ended() == 0


async def test_a_killed_agent_process_closes_its_request(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id, run_id, request, owner, other = await waiting(fleet)
    for process in owner.descendants():
        if "claude" in process.name():
            process.kill()
    events = await other.follow(run_id)
    assert resolutions(events) == [("closed", "agent_ended")]
    assert events[-2].data["code"] == "agent_crashed"
    assert await closed_for(other, request) == "agent_ended"
    assert (await other.ask(session_id, "say still here"))["result"].endswith("still here")


async def test_deleting_the_session_ends_the_wait(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id, run_id, request, owner, other = await waiting(fleet)
    assert (await other.client.delete(f"/api/v1/sessions/{session_id}")).status_code == 204
    assert (await other.get("/requests?status=all")).json()["data"] == []
    late = await other.post(path_of(request), {"decision": "allow"})
    assert (late.status_code, late.json()["error"]["code"]) == (404, "session_not_found")
    assert (await other.get(f"/runs/{run_id}")).json()["status"] == "interrupted"
    fresh = await owner.session(**ASKING)
    assert (await owner.ask(fresh, "say still here"))["result"].endswith("still here")


async def test_a_request_and_its_answer_outlive_a_restart_of_redis(
    own_servers: Servers, start_fleet: StartFleet
) -> None:
    fleet = await start_fleet(2, servers=own_servers)
    _, run_id, request, _, other = await waiting(fleet)
    await asyncio.to_thread(own_servers.restart, "valkey")
    await decide(other, request, decision="allow")
    events = await other.follow(run_id)
    assert resolutions(events) == [("allow", "key")]
    assert "made" in events[-2].data["result"]


async def test_an_answer_during_a_restart_of_postgresql_counts_once(
    own_servers: Servers, start_fleet: StartFleet
) -> None:
    fleet = await start_fleet(2, servers=own_servers, INSTANCE_LEASE_SECONDS="20")
    _, run_id, request, _, other = await waiting(fleet)
    restart = asyncio.create_task(asyncio.to_thread(own_servers.restart, "postgres"))
    async with asyncio.timeout(30):
        while (answer := await other.post(path_of(request), {"decision": "allow"})).status_code >= 500:
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)
    await restart
    assert answer.status_code == 200 or answer.json()["error"]["details"]["resolved_by"]["type"] == "key"
    events = await other.follow(run_id)
    assert resolutions(events) == [("allow", "key")]
    assert "made" in events[-2].data["result"]
