"""Skills and commands of tenants, and the catalog."""

from __future__ import annotations

import asyncio

import pytest

from apps.api.core.config.agent import AgentConfig
from apps.api.core.tenant import skills
from apps.api.core.tenant.skills import BODY, Kind, Skill
from apps.api.errors import ApiError, Conflict, NotFound
from tests.world import World


def skill(name: str = "report", kind: Kind = "skill") -> Skill:
    return Skill(kind, name, "about it", {BODY: "do it"})


async def test_another_tenants_skill_is_not_found_not_listed_and_not_given(world: World) -> None:
    await skills.put(world.db, world.tenant_id, skill())
    stranger = await world.other_tenant()
    with pytest.raises(NotFound):
        await skills.get(world.db, stranger, "skill", "report")
    with pytest.raises(NotFound):
        await skills.delete(world.db, stranger, "skill", "report")
    assert await skills.own(world.db, stranger) == []
    assert all(row["source"] == "image" for row in await skills.offered(world.db, stranger, "skill"))
    assert await skills.own(world.db, world.tenant_id) == [skill()]
    named = AgentConfig(skills=["tenant:report"])
    assert [problem.field for problem in await skills.problems(world.db, stranger, named)] == ["skills"]
    assert await skills.problems(world.db, world.tenant_id, named) == []


async def test_a_tenant_has_a_bounded_number_of_them_also_when_they_come_at_once(world: World) -> None:
    many = [skill(f"s{number}") for number in range(skills.MAX_PER_TENANT + 5)]
    puts = (skills.put(world.db, world.tenant_id, one) for one in many)
    answers = await asyncio.gather(*puts, return_exceptions=True)
    assert answers.count(True) == skills.MAX_PER_TENANT
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert [error.code for error in refused] == ["too_many_skills"] * 5
    assert await skills.put(world.db, world.tenant_id, (await skills.own(world.db, world.tenant_id))[0]) is False


async def test_one_name_is_not_taken_twice_by_two_kinds_at_once(world: World) -> None:
    both = await asyncio.gather(
        skills.put(world.db, world.tenant_id, skill("x", "skill")),
        skills.put(world.db, world.tenant_id, skill("x", "command")),
        return_exceptions=True,
    )
    assert [isinstance(result, ApiError) for result in both].count(True) == 1


async def test_the_catalog_is_stored_once_per_version_and_judges_names(lone_world: World) -> None:
    db, tenant = lone_world.db, lone_world.tenant_id
    assert await skills.problems(db, tenant, AgentConfig(skills=["verify", "whatever"])) == []
    commands = [{"name": n, "description": n, "argument_hint": ""} for n in ("verify", "clear")]
    data = {"skills": ["verify"], "commands": commands, "models": []}
    await skills.store_catalog(db, "1.0", data)
    await skills.store_catalog(db, "1.0", {**data, "skills": []})
    assert await skills.is_catalogued(db, "1.0")
    assert not await skills.is_catalogued(db, "1.1")
    assert [row["name"] for row in await skills.offered(db, tenant, "skill")] == ["verify"]
    assert [row["name"] for row in await skills.offered(db, tenant, "command")] == ["clear"]
    [problem] = await skills.problems(db, tenant, AgentConfig(skills=["verify", "whatever"]))
    assert "whatever" in problem.reason
