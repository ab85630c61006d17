"""An interrupt stops what the session does at that moment, whatever the moment is."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import uuid4

import pytest

from apps.api.core.fleet.commands import MAX_STORED
from tests.acceptance.asking import elsewhere
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Shared
from tests.sockets import open_socket
from tests.world import until

LONG = "stream 2000 words every 20 ms"

SHORT = "stream 150 words every 20 ms"
"""Over before an agent that does not end its turn would be killed for that."""


@pytest.mark.parametrize("by", ["interrupt", "cancel", "on_busy"])
async def test_a_warm_session_is_interrupted_however_soon_after_its_prompt(shared: Shared, by: str) -> None:
    """An agent that has read a prompt and not begun its turn takes no interrupt for that turn."""
    session_id = await shared.of()
    owner = await shared.fleet.owner_of(session_id)
    for milliseconds in range(0, 50, 7):
        run_id = await owner.prompt(session_id, SHORT)
        await asyncio.sleep(milliseconds / 1000)
        if by == "on_busy":
            assert (await owner.ask(session_id, "say next", on_busy="interrupt"))["result"].endswith("next")
        else:
            path = f"/sessions/{session_id}/interrupt" if by == "interrupt" else f"/runs/{run_id}/cancel"
            stopped = await owner.post(path)
            assert (stopped.status_code, stopped.json().get("run_id")) == (200, run_id), stopped.text
        last = (await owner.follow(run_id))[-1]
        assert (last.event, last.data["status"]) == ("done", "interrupted"), milliseconds
    assert (await owner.ask(session_id, "say still here"))["result"].endswith("still here")


@pytest.mark.slow
async def test_a_run_is_interrupted_before_and_while_it_is_claimed(fleet: Fleet) -> None:
    """Queued, claimed, its agent starting: whichever instance is asked, the run ends as interrupted."""

    async def once(number: int) -> None:
        taking, asked = fleet[number % 3], fleet[(number + number // 3) % 3]
        session_id = await taking.session()
        run_id = await taking.prompt(session_id, LONG)
        stopped = await asked.post(f"/sessions/{session_id}/interrupt")
        assert (stopped.status_code, stopped.json().get("run_id")) == (200, run_id), stopped.text
        assert (await asked.follow(run_id))[-1].data["status"] == "interrupted"

    for number in range(4):
        await once(number)
    await asyncio.gather(*map(once, range(4, 9)))


async def test_it_is_interrupted_at_once_through_a_websocket_as_well(fleet: Fleet) -> None:
    async with open_socket(fleet[1]) as socket:
        run = await socket.ask("prompt", prompt=LONG)
        stopped = await socket.ask("interrupt", session_id=run["session_id"], run_id=run["run_id"])
        assert stopped["run_id"] == run["run_id"]
        assert (await socket.of_run(run["run_id"]))["data"]["status"] == "interrupted"


async def test_of_several_the_active_run_is_interrupted_and_the_next_one_begins(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    other = await elsewhere(fleet, session_id)
    first, second = [await other.prompt(session_id, LONG) for _ in range(2)]
    for meant in (second, str(uuid4())):  # not the current one
        refused = await other.post(f"/sessions/{session_id}/interrupt", {"run_id": meant})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_live_run"), refused.text
    for run_id in (first, second):
        stopped = await other.post(f"/sessions/{session_id}/interrupt", {"run_id": run_id})
        assert (stopped.status_code, stopped.json().get("run_id")) == (200, run_id), stopped.text
        assert (await other.follow(run_id))[-1].data["status"] == "interrupted"
    refused = await other.post(f"/sessions/{session_id}/interrupt")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_live_run")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["deadline", "interrupt"])
async def test_a_prompt_that_a_stopped_agent_does_not_read_is_ended_like_any_other(fleet: Fleet, by: str) -> None:
    """It is larger than the pipe to the agent, so that it cannot be sent as a whole."""
    session_id = await fleet[0].session()
    await fleet[0].ask(session_id, "say I own this")
    owner = await fleet.owner_of(session_id)
    next(process for process in owner.agent_of(session_id) if process.name() == "claude").suspend()
    seconds = 2 if by == "deadline" else 600
    run_id = await owner.prompt(session_id, "say " + "x" * 390_000, timeout_seconds=seconds)
    if by == "interrupt":
        await until(lambda: is_running(owner, run_id))
        assert (await owner.post(f"/runs/{run_id}/cancel")).json()["status"] == "applied"
    await owner.follow(run_id)
    run = (await owner.get(f"/runs/{run_id}")).json()
    assert run["error"]["code"] == ("timeout" if by == "deadline" else "interrupted")
    assert (await owner.ask(session_id, "say still here"))["result"].endswith("still here")


@pytest.mark.slow
async def test_an_agent_that_is_stuck_and_asked_much_keeps_no_other_waiting(start_fleet: StartFleet) -> None:
    [server] = (await start_fleet(1)).instances
    stuck, busy = await server.session(), await server.session()
    await server.ask(stuck, "say hello")
    await server.prompt(busy, LONG)
    cli = next(process for process in server.agent_of(stuck) if process.name() == "claude")
    cli.suspend()
    asking = [asyncio.create_task(server.get(f"/sessions/{stuck}/context")) for _ in range(60)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)  # refused: all places are taken
    stopped = await server.post(f"/sessions/{busy}/interrupt")
    assert stopped.json()["status"] == "applied"
    assert not all(task.done() for task in asking)
    told = Counter((a.status_code, a.json()["error"]["code"]) for a in await asyncio.gather(*asking))
    assert told == {(503, "agent_busy"): MAX_STORED, (409, "too_many_commands"): 60 - MAX_STORED}
    assert (
        await server.post(f"/sessions/{stuck}/interrupt")
    ).status_code == 409  # nothing runs, and it is told at once
    cli.resume()


async def is_running(owner: Instance, run_id: str) -> bool:
    return bool((await owner.get(f"/runs/{run_id}")).json()["status"] == "running")
