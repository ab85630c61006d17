"""The registry of MCP servers, and what the runner is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apps.api.core.config.parts import RegisteredServer, RemoteServer, StdioServer
from apps.api.core.config.profiles import Profile, permits_server
from apps.api.core.context import Core
from apps.api.core.network.outbound import Outbound
from apps.api.core.tenant import mcp, vault
from apps.api.errors import ApiError, Forbidden, NotFound, Unavailable, ValidationError
from tests.world import World

REMOTE = RemoteServer(type="http", url="http://127.0.0.1/a?t=${TOKEN}", headers={"X": "v ${TOKEN}"})


@pytest.fixture
def core(world: World) -> Core:
    """As much of it as MCP servers need."""
    return world.core(mcp_stdio_commands=(("serve", "-m"),))


async def resolve(core: Core, world: World, server: Any) -> dict[str, Any]:
    return (await mcp.resolve(core, world.tenant_id, {"x": server}))["x"]


async def test_secrets_are_filled_in_and_quoted_in_urls(core: Core, world: World) -> None:
    await vault.put(world.db, core.settings, world.tenant_id, "TOKEN", "a/b&c d")
    assert await resolve(core, world, REMOTE) == {
        "type": "http",
        "url": "http://127.0.0.1/a?t=a%2Fb%26c%20d",
        "headers": {"X": "v a/b&c d"},
    }
    server = StdioServer(type="stdio", command="serve", args=["-m", "${TOKEN}"], env={"A": "${TOKEN}"})
    resolved = await resolve(core, world, server)
    assert (resolved["args"], resolved["env"]) == (["-m", "${TOKEN}"], {"A": "a/b&c d"})


async def test_a_secret_cannot_break_out_of_a_header(core: Core, world: World) -> None:
    await vault.put(world.db, core.settings, world.tenant_id, "TOKEN", "a\r\nHost: b")
    with pytest.raises(ValidationError, match=r"headers\.X") as raised:
        await resolve(core, world, REMOTE)
    assert "Host" not in raised.value.message


async def test_what_is_registered_is_encrypted_and_another_tenants_is_not_found(core: Core, world: World) -> None:
    server = RemoteServer(type="http", url="http://127.0.0.1/", headers={"X": "deep-secret"})
    assert await mcp.put(core, world.tenant_id, "one", server)
    stored = await world.one("SELECT spec::text || sealed FROM mcp_servers WHERE tenant_id = $1", world.tenant_id)
    assert "deep-secret" not in stored
    named = RegisteredServer(type="registered", name="one")
    assert (await resolve(core, world, named))["headers"] == {"X": "deep-secret"}
    stranger = await world.other_tenant()
    with pytest.raises(ApiError, match="one"):
        await mcp.resolve(core, stranger, {"x": named})
    kinds = await mcp.kinds(core.db.pool, stranger, {"x": named})
    assert [problem.field for problem in await mcp.problems(core, stranger, {"x": named}, kinds)] == ["x"]
    with pytest.raises(NotFound):
        await mcp.get(world.db, stranger, "one")
    with pytest.raises(NotFound):
        await mcp.delete(world.db, stranger, "one")
    assert await mcp.list_all(world.db, stranger) == []


async def test_the_runner_judges_again(core: Core, world: World) -> None:
    server = StdioServer(type="stdio", command="serve", args=["-m"])
    await mcp.put(core, world.tenant_id, "two", server)
    named = RegisteredServer(type="registered", name="two")
    stricter = replace(core, settings=core.settings.model_copy(update={"mcp_stdio_commands": ()}))
    with pytest.raises(Forbidden):
        await resolve(stricter, world, named)
    profile = Profile(description="remote only", mcp=["http"])
    assert permits_server(profile, named)
    with pytest.raises(Forbidden, match="stdio"):
        await mcp.resolve(core, world.tenant_id, {"x": named}, profile)
    lonely = replace(core, outbound=Outbound())
    with pytest.raises(ValidationError, match="public"):
        await resolve(lonely, world, RemoteServer(type="http", url="http://127.0.0.1/"))


async def test_without_an_encryption_key_only_servers_without_values_are_registered(core: Core, world: World) -> None:
    keyless = replace(core, settings=core.settings.model_copy(update={"encryption_keys": ()}))
    await mcp.put(keyless, world.tenant_id, "three", RemoteServer(type="http", url="http://127.0.0.1/"))
    with pytest.raises(Unavailable):
        await mcp.put(
            keyless, world.tenant_id, "four", RemoteServer(type="http", url="http://127.0.0.1/", headers={"A": "b"})
        )
