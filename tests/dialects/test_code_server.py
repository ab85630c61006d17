"""The code server: what its document says, and what is more here."""

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

from tests.conftest import NewKey, StartFleet
from tests.dialects.conftest import shaped
from tests.fleet import API_KEY, HEADERS, NO_TLS, Fleet, Instance

PREFIX = "/compat/code-server"
ANSWER = {"response": str, "duration_ms": int, "num_turns": int, "total_cost_usd": float}
NEXT = {"session_id": str, "response": str, "duration_ms": int}
STARTED = {"session_id": str, "status": str, "initial_response": str, "created_at": str}
SESSION = {"session_id": str, "created_at": str, "active": bool, "model": str}
HEALTH = {"status": str, "authenticated": bool, "active_sessions": int, "timestamp": str}
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


def at(instance: Instance, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """A client of this dialect, which knows nothing but a base URL and a key."""
    given = HEADERS if headers is None else headers
    return httpx.AsyncClient(base_url=instance.url + PREFIX, headers=given, timeout=60, verify=NO_TLS)


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    async with at(fleet[0]) as client:
        yield client


async def start(client: httpx.AsyncClient, prompt: str = "say hello", **more: Any) -> str:
    response = await client.post("/session/start", json={"initial_prompt": prompt, **more})
    assert response.status_code == 200, response.text
    return str(response.json()["session_id"])


@dataclass(frozen=True)
class Talk:
    """A conversation that many tests go on with, its owner, and the other instances. Each leaves it idle."""

    session_id: str
    owner: Instance
    others: list[Instance]

    @property
    def path(self) -> str:
        return f"/session/{self.session_id}/query"


@pytest.fixture(scope="module")
async def talk(fleet: Fleet) -> Talk:
    async with at(fleet[0]) as client:
        session_id = await start(client, "remember Ada", permission_mode="acceptEdits")
    owner = await fleet.owner_of(session_id)
    return Talk(session_id, owner, await fleet.others(owner))


async def lines_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """What a client sees that looks for `data: ` at the beginning of lines."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


SAID = "one\u2028two\u2029three\u0085four"
"""With what ends a line for `str.splitlines`, and with it for httpx."""


async def streamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line async for line in lines_of(response)]


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return str(shaped(response.json(), {"detail": str})["detail"])


# --- the document -------------------------------------------------------------------------------------------------


async def test_every_query_of_the_document_in_its_order(fleet: Fleet, new_key: NewKey) -> None:
    headers = await new_key()
    async with at(fleet[0], headers) as client:
        health = shaped((await client.get("/health")).json(), HEALTH)
        assert (health["status"], health["authenticated"], health["active_sessions"]) == ("healthy", True, 0)
        assert re.fullmatch(MOMENT, health["timestamp"])

        info = shaped((await client.get("/")).json(), {"name": str, "version": str, "endpoints": list})
        assert {"/health", "/query", "/session/start", "/sessions"} <= set(info["endpoints"])

        *texts, last = await streamed(client, "/query", {"prompt": "stream 5 words"})
        assert last == {"type": "done"}
        assert all(list(line) == ["type", "content"] and line["type"] == "text" for line in texts), texts
        assert len(texts) > 1
        assert "".join(line["content"] for line in texts) == "word1 word2 word3 word4 word5"

        # One-off queries have no history, and are sessions that the lists of this dialect do not show.
        body = {
            "prompt": "recall",
            "model": "claude-3-5-sonnet-20241022",
            "allowed_tools": ["Read", "Write"],
            "permission_mode": "acceptEdits",
            "stream": False,
        }
        answer = shaped((await client.post("/query", json=body)).json(), ANSWER)
        assert answer["response"].endswith("you have said nothing before.")
        assert answer["num_turns"] == 1
        assert answer["duration_ms"] > 0
        assert answer["total_cost_usd"] > 0
        assert (await client.get("/sessions")).json()["count"] == 0
    native = (await fleet[1].get("/sessions", headers=headers)).json()["data"]
    assert [state["surface"] for state in native] == ["code_server.query"] * 2


async def test_every_request_of_the_document_about_sessions_in_its_order(fleet: Fleet, new_key: NewKey) -> None:
    async with at(fleet[1], await new_key()) as client:
        body = {
            "initial_prompt": "remember Docker",
            "model": "claude-3-opus-20240229",
            "allowed_tools": ["Read"],
            "permission_mode": "default",
        }
        started = shaped((await client.post("/session/start", json=body)).json(), STARTED)
        assert started["status"] == "started"
        assert "Docker" in started["initial_response"]
        assert re.fullmatch(MOMENT, started["created_at"])
        session_id = started["session_id"]

        response = await client.post(f"/session/{session_id}/query", json={"prompt": "recall", "stream": False})
        answer = shaped(response.json(), NEXT)
        assert answer["session_id"] == session_id
        assert "remember Docker" in answer["response"]

        response = await client.post(f"/session/{session_id}/interrupt")
        assert response.status_code == 200
        assert response.json() == {"status": "interrupted", "session_id": session_id}

        session = shaped((await client.get(f"/session/{session_id}")).json(), SESSION)
        assert (session["session_id"], session["active"]) == (session_id, True)
        assert session["created_at"] == started["created_at"]
        # See tests/dialects/test_translate.py for the other names of models.
        assert session["model"] == "claude-opus-5-5"

        assert (await client.get("/sessions")).json() == {"active_sessions": [session_id], "count": 1}
        assert (await client.get("/health")).json()["active_sessions"] == 1

        response = await client.delete(f"/session/{session_id}")
        assert response.status_code == 200
        assert response.json() == {"status": "closed", "session_id": session_id}
        assert (await client.get("/sessions")).json() == {"active_sessions": [], "count": 0}


SCRIPT = r"""
set -euo pipefail
ask() { curl --silent --fail --header 'Content-Type: application/json' --header "X-API-Key: $KEY" "$@"; }
field() { (cat; echo) | sed --quiet --regexp-extended "s/.*\"$1\":\"([^\"]*)\".*/\1/p"; }
ask --request POST "$BASE/query" \
  --data '{"prompt": "write hello.py: print(1)", "allowed_tools": ["Write"], "permission_mode": "acceptEdits"}' \
  | field response
SESSION=$(ask --request POST "$BASE/session/start" --data '{"initial_prompt": "remember Docker"}' | field session_id)
ask --request POST "$BASE/session/$SESSION/query" --data '{"prompt": "say a Dockerfile"}' | field response
ask --request POST "$BASE/session/$SESSION/query" --data '{"prompt": "recall"}' | field response
ask --no-buffer --request POST "$BASE/session/$SESSION/query" --data '{"prompt": "stream 3 words", "stream": true}'
ask --request DELETE "$BASE/session/$SESSION" | field status
"""


def test_a_shell_client_that_only_changed_its_base_url(fleet: Fleet) -> None:
    env = {"BASE": fleet[2].url + PREFIX, "KEY": API_KEY, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert "File created" in lines[0]
    assert lines[1].endswith("a Dockerfile")
    assert "remember Docker" in lines[2]
    assert lines[3].startswith('data: {"type":"text","content":"')
    assert lines[-2] == 'data: {"type":"done"}'
    assert lines[-1] == "closed"


async def test_a_line_stays_one_line_whatever_is_said(client: httpx.AsyncClient, talk: Talk) -> None:
    assert "".join(
        line.get("content", "") for line in await streamed(client, talk.path, {"prompt": f"say {SAID}"})
    ).endswith(SAID)
    answer = await client.post(talk.path, json={"prompt": f"say {SAID}"})
    assert answer.json()["response"].endswith(SAID)
    assert len(answer.text.splitlines()) == 1


# --- permissions --------------------------------------------------------------------------------------------------


async def test_nobody_is_asked_unless_a_prompt_says_that_somebody_can_be(
    fleet: Fleet, client: httpx.AsyncClient
) -> None:
    # No rules are as if none were given, and what is null is as if it were not there.
    given: dict[str, Any] = {"permission_mode": None, "allowed_tools": [], "model": None}
    session_id = await start(client, "write notes.txt: hello", **given)
    answer = (await client.post(f"/session/{session_id}/query", json={"prompt": "recall"})).json()
    assert "write notes.txt" in answer["response"]
    said = (await fleet[0].get(f"/sessions/{session_id}/messages")).text
    assert "haven't granted it yet" in said
    assert (await fleet[0].get(f"/sessions/{session_id}/requests")).json()["data"] == []

    tools = (await client.post(f"/session/{session_id}/query", json={"prompt": "list tools"})).json()["response"]
    assert "Read" in tools
    assert "AskUserQuestion" not in tools

    other = (await fleet.others(await fleet.owner_of(session_id)))[0]
    run_id = await other.prompt(session_id, "write notes.txt: hello", unattended=False)
    async with other.stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "permission_request":
                path = f"/sessions/{session_id}/permissions/{event.data['request_id']}"
                assert (await other.post(path, {"decision": "allow"})).status_code == 200
    assert "File created" in (await other.get(f"/runs/{run_id}")).json()["result"]["result"]


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({"permission_mode": "bypassPermissions"}, {"run echo 1 > a.txt && cat a.txt": "answered: 1"}),
        (
            {"allowed_tools": ["Write", "Bash(echo:*)"]},
            {
                "write a.txt: hello": "File created",
                "run echo 1": "answered: 1",
                "run curl http://127.0.0.1:1": "requires approval|permission",
            },
        ),
    ],
    ids=["bypassPermissions", "allowed_tools"],
)
async def test_permission_modes_and_allowed_tools_mean_what_the_sdk_means(
    client: httpx.AsyncClient, options: dict[str, Any], prompts: dict[str, str]
) -> None:
    (first, outcome), *more = prompts.items()
    started = (await client.post("/session/start", json={"initial_prompt": first, **options})).json()
    assert re.search(outcome, started["initial_response"]), started
    for prompt, outcome in more:
        answer = (await client.post(f"/session/{started['session_id']}/query", json={"prompt": prompt})).json()
        assert re.search(outcome, answer["response"]), answer


async def test_who_accepts_edits_accepts_no_commands(client: httpx.AsyncClient, talk: Talk) -> None:
    for prompt, outcome in (
        ("write a.txt: hello", "File created"),
        ("run curl http://127.0.0.1:1", "requires approval|permission"),
    ):
        answer = (await client.post(talk.path, json={"prompt": prompt})).json()
        assert re.search(outcome, answer["response"]), answer


# --- one core -----------------------------------------------------------------------------------------------------


async def test_any_instance_goes_on_with_a_session_of_another(talk: Talk) -> None:
    for other in talk.others:
        async with at(other) as client:
            answer = (await client.post(talk.path, json={"prompt": "recall"})).json()
            assert "remember Ada" in answer["response"]
            assert talk.session_id in (await client.get("/sessions")).json()["active_sessions"]
            *texts, _ = await streamed(client, talk.path, {"prompt": "recall"})
            assert "remember Ada" in "".join(line["content"] for line in texts)


async def test_the_native_api_reads_and_continues_a_session_of_this_dialect(talk: Talk) -> None:
    other = talk.others[0]
    state = (await other.get(f"/sessions/{talk.session_id}")).json()
    assert (state["surface"], state["permission_mode"]) == ("code_server", "acceptEdits")
    assert "remember Ada" in (await other.get(f"/sessions/{talk.session_id}/messages")).text
    assert "remember Ada" in (await other.ask(talk.session_id, "recall"))["result"]
    await other.ask(talk.session_id, "remember that the native API asked")
    async with at(talk.owner) as client:
        answer = (await client.post(talk.path, json={"prompt": "recall"})).json()
    assert "remember that the native API asked" in answer["response"]


async def last_seq(instance: Instance, session_id: str) -> int:
    return int((await instance.get(f"/sessions/{session_id}")).json()["last_seq"])


async def running(instance: Instance, session_id: str, since: int) -> None:
    """Wait until the agent says the words of `stream` and `hang`, after this event of the session."""
    path = f"/sessions/{session_id}/events?after={since}"
    async with asyncio.timeout(30), instance.stream(path) as events:
        async for event in events:
            if event.event == "partial" and "word" in event.data["delta"].get("text", ""):
                return


@pytest.mark.parametrize("through", ["this dialect", "the native API"])
async def test_an_interrupt_from_another_instance_ends_a_query_in_order(talk: Talk, through: str) -> None:
    other, since = talk.others[0], await last_seq(talk.owner, talk.session_id)
    async with at(talk.owner) as asking, at(other) as stopping:
        asked = asyncio.create_task(asking.post(talk.path, json={"prompt": "hang after 3 words"}))
        await running(talk.owner, talk.session_id, since)
        if through == "this dialect":
            response = await stopping.post(f"/session/{talk.session_id}/interrupt")
            assert response.json() == {"status": "interrupted", "session_id": talk.session_id}
        else:
            assert (await other.post(f"/sessions/{talk.session_id}/interrupt")).status_code == 200
        response = await asked
        assert response.status_code == 200, response.text
        shaped(response.json(), NEXT)
        answer = (await stopping.post(talk.path, json={"prompt": "say again"})).json()
        assert answer["response"].endswith("again")


async def test_a_stream_cut_in_the_middle_leaves_a_run_that_finishes(talk: Talk) -> None:
    other = talk.others[0]
    body = {"prompt": "stream 30 words every 20 ms", "stream": True}
    async with at(talk.owner) as client, client.stream("POST", talk.path, json=body) as response:
        async for line in lines_of(response):
            assert line["type"] == "text"
            break
    run_id = (await other.get(f"/sessions/{talk.session_id}/runs")).json()["data"][0]["run_id"]
    assert (await other.follow(run_id))[-1].data["status"] == "succeeded"
    assert "word30" in (await other.get(f"/runs/{run_id}")).json()["result"]["result"]


async def test_a_query_that_comes_while_another_runs_waits_for_it(talk: Talk) -> None:
    since = await last_seq(talk.owner, talk.session_id)
    async with at(talk.owner) as one, at(talk.others[0]) as two:
        first = asyncio.create_task(streamed(one, talk.path, {"prompt": "stream 11 words every 50 ms"}))
        await running(talk.owner, talk.session_id, since)
        second = (await two.post(talk.path, json={"prompt": "recall"})).json()
        assert "stream 11 words" in second["response"]
        assert (await first)[-1] == {"type": "done"}


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/query", {}, "prompt"),
        ("/query", {"prompt": "  "}, "prompt"),
        ("/query", {"prompt": "x", "permission_mode": "yolo"}, "permission_mode"),
        ("/query", {"prompt": "x", "allowed_tools": ["("]}, "allowed_tools.0"),
        ("/query", {"prompt": "x" * 400_001}, "prompt"),
        ("/session/start", {"prompt": "x"}, "initial_prompt"),
        ("/session/start", {"initial_prompt": 7}, "initial_prompt"),
    ],
)
async def test_an_invalid_request_is_400_and_names_the_field(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    assert refused(await client.post(path, json=body), 400).startswith(f"{field}: ")


async def test_a_body_that_is_no_json_is_400_and_unknown_fields_do_not_matter(talk: Talk) -> None:
    async with at(talk.owner) as client:
        refused(await client.post("/query", content=b"{", headers={"Content-Type": "application/json"}), 400)
        assert (await client.post(talk.path, json={"prompt": "say hi", "temperature": 1})).status_code == 200


REQUESTS = (
    ("POST", "/query"),
    ("POST", "/session/start"),
    ("POST", "/session/{}/query"),
    ("POST", "/session/{}/interrupt"),
    ("GET", "/session/{}"),
    ("GET", "/sessions"),
    ("DELETE", "/session/{}"),
)
BODY = {"prompt": "say hi", "initial_prompt": "say hi"}


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_every_route_but_health_and_the_root_needs_a_key(fleet: Fleet, key: str | None) -> None:
    async with at(fleet[0], {"Authorization": f"Bearer {key}"} if key else {}) as client:
        for method, path in REQUESTS:
            response = await client.request(method, path.format(uuid4()), json=BODY if method == "POST" else None)
            refused(response, 401)
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/health")).status_code == (401 if key else 200)


async def not_found(client: httpx.AsyncClient, session_id: str) -> None:
    """No request about a session finds this one."""
    for method, path in REQUESTS:
        if "{}" in path:
            response = await client.request(method, path.format(session_id), json=BODY if method == "POST" else None)
            assert refused(response, 404) == "Session not found"


async def test_sessions_that_are_unknown_or_of_another_tenant_are_404(
    fleet: Fleet, talk: Talk, new_key: NewKey
) -> None:
    async with at(fleet[0]) as client, at(fleet[1], await new_key()) as stranger:
        await not_found(client, str(uuid4()))
        await not_found(client, "nonsense")
        await not_found(stranger, talk.session_id)
        assert talk.session_id not in (await stranger.get("/sessions")).json()["active_sessions"]
        assert (await client.get(f"/session/{talk.session_id}")).status_code == 200


async def test_a_run_that_fails_is_500_or_an_error_line_before_done(client: httpx.AsyncClient, talk: Talk) -> None:
    assert "400" in refused(await client.post("/query", json={"prompt": "fail with 400"}), 500)
    *_, error, done = await streamed(client, talk.path, {"prompt": "fail with 400"})
    assert (error["type"], done) == ("error", {"type": "done"})
    assert "400" in error["error"]


async def test_a_session_that_only_plans_closed_while_it_answers_ends_the_stream_in_order_and_is_404(
    fleet: Fleet,
) -> None:
    async with at(fleet[0]) as client, at(fleet[1]) as closing:
        body = {"initial_prompt": "write a.txt: hello", "permission_mode": "plan"}
        started = (await client.post("/session/start", json=body)).json()
        assert "plan mode" in started["initial_response"]
        session_id = started["session_id"]
        since = await last_seq(fleet[0], session_id)
        asked = asyncio.create_task(streamed(client, f"/session/{session_id}/query", {"prompt": "hang after 3 words"}))
        await running(fleet[0], session_id, since)
        assert (await closing.delete(f"/session/{session_id}")).status_code == 200
        *_, error, done = await asked
        assert (error["type"], done) == ("error", {"type": "done"})
        await not_found(client, session_id)


async def test_a_profile_of_the_key_holds_here_too(fleet: Fleet, new_key: NewKey) -> None:
    async with at(fleet[0], await new_key(profiles=["readonly"])) as client:
        refused(await client.post("/query", json={"prompt": "x", "permission_mode": "bypassPermissions"}), 403)
        answer = (await client.post("/query", json={"prompt": "list tools"})).json()
        assert "Bash" not in answer["response"]


# --- without a key, and at the root -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def open_instance(start_lasting_fleet: StartFleet) -> Instance:
    """It has this dialect at its root, and admits callers without a key."""
    given = {"ANONYMOUS_TENANT": "guests", "ANONYMOUS_IN_PRODUCTION": "true", "ROOT_DIALECT": "code_server"}
    return (await start_lasting_fleet(1, RATE_LIMIT_QUERY_PER_MINUTE="3", **given))[0]


@pytest.fixture(scope="module")
async def of_the_owner(open_instance: Instance) -> str:
    """A session of one who has a key, begun at the root."""
    async with httpx.AsyncClient(base_url=open_instance.url, headers=HEADERS, timeout=60, verify=NO_TLS) as client:
        return await start(client, "remember Ada")


async def test_callers_without_a_key_act_for_the_anonymous_tenant_in_dialects_only(
    open_instance: Instance, of_the_owner: str
) -> None:
    assert "anonymous.admitted" in open_instance.log.read_text()
    wrong_key = {"X-API-Key": "wrong"}
    async with at(open_instance, {}) as guest, at(open_instance) as owner, at(open_instance, wrong_key) as wrong:
        session_id = await start(guest, "remember Ada")
        answer = (await guest.post(f"/session/{session_id}/query", json={"prompt": "recall"})).json()
        assert "remember Ada" in answer["response"]
        assert (await guest.get("/health")).json()["active_sessions"] == 1
        assert (await guest.get("/sessions")).json()["active_sessions"] == [session_id]
        refused(await owner.get(f"/session/{session_id}"), 404)
        refused(await wrong.get("/sessions"), 401)
        response = await guest.post(f"/session/{session_id}/query", json={"prompt": "say third"})
        assert response.status_code == 200
        refused(await guest.post("/query", json={"prompt": "say fourth"}), 429)
        response = await owner.post(f"/session/{of_the_owner}/query", json={"prompt": "say hi"})
        assert response.status_code == 200
    async with httpx.AsyncClient(base_url=open_instance.url, verify=NO_TLS) as nobody:
        for path in ("/api/v1/sessions", f"/api/v1/sessions/{session_id}", "/api/v1/admin/keys", "/api/v1/whoami"):
            assert (await nobody.get(path)).status_code == 401, path


async def test_a_dialect_at_the_root_leaves_the_native_api_where_it_is(
    open_instance: Instance, of_the_owner: str
) -> None:
    async with httpx.AsyncClient(base_url=open_instance.url, headers=HEADERS, timeout=60, verify=NO_TLS) as client:
        shaped((await client.get("/health")).json(), HEALTH)
        assert "/query" in (await client.get("/")).json()["endpoints"]
        session_id = of_the_owner
        assert (await client.get("/sessions")).json()["active_sessions"] == [session_id]
        assert (await client.get(f"{PREFIX}/sessions")).json()["active_sessions"] == [session_id]
        assert refused(await client.get(f"/session/{uuid4()}"), 404) == "Session not found"
        assert refused(await client.post("/query", json={}), 400).startswith("prompt: ")
        refused(await client.get("/no/such/path"), 404)

        native = (await client.get(f"/api/v1/sessions/{session_id}")).json()
        assert native["session_id"] == session_id
        assert (await client.get(f"/api/v1/sessions/{uuid4()}")).json()["error"]["code"] == "session_not_found"
        for path in ("/api/v1/health", "/health/ready"):
            assert (await client.get(path)).json()["instance_id"] == open_instance.id
        assert (await client.get("/health/live")).json() == {"status": "ok"}
        assert "/session/start" in (await client.get("/metrics")).text


def test_the_page_about_it_names_every_route() -> None:
    page = (Path(__file__).parents[2] / "docs/code-server.md").read_text(encoding="utf-8")
    for _, path in REQUESTS:
        assert path.replace("{}", "{session_id}") in page, path
