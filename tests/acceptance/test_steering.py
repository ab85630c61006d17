"""Prompts that go into the turn that runs: each is taken once, or becomes the next run; whatever the moment is."""

from __future__ import annotations

import asyncio
import signal
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.db import Database
from tests.acceptance.asking import ASKING, asked, decide, elsewhere, parked
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Shared
from tests.recorder import Recorder
from tests.sockets import open_socket
from tests.world import until

GATE = "run until [ -e {0} ]; do sleep 0.05; done"
"""A command that ends when the test lets it."""


def new_word() -> str:
    return f"w{uuid4().hex}"


async def steer(instance: Instance, session_id: str, word: str, **more: Any) -> str:
    return await instance.prompt(session_id, f"say {word}", on_busy="steer", **more)


async def shown(instance: Instance, run_id: str, tool: str = "Bash", number: int = 1) -> None:
    """Until a stream shows that the agent calls a tool."""
    seen = 0
    async with asyncio.timeout(90), instance.stream(f"/runs/{run_id}/events") as events:
        async for sse in events:
            blocks = sse.data.get("content", ()) if sse.event == "message" else ()
            seen += sum(block["type"] == "tool_use" and block["name"] == tool for block in blocks)
            if seen >= number:
                return
    raise AssertionError("the run has ended, and called no such tool")


async def outcome(instance: Instance, message_id: str, turn_id: str) -> str:
    """What became of a message, which every sign says: its own run, its events, those of the turn."""
    async with asyncio.timeout(90):
        own, turn = await asyncio.gather(instance.follow(message_id), instance.follow(turn_id))
    run = (await instance.get(f"/runs/{message_id}")).json()
    assert [e.event for e in own].count("done") == 1
    assert (run["status"], own[-1].data["status"]) == ("succeeded", "succeeded")
    told = [e for e in [*own, *turn] if e.event == "steered" and e.data["message_id"] == message_id]
    assert len(told) == 1
    state = str(told[0].data["state"])
    assert told[0].data["run_id"] == (turn_id if state == "taken" else message_id)
    prompts = [e for e in [*own, *turn] if e.event == "message" and e.data["uuid"] == message_id]
    assert [e.data["run_id"] for e in prompts] == [told[0].data["run_id"]]
    assert run["result"].get("steered_into") == (turn_id if state == "taken" else None)
    return state


async def times_said(instance: Instance, recorded: Recorder, session_id: str, word: str) -> int:
    """How often a message is in the conversation, as the model gets it next."""
    last = new_word()
    told = await instance.follow(await instance.prompt(session_id, f"say {last}"))
    conversation = next(e.data["sdk_session_id"] for e in told if e.event == "init")
    request = next(a for a in reversed(recorded.of(conversation)) if f"say {last}" in a.text)
    return request.text.count(f"say {word}")


@pytest.mark.parametrize("milliseconds", [0, 10, 50, 200])
async def test_a_turn_without_tools_takes_nothing(shared: Shared, recorded: Recorder, milliseconds: int) -> None:
    session_id, word = await shared.of(), new_word()
    other = await elsewhere(shared.fleet, session_id)
    turn = await other.prompt(session_id, "stream 150 words every 20 ms")
    await asyncio.sleep(milliseconds / 1000)
    message = await steer(other, session_id, word)
    assert await outcome(other, message, turn) == "next_run"
    assert await times_said(other, recorded, session_id, word) == 1


async def test_a_message_is_taken_when_a_tool_has_ended(fleet: Fleet, recorded: Recorder) -> None:
    """Through any instance, in the order in which they came, before what waits behind the turn."""
    session_id = await fleet[0].session(permission_mode="bypassPermissions")
    words = [new_word() for _ in range(3)]
    turn = await fleet[0].prompt(session_id, f"{GATE.format('go')} then say the end")
    await shown(fleet[1], turn)
    behind = await fleet[2].prompt(session_id, "say I wait")
    messages = [await steer(fleet[n], session_id, word) for n, word in enumerate(words)]
    (fleet.files_of(session_id) / "go").touch()
    for message in messages:
        assert await outcome(fleet[1], message, turn) == "taken"
    told = await fleet[2].follow(turn)
    assert [e.data["message_id"] for e in told if e.event == "steered"] == messages
    assert [e.data["content"][0]["text"] for e in told if e.event == "message" and e.data["uuid"] in messages] == [
        f"say {word}" for word in words
    ]
    assert told[-1].data["status"] == "succeeded"
    result = next(e for e in told if e.event == "result")
    assert result.data["user_message_uuids"] == [turn, *messages]
    own = await fleet[1].follow(messages[0])
    assert [e.event for e in own if e.event != "queued"] == ["result", "done"]
    assert (await fleet[1].follow(behind))[-1].data["status"] == "succeeded"
    for word in words:
        assert await times_said(fleet[0], recorded, session_id, word) == 1


