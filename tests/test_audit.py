"""The audit log: each act has its line, in one transaction, and nobody who serves takes a line back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args
from uuid import UUID, uuid4

import asyncpg
import pytest

from apps.api import audit, keys
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.grants import Grant
from apps.api.core.config.limits import Limits
from apps.api.core.config.parts import RemoteServer
from apps.api.core.config.profiles import UNRESTRICTED
from apps.api.core.config.retention import Retention
from apps.api.core.fleet import answering, drafts, erasure, repair, schedules, suspension
from apps.api.core.fleet.schedules import By
from apps.api.core.sessions import client_tokens, deletion, exports, requests, retention
from apps.api.core.sessions.exports import Exporter
from apps.api.core.tenant import environments, mcp, model_credentials, presets, skills, vault, vaults, webhooks
from apps.api.core.tenant.presets import Draft
from apps.api.core.tenant.skills import BODY, Skill
from apps.api.core.tenant.webhooks import Changes
from apps.api.dev import postgres
from apps.api.errors import ApiError
from apps.api.models import Base
from apps.api.roles import APPEND_ONLY, quoted
from tests import contract
from tests.core.conftest import lone_world
from tests.core.sessions.test_imports import Archive, load, of_session, of_tenant
from tests.world import World, administrator

__all__ = ["lone_world"]

Act = Callable[[], Awaitable[Any]]

NO_ACTS = {
    "/query": "prompts: the runs are their own record",
    "/query/single": "",
    "/sessions/{session_id}/resume": "",
    "/schedules/{schedule_id}/run": "",
    "/deployments/{deployment_id}/run": "",
    "/chat": "",
    "/chat/completions": "",
    "/responses": "",
    "/responses/{response_id}/cancel": "",
    "/conversations": "",
    "/conversations/{conversation_id}": "labels",
    "/conversations/{conversation_id}/items": "told with the next response",
    "/chat/{session_id}": "",
    "/session/start": "",
    "/execute/": "",
    "/fork": "",
    "/sessions": "a session of the key's own",
    "/interrupt": "stops work, decides nothing",
    "/cancel": "",
    "/cancel/{session_id}": "",
    "/chat/{chat_id}/stop": "",
    "/ag-ui/{agent}": "prompts; what is decided leaves its line in the core",
    "/control": "in the session's events",
    "/reset": "",
    "/rewind": "",
    "/sessions/{session_id}": "labels",
    "/agents/preview": "changes nothing",
    "/test": "one message more",
    "/redeliver": "",
    "/api/v1/files": "a file that prompts may name, and its removal",
    "/files/move": "a session's files, which its agent changes as well",
    "/files/{path}": "",
    "/sessions/{session_id}/archive": "",
    "/threads/{thread_id}/archive": "refused",
    "/compat/managed-agents/v1/files": "a file that sessions may name",
    "/sessions/{session_id}/resources": "a session's files, which its agent changes as well",
    "/resources/{resource_id}": "",
}
"""How the paths end of routes that write and leave no line, and why (an empty text: as the one above)."""

UNNOTED = {
    ("delete", "/api/v1/sessions/{session_id}/files/{path}"),
    ("delete", "/api/v1/files/{file_id}"),
    ("delete", "/compat/managed-agents/v1/files/{file_id}"),
    ("delete", "/compat/managed-agents/v1/sessions/{session_id}/resources/{resource_id}"),
}
"""Removals that leave no line: of what agents remove as well, and of what only the client's own prompts name."""

