"""Forks: a session made of another one on any instance, and both going their own ways."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.acceptance.test_rewind import files_of, rewind
from tests.conftest import StartFleet, database_of
from tests.fleet import Fleet, Instance, events_of
from tests.sockets import open_socket

TOOLS = {"permission_mode": "bypassPermissions"}


@pytest.fixture(scope="module")
async def parent(fleet: Fleet) -> str:
    """A session in which one, two and three were said; that has written a file, run a command, and had a subagent do
    something."""
    session_id = await fleet[0].session(**TOOLS)
    for prompt in ("say one", "say two", "say three", "write a.txt: one", "run echo cheese", "delegate say hello"):
        await fleet[0].ask(session_id, prompt)
    return session_id


@pytest.fixture(scope="module")
async def family(fleet: Fleet) -> tuple[str, dict[str, Any]]:
    """A session that has kept the files before its two prompts, and what was answered of its fork; both are warm."""
    parent = await fleet[0].session(
        title="first", tags=["t"], metadata={"a": "b"}, enable_file_checkpointing=True, **TOOLS
    )
    for prompt in ("remember the cheese then write a.txt: one", "edit a.txt: one => two"):
        await fleet[0].ask(parent, prompt)
    [elsewhere, _] = await fleet.others(await fleet.owner_of(parent))
    child = await fork(elsewhere, parent, title="second")
    await fleet[1].ask(child["session_id"], "say I am the fork")
    return parent, child


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


async def remembered(fleet: Fleet, session_id: str) -> list[str]:
    """The conversation that a session's next agent would be given: its entries, but for what names the session."""
    async with database_of(fleet) as db:
        rows = await db.pool.fetch(
            "SELECT t.entry FROM transcript_entries t JOIN sessions s ON s.id = t.session_id"
            " WHERE s.id = $1 AND t.sdk_session_id = s.sdk_session_id::text AND t.subpath = '' ORDER BY t.id",
            UUID(session_id),
        )
        conversation = str(
            await db.pool.fetchval("SELECT sdk_session_id FROM sessions WHERE id = $1", UUID(session_id))
        )
    return [row["entry"].replace(session_id, "…").replace(conversation, "…") for row in rows]


async def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_whole_fork_goes_on_apart_from_its_parent(fleet: Fleet, family: tuple[str, dict[str, Any]]) -> None:
    parent, made = family
    assert made["parent_session_id"] == parent
    assert (made["title"], made["tags"], made["metadata"], made["num_turns"]) == ("second", ["t"], {"a": "b"}, 0)
    assert made["config"] == {**TOOLS, "enable_file_checkpointing": True}
    child = made["session_id"]
    said = [m["uuid"] for m in await messages(fleet[2], parent)]
    assert len(said) > 0
    assert [m["uuid"] for m in await messages(fleet[2], child)][: len(said)] == said
    assert "remember the cheese" in (await fleet[1].ask(child, "recall"))["result"]
    await fleet[1].ask(child, "edit a.txt: two => the fork's")
    await fleet[2].ask(parent, "edit a.txt: two => the parent's then write b.txt: too")
    assert files_of(fleet, child) == {"a.txt": "the fork's"}
    assert files_of(fleet, parent) == {"a.txt": "the parent's", "b.txt": "too"}
    assert "the fork" not in (await fleet[0].ask(parent, "recall"))["result"]


async def test_a_fork_of_a_fork_knows_both_and_its_files_can_be_rewound_to_prompts_of_the_first(
    fleet: Fleet, family: tuple[str, dict[str, Any]]
) -> None:
    first, second = family[0], family[1]["session_id"]
    third = (await fork(fleet[2], second))["session_id"]
    never_begun = (await fork(fleet[2], third))["session_id"]
    assert (await fleet[0].get(f"/sessions/{never_begun}")).json()["parent_session_id"] == third
    assert (await fleet[1].client.delete(f"/api/v1/sessions/{first}")).status_code == 200
    files = files_of(fleet, second)
    assert list(files) == ["a.txt"]
    assert (await fleet[0].ask(never_begun, "run cat a.txt"))["result"].endswith(files["a.txt"])
    listed = (await fleet[2].get(f"/sessions/{never_begun}/checkpoints")).json()["data"]
    prompts = ["remember the cheese then write a.txt: one", "edit a.txt: one => two", "say I am the fork"]
    assert [c["prompt"] for c in listed][:3] == prompts
    assert (await rewind(fleet[2], never_begun, listed[1]["checkpoint_id"]))["not_restored"] == []
    assert (files_of(fleet, never_begun), files_of(fleet, second)) == ({"a.txt": "one"}, files)
    recalled = (await fleet[0].ask(never_begun, "recall"))["result"]
    assert "remember the cheese" in recalled
    assert "say I am the fork" in recalled


async def test_a_fork_at_an_earlier_message_recalls_only_what_was_said_before(fleet: Fleet, parent: str) -> None:
    said = await messages(fleet[1], parent)
    answer = next(m for m in said if "two" in m["content"][0]["text"] and m["role"] == "assistant")
    by_message = await fork(fleet[1], parent, message_uuid=answer["uuid"])
    by_number = await fork(fleet[2], parent, at_seq=answer["seq"])
    known = [await remembered(fleet, child["session_id"]) for child in (by_message, by_number)]
    assert known[0] == known[1] != []
    for child in (by_message, by_number):
        assert child["last_seq"] == answer["seq"]
        shown = await messages(fleet[0], child["session_id"])
        assert [m["uuid"] for m in shown] == [m["uuid"] for m in said[:4]]
    recalled = (await fleet[2].ask(by_message["session_id"], "recall"))["result"]
    assert ("say one" in recalled, "say two" in recalled, "say three" in recalled) == (True, True, False)


