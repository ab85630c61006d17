"""Forks, checkpoints and rewinds of sessions that a key may not use."""

from __future__ import annotations

from uuid import uuid4

import httpx

from tests.fleet import Fleet
from tests.web.test_admin import as_key, key


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_other_tenants_find_nothing_to_fork_or_to_rewind(fleet: Fleet) -> None:
    session_id = await fleet[0].session(enable_file_checkpointing=True)
    run_id = (await fleet[0].ask(session_id, "say hello"))["run_id"]
    headers = as_key((await key(fleet))["secret"])
    answers = [
        await fleet[1].post(f"/sessions/{session_id}/fork", {}, headers=headers),
        await fleet[1].post(f"/sessions/{session_id}/rewind", {"checkpoint_id": run_id}, headers=headers),
        await fleet[1].get(f"/sessions/{session_id}/checkpoints", headers=headers),
    ]
    assert [refusal(answer) for answer in answers] == [(404, "session_not_found")] * 3


async def test_a_fork_keeps_preset_and_profile_and_its_key_must_be_allowed_the_profile(fleet: Fleet) -> None:
    name = f"fork-{uuid4().hex[:8]}"
    made = await fleet[0].post("/agents", {"name": name, "profile": "readonly", "model": "claude-haiku-5-5"})
    assert made.status_code == 201, made.text
    session_id = await fleet[0].session(agent=name)
    answer = await fleet[1].post(f"/sessions/{session_id}/fork", {"max_turns": 3})
    assert answer.status_code == 201, answer.text
    child = answer.json()
    assert (child["agent"]["name"], child["profile"], child["model"]) == (name, "readonly", "claude-haiku-5-5")
    assert child["config"]["max_turns"] == 3
    path = f"/sessions/{session_id}/fork"
    for body, status in (({"permission_mode": "bypassPermissions"}, 403), ({"agent": "other"}, 422)):
        assert (await fleet[2].post(path, body)).status_code == status
    tenant = (await fleet[0].get("/whoami")).json()["tenant"]
    bound = as_key((await key(fleet, tenant=tenant, profiles=["dev"]))["secret"])
    assert refusal(await fleet[2].post(path, {}, headers=bound)) == (403, "profile_not_permitted")