async def test_a_message_during_a_subagent_is_taken_when_that_has_ended(fleet: Fleet, recorded: Recorder) -> None:
    session_id, word = await fleet[0].session(permission_mode="bypassPermissions"), new_word()
    turn = await fleet[0].prompt(session_id, f'delegate "{GATE.format("go")} then run true" then say the end')
    await shown(fleet[1], turn)
    message = await steer(fleet[1], session_id, word)
    (fleet.files_of(session_id) / "go").touch()
    assert await outcome(fleet[2], message, turn) == "taken"
    assert await times_said(fleet[0], recorded, session_id, word) == 1


@pytest.mark.parametrize("decision", ["allow", "deny"])
async def test_a_message_while_a_person_is_asked_is_taken_after_that(
    fleet: Fleet, recorded: Recorder, decision: str
) -> None:
    session_id, word = await fleet[0].session(**ASKING), new_word()
    turn = await fleet[0].prompt(session_id, "run touch made.txt then say the end")
    request = await asked(fleet[1], turn)
    message = await steer(fleet[1], session_id, word)
    await decide(fleet[2], request, decision=decision)
    assert await outcome(fleet[2], message, turn) == "taken"
    assert await times_said(fleet[0], recorded, session_id, word) == 1


@pytest.mark.parametrize(("more", "state"), [("then run pwd ", "taken"), ("", "next_run")])
async def test_a_message_for_a_parked_run_is_taken_after_a_later_tool(
    start_fleet: StartFleet, recorded: Recorder, more: str, state: str
) -> None:
    """Not after the call that it was parked with, which the next process carries out before it takes anything."""
    fleet = await start_fleet(2, PARK_AFTER_SECONDS="0.1", INSTANCE_LEASE_SECONDS="30")
    session_id, word = await fleet[0].session(**ASKING, allowed_tools=["Bash(pwd)"]), new_word()
    turn = await fleet[0].prompt(session_id, f"run touch made.txt {more}then say the end")
    request = await asked(fleet[1], turn)
    await parked(fleet[1], turn)
    message = await steer(fleet[1], session_id, word)
    await decide(fleet[1], request, decision="allow")
    assert await outcome(fleet[1], message, turn) == state
    assert await times_said(fleet[0], recorded, session_id, word) == 1


async def test_a_message_after_the_last_token_becomes_the_next_run(shared: Shared, recorded: Recorder) -> None:
    session_id, word = await shared.of(), new_word()
    turn = await shared.fleet[1].prompt(session_id, "stream 3 words every 20 ms")
    async with asyncio.timeout(90), shared.fleet[1].stream(f"/runs/{turn}/events") as events:
        await anext(e async for e in events if e.event == "message" and e.data["role"] == "assistant")
    message = await steer(shared.fleet[2], session_id, word)
    await shared.fleet[1].follow(message)
    told = [e.data["state"] for e in await shared.fleet[1].follow(message) if e.event == "steered"]
    assert told in (["next_run"], []), "where the turn was over already it is an ordinary prompt"
    assert await times_said(shared.fleet[0], recorded, session_id, word) == 1


async def test_for_an_idle_session_it_is_an_ordinary_prompt(shared: Shared) -> None:
    session_id = await shared.of()
    answer = await shared.fleet[1].ask(session_id, "say hello", on_busy="steer")
    assert answer["result"].endswith("hello")
    assert "steered" not in [e.event for e in await shared.fleet[1].follow(answer["run_id"])]
    begun = await shared.fleet[1].post("/query/single", {"prompt": "say new", "on_busy": "steer", "max_turns": 3})
    assert begun.json()["result"].endswith("new")


async def test_the_turn_that_is_interrupted_keeps_no_message(
    shared: Shared, recorded: Recorder, fleet_db: Database
) -> None:
    """One that the agent has, and has not taken, waits again: an interrupt ends only the run that it names."""
    session_id, word = await shared.of(permission_mode="bypassPermissions"), new_word()
    first = new_word()
    go, never = GATE.format(first), GATE.format(new_word())
    turn = await shared.fleet[0].prompt(session_id, f"run at once {go[4:]} & {never[4:]}")
    await shown(shared.fleet[1], turn, number=2)
    message = await steer(shared.fleet[1], session_id, word)
    (shared.fleet.files_of(session_id) / first).touch()

    async def handed_over() -> bool:
        into = await fleet_db.pool.fetchval("SELECT steered_into FROM runs WHERE id = $1", UUID(message))
        return str(into) == turn

    await until(handed_over)
    late = await shared.fleet[2].post(f"/runs/{message}/cancel")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "no_live_run")
    stopped = await shared.fleet[2].post(f"/runs/{turn}/cancel")
    assert stopped.json()["status"] == "applied"
    assert await outcome(shared.fleet[1], message, turn) == "next_run"
    assert (await shared.fleet[1].get(f"/runs/{turn}")).json()["status"] == "interrupted"
    assert await times_said(shared.fleet[0], recorded, session_id, word) == 1