async def test_a_fork_before_everything_has_no_history(fleet: Fleet, parent: str) -> None:
    child = await fork(fleet[1], parent, at_seq=0)
    assert await messages(fleet[2], child["session_id"]) == []
    assert "you have said nothing before" in (await fleet[2].ask(child["session_id"], "recall"))["result"]
    assert "one" in (await fleet[2].ask(child["session_id"], "read a.txt"))["result"]


async def test_a_cut_between_a_tool_call_and_its_result_goes_on(fleet: Fleet, parent: str) -> None:
    cut = (await of_tool(fleet[1], parent, "tool_use", "Bash"))["uuid"]
    child = await fork(fleet[1], parent, message_uuid=cut)
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


async def test_fork_session_runs_the_prompt_in_a_fork_over_a_websocket_as_over_http(fleet: Fleet, parent: str) -> None:
    before = (await fleet[0].get(f"/sessions/{parent}")).json()["num_turns"]
    body: dict[str, Any] = {"prompt": "recall", "session_id": parent, "fork_session": True}
    sent = await fleet[1].post("/query", body, headers={"Idempotency-Key": parent})
    assert sent.status_code == 200, sent.text
    child, run_id = sent.headers["X-Session-ID"], sent.headers["X-Run-ID"]
    assert child != parent
    assert (await fleet[2].get(f"/sessions/{child}")).json()["parent_session_id"] == parent
    async with open_socket(fleet[2]) as socket:
        run = await socket.ask("prompt", **body, idempotency_key=parent)
        assert (run["session_id"], run["run_id"]) == (child, run_id), "the same request, so the same run"
        result = await socket.of_run(run_id, "result")
    assert "say one" in result["data"]["result"]
    assert (await fleet[0].get(f"/sessions/{parent}")).json()["num_turns"] == before
    answer = await fleet[1].post("/query/single", {"prompt": "recall", "fork_session": True})
    assert answer.status_code == 422


async def test_transcripts_of_subagents_are_copied(fleet: Fleet, parent: str) -> None:
    report = await of_tool(fleet[1], parent, "tool_result", "Agent")
    cut = (await fork(fleet[1], parent, message_uuid=report["uuid"]))["session_id"]
    child = (await fork(fleet[1], parent))["session_id"]
    nested = [m for m in await messages(fleet[2], child) if m["subagent_messages"]]
    assert nested
    assert nested[0]["subagent_messages"][0]["session_id"] == child
    assert "delegate say hello" in (await fleet[2].ask(cut, "recall"))["result"]
    async with database_of(fleet) as db:
        rows = await db.pool.fetch(
            "SELECT session_id::text AS session, count(*) AS entries, bool_or(strpos(entry, $1) > 0) AS names_parent"
            " FROM transcript_entries WHERE session_id::text = ANY($2) AND subpath <> '' GROUP BY 1",
            parent,
            [parent, child, cut],
        )
    found = {row["session"]: (row["entries"], row["names_parent"]) for row in rows}
    assert found[child] == found[cut] == (found[parent][0], False)


async def test_a_session_that_was_reset_forks_the_conversation_it_has_now(fleet: Fleet) -> None:
    parent = await fleet[0].session()
    await fleet[0].ask(parent, "say old")
    before = (await messages(fleet[0], parent))[-1]
    assert (await fleet[1].post(f"/sessions/{parent}/reset", {"mode": "hard"})).status_code == 200
    emptied = (await fork(fleet[1], parent))["session_id"]
    await fleet[0].ask(parent, "say new")
    renewed = (await fork(fleet[2], parent))["session_id"]
    old = (await fork(fleet[2], parent, message_uuid=before["uuid"]))["session_id"]
    assert await remembered(fleet, emptied) == []
    known = await remembered(fleet, renewed)
    assert known == (await remembered(fleet, parent))[: len(known)]
    assert ("say old" in str(known), "say new" in str(known)) == (False, True)
    recalled = (await fleet[0].ask(old, "recall"))["result"]
    assert ("say old" in recalled, "say new" in recalled) == (True, False)


async def test_a_busy_session_forks_only_before_its_active_run(fleet: Fleet, parent: str) -> None:
    done = (await fleet[0].get(f"/sessions/{parent}")).json()["last_seq"]
    run_id = await fleet[0].prompt(parent, "hang")
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        assert (await anext(events)).event == "init"
        assert await refused(await fleet[1].post(f"/sessions/{parent}/fork", {})) == (409, "session_busy")
        answer = await fleet[1].post(f"/sessions/{parent}/fork", {"at_seq": done + 1})
        assert await refused(answer) == (409, "session_busy")
        child = await fork(fleet[1], parent, at_seq=done)
        known = str(await remembered(fleet, child["session_id"]))
        assert '"say one"' in known
        assert '"hang"' not in known
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
    assert len((await fleet[0].get("/sessions")).json()["data"]) == 1