LIMITS = Limits(runs_per_minute=3)
LINES = {
    ("delete", "/api/v1/sessions/{session_id}"): "session.deleted",
    ("delete", "/compat/code-server/session/{session_id}"): "session.deleted",
    ("delete", "/compat/openai/v1/responses/{response_id}"): "session.deleted",
    ("delete", "/compat/openai/v1/conversations/{conversation_id}"): "session.deleted",
    ("delete", "/compat/execute-server/sessions/cleanup"): "session.deleted",
    ("post", "/api/v1/sessions/{session_id}/client-tokens"): "client_token.created",
    ("post", "/api/v1/sessions/{session_id}/permissions/{request_id}"): "request.answered",
    ("post", "/api/v1/sessions/{session_id}/answer"): "request.answered",
    ("post", "/api/v1/sessions/{session_id}/tool-results/{request_id}"): "request.answered",
    ("put", "/api/v1/admin/tenants/{tenant}/limits"): "tenant.limited",
    ("post", "/api/v1/agents"): "preset.created",
    ("put", "/api/v1/agents/{agent}"): "preset.changed",
    ("patch", "/api/v1/agents/{agent}"): "preset.changed",
    ("delete", "/api/v1/agents/{agent}"): "preset.deleted",
    ("put", "/api/v1/mcp-servers/{name}"): "mcp_server.put",
    ("delete", "/api/v1/mcp-servers/{name}"): "mcp_server.deleted",
    ("put", "/api/v1/skills/{name}"): "skill.put",
    ("delete", "/api/v1/skills/{name}"): "skill.deleted",
    ("put", "/api/v1/commands/{name}"): "command.put",
    ("delete", "/api/v1/commands/{name}"): "command.deleted",
    ("put", "/api/v1/secrets/{name}"): "secret.put",
    ("delete", "/api/v1/secrets/{name}"): "secret.deleted",
    ("post", "/api/v1/webhooks"): "webhook.created",
    ("patch", "/api/v1/webhooks/{webhook_id}"): "webhook.changed",
    ("delete", "/api/v1/webhooks/{webhook_id}"): "webhook.deleted",
    ("post", "/api/v1/webhooks/{webhook_id}/rotate"): "webhook.rotated",
    ("post", "/api/v1/schedules"): "schedule.created",
    ("patch", "/api/v1/schedules/{schedule_id}"): "schedule.changed",
    ("delete", "/api/v1/schedules/{schedule_id}"): "schedule.deleted",
    ("post", "/api/v1/schedules/{schedule_id}/pause"): "schedule.paused",
    ("post", "/api/v1/schedules/{schedule_id}/resume"): "schedule.resumed",
    ("post", "/api/v1/admin/tenants"): "tenant.created",
    ("post", "/api/v1/admin/tenants/{tenant}/suspend"): "tenant.suspended",
    ("post", "/api/v1/admin/tenants/{tenant}/resume"): "tenant.resumed",
    ("delete", "/api/v1/admin/tenants/{tenant}"): "tenant.deleted",
    ("put", "/api/v1/admin/tenants/{tenant}/retention"): "tenant.retention",
    ("put", "/api/v1/admin/tenants/{tenant}/model-credential"): "model_credential.put",
    ("delete", "/api/v1/admin/tenants/{tenant}/model-credential"): "model_credential.deleted",
    ("post", "/api/v1/admin/keys"): "key.created",
    ("patch", "/api/v1/admin/keys/{key_id}"): "key.changed",
    ("post", "/api/v1/admin/keys/{key_id}/rotate"): "key.rotated",
    ("post", "/api/v1/admin/keys/{key_id}/revoke"): "key.revoked",
    ("post", "/api/v1/admin/runs/{run_id}/repair"): "run.repaired",
    ("post", "/compat/managed-agents/v1/agents"): "preset.created",
    ("post", "/compat/managed-agents/v1/agents/{agent_id}"): "preset.changed",
    ("post", "/compat/managed-agents/v1/agents/{agent_id}/archive"): "preset.archived",
    ("post", "/compat/managed-agents/v1/environments"): "environment.created",
    ("post", "/compat/managed-agents/v1/environments/{environment_id}"): "environment.changed",
    ("delete", "/compat/managed-agents/v1/environments/{environment_id}"): "environment.deleted",
    ("post", "/compat/managed-agents/v1/environments/{environment_id}/archive"): "environment.archived",
    ("post", "/compat/managed-agents/v1/sessions/{session_id}/archive"): "session.archived",
    ("post", "/compat/managed-agents/v1/deployments"): "schedule.created",
    ("post", "/compat/managed-agents/v1/deployments/{deployment_id}"): "schedule.changed",
    ("post", "/compat/managed-agents/v1/deployments/{deployment_id}/pause"): "schedule.paused",
    ("post", "/compat/managed-agents/v1/deployments/{deployment_id}/unpause"): "schedule.resumed",
    ("post", "/compat/managed-agents/v1/deployments/{deployment_id}/archive"): "schedule.archived",
    ("post", "/compat/managed-agents/v1/vaults"): "vault.created",
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}"): "vault.changed",
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}/archive"): "vault.archived",
    ("delete", "/compat/managed-agents/v1/vaults/{vault_id}"): "vault.deleted",
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}/credentials"): "credential.put",
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}/credentials/{credential_id}"): "credential.put",
    ("post", "/compat/managed-agents/v1/vaults/{vault_id}/credentials/{credential_id}/archive"): "credential.archived",
    ("delete", "/compat/managed-agents/v1/vaults/{vault_id}/credentials/{credential_id}"): "credential.deleted",
    ("post", "/compat/managed-agents/v1/sessions/{session_id}/events"): "request.answered",
    ("delete", "/compat/managed-agents/v1/sessions/{session_id}"): "session.deleted",
}