async def test_a_message_that_waits_can_be_cancelled(shared: Shared, recorded: Recorder) -> None:
    session_id, word = await shared.of(permission_mode="bypassPermissions"), new_word()
    turn = await shared.fleet[0].prompt(session_id, GATE.format(go := new_word()))
    await shown(shared.fleet[1], turn)
    message = await steer(shared.fleet[1], session_id, word)
    assert (await shared.fleet[2].post(f"/runs/{message}/cancel")).json()["status"] == "applied"
    (shared.fleet.files_of(session_id) / go).touch()
    assert (await shared.fleet[1].follow(turn))[-1].data["status"] == "succeeded"
    assert [e.event for e in await shared.fleet[1].follow(message) if e.event != "queued"] == ["done"]
    assert await times_said(shared.fleet[0], recorded, session_id, word) == 0
    late = await shared.fleet[2].post(f"/runs/{message}/cancel")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "no_live_run")


async def test_a_request_that_is_repeated_steers_once(shared: Shared, recorded: Recorder) -> None:
    session_id, word = await shared.of(permission_mode="bypassPermissions"), new_word()
    turn = await shared.fleet[0].prompt(session_id, f"{GATE.format(go := new_word())} then say the end")
    await shown(shared.fleet[1], turn)
    body, headers = {"prompt": f"say {word}", "on_busy": "steer"}, {"Idempotency-Key": new_word()}
    path = f"/sessions/{session_id}/query"
    sent = [await instance.post(path, body, headers=headers) for instance in shared.fleet.instances]
    [message] = {answer.json()["run_id"] for answer in sent}
    (shared.fleet.files_of(session_id) / go).touch()
    assert await outcome(shared.fleet[1], message, turn) == "taken"
    again = await shared.fleet[2].post(path, body, headers=headers)
    assert again.json()["run_id"] == message
    assert await times_said(shared.fleet[0], recorded, session_id, word) == 1


@pytest.mark.parametrize(
    "field", [{"model": "claude-haiku-5-5"}, {"expand_prompt": True}, {"permission_mode": "plan"}, {"max_turns": 2}]
)
async def test_what_cannot_hold_for_a_turn_that_runs_is_refused(shared: Shared, field: dict[str, Any]) -> None:
    session_id = await shared.of()
    body = {"prompt": "say no", "on_busy": "steer", **field}
    refused = await shared.fleet[1].post(f"/sessions/{session_id}/query", body)
    assert refused.status_code == 422
    assert [e["field"] for e in refused.json()["error"]["details"]["errors"]] == [*field]


async def test_it_is_steered_through_a_websocket_as_well(fleet: Fleet) -> None:
    session_id = await fleet[0].session(permission_mode="bypassPermissions")
    async with open_socket(fleet[1]) as socket:
        turn = await socket.ask("prompt", session_id=session_id, prompt=f"{GATE.format('go')} then say the end")
        await shown(fleet[2], turn["run_id"])
        message = await socket.ask("prompt", session_id=session_id, prompt="say meanwhile", on_busy="steer")
        (fleet.files_of(session_id) / "go").touch()
        assert (await socket.of_run(message["run_id"]))["data"]["status"] == "succeeded"
        assert (await socket.of_run(turn["run_id"]))["data"]["status"] == "succeeded"
        [told] = [e["data"] for e in socket.events if e["event"] == "steered"]
        assert (told["message_id"], told["state"], told["run_id"]) == (message["run_id"], "taken", turn["run_id"])


async def test_a_message_waits_on_when_the_owner_is_killed_before_the_tool_has_ended(
    start_fleet: StartFleet, recorded: Recorder
) -> None:
    fleet = await start_fleet(3)
    session_id, word = await fleet[0].session(permission_mode="bypassPermissions"), new_word()
    turn = await fleet[0].prompt(session_id, GATE.format("never"))
    await shown(fleet[0], turn)
    owner = await fleet.owner_of(session_id)
    other = (await fleet.others(owner))[0]
    message = await steer(other, session_id, word)
    owner.signal(signal.SIGKILL)
    assert await outcome(other, message, turn) == "next_run"
    assert (await other.get(f"/runs/{turn}")).json()["error"]["code"] == "owner_lost"
    assert await times_said(other, recorded, session_id, word) == 1


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", [0, 10, 20, 40, 80, 160])
async def test_a_message_has_one_end_when_the_owner_is_killed_while_it_is_handed_over(
    start_fleet: StartFleet, recorded: Recorder, milliseconds: int
) -> None:
    """Taken, or in doubt, or not handed over yet: never in the conversation twice, never without an end."""
    fleet = await start_fleet(2)
    session_id, word = await fleet[0].session(permission_mode="bypassPermissions"), new_word()
    turn = await fleet[0].prompt(session_id, f"{GATE.format('go')} then stream 200 words every 20 ms")
    await shown(fleet[0], turn)
    owner = await fleet.owner_of(session_id)
    other = (await fleet.others(owner))[0]
    message = await steer(other, session_id, word)
    (fleet.files_of(session_id) / "go").touch()
    await asyncio.sleep(milliseconds / 1000)
    owner.signal(signal.SIGKILL)
    async with asyncio.timeout(90):
        told = await other.follow(message)
    assert [e.event for e in told].count("done") == 1
    run = (await other.get(f"/runs/{message}")).json()
    times = await times_said(other, recorded, session_id, word)
    if run["status"] == "succeeded":
        assert times == 1
    else:
        assert (run["error"]["code"], times <= 1) == ("owner_lost", True)
