"""Presets: versions, names, and what sessions keep of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from secrets import token_hex
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.api.core.config import profiles
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import UNRESTRICTED, Policy
from apps.api.core.pages import Page
from apps.api.core.sessions import admission, prompts, sessions
from apps.api.core.sessions.admission import Choice
from apps.api.core.tenant import presets
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.presets import Draft, Judge
from apps.api.errors import ApiError, Conflict, Forbidden, NotFound, ValidationError
from tests.world import World

PACKAGED = Policy(profiles.load(None))


def draft(profile: str | None = None, **config: Any) -> Draft:
    return Draft(None, profile, AgentConfig(**config))


async def made(world: World, name: str = "reviewer", policy: Policy = PACKAGED, **more: Any) -> UUID:
    return await presets.create(world.db, world.tenant_id, name, draft(**more), judge(world, policy))


def judge(world: World, policy: Policy = UNRESTRICTED) -> Judge:
    return lambda draft: admission.judge_preset(world.core(), world.tenant_id, draft, policy)


async def session_with(world: World, choice: Choice, **config: Any) -> dict[str, Any]:
    session_id = await prompts.create_session(
        world.core(), world.tenant_id, AgentConfig(**config), prompts.NO_LABELS, None, choice
    )
    return await sessions.get(world.db, world.redis, world.tenant_id, session_id, "default")


async def test_a_session_keeps_the_version_that_it_began_with(world: World) -> None:
    agent_id = await made(world, max_turns=3, tools=["Read"])
    before = await session_with(world, Choice(agent="reviewer"))
    await presets.revise(world.db, world.tenant_id, "reviewer", {"max_turns": 5}, judge(world, PACKAGED), whole=False)
    after = await session_with(world, Choice(agent="reviewer"))
    pinned = await session_with(world, Choice(agent="reviewer@1"))
    assert before["agent"] == {"agent_id": str(agent_id), "name": "reviewer", "version": 1}
    assert [state["config"]["max_turns"] for state in (before, after, pinned)] == [3, 5, 3]
    assert [state["agent"]["version"] for state in (before, after, pinned)] == [1, 2, 1]
    unchanged = await sessions.get(world.db, world.redis, world.tenant_id, UUID(before["session_id"]), "default")
    assert unchanged["config"] == {"max_turns": 3, "tools": ["Read"]}


async def test_what_a_request_gives_wins_over_the_preset(world: World) -> None:
    await made(world, profile="ci", max_turns=3, system_prompt="preset")
    state = await session_with(world, Choice(agent="reviewer", policy=PACKAGED), max_turns=4)
    assert (state["config"]["max_turns"], state["config"]["system_prompt"]) == (4, "preset")
    assert state["profile"] == "ci"
    other = await session_with(world, Choice(agent="reviewer", profile="dev", policy=PACKAGED))
    assert other["profile"] == "dev"


async def test_a_preset_widens_no_profile(world: World) -> None:
    with pytest.raises(Forbidden):
        await made(world, profile="readonly", tools=["Bash"])
    await made(world, tools=["Bash"])
    with pytest.raises(Forbidden) as caught:
        await session_with(world, Choice(agent="reviewer", profile="readonly", policy=PACKAGED))
    assert caught.value.code == "tool_not_permitted"
    bound = replace(PACKAGED, bound=("readonly",))
    with pytest.raises(Forbidden):
        await session_with(world, Choice(agent="reviewer", policy=bound))
    with pytest.raises(ValidationError):
        await made(world, "other", profile="yolo")


async def test_a_change_takes_away_what_is_null_and_a_replacement_all_that_is_not_named(world: World) -> None:
    await made(world, max_turns=3, model="small", env={"A": "1", "B": "2"})
    change = {"model": None, "env": {"C": "3"}, "description": "new", "profile": "dev"}
    await presets.revise(world.db, world.tenant_id, "reviewer", change, judge(world, PACKAGED), whole=False)
    changed = await presets.get(world.db, world.tenant_id, "reviewer")
    assert changed["config"] == {"max_turns": 3, "env": {"C": "***"}}
    assert (changed["description"], changed["profile"], changed["version"]) == ("new", "dev", 2)
    await presets.revise(world.db, world.tenant_id, "reviewer", {"effort": "low"}, judge(world, PACKAGED), whole=True)
    replaced = await presets.get(world.db, world.tenant_id, "reviewer")
    assert (replaced["config"], replaced["description"], replaced["profile"]) == ({"effort": "low"}, None, None)
    first = await presets.get(world.db, world.tenant_id, "reviewer@1")
    assert (first["version"], first["newest_version"], first["config"]["max_turns"]) == (1, 3, 3)
    page = await presets.versions(world.db, world.tenant_id, "reviewer", limit=2, cursor=None)
    rest = await presets.versions(world.db, world.tenant_id, "reviewer", limit=2, cursor=page.next_cursor)
    assert [row["version"] for row in (*page.data, *rest.data)] == [3, 2, 1]


async def test_changes_at_the_same_moment_make_a_version_each(world: World) -> None:
    await made(world)
    changes: list[dict[str, Any]] = [{"max_turns": 1}, {"effort": "low"}, {"model": "small"}]
    await asyncio.gather(
        *(presets.revise(world.db, world.tenant_id, "reviewer", c, judge(world), whole=False) for c in changes)
    )
    newest = await presets.get(world.db, world.tenant_id, "reviewer")
    assert newest["version"] == 4
    assert newest["config"] == {"max_turns": 1, "effort": "low", "model": "small"}


async def test_a_removed_preset_leaves_its_sessions_and_frees_its_name(world: World) -> None:
    agent_id = await made(world, max_turns=3)
    before = await session_with(world, Choice(agent=str(agent_id)))
    await presets.delete(world.db, world.tenant_id, "reviewer")
    with pytest.raises(NotFound):
        await session_with(world, Choice(agent="reviewer"))
    again = await made(world, max_turns=4)
    assert again != agent_id
    state = await sessions.get(world.db, world.redis, world.tenant_id, UUID(before["session_id"]), "default")
    assert state["agent"] == {"agent_id": str(agent_id), "name": "reviewer", "version": 1}


async def test_a_later_prompt_names_the_same_preset_or_none(world: World) -> None:
    agent_id = await made(world)
    state = await session_with(world, Choice(agent="reviewer"))
    session_id = UUID(state["session_id"])
    await presets.revise(world.db, world.tenant_id, "reviewer", {"max_turns": 9}, judge(world), whole=False)
    for same in ("reviewer", "reviewer@1", str(agent_id), f"{agent_id}@1"):
        await world.queue(session_id, choice=Choice(agent=same))
    for other in ("reviewer@2", "someone", str(uuid4())):
        with pytest.raises(ValidationError):
            await world.queue(session_id, choice=Choice(agent=other))
    with pytest.raises(ValidationError):
        await world.queue(await world.session(), choice=Choice(agent="reviewer"))


async def test_another_tenants_preset_does_not_exist(world: World) -> None:
    agent_id = await made(world)
    stranger = replace(world, tenant_id=await world.other_tenant())
    for reference in ("reviewer", str(agent_id), f"{agent_id}@1"):
        for attempt in (
            presets.get(stranger.db, stranger.tenant_id, reference),
            presets.delete(stranger.db, stranger.tenant_id, reference),
            presets.revise(stranger.db, stranger.tenant_id, reference, {}, judge(stranger), whole=False),
            presets.versions(stranger.db, stranger.tenant_id, reference, limit=5, cursor=None),
            session_with(stranger, Choice(agent=reference)),
        ):
            with pytest.raises(NotFound) as caught:
                await attempt
            assert caught.value.code == "agent_not_found"
    assert (await presets.list_page(stranger.db, stranger.tenant_id, None, limit=5, cursor=None)).data == []
    await made(stranger)


async def test_names_are_unique_no_ids_and_once_per_idempotency_key(world: World) -> None:
    with pytest.raises(ValidationError):
        await made(world, str(uuid4()))
    once = Idempotency.of("key", "body")
    create = [presets.create(world.db, world.tenant_id, "one", draft(), judge(world), once) for _ in range(3)]
    assert len(set(await asyncio.gather(*create))) == 1
    for key, name in (("other key", "one"), ("key", "two")):
        repeat = Idempotency.of(key, "body" if name == "one" else "another")
        with pytest.raises(Conflict) as caught:
            await presets.create(world.db, world.tenant_id, name, draft(), judge(world), repeat)
        assert caught.value.code in ("name_in_use", "idempotency_key_reused")
    with pytest.raises(ApiError):
        await prompts.create_session(world.core(), world.tenant_id, AgentConfig(), prompts.NO_LABELS, once)


async def test_presets_are_listed_by_name_page_by_page_and_found_by_words(world: World) -> None:
    for name in ("b", "C", "a"):
        await made(world, name)
    await presets.revise(world.db, world.tenant_id, "b", {"description": "Writes Poems"}, judge(world), whole=False)
    first = await presets.list_page(world.db, world.tenant_id, None, limit=2, cursor=None)
    second = await presets.list_page(world.db, world.tenant_id, None, limit=2, cursor=first.next_cursor)
    assert [row["name"] for row in (*first.data, *second.data)] == ["C", "a", "b"]
    found = await presets.list_page(world.db, world.tenant_id, "poem", limit=2, cursor=None)
    assert [row["name"] for row in found.data] == ["b"]


async def test_sessions_are_found_by_their_preset(world: World) -> None:
    agent_id = await made(world)
    one = await session_with(world, Choice(agent="reviewer"))
    await presets.revise(world.db, world.tenant_id, "reviewer", {}, judge(world), whole=False)
    two = await session_with(world, Choice(agent="reviewer"))
    await world.session()
    for reference, wanted in (
        ("reviewer", [two, one]),
        (str(agent_id), [two, one]),
        ("reviewer@1", [one]),
        ("nobody", []),
    ):
        page = await sessions.list_page(
            world.db, world.tenant_id, sessions.Filters(agent=reference), limit=9, cursor=None, default_model="default"
        )
        assert [row["session_id"] for row in page.data] == [state["session_id"] for state in wanted]


async def test_pages_of_presets_and_of_their_versions_have_a_bounded_size(world: World) -> None:
    subagents = {f"a{n}": {"description": "d", "prompt": token_hex(25_000)} for n in range(5)}
    for name in "abc":
        await made(world, name, agents=subagents)
    for turns in (1, 2):
        change = {"max_turns": turns}
        await presets.revise(world.db, world.tenant_id, "a", change, judge(world, PACKAGED), whole=False)
    lists: dict[str, Callable[[str | None], Awaitable[Page]]] = {
        "name": lambda cursor: presets.list_page(world.db, world.tenant_id, None, limit=200, cursor=cursor),
        "version": lambda cursor: presets.versions(world.db, world.tenant_id, "a", limit=200, cursor=cursor),
    }
    for field, listing in lists.items():
        found, cursor = list[Any](), None
        while not found or cursor:
            page = await listing(cursor)
            assert 1 <= len(page.data) <= 2
            found, cursor = found + [shown[field] for shown in page.data], page.next_cursor
        assert found == (["a", "b", "c"] if field == "name" else [3, 2, 1])