SYSTEMS = {"tenant.removed"}
"""Lines of what comes after an act of somebody's."""

READING = {"session.exported": "/api/v1/sessions/{session_id}/export"}
"""Lines of what changes nothing, and takes much away: by the route that leaves it."""

COMMANDS = {"session.imported", "tenant.exported", "tenant.imported"}
"""Lines of commands that have no route."""


def test_every_route_that_writes_is_known_to_leave_a_line_or_to_need_none() -> None:
    writing = [
        (method, path)
        for document in contract.documents()
        for path, methods in document["paths"].items()
        for method in methods
        if method in ("post", "put", "patch", "delete")
    ]
    unknown = [
        (method, path)
        for method, path in writing
        if (method, path) not in LINES
        and (method, path) not in UNNOTED
        and (method == "delete" or not path.endswith(tuple(NO_ACTS)))
    ]
    assert unknown == [], "say in LINES which line it leaves, or in NO_ACTS why it needs none"
    assert set(LINES) <= set(writing)
    assert set(READING.values()) <= set(contract.everything()["paths"])
    assert {*LINES.values(), *SYSTEMS, *READING, *COMMANDS} == set(get_args(audit.Action))


# --- one transaction -----------------------------------------------------------------------------------------------


async def allow_all(_: Draft) -> None:
    return


async def asked(world: World) -> tuple[UUID, UUID]:
    """A session whose agent asks for a permission, and the request."""
    _, claim, _ = await world.owned()
    request_id = uuid4()
    fields = {"tool_name": "Ba\x00sh", "input": {"command": "x"}, "suggestions": []}
    async with world.db.transaction() as connection:
        request = requests.Asked(request_id, "permission", claim.run_id, datetime.now(UTC), fields)
        await requests.insert(connection, world.tenant_id, claim.session_id, request)
    return claim.session_id, request_id


async def stuck(world: World) -> UUID:
    lease, claim, _ = await world.owned()
    await world.expire(lease)
    return claim.run_id


def variable(name: str) -> vaults.Given:
    return vaults.Given("variable", name, "x", None, {})


