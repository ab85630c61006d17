"""Forks: a session made of another one on any instance, and both going their own ways."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.acceptance.test_rewind import files_of, rewind
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, events_of
from tests.sockets import open_socket

TOOLS = {"permission_mode": "bypassPermissions"}


@pytest.fixture(scope="module")
async def parent(fleet: Fleet) -> str:
    """A session in which one, two and three were said."""
    session_id = await fleet[0].session()
    for word in ("one", "two", "three"):
        await fleet[0].ask(session_id, f"say {word}")
    return session_id


@pytest.fixture(scope="module")
async def busy_hands(fleet: Fleet) -> str:
    """A session that has written a file, run a command, and had a subagent do something."""
    session_id = await fleet[0].session(**TOOLS)
    for prompt in ("write a.txt: one", "run echo cheese", "delegate say hello"):
        await fleet[0].ask(session_id, prompt)
    return session_id


async def of_tool(instance: Instance, session_id: str, kind: str, name: str) -> dict[str, Any]:
    """The message with the call of a tool (`tool_use`), or its result (`tool_result`)."""
    said = [(m, m["content"][0]) for m in await messages(instance, session_id)]
    [used] = [block["id"] for _, block in said if block["type"] == "tool_use" and block["name"] == name]
    ids = {"tool_use": "id", "tool_result": "tool_use_id"}
    return next(m for m, block in said if block["type"] == kind and block[ids[kind]] == used)


async def fork(instance: Instance, session_id: str, **body: Any) -> dict[str, Any]:
    answer = await instance.post(f"/sessions/{session_id}/fork", body)
    assert answer.status_code == 201, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def messages(instance: Instance, session_id: str) -> list[dict[str, Any]]:
    return (await instance.get(f"/sessions/{session_id}/messages")).json()["data"]  # type: ignore[no-any-return]


async def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_whole_fork_goes_on_apart_from_its_parent(fleet: Fleet) -> None:
    parent = await fleet[0].session(title="first", tags=["t"], metadata={"a": "b"}, **TOOLS)
    await fleet[0].ask(parent, "remember the cheese then write a.txt: one")
    owner = await fleet.owner_of(parent)
    elsewhere = (await fleet.others(owner))[0]
    child = await fork(elsewhere, parent, title="second")
    assert child["parent_session_id"] == parent
    assert (child["title"], child["tags"], child["metadata"], child["num_turns"]) == ("second", ["t"], {"a": "b"}, 0)
    assert child["config"] == TOOLS
    child_id = child["session_id"]
    assert len(await messages(fleet[2], child_id)) == len(await messages(fleet[2], parent)) > 0
    said = (await fleet[1].ask(child_id, "recall"))["result"]
    assert "remember the cheese" in said
    await fleet[1].ask(child_id, "edit a.txt: one => the fork's")
    await fleet[2].ask(parent, "edit a.txt: one => the parent's then write b.txt: too")
    assert files_of(fleet, child_id) == {"a.txt": "the fork's"}
    assert files_of(fleet, parent) == {"a.txt": "the parent's", "b.txt": "too"}
    assert "the fork's" not in (await fleet[0].ask(parent, "recall"))["result"]


async def test_a_fork_at_an_earlier_message_recalls_only_what_was_said_before(fleet: Fleet, parent: str) -> None:
    said = await messages(fleet[1], parent)
    answer = next(m for m in said if "two" in m["content"][0]["text"] and m["role"] == "assistant")
    by_message = await fork(fleet[1], parent, message_uuid=answer["uuid"])
    by_number = await fork(fleet[2], parent, at_seq=answer["seq"])
    for child in (by_message, by_number):
        assert child["last_seq"] == answer["seq"]
        shown = await messages(fleet[0], child["session_id"])
        assert [m["uuid"] for m in shown] == [m["uuid"] for m in said[:4]]
        recalled = (await fleet[2].ask(child["session_id"], "recall"))["result"]
        assert ("say one" in recalled, "say two" in recalled, "say three" in recalled) == (True, True, False)


async def test_a_fork_before_everything_has_no_history(fleet: Fleet, busy_hands: str) -> None:
    child = await fork(fleet[1], busy_hands, at_seq=0)
    assert await messages(fleet[2], child["session_id"]) == []
    result = await fleet[2].ask(child["session_id"], "recall then read a.txt")
    assert "write a.txt" not in result["result"]


async def test_a_cut_between_a_tool_call_and_its_result_goes_on(fleet: Fleet, busy_hands: str) -> None:
    for kind in ("tool_use", "tool_result"):
        cut = (await of_tool(fleet[1], busy_hands, kind, "Bash"))["uuid"]
        child = await fork(fleet[1], busy_hands, message_uuid=cut)
        assert "run echo cheese" in (await fleet[2].ask(child["session_id"], "recall"))["result"]


async def test_a_fork_with_a_prompt_streams_its_run(fleet: Fleet, parent: str) -> None:
    body = {"prompt": "recall", "model": "claude-haiku-5-5"}
    async with fleet[1].client.stream("POST", f"/api/v1/sessions/{parent}/fork", json=body) as response:
        assert response.status_code == 200
        events = [event async for event in events_of(response)]
    child = response.headers["X-Session-ID"]
    assert child != parent
    assert (events[-1].event, events[-1].data["status"]) == ("done", "succeeded")
    assert events[0].data["session_id"] == child
    assert int(events[0].id) == (await fleet[1].get(f"/sessions/{parent}")).json()["last_seq"] + 1
    assert "say one" in events[-2].data["result"]
    assert (await fleet[2].get(f"/sessions/{child}")).json()["model"] == "claude-haiku-5-5"
    assert "recall" not in (await fleet[2].ask(parent, "say four then recall"))["result"].split("say four")[0]


async def test_fork_session_runs_the_prompt_in_a_fork(fleet: Fleet, parent: str) -> None:
    before = (await fleet[0].get(f"/sessions/{parent}")).json()["num_turns"]
    result = await fleet[1].ask(parent, "recall", fork_session=True)
    assert result["session_id"] != parent
    assert "say one" in result["result"]
    state = (await fleet[2].get(f"/sessions/{result['session_id']}")).json()
    assert state["parent_session_id"] == parent
    assert (await fleet[0].get(f"/sessions/{parent}")).json()["num_turns"] == before
    answer = await fleet[1].post("/query/single", {"prompt": "recall", "fork_session": True})
    assert answer.status_code == 422


async def test_a_fork_of_a_fork_knows_both(fleet: Fleet) -> None:
    first = await fleet[0].session(**TOOLS)
    await fleet[0].ask(first, "say one then write a.txt: one")
    second = (await fork(fleet[1], first))["session_id"]
    await fleet[1].ask(second, "say two")
    third = (await fork(fleet[2], second))["session_id"]
    never_begun = (await fork(fleet[2], third))["session_id"]
    assert (await fleet[1].client.delete(f"/api/v1/sessions/{first}")).status_code == 204
    recalled = (await fleet[0].ask(never_begun, "recall"))["result"]
    assert "say one" in recalled
    assert "say two" in recalled
    assert files_of(fleet, never_begun) == {"a.txt": "one"}
    assert (await fleet[0].get(f"/sessions/{never_begun}")).json()["parent_session_id"] == third


async def test_transcripts_of_subagents_are_copied(fleet: Fleet, busy_hands: str) -> None:
    parent = busy_hands
    report = await of_tool(fleet[1], parent, "tool_result", "Agent")
    cut = (await fork(fleet[1], parent, message_uuid=report["uuid"]))["session_id"]
    child = (await fork(fleet[1], parent))["session_id"]
    nested = [m for m in await messages(fleet[2], child) if m["subagent_messages"]]
    assert nested
    assert nested[0]["subagent_messages"][0]["session_id"] == child
    assert "delegate say hello" in (await fleet[2].ask(child, "recall"))["result"]
    connection = await asyncpg.connect(fleet.env["DATABASE_URL"].replace("+asyncpg", ""))
    try:
        rows = await connection.fetch(
            "SELECT session_id::text AS session, count(*) AS entries, bool_or(strpos(entry, $1) > 0) AS names_parent"
            " FROM transcript_entries WHERE session_id::text = ANY($2) AND subpath <> '' GROUP BY 1",
            parent,
            [parent, child, cut],
        )
    finally:
        await connection.close()
    found = {row["session"]: (row["entries"], row["names_parent"]) for row in rows}
    assert found[child] == found[cut] == (found[parent][0], False)


async def test_files_of_a_fork_can_be_rewound_to_prompts_of_its_parent(fleet: Fleet) -> None:
    parent = await fleet[0].session(enable_file_checkpointing=True, **TOOLS)
    for prompt in ("write a.txt: one", "edit a.txt: one => two"):
        run_id = (await fleet[0].ask(parent, prompt))["run_id"]
    child = (await fork(fleet[1], parent))["session_id"]
    listed = (await fleet[2].get(f"/sessions/{child}/checkpoints")).json()["data"]
    assert [c["prompt"] for c in listed] == ["write a.txt: one", "edit a.txt: one => two"]
    assert (await rewind(fleet[2], child, run_id))["not_restored"] == []
    assert (files_of(fleet, child), files_of(fleet, parent)) == ({"a.txt": "one"}, {"a.txt": "two"})


async def test_a_session_that_was_reset_forks_the_conversation_it_has_now(fleet: Fleet) -> None:
    parent = await fleet[0].session()
    await fleet[0].ask(parent, "say old")
    before = (await messages(fleet[0], parent))[-1]
    assert (await fleet[1].post(f"/sessions/{parent}/reset", {"mode": "hard"})).status_code == 200
    emptied = (await fork(fleet[1], parent))["session_id"]
    await fleet[0].ask(parent, "say new")
    renewed = (await fork(fleet[2], parent))["session_id"]
    old = (await fork(fleet[2], parent, message_uuid=before["uuid"]))["session_id"]
    texts = [(await fleet[0].ask(child, "recall"))["result"] for child in (emptied, renewed, old)]
    assert [("say old" in t, "say new" in t) for t in texts] == [(False, False), (False, True), (True, False)]


async def test_a_busy_session_forks_only_before_its_active_run(fleet: Fleet, parent: str) -> None:
    done = (await fleet[0].get(f"/sessions/{parent}")).json()["last_seq"]
    run_id = await fleet[0].prompt(parent, "hang")
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        assert (await anext(events)).event == "init"
        assert await refused(await fleet[1].post(f"/sessions/{parent}/fork", {})) == (409, "session_busy")
        answer = await fleet[1].post(f"/sessions/{parent}/fork", {"at_seq": done + 1})
        assert await refused(answer) == (409, "session_busy")
        child = await fork(fleet[1], parent, at_seq=done)
        recalled = (await fleet[2].ask(child["session_id"], "recall"))["result"]
        assert "say one" in recalled
        assert "hang" not in recalled
        assert (await fleet[2].post(f"/sessions/{parent}/interrupt")).status_code == 200


async def test_the_same_key_makes_one_fork(fleet: Fleet, parent: str) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    answers = await asyncio.gather(
        *(instance.post(f"/sessions/{parent}/fork", {}, headers=headers) for instance in fleet.instances)
    )
    assert [a.status_code for a in answers] == [201] * 3
    assert len({a.json()["session_id"] for a in answers}) == 1
    answer = await fleet[1].post(f"/sessions/{parent}/fork", {"title": "x"}, headers=headers)
    assert await refused(answer) == (409, "idempotency_key_reused")
    assert os.listdir(Path(fleet.env["WORKSPACES_DIR"]) / ".forks") == []


async def test_what_cannot_be_forked_is_refused(fleet: Fleet, parent: str) -> None:
    path = f"/sessions/{parent}/fork"
    assert await refused(await fleet[1].post(f"/sessions/{uuid4()}/fork", {})) == (404, "session_not_found")
    assert await refused(await fleet[1].post(path, {"message_uuid": str(uuid4())})) == (404, "message_not_found")
    assert await refused(await fleet[1].post(path, {"at_seq": 10_000})) == (422, "validation_error")
    answer = await fleet[1].post(path, {"at_seq": 1, "message_uuid": str(uuid4())})
    assert await refused(answer) == (422, "validation_error")
    assert await refused(await fleet[1].post(path, {"cwd": "elsewhere"})) == (422, "validation_error")
    assert await refused(await fleet[1].post(path, {"profile": "readonly"})) == (422, "validation_error")


async def test_a_workspace_that_is_too_large_is_not_copied(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, MAX_WORKSPACE_COPY_BYTES="100000")
    parent = await fleet[0].session(**TOOLS)
    await fleet[0].ask(parent, "run head -c 200000 /dev/zero > big")
    answer = await fleet[0].post(f"/sessions/{parent}/fork", {})
    assert await refused(answer) == (413, "workspace_too_large")
    root = Path(fleet.env["WORKSPACES_DIR"])
    assert [name for name in os.listdir(root) if not name.startswith(".")] == [parent]
    assert os.listdir(root / ".forks") == []
    assert len((await fleet[0].get("/sessions")).json()["data"]) == 1


async def test_a_prompt_of_a_websocket_can_fork_its_session(fleet: Fleet, parent: str) -> None:
    async with open_socket(fleet[1]) as socket:
        run = await socket.ask("prompt", prompt="recall", session_id=parent, fork_session=True)
        result = await socket.of_run(run["run_id"], "result")
    assert run["session_id"] != parent
    assert "say one" in result["data"]["result"]
