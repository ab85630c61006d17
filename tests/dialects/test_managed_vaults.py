"""Managed Agents: vaults, and what sessions get of them, with the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anthropic
import pytest

from tests.conftest import NewKey
from tests.dialects.managed_clients import TOOLSET, agent_and_environment, at, error_of, turn
from tests.dialects.test_managed_resources import said
from tests.fleet import Fleet
from tests.mcp_things import serving

SECRET, TOKEN = "a-value-of-nobody-else", "a-token-of-nobody-else"
VARIABLE: Any = {
    "type": "environment_variable",
    "secret_name": "DEPLOY_KEY",
    "secret_value": SECRET,
    "networking": {"type": "unrestricted"},
}


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with at(fleet[0]) as client:
        yield client


def bearer(url: str, token: str = TOKEN) -> Any:
    return {"type": "static_bearer", "mcp_server_url": url, "token": token}


async def vault_with(client: anthropic.AsyncAnthropic, *auths: Any) -> tuple[str, list[Any]]:
    vault = await client.beta.vaults.create(display_name="Mine", metadata={"team": "docs"})
    return vault.id, [await client.beta.vaults.credentials.create(vault.id, auth=auth) for auth in auths]


async def test_vaults_are_made_changed_listed_archived_and_deleted(client: anthropic.AsyncAnthropic) -> None:
    made = await client.beta.vaults.create(display_name="Mine", metadata={"team": "docs", "x": "1"})
    assert (made.type, made.display_name, made.metadata) == ("vault", "Mine", {"team": "docs", "x": "1"})
    assert made.id.startswith("vlt_")
    changed = await client.beta.vaults.update(made.id, display_name="Yours", metadata={"x": None})
    assert (changed.display_name, changed.metadata) == ("Yours", {"team": "docs"})
    assert await client.beta.vaults.retrieve(made.id) == changed
    credential = await client.beta.vaults.credentials.create(made.id, auth=VARIABLE)
    archived = await client.beta.vaults.archive(made.id)
    assert archived.archived_at is not None
    assert made.id not in [vault.id async for vault in client.beta.vaults.list()]
    assert made.id in [vault.id async for vault in client.beta.vaults.list(include_archived=True, limit=2)]
    kept = await client.beta.vaults.credentials.retrieve(credential.id, vault_id=made.id)
    assert kept.archived_at is not None
    for ask in (
        lambda: client.beta.vaults.update(made.id, display_name="x"),
        lambda: client.beta.vaults.credentials.create(made.id, auth=VARIABLE),
        lambda: client.beta.vaults.credentials.update(credential.id, vault_id=made.id, display_name="x"),
    ):
        assert (await error_of(ask))["status"] == 409
    assert (await client.beta.vaults.delete(made.id)).type == "vault_deleted"
    assert (await error_of(lambda: client.beta.vaults.retrieve(made.id)))["status"] == 404


async def test_secrets_are_never_read_back(client: anthropic.AsyncAnthropic, fleet: Fleet) -> None:
    vault, (one, two) = await vault_with(client, VARIABLE, bearer("https://mcp.example.org/mcp"))
    assert (one.type, one.vault_id, one.auth.type, one.auth.secret_name) == (
        "vault_credential",
        vault,
        "environment_variable",
        "DEPLOY_KEY",
    )
    assert (one.auth.networking.type, one.auth.injection_location.header) == ("unrestricted", True)
    assert (two.auth.type, two.auth.mcp_server_url) == ("static_bearer", "https://mcp.example.org/mcp")
    changed = await client.beta.vaults.credentials.update(
        two.id, vault_id=vault, auth={"type": "static_bearer", "token": "another"}, display_name="MCP"
    )
    assert changed.display_name == "MCP"
    told = await client.beta.vaults.credentials.with_raw_response.list(vault)
    text = await told.text()
    assert {SECRET, TOKEN, "another"} & {word for word in (SECRET, TOKEN, "another") if word in text} == set()
    assert [c.id async for c in client.beta.vaults.credentials.list(vault, limit=1)] == [two.id, one.id]
    same = bearer("https://mcp.example.org:443/mcp/")
    assert (await error_of(lambda: client.beta.vaults.credentials.create(vault, auth=same)))["status"] == 409
    assert (await client.beta.vaults.credentials.archive(two.id, vault_id=vault)).archived_at is not None
    again = await client.beta.vaults.credentials.create(vault, auth=same)
    gone = await client.beta.vaults.credentials.delete(again.id, vault_id=vault)
    assert (gone.id, gone.type) == (again.id, "vault_credential_deleted")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "mcp_oauth", "access_token": "t", "mcp_server_url": "https://a.example/mcp"}, "auth.type"),
    ({**VARIABLE, "networking": {"type": "limited", "allowed_hosts": ["a.example"]}}, "auth.networking.type"),
    ({**VARIABLE, "injection_location": {"body": False}}, "auth.injection_location.body"),
    ({**VARIABLE, "secret_name": "LD_PRELOAD"}, "auth.secret_name"),
    ({**VARIABLE, "secret_name": "a b"}, "secret_name"),
    ({**VARIABLE, "secret_value": ""}, "secret_value"),
    (bearer("https://u:p@a.example/mcp"), "mcp_server_url"),
    (bearer("https://a.example/mcp", "two words"), "token"),
    ({**VARIABLE, "more": 1}, "more"),
]


@pytest.mark.parametrize(("auth", "field"), REFUSED)
async def test_what_cannot_be_kept_is_refused(client: anthropic.AsyncAnthropic, auth: Any, field: str) -> None:
    vault, _ = await vault_with(client)
    found = await error_of(lambda: client.beta.vaults.credentials.create(vault, auth=auth))
    assert (found["status"], field in found["text"]) == (400, True)
    assert not {SECRET, TOKEN, "two words"} & {word for word in (SECRET, TOKEN, "two words") if word in found["text"]}


async def test_a_session_has_the_secrets_of_its_vaults_and_no_other_has(client: anthropic.AsyncAnthropic) -> None:
    with serving("http") as (url, seen):
        toolset = {
            "type": "mcp_toolset",
            "mcp_server_name": "things",
            "default_config": {"permission_policy": {"type": "always_allow"}},
        }
        servers: Any = [{"type": "url", "name": "things", "url": url}]
        agent, environment = await agent_and_environment(client, tools=[TOOLSET, toolset], mcp_servers=servers)
        vault, (variable, token) = await vault_with(client, VARIABLE, bearer(url + "/"))
        later = {**VARIABLE, "secret_value": "of the second vault"}
        second, _ = await vault_with(client, later, bearer("https://elsewhere.example/mcp", "not-for-you"))
        session = await client.beta.sessions.create(agent=agent, environment_id=environment, vault_ids=[vault, second])
        assert session.vault_ids == [vault, second]
        ask = 'run echo "[$DEPLOY_KEY]"'
        assert f"[{SECRET}]" in said(await turn(client, session.id, ask))
        assert "stone" in said(await turn(client, session.id, 'use tool mcp__things__weigh {"thing": "a cat"}'))
        assert f"Bearer {TOKEN}" in seen
        assert not [header for header in seen if "not-for-you" in header]
        # What changes reaches the next turn, whether an agent is there or not.
        new: Any = {"type": "environment_variable", "secret_value": "a new value"}
        await client.beta.vaults.credentials.update(variable.id, vault_id=vault, auth=new)
        await client.beta.vaults.credentials.update(
            token.id, vault_id=vault, auth={"type": "static_bearer", "token": "a-new-token"}
        )
        assert "[a new value]" in said(await turn(client, session.id, ask))
        await turn(client, session.id, 'use tool mcp__things__weigh {"thing": "a dog"}')
        assert "Bearer a-new-token" in seen
        await client.beta.vaults.delete(vault)
        assert "[of the second vault]" in said(await turn(client, session.id, ask))
        seen.clear()
        plain = await client.beta.sessions.create(agent=agent, environment_id=environment)
        assert "[]" in said(await turn(client, plain.id, ask))
        await turn(client, plain.id, 'use tool mcp__things__weigh {"thing": "a cat"}')
        assert not [header for header in seen if header.startswith("Bearer")]


async def test_a_session_begins_with_no_vault_that_is_not_there(
    fleet: Fleet, client: anthropic.AsyncAnthropic, new_key: NewKey
) -> None:
    agent, environment = await agent_and_environment(client)
    archived, _ = await vault_with(client, VARIABLE)
    await client.beta.vaults.archive(archived)
    for vault, status in ((archived, 400), ("vlt_nobody", 404), ("x", 404)):
        found = await error_of(
            partial(client.beta.sessions.create, agent=agent, environment_id=environment, vault_ids=[vault])
        )
        assert (found["status"], "vault" in found["text"]) == (status, True)
    vault, (credential,) = await vault_with(client, VARIABLE)
    async with at(fleet[1], (await new_key())["X-API-Key"]) as theirs:
        their_agent, their_environment = await agent_and_environment(theirs)
        its = theirs.beta.vaults
        for ask in (
            lambda: theirs.beta.sessions.create(agent=their_agent, environment_id=their_environment, vault_ids=[vault]),
            lambda: its.retrieve(vault),
            lambda: its.update(vault, display_name="x"),
            lambda: its.archive(vault),
            lambda: its.delete(vault),
            lambda: its.credentials.list(vault),
            lambda: its.credentials.create(vault, auth=VARIABLE),
            lambda: its.credentials.retrieve(credential.id, vault_id=vault),
            lambda: its.credentials.update(credential.id, vault_id=vault, display_name="x"),
            lambda: its.credentials.archive(credential.id, vault_id=vault),
            lambda: its.credentials.delete(credential.id, vault_id=vault),
        ):
            assert (await error_of(ask))["status"] == 404
    async with at(fleet[1], (await new_key("default", profiles=["readonly"]))["X-API-Key"]) as bound:
        assert (await error_of(lambda: bound.beta.vaults.create(display_name="x")))["status"] == 403
        adding = partial(bound.beta.vaults.credentials.create, vault, auth=VARIABLE)
        assert (await error_of(adding))["status"] == 403
    assert (await client.beta.vaults.credentials.retrieve(credential.id, vault_id=vault)).archived_at is None