async def acts_of(world: World) -> dict[audit.Action, Act]:
    """Every act that leaves a line, each on what those before it have left."""
    core, db, tenant_id = world.core(), world.db, world.tenant_id
    made = await keys.create_key(db, tenant="ours", name="k", scopes=["read"])
    preset = await presets.create(db, tenant_id, "before", Draft(None, None, AgentConfig()), allow_all)
    place = UUID((await environments.create(db, tenant_id, "d", None, {}, None))["environment_id"])
    safe = UUID((await vaults.create(db, tenant_id, "s", {}))["id"])
    kept = await vaults.add(db, core.settings, tenant_id, safe, variable("OLD"))
    credential = UUID(kept["id"])
    hook = await webhooks.create(db, core.settings, core.outbound, tenant_id, Changes("http://127.0.0.1:9/"), None)
    webhook_id = UUID(hook["webhook_id"])
    session_id, request_id = await asked(world)
    run_id = await stuck(world)
    idle = await world.session()
    by, daily = By(tenant_id, made.id, UNRESTRICTED), drafts.Draft("0 0 * * *", "UTC", "say hello")
    schedule_id, old = await schedules.create(core, by, daily), await schedules.create(core, by, daily)
    exporter = Exporter(db, core.settings, core.blocking.copies, core.objects)

    async def export(archive: AsyncGenerator[bytes]) -> None:
        async with aclosing(archive):
            assert [chunk async for chunk in archive]

    async def imported(archive: Archive, tenant: str) -> None:
        with TemporaryDirectory() as directory:
            await load(core.settings, archive.pack(), tenant, Path(directory))

    async def erase() -> None:
        another = await world.one("SELECT id FROM tenants WHERE name = 'another'")
        await erasure.erase(core, another)

    deny, person = {"decision": "deny"}, {"type": "key"}
    skill = Skill("skill", "s", "d", {BODY: "x"})
    command = Skill("command", "c", "d", {BODY: "x"})
    remote = RemoteServer(type="http", url="http://127.0.0.1/", headers={"A": "hidden"})
    draft = Draft("new", None, AgentConfig())
    grant = Grant(session_id, ("read",), datetime.now(UTC) + timedelta(minutes=1))
    return {
        "tenant.created": lambda: keys.create_tenant(db, "another"),
        "tenant.suspended": lambda: suspension.suspend(core, "ours", uuid4()),
        "tenant.resumed": lambda: suspension.resume(core, "ours"),
        "tenant.limited": lambda: keys.limit_tenant(db, world.redis, "ours", LIMITS),
        "tenant.retention": lambda: retention.put(db, "ours", Retention(events_days=7, usage_days=None)),
        "tenant.exported": lambda: export(exports.tenant(exporter, "another")),
        "tenant.imported": lambda: imported(of_tenant(sessions=False), "another-2"),
        "session.exported": lambda: export(exports.session(exporter, tenant_id, idle)),
        "session.imported": lambda: imported(of_session(), "ours"),
        "tenant.deleted": lambda: erasure.begin(core, "another", uuid4()),
        "tenant.removed": erase,
        "key.created": lambda: keys.create_key(db, tenant="ours", name="n", scopes=["read"], limits=LIMITS),
        "key.changed": lambda: keys.change_key(
            db, world.redis, made.id, {"name": "o", "expires_at": datetime.now(UTC)}
        ),
        "key.rotated": lambda: keys.rotate_key(db, world.redis, made.id, 60),
        "key.revoked": lambda: keys.revoke_key(db, world.redis, made.id),
        "model_credential.put": lambda: model_credentials.put(db, core.settings, "ours", "api_key", "hidden"),
        "model_credential.deleted": lambda: model_credentials.delete(db, "ours"),
        "secret.put": lambda: vault.put(db, core.settings, tenant_id, "TOKEN", "hidden"),
        "secret.deleted": lambda: vault.delete(db, tenant_id, "TOKEN"),
        "mcp_server.put": lambda: mcp.put(core, tenant_id, "m", remote),
        "mcp_server.deleted": lambda: mcp.delete(db, tenant_id, "m"),
        "preset.created": lambda: presets.create(db, tenant_id, "new", draft, allow_all),
        "preset.changed": lambda: presets.revise(db, tenant_id, "before", {"description": "d"}, allow_all, whole=False),
        "preset.archived": lambda: presets.archive(db, tenant_id, "new"),
        "environment.created": lambda: environments.create(db, tenant_id, "e", None, {}, None),
        "environment.changed": lambda: environments.change(db, tenant_id, place, {"name": "f"}),
        "environment.archived": lambda: environments.archive(db, tenant_id, place),
        "environment.deleted": lambda: environments.delete(db, tenant_id, place),
        "vault.created": lambda: vaults.create(db, tenant_id, "v", {}),
        "vault.changed": lambda: vaults.change(db, tenant_id, safe, "w", None),
        "credential.put": lambda: vaults.add(db, core.settings, tenant_id, safe, variable("NEW")),
        "credential.archived": lambda: vaults.archive_credential(db, tenant_id, safe, credential),
        "credential.deleted": lambda: vaults.delete_credential(db, tenant_id, safe, credential),
        "vault.archived": lambda: vaults.archive(db, tenant_id, safe),
        "vault.deleted": lambda: vaults.delete(db, tenant_id, safe),
        "session.archived": lambda: deletion.archive(db, world.redis, tenant_id, idle),
        "preset.deleted": lambda: presets.delete(db, tenant_id, str(preset)),
        "skill.put": lambda: skills.put(db, tenant_id, skill),
        "skill.deleted": lambda: skills.delete(db, tenant_id, "skill", "s"),
        "command.put": lambda: skills.put(db, tenant_id, command),
        "command.deleted": lambda: skills.delete(db, tenant_id, "command", "c"),
        "webhook.created": lambda: webhooks.create(
            db, core.settings, core.outbound, tenant_id, Changes("http://127.0.0.1:9/"), None
        ),
        "webhook.changed": lambda: webhooks.change(db, core.outbound, tenant_id, webhook_id, Changes(enabled=False)),
        "webhook.rotated": lambda: webhooks.rotate(db, core.settings, tenant_id, webhook_id),
        "webhook.deleted": lambda: webhooks.delete(db, tenant_id, webhook_id),
        "schedule.created": lambda: schedules.create(core, by, daily),
        "schedule.changed": lambda: schedules.update(core, by, schedule_id, [], lambda draft: replace(draft, name="n")),
        "schedule.paused": lambda: schedules.pause(core, by, schedule_id),
        "schedule.resumed": lambda: schedules.resume(core, by, schedule_id),
        "schedule.archived": lambda: schedules.archive(core, by, old),
        "schedule.deleted": lambda: schedules.delete(core, by, schedule_id),
        "request.answered": lambda: answering.answer(
            core, tenant_id, session_id, request_id, "permission", deny, person
        ),
        "run.repaired": lambda: repair.repair(db, run_id),
        "client_token.created": lambda: client_tokens.issue(core, tenant_id, "hidden", grant),
        "session.deleted": lambda: deletion.delete(db, tenant_id, session_id),
    }


