"""The WebSocket: many sessions on one connection, whichever instance owns them."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from apps.api.dialects.native.ws import MAX_STREAMS
from apps.api.settings import Settings
from tests.conftest import StartFleet
from tests.fleet import API_KEY, Fleet, Instance, Shared
from tests.proxy import redis_proxy
from tests.sockets import Message, open_socket

ASKING = {"permission_mode": "default", "tools": ["Bash", "Write", "AskUserQuestion"]}
COMMAND = "run touch made.txt && echo made"


async def owned_elsewhere(shared: Shared) -> tuple[str, Instance, Instance]:
    """A session, its owner, and another instance."""
    session_id = await shared.of(**ASKING)
    owner = await shared.fleet.owner_of(session_id)
    return session_id, owner, (await shared.fleet.others(owner))[0]


async def newest(instance: Instance, session_id: str) -> str:
    """The position of the newest event."""
    return str((await instance.get(f"/sessions/{session_id}")).json()["last_seq"])


async def made_key(instance: Instance, **fields: Any) -> dict[str, str]:
    """The header of a new key."""
    made = await instance.post("/admin/keys", {"tenant": "default", "name": "of a WebSocket", **fields})
    assert made.status_code == 201, made.text
    return {"X-API-Key": made.json()["secret"]}


async def stored(instance: Instance, session_id: str, after: str = "0") -> list[dict[str, Any]]:
    path = f"/sessions/{session_id}/events?limit=200&after={after}"
    data: list[dict[str, Any]] = (await instance.get(path, headers={"Accept": "application/json"})).json()["data"]
    return data


def ids(events: list[Message]) -> list[str]:
    return [event["id"] for event in events if event["event"] != "partial"]


async def test_two_prompts_run_on_one_connection_the_first_in_a_new_session(shared: Shared) -> None:
    session_id = await shared.of(**ASKING)
    async with open_socket(shared.fleet[0]) as socket:
        runs = [await socket.ask("prompt", prompt="say one")]
        runs.append(await socket.ask("prompt", prompt="say two", session_id=session_id))
        assert runs[0]["session_id"] != runs[1]["session_id"] == session_id
        for run, word in zip(runs, ("one", "two"), strict=True):
            assert (await socket.of_run(run["run_id"]))["data"]["status"] == "succeeded"
            result = await socket.of_run(run["run_id"], "result")
            assert result["data"]["result"].endswith(word)
            assert result["data"]["session_id"] == run["session_id"]


async def test_prompts_of_one_session_come_one_after_the_other_each_once(shared: Shared) -> None:
    session_id, _, other = await owned_elsewhere(shared)
    before = await newest(other, session_id)
    async with open_socket(other) as socket:
        first, second = [await socket.ask("prompt", prompt=f"say {n}", session_id=session_id) for n in (1, 2)]
        await socket.of_run(second["run_id"])
        assert {e["data"]["run_id"] for e in socket.events} == {first["run_id"], second["run_id"]}
        await socket.of_run(first["run_id"])
        runs = {first["run_id"], second["run_id"]}
        theirs = [e["id"] for e in await stored(other, session_id, before) if e["data"]["run_id"] in runs]
        assert sorted(ids(socket.events), key=int) == theirs


async def test_frames_are_those_of_sse_byte_for_byte(shared: Shared) -> None:
    session_id, owner, other = await owned_elsewhere(shared)
    async with open_socket(other) as socket:
        raw: list[str] = []
        run = await socket.ask("prompt", prompt="stream 5 words", session_id=session_id)
        while not raw or '"event":"done"' not in raw[-1]:
            raw.append(str(await socket.connection.recv()))
    sent = await owner.get(f"/runs/{run['run_id']}/events")
    frames = [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in sent.text.split("\n\n")[1:-1]]
    assert raw == [f'{{"id":"{frame["id"]}","event":"{frame["event"]}","data":{frame["data"]}}}' for frame in frames]
    assert any('"event":"partial"' in text for text in raw)


async def test_a_run_is_interrupted_from_another_instance_inside_of_its_stream(shared: Shared) -> None:
    session_id, _, other = await owned_elsewhere(shared)
    async with open_socket(other) as socket:
        run = await socket.ask("prompt", prompt="stream 2000 words slowly", session_id=session_id)
        await socket.of_run(run["run_id"], "partial")
        assert (await socket.ask("interrupt", session_id=session_id))["status"] == "applied"
        assert (await socket.of_run(run["run_id"]))["data"]["status"] == "interrupted"
        assert await socket.refused("interrupt", session_id=session_id) == (409, "no_live_run")


async def test_a_permission_is_decided_and_a_question_answered_inside(shared: Shared) -> None:
    session_id, _, other = await owned_elsewhere(shared)
    async with open_socket(other) as socket:
        run = await socket.ask("prompt", prompt=COMMAND, session_id=session_id)
        request = (await socket.of_run(run["run_id"], "permission_request"))["data"]
        asked = {"session_id": session_id, "request_id": request["request_id"]}
        assert (await socket.refused("answer", **asked, decision="maybe"))[0] == 422
        assert (await socket.ask("answer", **asked, decision="allow"))["status"] == "applied"
        assert "made" in (await socket.of_run(run["run_id"], "result"))["data"]["result"]
        assert await socket.refused("answer", **asked, decision="deny") == (409, "request_resolved")
        run = await socket.ask("prompt", prompt="ask Which colour? options red, blue", session_id=session_id)
        await socket.of_run(run["run_id"], "question")
        await socket.ask("answer", session_id=session_id, answers={"Which colour?": "blue"})
        assert "blue" in (await socket.of_run(run["run_id"], "result"))["data"]["result"]


async def test_the_agent_is_changed_inside(shared: Shared) -> None:
    session_id, _, other = await owned_elsewhere(shared)
    async with open_socket(other) as socket:
        assert await socket.refused("control", session_id=session_id) == (422, "validation_error")
        for mode in ("acceptEdits", "default"):
            changed = await socket.ask("control", session_id=session_id, permission_mode=mode)
            assert changed["status"] == "applied"
            assert (await other.get(f"/sessions/{session_id}")).json()["permission_mode"] == mode


async def test_a_connection_that_was_cut_goes_on_elsewhere_without_gap_or_repeat(shared: Shared) -> None:
    session_id, owner, other = await owned_elsewhere(shared)
    async with open_socket(other) as socket:
        run = await socket.ask("prompt", prompt="stream 40 words slowly then say over", session_id=session_id)
        await socket.of_run(run["run_id"], "partial")
        seen = socket.events
        socket.connection.transport.abort()
    async with open_socket(owner) as socket:
        last = seen[-1]["id"]
        assert await socket.ask("follow", session_id=session_id, after=last) == {
            "session_id": session_id,
            "after": last,
        }
        await socket.of_run(run["run_id"])
        before = str(int(seen[0]["id"].partition("-")[0]) - 1)
        assert ids(seen) + ids(socket.events) == [e["id"] for e in await stored(owner, session_id, before)]
        deltas = [e["data"]["delta"]["text"] for e in seen + socket.events if e["event"] == "partial"]
        assert "".join(deltas).count("word40") == 1, "deltas are neither lost nor repeated while they are live"


async def test_a_followed_session_shows_every_event_once_and_that_it_is_deleted(fleet: Fleet) -> None:
    session_id, owner, other = await owned_elsewhere(Shared(fleet))
    async with open_socket(other) as socket:
        await socket.ask("follow", session_id=session_id)
        inside = await socket.ask("prompt", prompt="say inside", session_id=session_id)
        await socket.of_run(inside["run_id"])
        outside = await owner.prompt(session_id, "say outside")
        await socket.of_run(outside)
        assert ids(socket.events) == [e["id"] for e in await stored(other, session_id)]
        assert await socket.ask("unfollow", session_id=session_id) == {"session_id": session_id, "followed": True}
        assert await socket.ask("unfollow", session_id=session_id) == {"session_id": session_id, "followed": False}
        socket.events.clear()
        await socket.ask("follow", session_id=session_id, run_id=outside)
        await socket.of_run(outside)
        assert {e["data"]["run_id"] for e in socket.events} == {outside}
        socket.events.clear()
        await socket.ask("follow", session_id=session_id, after="1")
        assert (await owner.client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
        told = await socket.event(lambda e: e["event"] == "error")
        assert (told["id"], told["data"]["code"]) == (None, "session_deleted")
        assert (await socket.reply(await socket.send("ping")))["type"] == "pong"


async def test_a_position_beyond_the_end_is_answered_with_resync(shared: Shared) -> None:
    session_id, _, other = await owned_elsewhere(shared)
    async with open_socket(other) as socket:
        await socket.ask("follow", session_id=session_id, after="999999")
        assert (await socket.event(lambda e: True))["event"] == "resync"
        assert socket.events[0]["id"] == await newest(other, session_id)


async def test_a_run_that_is_to_end_with_its_client_does(shared: Shared) -> None:
    session_id, owner, other = await owned_elsewhere(shared)
    hang = {"prompt": "hang", "session_id": session_id}
    async with open_socket(other) as socket:
        goes = await socket.ask("prompt", **hang, on_disconnect="interrupt")
        stays = await socket.ask("prompt", **hang, on_disconnect="continue")
        await socket.of_run(goes["run_id"], "init")
        socket.connection.transport.abort()
    assert (await owner.follow(goes["run_id"]))[-1].data["status"] == "interrupted"
    assert (await owner.get(f"/runs/{stays['run_id']}")).json()["status"] in ("queued", "running")
    await owner.post(f"/runs/{stays['run_id']}/cancel")


async def test_an_idempotency_key_means_the_same_over_http(shared: Shared) -> None:
    fleet, prompt = shared.fleet, {"prompt": "say once", "session_id": await shared.of(**ASKING)}
    async with open_socket(fleet[0]) as socket:
        run = await socket.ask("prompt", **prompt, idempotency_key="ws-once")
        again = await socket.ask("prompt", **prompt, idempotency_key="ws-once")
        assert again == run
        await socket.of_run(run["run_id"])
        other = await socket.refused("prompt", prompt="say twice", idempotency_key="ws-once")
        assert other == (409, "idempotency_key_reused")
    sent = await fleet[1].post("/query", prompt, headers={"Idempotency-Key": "ws-once"})
    assert sent.headers["X-Run-ID"] == run["run_id"]


async def test_prompts_count_against_the_keys_limit(shared: Shared) -> None:
    fleet, of = shared.fleet, {"session_id": await shared.of(**ASKING)}
    key = await made_key(fleet[0], limits={"runs_per_minute": 2})
    async with open_socket(fleet[0], key) as socket:
        await socket.ask("prompt", prompt="say one", **of)
        assert (await fleet[1].post("/query/single", {"prompt": "say two", **of}, headers=key)).status_code == 200
        reply = await socket.reply(await socket.send("prompt", prompt="say three", **of))
        assert (reply["status"], reply["error"]["code"]) == (429, "rate_limited")
        assert reply["error"]["details"]["retry_after_seconds"] > 0


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"X-API-Key": API_KEY}, {"Authorization": f"Bearer {API_KEY}"}])
async def test_the_key_comes_in_a_header(fleet: Fleet, headers: dict[str, str]) -> None:
    async with open_socket(fleet[0], headers) as socket:
        assert (await socket.reply(await socket.send("ping")))["type"] == "pong"
        assert socket.connection.response is not None
        assert socket.connection.response.headers["X-Request-ID"]


async def test_the_key_comes_in_the_first_message(fleet: Fleet) -> None:
    async with open_socket(fleet[0], {}) as socket:
        assert await socket.ask("auth", api_key=API_KEY) == {}
        assert (await socket.refused("auth", api_key=API_KEY)) == (400, "unknown_message")
        assert (await socket.reply(await socket.send("ping")))["type"] == "pong"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type": "auth", "api_key": "no-such-key-of-anybody"}', "invalid_api_key"),
        ('{"type": "auth", "api_key": "half \\ud800 of a pair"}', "validation_error"),
        ('{"type": "auth", "api_key": "\\u0000"}', "invalid_api_key"),
        ('{"type": "auth"}', "validation_error"),
        ('{"type": "ping"}', "authentication_required"),
        ("not json", "invalid_json"),
        (b"binary", "bad_request"),
    ],
)
async def test_a_first_message_without_a_valid_key_ends_the_connection(
    fleet: Fleet, first: str | bytes, code: str
) -> None:
    async with open_socket(fleet[0], {}) as socket:
        await socket.connection.send(first)
        assert (await socket.read())["error"]["code"] == code
        assert await socket.closed() == 4401


async def test_a_handshake_with_a_wrong_key_is_refused_as_over_http(fleet: Fleet) -> None:
    for key in ("no-such-key-of-anybody", "ÿ" * 20):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(fleet[0], {"X-API-Key": key}):
                pass
        answer = refused.value.response
        assert answer.status_code == 401
        assert orjson.loads(answer.body or b"")["error"]["code"] == "invalid_api_key"
        assert answer.headers["X-Request-ID"]


async def test_a_key_in_the_address_is_not_read(fleet: Fleet) -> None:
    async with open_socket(fleet[0], {}, f"?api_key={API_KEY}&token={API_KEY}") as socket:
        assert (await socket.refused("ping"))[0] == 401
        assert await socket.closed() == 4401


async def test_other_tenants_sessions_do_not_exist(fleet: Fleet) -> None:
    session_id = await fleet[0].session()
    assert (await fleet[0].post("/admin/tenants", {"name": "ws-strangers"})).status_code == 201
    messages: dict[str, dict[str, Any]] = {
        "follow": {},
        "interrupt": {},
        "control": {"model": "claude-x"},
        "prompt": {"prompt": "hi"},
        "answer": {"request_id": session_id, "decision": "allow"},
    }
    async with open_socket(fleet[1], await made_key(fleet[0], tenant="ws-strangers")) as socket:
        for kind, more in messages.items():
            status, code = await socket.refused(kind, session_id=session_id, **more)
            assert (status, code.endswith("_not_found")) == (404, True), kind


async def test_a_key_may_do_what_its_scopes_allow(fleet: Fleet) -> None:
    session_id = await fleet[0].session()
    async with open_socket(fleet[0], await made_key(fleet[0], scopes=["read"])) as socket:
        await socket.ask("follow", session_id=session_id)
        assert await socket.refused("prompt", prompt="say no") == (403, "insufficient_scope")
        assert await socket.refused("interrupt", session_id=session_id) == (403, "insufficient_scope")


async def test_a_revoked_key_ends_its_connections(fleet: Fleet) -> None:
    key = await made_key(fleet[0])
    async with open_socket(fleet[1], key) as socket:
        key_id = (await fleet[1].get("/whoami", headers=key)).json()["key_id"]
        assert (await fleet[0].post(f"/admin/keys/{key_id}/revoke")).status_code == 200
        await socket.send("ping")
        assert await socket.closed() == 4401


# --- what clients send ---------------------------------------------------------------------------------------------

HOSTILE: list[tuple[str | bytes, str]] = [
    ("", "invalid_json"),
    ("not json", "invalid_json"),
    ("[" * 100_000, "invalid_json"),
    ("9" * 10_000, "invalid_json"),
    ("[]", "bad_request"),
    ("null", "bad_request"),
    ('"text"', "bad_request"),
    ("{}", "bad_request"),
    ('{"type": 1}', "bad_request"),
    ('{"type": {"type": "ping"}}', "bad_request"),
    ('{"type": "no such thing"}', "unknown_message"),
    ('{"type": "\\ud800"}', "unknown_message"),
    ('{"type": "ping", "ref": 7}', "validation_error"),
    ('{"type": "ping", "ref": "\\udfff"}', "validation_error"),
    ('{"type": "ping", "what": 1}', "validation_error"),
    ('{"type": "prompt"}', "validation_error"),
    ('{"type": "prompt", "prompt": "hi", "session_id": "x"}', "validation_error"),
    ('{"type": "prompt", "prompt": "hi", "timeout_seconds": NaN}', "validation_error"),
    ('{"type": "prompt", "prompt": "hi", "idempotency_key": "a b"}', "validation_error"),
    ('{"type": "prompt", "prompt": "hi", "surprise": true}', "validation_error"),
    ('{"type": "follow"}', "validation_error"),
    ('{"type": "follow", "session_id": "6975080a-2ab1-4c32-b91d-3c7dd095a62a"}', "session_not_found"),
    ('{"type": "follow", "session_id": "6975080a-2ab1-4c32-b91d-3c7dd095a62a", "after": "-1"}', "validation_error"),
    ('{"type": "answer", "session_id": []}', "validation_error"),
    ('{"type": "control", "session_id": "6975080a-2ab1-4c32-b91d-3c7dd095a62a", "model": {}}', "validation_error"),
    (b"\x00\xff", "bad_request"),
]


async def test_whatever_a_client_sends_gets_a_clear_error_and_the_connection_goes_on(fleet: Fleet) -> None:
    async with open_socket(fleet[0]) as socket:
        for message, code in HOSTILE:
            await socket.connection.send(message)
            told = await socket.read()
            assert (told["type"], told.get("error", {}).get("code")) == ("error", code), message[:80]
            assert told["status"] < 500
        assert (await socket.reply(await socket.send("ping")))["type"] == "pong"


async def test_half_of_a_character_is_a_prompt_like_any_other(shared: Shared) -> None:
    session_id = await shared.of(**ASKING)
    async with open_socket(shared.fleet[0]) as socket:
        of = f'"session_id": "{session_id}"'
        await socket.connection.send(f'{{"type": "prompt", "ref": "half", {of}, "prompt": "say \\ud800"}}')
        run = (await socket.reply("half"))["result"]
        await socket.of_run(run["run_id"])


async def test_a_message_that_is_too_large_or_no_text_ends_the_connection(fleet: Fleet) -> None:
    async with open_socket(fleet[0]) as socket:
        with suppress(ConnectionClosed):  # the server does not wait for the end of it
            await socket.send("prompt", prompt="x" * Settings.model_fields["max_body_bytes"].default)
        assert await socket.closed() == 1009
    async with open_socket(fleet[0]) as socket:
        await socket.connection.send(b"\xff\xfe", text=True)
        assert await socket.closed() == 1007
    assert (await fleet[0].get("/whoami")).status_code == 200


async def test_a_connection_follows_so_many_and_no_more(fleet: Fleet) -> None:
    session_ids = [await fleet[0].session() for _ in range(MAX_STREAMS + 1)]
    async with open_socket(fleet[1]) as socket:
        for session_id in session_ids[:-1]:
            await socket.ask("follow", session_id=session_id)
        assert await socket.refused("follow", session_id=session_ids[-1]) == (429, "too_many_streams")
        assert await socket.refused("prompt", prompt="say no") == (429, "too_many_streams")
        await socket.ask("unfollow", session_id=session_ids[0])
        await socket.ask("follow", session_id=session_ids[-1])


# --- the server stops ----------------------------------------------------------------------------------------------


async def test_a_stopping_instance_lets_runs_finish_and_closes_in_order(start_fleet: StartFleet) -> None:
    """Also where Redis brings the end of a run late."""
    fleet = await start_fleet(0)
    direct = Settings(_env_file=None, redis_url=fleet.env["REDIS_URL"])
    async with redis_proxy(direct) as (redis, through), AsyncExitStack() as stack:
        await fleet.start(1, REDIS_URL=through.redis_url.get_secret_value())
        stack.push_async_callback(fleet[0].ended)
        await fleet.start(1)
        assert "claude_agent_api_websockets_open 0.0" in (await fleet[0].client.get("/metrics")).text
        session_id = await fleet[0].session()
        await fleet[0].ask(session_id, "say first")
        async with open_socket(fleet[0]) as idle, open_socket(fleet[0]) as busy:
            await idle.ask("follow", session_id=session_id)
            prompt = {"prompt": "stream 20 words slowly", "session_id": session_id, "on_disconnect": "interrupt"}
            run = await busy.ask("prompt", **prompt)
            await busy.of_run(run["run_id"], "partial")
            assert "claude_agent_api_websockets_open 2.0" in (await fleet[0].client.get("/metrics")).text
            redis.delay, redis.delayed = 0.3, b"message"
            fleet[0].signal(signal.SIGTERM)
            assert await idle.closed() == 1012
            assert (await busy.of_run(run["run_id"]))["data"]["status"] == "succeeded"
            assert await busy.closed() == 1012
    async with open_socket(fleet[1]) as socket:
        await socket.ask("follow", session_id=session_id, after=idle.events[-1]["id"])
        await socket.of_run(run["run_id"])
        assert ids(idle.events) + ids(socket.events) == [e["id"] for e in await stored(fleet[1], session_id)]
    written = fleet[0].log.read_text()
    assert '"path": "/api/v1/query/ws", "status": 101, "closed": 1012' in written
    assert API_KEY not in written
