"""Managed Agents: deployments and their runs, with the official client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from apps.api.dialects.managed import ids
from tests.conftest import NewKey, database_of
from tests.dialects.managed_clients import agent_and_environment, at, error_of
from tests.fleet import Fleet
from tests.world import until

JSON = {"Content-Type": "application/json"}
YEARLY: Any = {"type": "cron", "expression": "0 0 1 1 *", "timezone": "Europe/Berlin"}
TEXT: Any = [{"type": "text", "text": "x"}]


def says(text: str) -> Any:
    return [{"type": "user.message", "content": [{"type": "text", "text": text}]}]


@pytest.fixture
async def client(fleet: Fleet, new_key: NewKey) -> AsyncIterator[Any]:
    """One of a tenant of its own: what is scheduled counts for a limit, and nobody removes it here."""
    key = (await new_key(f"t{uuid4().hex}"))["X-API-Key"]
    async with at(fleet[0], key) as client:
        yield client


async def deployed(client: Any, **more: Any) -> Any:
    agent, environment = await agent_and_environment(client)
    wanted = {"name": "Report", "agent": agent, "environment_id": environment, "initial_events": says("say morning")}
    return await client.beta.deployments.create(**{**wanted, **more})


async def ended(client: Any, session_id: str) -> list[Any]:
    """The events of a session, once it has nothing to do."""
    async with asyncio.timeout(60):
        async with await client.beta.sessions.events.stream(session_id) as stream:
            if (await client.beta.sessions.retrieve(session_id)).status != "idle":
                async for event in stream:
                    if event.type == "session.status_idle":
                        break
    return [event async for event in client.beta.sessions.events.list(session_id)]


def whole(thing: Any) -> None:
    """It has all that its type requires."""
    for name, field in type(thing).model_fields.items():
        assert not field.is_required() or getattr(thing, name) is not None, name


async def test_a_deployment_is_made_read_listed_changed_and_archived(client: Any) -> None:
    vault = await client.beta.vaults.create(display_name="Mine")
    report = await client.beta.files.upload(file=("cities.csv", b"Oslo", "text/csv"))
    made = await deployed(
        client,
        description="Each year.",
        metadata={"team": "docs", "x": "1"},
        schedule=YEARLY,
        budget={"type": "limit", "max_list_cost": {"amount": "1.5", "currency": "USD"}},
        resources=[{"type": "file", "file_id": report.id, "mount_path": "/workspace/cities.csv"}],
        vault_ids=[vault.id],
    )
    whole(made)
    assert (made.type, made.name, made.status, made.paused_reason) == ("deployment", "Report", "active", None)
    assert (made.description, made.metadata) == ("Each year.", {"team": "docs", "x": "1"})
    assert (made.agent.type, made.agent.version, made.vault_ids) == ("agent", 1, [vault.id])
    assert made.id.startswith("depl_")
    assert (made.budget.max_list_cost.amount, made.budget.type) == ("1.500000", "limit")
    [resource] = made.resources
    assert (resource.type, resource.file_id, resource.mount_path) == ("file", report.id, "/workspace/cities.csv")
    [event] = made.initial_events
    assert (event.type, event.content[0].text) == ("user.message", "say morning")
    schedule = made.schedule
    assert (schedule.expression, schedule.timezone, schedule.last_run_at) == ("0 0 1 1 *", "Europe/Berlin", None)
    assert len(schedule.upcoming_runs_at) == 5
    assert schedule.upcoming_runs_at[0] > datetime.now(UTC)
    assert await client.beta.deployments.retrieve(made.id) == made

    await client.beta.agents.update(made.agent.id, version=1, system="Be short.")
    assert (await client.beta.deployments.retrieve(made.id)).agent.version == 1
    changed = await client.beta.deployments.update(
        made.id,
        agent=made.agent.id,
        name="Yearly",
        description="",
        metadata={"x": None},
        initial_events=says("say evening"),
        schedule={**YEARLY, "expression": "0 12 * * *"},
        budget=None,
        resources=None,
        vault_ids=[],
    )
    assert (changed.name, changed.description, changed.metadata) == ("Yearly", None, {"team": "docs"})
    assert (changed.agent.version, changed.budget, changed.resources, changed.vault_ids) == (2, None, [], [])
    assert (changed.schedule.expression, changed.environment_id) == ("0 12 * * *", made.environment_id)
    assert (await client.beta.deployments.update(made.id, schedule=None)).schedule is None
    await client.beta.deployments.update(made.id, schedule=YEARLY)

    other = await deployed(client)
    assert (other.schedule, other.metadata, other.budget) == (None, {}, None)
    assert [d.id async for d in client.beta.deployments.list(limit=1)] == [other.id, made.id]
    assert [d.id async for d in client.beta.deployments.list(agent_id=made.agent.id)] == [made.id]
    assert [d.id async for d in client.beta.deployments.list(created_at_gte=other.created_at)] == [other.id]
    archived = await client.beta.deployments.archive(made.id)
    assert (archived.status, archived.paused_reason, archived.schedule.upcoming_runs_at) == ("active", None, [])
    assert archived.archived_at is not None
    assert await client.beta.deployments.archive(made.id) == archived
    assert [d.id async for d in client.beta.deployments.list()] == [other.id]
    assert [d.id async for d in client.beta.deployments.list(include_archived=True)] == [other.id, made.id]
    for ask in (
        lambda: client.beta.deployments.update(made.id, name="x"),
        lambda: client.beta.deployments.pause(made.id),
        lambda: client.beta.deployments.unpause(made.id),
        lambda: client.beta.deployments.run(made.id),
    ):
        assert (await error_of(ask))["status"] == 409


async def test_one_is_paused_and_goes_on(client: Any) -> None:
    made = await deployed(client, schedule=YEARLY)
    paused = await client.beta.deployments.pause(made.id)
    assert (paused.status, paused.paused_reason.type, len(paused.schedule.upcoming_runs_at)) == ("paused", "manual", 5)
    assert await client.beta.deployments.pause(made.id) == paused
    assert [d.id async for d in client.beta.deployments.list(status="paused")] == [made.id]
    assert [d.id async for d in client.beta.deployments.list(status="active")] == []
    assert (await client.beta.deployments.run(made.id)).session_id is not None
    active = await client.beta.deployments.unpause(made.id)
    assert (active.status, active.paused_reason) == ("active", None)
    assert active.schedule.upcoming_runs_at == made.schedule.upcoming_runs_at


async def test_a_run_is_a_session_with_all_that_the_deployment_has(client: Any, fleet: Fleet) -> None:
    vault = await client.beta.vaults.create(display_name="Mine")
    variable: Any = {
        "type": "environment_variable",
        "secret_name": "GREETING",
        "secret_value": "good-morning",
        "networking": {"type": "unrestricted"},
    }
    await client.beta.vaults.credentials.create(vault.id, auth=variable)
    report = await client.beta.files.upload(file=("cities.csv", b"Oslo", "text/csv"))
    made = await deployed(
        client,
        initial_events=says('run echo "$GREETING from $(cat cities.csv)"'),
        resources=[{"type": "file", "file_id": report.id, "mount_path": "/workspace/cities.csv"}],
        vault_ids=[vault.id],
    )
    run = await client.beta.deployments.run(made.id)
    whole(run)
    assert (run.type, run.deployment_id, run.error) == ("deployment_run", made.id, None)
    assert (run.trigger_context.type, run.agent) == ("manual", made.agent)
    assert run.id.startswith("drun_")
    session = await client.beta.sessions.retrieve(run.session_id)
    assert (session.deployment_id, session.environment_id) == (made.id, made.environment_id)
    assert (session.agent.id, session.agent.version, session.vault_ids) == (made.agent.id, 1, [vault.id])
    async with at(fleet[1], client.api_key or "") as elsewhere:
        events = await ended(elsewhere, run.session_id)
        assert await elsewhere.beta.deployment_runs.retrieve(run.id) == run
    assert "user.message" in [event.type for event in events]
    told = [block.text for event in events if event.type == "agent.tool_result" for block in event.content or ()]
    assert any("good-morning from Oslo" in text for text in told), [event.type for event in events]

    other = await deployed(client)
    second = await client.beta.deployments.run(other.id)
    assert [r.id async for r in client.beta.deployment_runs.list(limit=1)] == [second.id, run.id]
    assert [r.id async for r in client.beta.deployment_runs.list(deployment_id=made.id)] == [run.id]
    assert [r async for r in client.beta.deployment_runs.list(deployment_id="depl_x")] == []
    assert [r async for r in client.beta.deployment_runs.list(has_error=True)] == []
    assert [r async for r in client.beta.deployment_runs.list(trigger_type="schedule")] == []
    later = datetime.now(UTC) + timedelta(hours=1)
    assert [r async for r in client.beta.deployment_runs.list(created_at_gt=later)] == []
    plain = await client.beta.sessions.create(agent=made.agent.id, environment_id=made.environment_id)
    assert plain.deployment_id is None
    assert [s.id async for s in client.beta.sessions.list(deployment_id=made.id)] == [session.id]
    await ended(client, second.session_id or "")


async def come(fleet: Fleet, deployment_id: str) -> None:
    """The next time of a deployment is now."""
    async with database_of(fleet) as db:
        await db.pool.execute(
            "UPDATE schedules SET next_at = date_trunc('minute', now()), look_at = now() WHERE id = $1",
            ids.read("depl", deployment_id),
        )


async def runs_of(client: Any, deployment: Any, count: int) -> list[Any]:
    """So many runs that its schedule has begun, once there are as many, the newest first."""
    found: list[Any] = []

    async def are() -> bool:
        runs = client.beta.deployment_runs.list(deployment_id=deployment.id, trigger_type="schedule")
        found[:] = [run async for run in runs]
        return len(found) == count

    await until(are)
    return found


async def test_a_time_of_its_schedule_begins_a_session(client: Any, fleet: Fleet) -> None:
    made = await deployed(client, schedule={**YEARLY, "expression": "0 0 * * *"})
    await come(fleet, made.id)
    [run] = await runs_of(client, made, 1)
    await client.beta.deployments.pause(made.id)
    assert (run.deployment_id, run.error, run.trigger_context.scheduled_at.second) == (made.id, None, 0)
    assert (await client.beta.deployments.retrieve(made.id)).schedule.last_run_at is not None
    assert "agent.message" in [event.type for event in await ended(client, run.session_id)]


async def test_a_time_at_which_no_session_can_begin_says_why(client: Any, fleet: Fleet) -> None:
    vault, gone = [await client.beta.vaults.create(display_name="Mine") for _ in range(2)]
    report = await client.beta.files.upload(file=("cities.csv", b"Oslo", "text/csv"))
    file: Any = {"type": "file", "file_id": report.id}
    every: Any = {**YEARLY, "expression": "0 0 * * *"}
    made = {
        "agent_archived_error": await deployed(client, schedule=every),
        "environment_archived_error": await deployed(client, schedule=every),
        "environment_not_found_error": await deployed(client, schedule=every),
        "vault_archived_error": await deployed(client, schedule=every, vault_ids=[vault.id]),
        "vault_not_found_error": await deployed(client, schedule=every, vault_ids=[gone.id]),
        "file_not_found_error": await deployed(client, schedule=every, resources=[file]),
    }
    await client.beta.agents.archive(made["agent_archived_error"].agent.id)
    await client.beta.environments.archive(made["environment_archived_error"].environment_id)
    await client.beta.environments.delete(made["environment_not_found_error"].environment_id)
    await client.beta.vaults.archive(vault.id)
    await client.beta.vaults.delete(gone.id)
    await client.beta.files.delete(report.id)
    for kind, one in made.items():
        await come(fleet, one.id)
        [run] = await runs_of(client, one, 1)
        whole(run)
        assert (run.error.type, run.session_id, run.agent) == (kind, None, one.agent), run.error
        assert await client.beta.deployment_runs.retrieve(run.id) == run
    assert len([run async for run in client.beta.deployment_runs.list(has_error=True)]) == len(made)
    one = made["agent_archived_error"]
    refused = await error_of(lambda: client.beta.deployments.run(one.id))
    assert (refused["status"], "archived" in refused["text"]) == (400, True)
    async with database_of(fleet) as db:  # it has failed often
        await db.pool.execute("UPDATE schedules SET failures = 4 WHERE id = $1", ids.read("depl", one.id))
        await db.pool.execute(
            "UPDATE schedule_firings SET fire_at = fire_at - interval '1 day' WHERE schedule_id = $1",
            ids.read("depl", one.id),
        )
    await come(fleet, one.id)
    await runs_of(client, one, 2)
    paused = await client.beta.deployments.retrieve(one.id)
    assert (paused.status, paused.paused_reason.type) == ("paused", "error")
    assert paused.paused_reason.error.type == "agent_archived_error"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"initial_events": [*says("a"), *says("b")]}, "initial_events"),
    ({"initial_events": []}, "initial_events"),
    (
        {"initial_events": [{"type": "system.message", "content": [{"type": "text", "text": "x"}]}]},
        "initial_events.0.type",
    ),
    (
        {
            "initial_events": [
                {"type": "user.define_outcome", "description": "x", "rubric": {"type": "text", "content": "x"}}
            ]
        },
        "initial_events.0.type",
    ),
    ({"name": ""}, "name"),
    ({"schedule": {**YEARLY, "expression": "@daily"}}, "expression"),
    ({"schedule": {**YEARLY, "expression": "0 0 31 2 *"}}, "expression"),
    ({"schedule": {**YEARLY, "timezone": "Mars/Olympus"}}, "timezone"),
    ({"schedule": {"type": "cron", "expression": "0 0 * * *"}}, "timezone"),
    ({"budget": {"type": "limit", "max_list_cost": {"amount": "0", "currency": "USD"}}}, "budget"),
    ({"resources": [{"type": "memory_store", "memory_store_id": "m"}]}, "resources.0.type"),
    ({"metadata": {f"k{n}": "x" for n in range(17)}}, "metadata"),
    ({"extra": 1}, "extra"),
]


@pytest.mark.parametrize(("change", "field"), REFUSED)
async def test_what_cannot_be_deployed_is_refused_by_name(client: Any, change: dict[str, Any], field: str) -> None:
    extra = {"extra_body": {"extra": change["extra"]}} if "extra" in change else change
    found = await error_of(lambda: deployed(client, **extra))
    assert (found["status"], found["type"]) == (400, "invalid_request_error")
    assert field in found["text"]
    assert [d async for d in client.beta.deployments.list()] == []


async def test_what_a_deployment_names_must_be_there(client: Any) -> None:
    changes: list[dict[str, Any]] = [{"agent": "agent_x"}, {"environment_id": "env_x"}, {"vault_ids": ["vlt_x"]}]
    for change in changes:
        assert (await error_of(partial(deployed, client, **change)))["status"] == 404
    made = await deployed(client)
    for ask in (
        lambda: client.beta.deployments.retrieve("depl_x"),
        lambda: client.beta.deployments.run("depl_x"),
        lambda: client.beta.deployment_runs.retrieve("drun_x"),
        lambda: client.beta.deployments.update(made.id, environment_id="env_x"),
    ):
        assert (await error_of(ask))["status"] == 404
    cleared: Any = None
    assert (await error_of(lambda: client.beta.deployments.update(made.id, name=cleared)))["status"] == 400
    assert (await error_of(lambda: client.beta.deployments.list(status="paused", include_archived=True)))[
        "status"
    ] == 400
    await client.beta.environments.archive(made.environment_id)
    assert "environment_id" in (await error_of(lambda: client.beta.deployments.run(made.id)))["text"]


async def test_others_have_none_of_it_and_the_native_api_has_a_schedule(
    client: Any, fleet: Fleet, new_key: NewKey
) -> None:
    made = await deployed(client)
    run = await client.beta.deployments.run(made.id)
    stranger = (await new_key(f"t{uuid4().hex}"))["X-API-Key"]
    async with at(fleet[1], stranger) as other:
        for ask in (
            lambda: other.beta.deployments.retrieve(made.id),
            lambda: other.beta.deployments.update(made.id, name="x"),
            lambda: other.beta.deployments.archive(made.id),
            lambda: other.beta.deployments.run(made.id),
            lambda: other.beta.deployment_runs.retrieve(run.id),
        ):
            assert (await error_of(ask))["status"] == 404
        assert [d async for d in other.beta.deployments.list()] == []
        assert [r async for r in other.beta.deployment_runs.list()] == []
        assert [s async for s in other.beta.sessions.list(deployment_id=made.id)] == []
    headers = {"X-API-Key": client.api_key or ""}
    native = (await fleet[1].get(f"/schedules/{ids.read('depl', made.id)}", headers=headers)).json()
    assert (native["cron"], native["name"], native["status"]) == (None, "Report", "active")
    body = {"cron": "0 0 1 1 *", "prompt": "say no"}
    own = (await fleet[0].post("/schedules", body, headers=headers)).json()["schedule_id"]
    assert (await error_of(lambda: client.beta.deployments.retrieve(own)))["status"] == 404
    assert [d.id async for d in client.beta.deployments.list()] == [made.id]
    # Changed natively it is a deployment all the same.
    path = f"/api/v1/schedules/{ids.read('depl', made.id)}"
    half = await fleet[0].client.patch(path, content=b'{"prompt": "say \\ud83d"}', headers=headers | JSON)
    assert half.status_code == 200, half.text
    assert (await fleet[0].get("/schedules", headers=headers)).json()["data"][1]["prompt"] == "say \ud83d"
    told = await client.beta.deployments.retrieve(made.id)
    assert told.initial_events[0].content[0].text == "say \ud83d"
    patched = await fleet[0].client.patch(path, json={"prompt": "say it", "agent": None}, headers=headers)
    assert patched.status_code == 200, patched.text
    whole(told := await client.beta.deployments.retrieve(made.id))
    assert told.initial_events[0].content[0].text == "say it"
    await ended(client, run.session_id or "")


async def test_a_key_that_is_bound_to_profiles_has_those_of_its_own(client: Any, fleet: Fleet, new_key: NewKey) -> None:
    tenant = f"t{uuid4().hex}"
    free = (await new_key(tenant))["X-API-Key"]
    bound = (await new_key(tenant, profiles=["readonly"]))["X-API-Key"]
    async with at(fleet[0], free) as one, at(fleet[1], bound) as other:
        made = await deployed(one)
        run = await one.beta.deployments.run(made.id)
        assert (await error_of(lambda: other.beta.deployments.retrieve(made.id)))["status"] == 403
        assert (await error_of(lambda: other.beta.deployments.run(made.id)))["status"] == 403
        assert (await error_of(lambda: other.beta.deployment_runs.retrieve(run.id)))["status"] == 404
        assert [d async for d in other.beta.deployments.list()] == []
        assert [r async for r in other.beta.deployment_runs.list()] == []