OF_OTHERS: dict[audit.Action, str] = {
    "tenant.created": "another",
    "tenant.deleted": "another",
    "tenant.removed": "another",
    "tenant.exported": "another",
    "tenant.imported": "another-2",
}


async def everything(connection: asyncpg.Connection) -> dict[str, Any]:
    """What all tables hold."""
    return {
        table: await connection.fetchval(f'SELECT json_agg(t ORDER BY t::text) FROM "{table}" t')
        for table in Base.metadata.tables
    }


@asynccontextmanager
async def without_lines(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """As if the line could not be written."""
    role = quoted(postgres.SERVING)
    await admin.execute(f"REVOKE INSERT ON audit_log FROM {role}")
    yield
    await admin.execute(f"GRANT INSERT ON audit_log TO {role}")


async def test_no_act_is_stored_without_its_line_and_each_writes_one(lone_world: World) -> None:
    world = lone_world
    acts = await acts_of(world)
    assert set(acts) == set(get_args(audit.Action))
    by = audit.Actor(str(uuid4()), "k", "ours", "192.0.2.7", "r-1")
    async with administrator(world.settings) as admin:
        before = await admin.fetchval("SELECT count(*) FROM audit_log")
        for action, act in acts.items():
            was = await everything(admin)
            async with without_lines(admin):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await act()
            assert await everything(admin) == was, action
            acting = audit.ACTING.set(by)
            try:
                await act()
            finally:
                audit.ACTING.reset(acting)
            lines = await audit.list_lines(world.db, audit.Filters(), limit=100, before=None)
            before += 1
            assert len(lines) == before, action
            assert (lines[0].action, lines[0].actor) == (action, by)
            assert lines[0].tenant == OF_OTHERS.get(action, "ours")
        written = await admin.fetchval("SELECT string_agg(l::text, ' ') FROM audit_log l")
        assert "hidden" not in written


async def test_what_is_refused_leaves_no_line(lone_world: World) -> None:
    world = lone_world
    db, tenant_id, nobody = world.db, world.tenant_id, uuid4()
    made = await keys.create_key(db, tenant="ours", name="k", scopes=["read"])
    await keys.revoke_key(db, world.redis, made.id)
    before = len(await audit.list_lines(db, audit.Filters(), limit=100, before=None))
    assert await keys.revoke_key(db, world.redis, made.id)
    assert not await keys.revoke_key(db, world.redis, nobody)
    for refused in (
        keys.create_tenant(db, "ours"),
        keys.change_key(db, world.redis, made.id, {"name": "x"}),
        keys.rotate_key(db, world.redis, made.id, 0),
        model_credentials.delete(db, "ours"),
        model_credentials.put(db, world.settings, "nobody", "api_key", "x"),
        vault.delete(db, tenant_id, "NONE"),
        mcp.delete(db, tenant_id, "none"),
        presets.delete(db, tenant_id, "none"),
        skills.delete(db, tenant_id, "skill", "none"),
        webhooks.delete(db, tenant_id, nobody),
        webhooks.rotate(db, world.settings, tenant_id, nobody),
        deletion.delete(db, tenant_id, nobody),
        repair.repair(db, nobody),
    ):
        with pytest.raises(ApiError):
            await refused
    assert len(await audit.list_lines(db, audit.Filters(), limit=100, before=None)) == before


async def test_who_serves_adds_lines_and_changes_or_removes_none(lone_world: World) -> None:
    db = lone_world.db
    await keys.create_tenant(db, "another")
    for statement in ("UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log", "TRUNCATE audit_log"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.pool.execute(statement)
    assert APPEND_ONLY == ("audit_log",)
    [line] = await audit.list_lines(db, audit.Filters(tenant="another"), limit=2, before=None)
    assert line.actor == audit.SYSTEM


async def test_lines_are_found_by_what_they_say_and_outlive_their_tenant(lone_world: World) -> None:
    db = lone_world.db
    began = datetime.now(UTC) - timedelta(minutes=1)
    for name in ("a", "b", "c"):
        await keys.create_key(db, tenant=name, name="k", scopes=["read"])
    await db.pool.execute("DELETE FROM tenants WHERE name = 'b'")

    async def found(**filters: Any) -> list[tuple[str | None, str]]:
        lines = await audit.list_lines(db, audit.Filters(**filters), limit=100, before=None)
        return [(line.tenant, line.action) for line in lines]

    assert await found(tenant="b") == [("b", "key.created"), ("b", "tenant.created")]
    assert await found(action="key.created") == [("c", "key.created"), ("b", "key.created"), ("a", "key.created")]
    assert len(await found(actor="system", since=began)) == 6
    assert await found(actor="cli") == await found(until=began) == []
    pages, before = [], None
    while page := await audit.list_lines(db, audit.Filters(), limit=4, before=before):
        pages.append([line.id for line in page])
        before = (page[-1].created_at, page[-1].id)
    assert [len(page) for page in pages] == [4, 2]
    assert len({id_ for page in pages for id_ in page}) == 6
