"""Which models a key and a tenant may use: judged when a prompt is sent, and for every call of an agent."""

from __future__ import annotations

from tests.acceptance.test_budgets import BYPASS, limit, poor
from tests.fleet import Fleet

SONNET, OPUS, HAIKU = "claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5"
TASK = (
    'use tool Task {"description": "d", "prompt": "show request", "subagent_type": "general-purpose", "model": "opus",'
    ' "run_in_background": false}'
)


async def test_what_the_agents_program_chooses_by_itself_is_answered_by_the_sessions_model(fleet: Fleet) -> None:
    """A subagent's model that the model has wished for: nobody has judged it, and no call for it is made."""
    body = {"prompt": TASK, "model": SONNET, **BYPASS}
    free = (await fleet[0].post("/query/single", body)).json()
    assert f'"model": "{OPUS}"' in free["result"]
    headers, _ = await poor(fleet, models=[SONNET, "*haiku*"])
    listed = (await fleet[0].post("/query/single", body, headers=headers)).json()
    assert f'"model": "{SONNET}"' in listed["result"]
    assert OPUS not in listed["result"]


async def test_a_list_that_comes_later_ends_what_it_does_not_have(fleet: Fleet) -> None:
    headers, key_id = await poor(fleet, models=[HAIKU])
    session_id = (await fleet[0].post("/sessions", {"model": HAIKU}, headers=headers)).json()["session_id"]
    body = {"session_id": session_id, "prompt": "say hello"}
    assert (await fleet[0].post("/query/single", body, headers=headers)).status_code == 200
    await limit(fleet, key_id, models=[SONNET])
    refused = await fleet[0].post("/query/single", body, headers=headers)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (403, "model_not_permitted")
    assert HAIKU in error["message"]
    await limit(fleet, key_id, models=[HAIKU])
    assert (await fleet[0].post("/query/single", body, headers=headers)).status_code == 200


async def test_what_is_not_listed_is_refused_at_the_door_with_its_field(fleet: Fleet) -> None:
    headers, _ = await poor(fleet, models=[SONNET])
    session_id = (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]
    for path, body in (
        ("/sessions", {"model": OPUS}),
        ("/query/single", {"prompt": "say hello", "model": OPUS}),
        ("/query/single", {"prompt": "say hello", "model": OPUS, "session_id": session_id}),
        (f"/sessions/{session_id}/control", {"model": OPUS}),
    ):
        refused = await fleet[0].post(path, body, headers=headers)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (403, "model_not_permitted"), path
        assert error["details"]["errors"][0]["field"] == "model"
    body = {"agents": {"helper": {"description": "d", "prompt": "p", "model": HAIKU}}}
    error = (await fleet[0].post("/sessions", body, headers=headers)).json()["error"]
    assert error["details"]["errors"][0]["field"] == "agents.helper.model"
