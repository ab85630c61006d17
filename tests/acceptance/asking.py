"""What tests of a person in the loop share: agents that ask, and clients that answer."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fleet import Fleet, Instance, Sse

ASKING = {"permission_mode": "default", "tools": ["Bash", "Write", "Task", "AskUserQuestion"]}
COMMAND = "run touch made.txt && echo made"


async def asked(instance: Instance, run_id: str, event: str = "permission_request", number: int = 1) -> Sse:
    """The request of a run that is told as number `number`."""
    return (await all_asked(instance, f"/runs/{run_id}/events", number, event))[-1]


async def all_asked(
    instance: Instance, path: str, count: int, event: str = "permission_request", **more: Any
) -> list[Sse]:
    """The first `count` requests in a stream."""
    found: list[Sse] = []
    last = None
    async with asyncio.timeout(90), instance.stream(path, **more) as events:
        async for sse in events:
            last = sse
            if sse.event == event:
                found.append(sse)
                if len(found) == count:
                    return found
    raise AssertionError(f"the stream has ended after {found} with {last}")


async def parked(instance: Instance, run_id: str, number: int = 1) -> None:
    """Until a stream has said for the `number`th time that the run is parked."""
    seen = 0
    async with asyncio.timeout(90), instance.stream(f"/runs/{run_id}/events") as events:
        async for sse in events:
            seen += sse.event == "status" and sse.data["status"] == "parked"
            if seen == number:
                return
    raise AssertionError("the run has ended, and was not parked")


def path_of(request: Sse) -> str:
    """Where a permission request is decided."""
    return f"/sessions/{request.data['session_id']}/permissions/{request.data['request_id']}"


async def decide(instance: Instance, request: Sse, **decision: Any) -> dict[str, Any]:
    answer = await instance.post(path_of(request), decision)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def elsewhere(fleet: Fleet, session_id: str) -> Instance:
    """An instance that does not own the session."""
    return (await fleet.others(await fleet.owner_of(session_id)))[0]


async def request_state(instance: Instance, request: Sse) -> dict[str, Any]:
    """A request as the list of its session shows it."""
    listed = await instance.get(f"/sessions/{request.data['session_id']}/requests", params={"status": "all"})
    return next(r for r in listed.json()["data"] if r["request_id"] == request.data["request_id"])


def resolutions(events: list[Sse]) -> list[tuple[str, str]]:
    """Decision, and who or why, of every request that these events say was resolved."""
    told = [e.data for e in events if e.event == "action_resolved"]
    return [(data["decision"], data["by"].get("reason") or data["by"]["type"]) for data in told]


async def closed_for(other: Instance, request: Sse) -> str:
    """Why the system closed a request; a late answer is told so."""
    late = await other.post(path_of(request), {"decision": "allow"})
    assert late.status_code == 409, late.text
    error = late.json()["error"]
    assert (error["code"], error["details"]["status"]) == ("request_resolved", "closed")
    assert error["details"]["resolved_by"]["type"] == "system"
    return str(error["details"]["resolved_by"]["reason"])
