"""What becomes of an open request when its agent or its session ends; `test_failures` has instances and databases."""

from __future__ import annotations

from tests.acceptance.asking import ASKING, COMMAND, asked, closed_for, path_of, resolutions
from tests.fleet import Instance, Shared, Sse


async def waiting(shared: Shared) -> tuple[str, str, Sse, Instance, Instance]:
    """A run that waits for a person: session, run, request, its owner, and another instance."""
    fleet, session_id = shared.fleet, await shared.of(**ASKING)
    run_id = await fleet[0].prompt(session_id, COMMAND)
    request = await asked(fleet[1], run_id)
    owner = await fleet.owner_of(session_id)
    return session_id, run_id, request, owner, (await fleet.others(owner))[0]


async def test_deleting_the_session_ends_the_wait(shared: Shared) -> None:
    session_id, run_id, request, owner, other = await waiting(shared)
    assert (await other.client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    listed = (await other.get("/requests?status=all&limit=200")).json()["data"]
    assert request.data["request_id"] not in [r["request_id"] for r in listed]
    late = await other.post(path_of(request), {"decision": "allow"})
    assert (late.status_code, late.json()["error"]["code"]) == (404, "session_not_found")
    assert (await other.get(f"/runs/{run_id}")).json()["status"] == "interrupted"
    fresh = await shared.of(**ASKING)
    assert fresh != session_id
    assert (await owner.ask(fresh, "say still here"))["result"].endswith("still here")


async def test_a_killed_agent_process_closes_its_request(shared: Shared) -> None:
    session_id, run_id, request, owner, other = await waiting(shared)
    for process in owner.agent_of(session_id):
        if "claude" in process.name():
            process.kill()
    events = await other.follow(run_id)
    assert resolutions(events) == [("closed", "agent_ended")]
    assert events[-2].data["code"] == "agent_crashed"
    assert await closed_for(other, request) == "agent_ended"
    assert (await other.ask(session_id, "say still here"))["result"].endswith("still here")
