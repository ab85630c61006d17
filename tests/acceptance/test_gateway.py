"""Agents reach the model through their instance alone, which holds the credential and counts."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from tests.conftest import StartFleet, database_of, make_key
from tests.recorder import Recorder

BYPASS = {"permission_mode": "bypassPermissions"}


async def test_what_the_gateway_counted_is_what_the_session_is_told(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    session_id = (await fleet[0].post("/sessions", BYPASS)).json()["session_id"]
    results = [await fleet[0].ask(session_id, prompt) for prompt in ("say hello", "run echo one two three")]
    async with database_of(fleet) as db:

        async def calls() -> list[Any]:
            return list(await db.pool.fetch("SELECT * FROM model_calls WHERE kind = 'messages' ORDER BY id"))

        rows = await calls()
        names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        for result in results:
            mine = [row for row in rows if str(row["run_id"]) == result["run_id"]]
            assert mine
            assert all(row["complete"] and row["status"] == 200 and row["api_key_id"] for row in mine)
            for name in names:
                assert sum(row[name] for row in mine) == result["usage"][name], name
        assert {str(row["session_id"]) for row in rows} == {session_id}
    told = (await fleet[0].client.get("/metrics")).text
    assert f'model_calls_total{{kind="messages",status="200"}} {len(rows)}.0' in told
    assert f'model_call_first_byte_seconds_count{{kind="messages"}} {len(rows)}.0' in told
    assert f'model_tokens_total{{kind="output"}} {sum(row["output_tokens"] for row in rows)}.0' in told


async def test_an_agent_that_shows_its_token_around_has_shown_nothing_of_the_servers(start_fleet: StartFleet) -> None:
    """It may ask what its own process may, and no longer than that lives."""
    fleet = await start_fleet(1)
    session_id = (await fleet[0].post("/sessions", BYPASS)).json()["session_id"]
    said = (await fleet[0].ask(session_id, "run env | sort; echo $ANTHROPIC_BASE_URL/v1/models"))["result"]
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:" in said
    assert fleet.env["ANTHROPIC_API_KEY"] not in said
    assert fleet.env["ANTHROPIC_BASE_URL"] not in said
    said = (
        await fleet[0].ask(
            session_id,
            "run curl -s -o /dev/null -w 'got %{http_code}' -XPOST -d{} $ANTHROPIC_BASE_URL/v1/messages"
            f" -H 'x-api-key: {fleet.env['ANTHROPIC_API_KEY']}'",
        )
    )["result"]
    assert "got 401" in said


async def test_a_gateway_that_takes_a_bearer_token_is_asked_with_one(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, ANTHROPIC_API_KEY="", ANTHROPIC_AUTH_TOKEN="a-token-of-litellm")
    session_id = (await fleet[0].post("/sessions", {})).json()["session_id"]
    assert (await fleet[0].ask(session_id, "say hello"))["result"].endswith("hello")


async def test_each_tenant_has_its_own_credential_or_none(start_fleet: StartFleet, recorded: Recorder) -> None:
    fleet = await start_fleet(1, TENANT_MODEL_CREDENTIALS="required")
    name = f"own-{uuid4().hex}"
    async with database_of(fleet) as db:
        headers = await make_key(db, name)
    path = f"/api/v1/admin/tenants/{name}/model-credential"
    assert (await fleet[0].client.put(path, json={"auth_token": "a-token-of-theirs"})).status_code == 200
    before = recorded.count
    body = {"prompt": "say hello"}
    theirs = (await fleet[0].post("/query/single", body, headers=headers)).json()
    assert theirs["status"] == "succeeded"
    async with database_of(fleet) as db:
        conversation = await db.pool.fetchval(
            "SELECT sdk_session_id FROM sessions WHERE id = $1", UUID(theirs["session_id"])
        )
    asked = recorded.of(str(conversation), before)
    assert asked
    assert {a.headers["authorization"] for a in asked} == {"Bearer a-token-of-theirs"}
    assert not any("x-api-key" in a.headers for a in asked)
    refused = await fleet[0].post("/query/single", body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_credential_missing")
