"""Agents reach the model through their instance alone, which holds the credential and counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.demo_model.server import serving
from tests.clouds import Bedrock, Cloud, Vertex
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
            counted = sum(row["cost_usd"] for row in mine)
            assert counted == pytest.approx(float(result["total_cost_usd"]))
            assert counted > 0
        told = (await fleet[0].get(f"/usage?group_by=session&session_id={session_id}")).json()["totals"]
        assert float(told["cost_usd"]) == pytest.approx(sum(row["cost_usd"] for row in rows))
        assert {str(row["session_id"]) for row in rows} == {session_id}
    told = (await fleet[0].client.get("/metrics")).text
    assert f'claude_agent_api_model_calls_total{{kind="messages",status="200"}} {len(rows)}.0' in told
    assert f'claude_agent_api_model_call_first_byte_seconds_count{{kind="messages"}} {len(rows)}.0' in told
    assert f'claude_agent_api_model_tokens_total{{kind="output"}} {sum(row["output_tokens"] for row in rows)}.0' in told
    assert "claude_agent_api_model_cost_differences_total{" not in told
    assert "claude_agent_api_model_calls_unpriced_total 0.0" in told


async def test_an_answer_that_is_cut_off_counts_what_came_of_it(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1)
    session_id = (await fleet[0].post("/sessions", BYPASS)).json()["session_id"]
    run_id = await fleet[0].prompt(session_id, "stream 2000 words every 20 ms")
    pieces = 0
    async with fleet[0].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            pieces += event.event == "partial"
            if pieces == 10:
                await fleet[0].post(f"/runs/{run_id}/cancel")
    async with database_of(fleet) as db:
        [row] = await db.pool.fetch("SELECT * FROM model_calls WHERE run_id = $1", UUID(run_id))
    assert not row["complete"]
    assert 8 <= row["output_tokens"] < 2000
    assert row["cost_usd"] > 0
    assert "claude_agent_api_model_cost_differences_total{" not in (await fleet[0].client.get("/metrics")).text


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


NOTHING_ELSE = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_BASE_URL": ""}


async def asked_in_the_cloud(start_fleet: StartFleet, cloud: Cloud, **settings: str) -> None:
    """Ask an agent, which knows nothing of clouds."""
    fleet = await start_fleet(1, **settings)
    session_id = (await fleet[0].post("/sessions", BYPASS)).json()["session_id"]
    result = await fleet[0].ask(session_id, "run env | grep -c -e AWS_ -e GOOGLE_ -e CLAUDE_CODE_USE_; echo counted")
    assert "0\ncounted" in result["result"], cloud.refused
    assert cloud.refused == []
    async with database_of(fleet) as db:
        rows = await db.pool.fetch("SELECT * FROM model_calls WHERE kind = 'messages'")
    assert len(rows) == len(cloud.asked) >= 2
    assert all(row["complete"] and row["status"] == 200 for row in rows)
    assert sum(row["output_tokens"] for row in rows) == result["usage"]["output_tokens"]
    betas = [beta for asked in cloud.asked for beta in asked.body.get("anthropic_beta", ())]
    betas += [beta for asked in cloud.asked for beta in asked.headers.get("anthropic-beta", "").split(",")]
    assert not any("context-management" in beta for beta in betas)
    assert not any("context_management" in asked.body for asked in cloud.asked)


async def test_an_agent_is_answered_by_bedrock(start_fleet: StartFleet) -> None:
    cloud = Bedrock({"eu.anthropic.claude-sonnet-5-5-v1:0": "claude-sonnet-5-5"})
    with serving(cloud.wrap) as url:
        await asked_in_the_cloud(
            start_fleet,
            cloud,
            CLAUDE_CODE_USE_BEDROCK="1",
            AWS_REGION=cloud.region,
            AWS_ACCESS_KEY_ID=cloud.key,
            AWS_SECRET_ACCESS_KEY=cloud.secret,
            ANTHROPIC_BEDROCK_BASE_URL=url,
            CLOUD_MODEL_IDS="claude-sonnet-5-5=eu.anthropic.claude-sonnet-5-5-v1:0",
            **NOTHING_ELSE,
        )


async def test_an_agent_is_answered_by_vertex(start_fleet: StartFleet, tmp_path: Path) -> None:
    cloud, file = Vertex({"claude-sonnet-5-5": "claude-sonnet-5-5"}), tmp_path / "account.json"
    with serving(cloud.wrap) as url:
        file.write_text(json.dumps(cloud.credentials(url)))
        await asked_in_the_cloud(
            start_fleet,
            cloud,
            CLAUDE_CODE_USE_VERTEX="1",
            CLOUD_ML_REGION=cloud.region,
            ANTHROPIC_VERTEX_PROJECT_ID=cloud.project,
            ANTHROPIC_VERTEX_BASE_URL=f"{url}/v1",
            GOOGLE_APPLICATION_CREDENTIALS=str(file),
            **NOTHING_ELSE,
        )
