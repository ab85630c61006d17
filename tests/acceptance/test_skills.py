"""Skills and slash commands: stored through one instance, used by agents of another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.conftest import NewKey
from tests.fleet import Fleet, Instance, Shared
from tests.world import until

BYPASS = {"permission_mode": "bypassPermissions"}
REPORT = {
    "description": "Writes: \"reports\" #1 – 'für alle'",
    "content": "say the skill speaks",
    "files": {"more/style.md": "be brief"},
}


async def put(instance: Instance, path: str, body: dict[str, Any]) -> httpx.Response:
    return await instance.client.put(f"/api/v1{path}", json=body)


@pytest.fixture(scope="module")
async def skills(fleet: Fleet) -> AsyncIterator[None]:
    """The tenant's own skills `report` and `unlisted`, and command `greet`."""
    assert (await put(fleet[0], "/skills/report", REPORT)).status_code == 201
    unlisted = {"description": "Speaks", "content": "say the other skill speaks"}
    assert (await put(fleet[0], "/skills/unlisted", unlisted)).status_code == 201
    greet = {"description": "Greets", "content": "say hello $ARGUMENTS"}
    assert (await put(fleet[1], "/commands/greet", greet)).status_code == 201
    yield
    for path in ("/skills/report", "/skills/unlisted", "/commands/greet"):
        assert (await fleet[2].client.delete(f"/api/v1{path}")).status_code == 204


async def listed(instance: Instance, path: str) -> dict[str, dict[str, Any]]:
    return {row["qualified_name"]: row for row in (await instance.get(path)).json()["data"]}


async def test_the_image_and_the_tenant_are_both_listed_with_descriptions(fleet: Fleet, skills: None) -> None:
    async def filled() -> bool:
        return "verify" in await listed(fleet[2], "/skills")

    await until(filled)
    offered, commands = await listed(fleet[2], "/skills"), await listed(fleet[1], "/commands")
    assert offered["tenant:report"]["source"] == "tenant"
    assert offered["tenant:report"]["description"] == REPORT["description"]
    assert offered["verify"]["source"] == "image"
    assert offered["verify"]["description"]
    assert commands["tenant:greet"]["source"] == "tenant"
    assert commands["compact"]["source"] == "image"
    assert not offered.keys() & commands.keys()


async def test_a_session_on_another_instance_is_given_the_skills_that_are_listed_in_the_option_and_no_other(
    fleet: Fleet, skills: None
) -> None:
    session_id = await fleet[1].session(skills=["tenant:report", "verify"], permission_mode="dontAsk")
    run_id = await fleet[2].prompt(session_id, 'use tool Skill {"skill": "tenant:report"}')
    events = await fleet[0].follow(run_id)
    init = next(e.data for e in events if e.event == "init")
    assert "tenant:report" in init["skills"]
    assert "tenant:greet" in init["commands"]
    assert "Skill" in init["tools"]
    result = next(e.data for e in events if e.event == "result")
    assert "the skill speaks" in result["result"]
    answer = await fleet[1].ask(session_id, 'use tool Skill {"skill": "tenant:unlisted"}')
    assert "the other skill speaks" not in answer["result"]


async def test_the_agent_can_read_its_skills_and_not_write_them(shared: Shared, skills: None) -> None:
    fleet, session_id = shared.fleet, await shared.of(skills="all", **BYPASS)
    await fleet[1].ask(
        session_id,
        "run cd $TMPDIR/../given/plugin && cat skills/report/more/style.md &&"
        " echo x >> skills/report/SKILL.md; mkdir hooks; ls",
    )
    said = (await fleet[2].get(f"/sessions/{session_id}/messages")).text
    assert "be brief" in said
    assert said.count("Permission denied") + said.count("Read-only file system") >= 2  # the latter in namespaces


async def test_the_agents_of_another_tenant_are_not_given_them(shared: Shared, skills: None, new_key: NewKey) -> None:
    fleet = shared.fleet
    ours = await init_of(fleet[1], await shared.of(skills="all", **BYPASS))
    assert "tenant:report" in ours["skills"]
    async with stranger(fleet, await new_key()) as theirs:
        init = await init_of(theirs, await theirs.session(skills="all"))
        assert not [name for name in (*init["skills"], *init["commands"]) if name.startswith("tenant:")]
        assert not [name for name in await listed(theirs, "/skills") if name.startswith("tenant:")]


@asynccontextmanager
async def stranger(fleet: Fleet, headers: dict[str, str]) -> AsyncIterator[Instance]:
    """An instance as a client of another tenant sees it."""
    async with httpx.AsyncClient(base_url=fleet[1].url, headers=headers, timeout=60) as client:
        yield replace(fleet[1], client=client)


async def init_of(instance: Instance, session_id: str) -> dict[str, Any]:
    events = await instance.follow(await instance.prompt(session_id, "say hello"))
    return next(e.data for e in events if e.event == "init")


async def test_unknown_skills_are_refused_when_the_request_arrives(fleet: Fleet) -> None:
    answer = await fleet[0].post("/sessions", {"skills": ["tenant:nothing"]})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["errors"][0]["field"] == "skills"
    assert "tenant:nothing" in answer.text
