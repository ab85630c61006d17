"""The execute server: what its document says, and what is more here."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import NewKey, StartFleet, database_of, make_key
from tests.dialects.conftest import shaped
from tests.fleet import API_KEY, HEADERS, NO_TLS, Fleet, Instance

PREFIX = "/compat/execute-server"
NONE = type(None)
TOLD = {"session_id": str, "status": str, "message": str}
STATUS = {
    "session_id": str,
    "status": str,
    "messages": list,
    "result": (str, NONE),
    "error": (str, NONE),
    "duration_ms": (int, NONE),
    "total_cost_usd": (float, NONE),
}
MESSAGE = {"type": str, "content": str, "timestamp": str}
LISTED = {
    "session_id": str,
    "status": str,
    "prompt": str,
    "created_at": str,
    "start_time": (str, NONE),
    "end_time": (str, NONE),
    "error": (str, NONE),
    "result": (str, NONE),
    "message_count": int,
}
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def at(instance: Instance, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """A client of this dialect, which knows nothing but a base URL and a key."""
    given = HEADERS if headers is None else headers
    return httpx.AsyncClient(base_url=instance.url + PREFIX, headers=given, timeout=60, verify=NO_TLS)


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    async with at(fleet[0]) as client:
        yield client


async def execute(client: httpx.AsyncClient, prompt: str, **more: Any) -> str:
    response = await client.post("/execute/", json={"prompt": prompt, **more})
    assert response.status_code == 200, response.text
    return str(response.json()["session_id"])


async def status(client: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    response = await client.get(f"/status/{session_id}")
    assert response.status_code == 200, response.text
    found = shaped(response.json(), STATUS)
    for message in found["messages"]:
        shaped(message, MESSAGE)
        assert re.fullmatch(MOMENT, message["timestamp"])
    return found


async def until(client: httpx.AsyncClient, session_id: str, *wanted: str) -> dict[str, Any]:
    """Ask for the status, as clients of this server do, until it is one of these."""
    async with asyncio.timeout(60):
        while True:
            found = await status(client, session_id)
            if found["status"] in wanted:
                return found
            await asyncio.sleep(0.05)


async def over(client: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    return await until(client, session_id, "completed", "error", "cancelled")


async def hanging(instance: Instance, session_id: str) -> str:
    """Queue a prompt that ends with nothing but an interrupt; returns its run once the agent says something."""
    run_id = await instance.prompt(session_id, "hang after 3 words")
    async with asyncio.timeout(60), instance.stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "partial" and event.data["delta"]["text"].endswith("word1"):
                break
    return run_id


@dataclass(frozen=True)
class Talk:
    """A session of this dialect that many tests go on with, and the instances. Each leaves it idle."""

    session_id: str
    owner: Instance
    other: Instance
    another: Instance


@pytest.fixture(scope="module")
async def talk(fleet: Fleet) -> Talk:
    async with at(fleet[0]) as client:
        session_id = await execute(
            client,
            "remember Ada",
            system_prompt="You are an excellent system engineer",
            permission_mode="bypassPermissions",
            model="claude-3-opus-20240229",
            cwd="/",
        )
        assert (await over(client, session_id))["status"] == "completed"
    owner = await fleet.owner_of(session_id)
    return Talk(session_id, owner, *await fleet.others(owner))


@pytest.fixture(scope="module")
async def ended(fleet: Fleet) -> str:
    """A session whose run is over; nothing follows."""
    async with at(fleet[1]) as client:
        body = {"prompt": "write a.txt: hello"}
        response = await client.post("/execute", json=body, follow_redirects=True)
        session_id = str(response.json()["session_id"])
        await over(client, session_id)
    return session_id


@pytest.fixture(scope="module")
async def narrow(start_lasting_fleet: StartFleet) -> Fleet:
    """One instance with room for one agent; it has this dialect at its root, and admits callers without a key."""
    given = {"ROOT_DIALECT": "execute_server", "ANONYMOUS_TENANT": "guests", "DEBUG": "true"}
    return await start_lasting_fleet(1, RUNNER_SLOTS="1", **given)


def refused(response: httpx.Response, code: int) -> Any:
    assert response.status_code == code, response.text
    body = response.json()
    assert list(body) == ["detail"], body
    return body["detail"]


# --- the document -------------------------------------------------------------------------------------------------


async def test_every_request_of_the_document_in_its_order(fleet: Fleet, new_key: NewKey) -> None:
    async with at(fleet[0], await new_key()) as client:
        info = (await client.get("/")).json()
        assert set(info["endpoints"]) == {
            "/execute/",
            "/status/{session_id}",
            "/cancel/{session_id}",
            "/sessions/",
            "/sessions/cleanup",
        }

        prompt = "run pwd then stream 20 words every 20 ms"
        body = {
            "prompt": prompt,
            "system_prompt": "You are an excellent system engineer",
            "permission_mode": "acceptEdits",
            "model": "sonnet",
            "cwd": "/path/to/working/directory",
            "allowed_tools": ["Read", "Write", "Bash"],
        }
        told = shaped((await client.post("/execute/", json=body)).json(), TOLD)
        session_id = told["session_id"]
        assert told["status"] == "pending"
        assert told["message"] == f"Session {session_id} started successfully"

        assert (await status(client, session_id))["status"] in ("pending", "running")
        found = await until(client, session_id, "running", "completed")
        if found["status"] == "running":
            assert found["result"] is None
            assert found["error"] is None
            assert found["duration_ms"] >= 0
        found = await over(client, session_id)
        assert (found["status"], found["error"]) == ("completed", None)
        assert found["result"].endswith("word20")
        assert found["duration_ms"] > 0
        assert found["total_cost_usd"] > 0
        kinds = [message["type"] for message in found["messages"]]
        assert kinds[:2] == ["SystemMessage", "UserMessage"]
        assert kinds[-1] == "ResultMessage"
        assert set(kinds[2:-1]) == {"AssistantMessage", "UserMessage"}
        assert found["messages"][1]["content"] == prompt
        assert found["messages"][-1]["content"] == found["result"]
        inside = f"/{session_id}/path/to/working/directory"
        assert any(inside in message["content"] for message in found["messages"])
        assert json.loads(found["messages"][0]["content"])["model"] == "claude-sonnet-5-5"

        hanging = await execute(client, "hang after 3 words")
        await until(client, hanging, "running")
        told = shaped((await client.post(f"/cancel/{hanging}")).json(), TOLD)
        assert told["status"] == "cancelled"
        assert told["message"] == f"Session {hanging} cancelled successfully"
        assert (await status(client, hanging))["status"] == "cancelled"

        rows = [shaped(row, LISTED) for row in (await client.get("/sessions/")).json()]
        assert [(row["session_id"], row["status"]) for row in rows] == [
            (hanging, "cancelled"),
            (session_id, "completed"),
        ]
        assert rows[1]["prompt"] == prompt
        assert rows[1]["result"] == found["result"]
        assert rows[1]["message_count"] == len(found["messages"])
        assert rows[1]["created_at"] <= rows[1]["start_time"] <= rows[1]["end_time"]
        assert re.fullmatch(MOMENT, rows[1]["start_time"])

        removed = (await client.delete("/sessions/cleanup")).json()
        assert removed == {"removed": 0, "message": "Cleaned up 0 old sessions"}
        removed = (await client.delete("/sessions/cleanup", params={"max_age_hours": 0})).json()
        assert removed == {"removed": 2, "message": "Cleaned up 2 old sessions"}
        assert (await client.get("/sessions/")).json() == []


def test_a_python_client_that_only_changed_its_base_url_and_leaves_out_last_slashes(fleet: Fleet, ended: str) -> None:
    """It began `ended` at `/execute`."""
    base_url = fleet[1].url + PREFIX
    with httpx.Client(headers=HEADERS, timeout=60, follow_redirects=True) as requests:
        assert requests.get(f"{base_url}/status/{ended}").json()["status"] == "completed"
        assert ended in [row["session_id"] for row in requests.get(f"{base_url}/sessions").json()]


SCRIPT = r"""
set -euo pipefail
ask() { curl --silent --fail --header 'Content-Type: application/json' --header "X-API-Key: $KEY" "$@"; }
field() { (cat; echo) | sed --quiet --regexp-extended "s/.*\"$1\":\"([^\"]*)\".*/\1/p"; }
ID=$(ask "$BASE/execute/" --data '{"prompt": "hang"}' | field session_id)
until ask "$BASE/status/$ID" | grep --quiet '"status":"running"'; do sleep 0.1; done
ask --request POST "$BASE/cancel/$ID" | field message
ask "$BASE/status/$ID" | grep --only-matching '"status":"cancelled"'
ask "$BASE/sessions/" | grep --only-matching "$ID"
"""


def test_a_shell_client_that_only_changed_its_base_url(fleet: Fleet) -> None:
    env = {"BASE": fleet[2].url + PREFIX, "KEY": API_KEY, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    message, state, session_id = done.stdout.splitlines()
    assert message == f"Session {session_id} cancelled successfully"
    assert state == '"status":"cancelled"'


# --- states -------------------------------------------------------------------------------------------------------


async def test_a_failed_run_is_an_error_with_its_reason(client: httpx.AsyncClient, talk: Talk) -> None:
    await talk.other.prompt(talk.session_id, "fail with 400")
    found = await over(client, talk.session_id)
    assert (found["status"], found["result"]) == ("error", None)
    assert "400" in found["error"]
    row = next(r for r in (await client.get("/sessions/")).json() if r["session_id"] == talk.session_id)
    assert (row["status"], row["error"], row["result"]) == ("error", found["error"], None)


async def test_a_session_that_waits_for_a_slot_is_pending_and_can_be_cancelled(narrow: Fleet) -> None:
    async with at(narrow[0]) as client:
        first = await execute(client, "hang")
        await until(client, first, "running")
        second = await execute(client, "say never")
        found = await status(client, second)
        assert (found["status"], found["messages"], found["duration_ms"]) == ("pending", [], None)
        assert (await client.post(f"/cancel/{second}")).json()["status"] == "cancelled"
        found = await status(client, second)
        assert (found["status"], found["total_cost_usd"]) == ("cancelled", None)
        assert (await client.post(f"/cancel/{first}")).json()["status"] == "cancelled"


async def test_what_is_over_cannot_be_cancelled(client: httpx.AsyncClient, ended: str) -> None:
    assert refused(await client.post(f"/cancel/{ended}"), 400).endswith("is not running: completed")


async def test_what_needs_a_person_is_refused_and_holds_nothing_up(client: httpx.AsyncClient, ended: str) -> None:
    found = await status(client, ended)
    assert found["status"] == "completed"
    assert "haven't granted it yet" in found["result"]


async def test_the_options_reach_the_agent(talk: Talk) -> None:
    """See tests/dialects/test_translate.py for other directories and names of models."""
    assert (await talk.other.get(f"/sessions/{talk.session_id}")).json()["model"] == "claude-opus-5-5"
    assert (await talk.other.ask(talk.session_id, "run pwd"))["result"].endswith(f"/{talk.session_id}")
    assert "excellent system engineer" in (await talk.other.ask(talk.session_id, "show system prompt"))["result"]


async def test_text_that_json_libraries_refuse_is_told_nevertheless(client: httpx.AsyncClient, talk: Talk) -> None:
    await talk.other.ask(talk.session_id, r"run printf 'a\000b\355\240\200'")
    found = await status(client, talk.session_id)
    assert found["status"] == "completed"
    assert any("printf" in message["content"] for message in found["messages"])
    assert (await client.get("/sessions/")).status_code == 200


async def test_a_line_stays_one_line_whatever_is_said(client: httpx.AsyncClient, talk: Talk) -> None:
    said = "one\u2028two\u2029three\u0085four"
    await talk.other.ask(talk.session_id, f"say {said}")
    answer = await client.get(f"/status/{talk.session_id}")
    assert answer.json()["result"].endswith(said)
    assert len(answer.text.splitlines()) == 1


# --- one core -----------------------------------------------------------------------------------------------------


async def test_any_instance_tells_the_status_and_cancels(talk: Talk) -> None:
    await hanging(talk.owner, talk.session_id)
    async with at(talk.other) as client, at(talk.another) as canceller:
        assert (await status(client, talk.session_id))["status"] == "running"
        assert (await canceller.post(f"/cancel/{talk.session_id}")).json()["status"] == "cancelled"
        assert (await status(client, talk.session_id))["status"] == "cancelled"


async def test_the_native_api_reads_continues_and_interrupts_a_session_of_this_dialect(talk: Talk) -> None:
    async with at(talk.owner) as client:
        before = (await status(client, talk.session_id))["messages"]
        assert (await talk.other.get(f"/sessions/{talk.session_id}")).json()["surface"] == "execute_server"
        assert "remember Ada" in (await talk.other.get(f"/sessions/{talk.session_id}/messages")).text
        assert "remember Ada" in (await talk.other.ask(talk.session_id, "recall"))["result"]
        found = await status(client, talk.session_id)
        assert "remember Ada" in found["result"]
        results = [[m["type"] for m in messages].count("ResultMessage") for messages in (before, found["messages"])]
        assert results[0] >= 1
        assert results[1] == results[0] + 1

        await hanging(talk.other, talk.session_id)
        assert (await status(client, talk.session_id))["status"] == "running"
        assert (await talk.other.post(f"/sessions/{talk.session_id}/interrupt")).status_code == 200
        assert (await over(client, talk.session_id))["status"] == "cancelled"


async def test_a_cancel_also_ends_what_waits_in_the_session(talk: Talk) -> None:
    running = await hanging(talk.owner, talk.session_id)
    waiting = await talk.other.prompt(talk.session_id, "say never")
    async with at(talk.owner) as client:
        assert (await client.post(f"/cancel/{talk.session_id}")).json()["status"] == "cancelled"
    for run_id in (running, waiting):
        assert (await talk.other.get(f"/runs/{run_id}")).json()["status"] == "interrupted"


# --- cleaning up --------------------------------------------------------------------------------------------------


async def test_a_clean_up_removes_the_old_finished_sessions_of_this_tenant_and_dialect_only(narrow: Fleet) -> None:
    async with database_of(narrow) as db:
        mine, theirs = await make_key(db), await make_key(db)
        async with at(narrow[0], mine) as client, at(narrow[0], theirs) as stranger:
            running = await execute(client, "hang")
            await until(client, running, "running")
            # There is no room for these: they wait, and are finished once they are cancelled.
            old, young, foreign = [await execute(c, "say hello") for c in (client, client, stranger)]
            for who, session_id in ((client, old), (client, young), (stranger, foreign)):
                assert (await who.post(f"/cancel/{session_id}")).json()["status"] == "cancelled"
            native = (await narrow[0].post("/sessions", {}, headers=mine)).json()["session_id"]
            queued = await narrow[0].post(f"/sessions/{native}/query", {"prompt": "say hello"}, headers=mine)
            stopped = await narrow[0].post(f"/runs/{queued.json()['run_id']}/cancel", headers=mine)
            assert stopped.json()["status"] == "applied"
            # A test cannot wait for a day: let these be from two days ago.
            aged = [old, running, native, foreign]
            for table, column in (("sessions", "id"), ("runs", "session_id")):
                change = f"UPDATE {table} SET created_at = created_at - interval '48 hours'"
                await db.pool.execute(f"{change} WHERE {column} = ANY($1::uuid[])", aged)
            await db.pool.execute(
                "UPDATE runs SET finished_at = finished_at - interval '48 hours' WHERE session_id = ANY($1::uuid[])",
                aged,
            )

            response = await client.delete("/sessions/cleanup", params={"max_age_hours": 24})
            assert response.json() == {"removed": 1, "message": "Cleaned up 1 old sessions"}
            assert {row["session_id"] for row in (await client.get("/sessions/")).json()} == {young, running}
            refused(await client.get(f"/status/{old}"), 404)
            assert (await narrow[0].get(f"/sessions/{native}", headers=mine)).status_code == 200
            assert (await status(stranger, foreign))["status"] == "cancelled"
            assert (await client.post(f"/cancel/{running}")).json()["status"] == "cancelled"


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["body", "prompt"]),
        ({"prompt": ""}, ["body", "prompt"]),
        ({"prompt": "x", "cwd": "/../../etc"}, ["body", "cwd"]),
        ({"prompt": "x", "permission_mode": "yolo"}, ["body", "permission_mode"]),
        ({"prompt": "x", "allowed_tools": "Read"}, ["body", "allowed_tools"]),
    ],
)
async def test_an_invalid_request_is_422_in_the_words_of_fastapi(
    client: httpx.AsyncClient, body: dict[str, Any], loc: list[str]
) -> None:
    (error,) = refused(await client.post("/execute/", json=body), 422)
    assert error["loc"] == loc
    assert set(error) == {"loc", "msg", "type"}


async def test_a_body_that_is_no_json_is_422(client: httpx.AsyncClient) -> None:
    refused(await client.post("/execute/", content=b"{", headers={"Content-Type": "application/json"}), 422)
    refused(await client.delete("/sessions/cleanup", params={"max_age_hours": "-1"}), 422)


REQUESTS = (
    ("POST", "/execute/"),
    ("GET", "/status/{}"),
    ("POST", "/cancel/{}"),
    ("GET", "/sessions/"),
    ("DELETE", "/sessions/cleanup"),
)


async def test_every_route_but_the_root_needs_a_key(fleet: Fleet) -> None:
    async with at(fleet[0], {}) as client:
        for method, path in REQUESTS:
            body = {"prompt": "say hi"} if method == "POST" else None
            refused(await client.request(method, path.format(uuid4()), json=body), 401)
        assert (await client.get("/")).status_code == 200


async def test_a_key_that_may_only_read_starts_and_removes_nothing(fleet: Fleet, new_key: NewKey) -> None:
    async with at(fleet[0], await new_key(scopes=["read"])) as client:
        for method, path in REQUESTS:
            if method != "GET":
                body = {"prompt": "say hi"} if method == "POST" else None
                refused(await client.request(method, path.format(uuid4()), json=body), 403)
        assert (await client.get("/sessions/")).json() == []


async def test_sessions_that_are_unknown_or_of_another_tenant_are_404(
    fleet: Fleet, new_key: NewKey, ended: str
) -> None:
    async with at(fleet[0]) as client, at(fleet[1], await new_key()) as stranger:
        for who, session_id in ((client, str(uuid4())), (client, "nonsense"), (stranger, ended)):
            assert refused(await who.get(f"/status/{session_id}"), 404) == "Session not found"
            assert refused(await who.post(f"/cancel/{session_id}"), 404) == "Session not found"
        assert (await stranger.get("/sessions/")).json() == []


async def test_at_the_root_it_serves_clients_whose_base_url_has_no_path(narrow: Fleet) -> None:
    instance = narrow[0]
    async with httpx.AsyncClient(base_url=instance.url, timeout=60, verify=NO_TLS) as client:
        session_id = await execute(client, "say hello")
        assert (await over(client, session_id))["status"] == "completed"
        assert [row["session_id"] for row in (await client.get("/sessions/")).json()] == [session_id]
        refused(await client.get(f"/status/{uuid4()}"), 404)
        assert (await client.get("/health")).json()["instance_id"] == instance.id
        assert (await client.get("/api/v1/sessions")).status_code == 401


def test_the_page_about_it_names_every_route() -> None:
    page = (Path(__file__).parents[2] / "docs/execute-server.md").read_text(encoding="utf-8")
    for _, path in REQUESTS:
        assert path.replace("{}", "{session_id}") in page, path
