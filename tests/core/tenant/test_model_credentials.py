"""Model credentials of tenants: sealed, used in place of the operator's, and required where that is set."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from apps.api.core.tenant import model_credentials
from apps.api.core.tenant.model_credentials import ModelApis
from apps.api.errors import Conflict, NotFound, Unavailable
from apps.api.settings import Settings
from tests.world import World


def configured(world: World, **more: Any) -> Settings:
    given = {"anthropic_api_key": "the-operators", "anthropic_base_url": "http://127.0.0.1:1", **more}
    return world.settings.model_copy(update={n: v for n, v in Settings(_env_file=None, **given) if n in given})


async def headers_of(apis: ModelApis, tenant_id: UUID) -> dict[str, str] | None:
    api = await apis.of(tenant_id)
    return None if api is None else api.headers


async def name_of(world: World) -> str:
    return str(await world.one("SELECT name FROM tenants WHERE id = $1", world.tenant_id))


async def test_a_tenants_own_credential_is_sealed_and_goes_before_the_operators(world: World) -> None:
    settings, name = configured(world), await name_of(world)
    assert await headers_of(ModelApis(world.db, settings), world.tenant_id) == {"x-api-key": "the-operators"}
    given = await model_credentials.put(world.db, settings, name, "api_key", "very-secret")
    assert "very-secret" not in repr(given)
    assert "very-secret" not in await world.one("SELECT sealed FROM model_credentials")
    api = await ModelApis(world.db, settings).of(world.tenant_id)
    assert api is not None
    assert (api.url, api.headers) == ("http://127.0.0.1:1", {"x-api-key": "very-secret"})
    assert "very-secret" not in repr(api)
    await model_credentials.put(world.db, settings, name, "auth_token", "other")
    assert await headers_of(ModelApis(world.db, settings), world.tenant_id) == {"authorization": "Bearer other"}
    other = await world.other_tenant()
    assert await headers_of(ModelApis(world.db, settings), other) == {"x-api-key": "the-operators"}
    await model_credentials.delete(world.db, name)
    assert await headers_of(ModelApis(world.db, settings), world.tenant_id) == {"x-api-key": "the-operators"}
    with pytest.raises(NotFound, match="model_credential"):
        await model_credentials.delete(world.db, name)


async def test_where_it_is_required_the_operators_does_not_stand_in(world: World) -> None:
    settings = configured(world, tenant_model_credentials="required")
    with pytest.raises(Unavailable) as raised:
        await ModelApis(world.db, settings).of(world.tenant_id)
    assert raised.value.code == "model_credential_missing"


async def test_an_instance_goes_by_what_it_has_looked_up_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, name = configured(world), await name_of(world)
    apis = ModelApis(world.db, settings)
    await apis.of(world.tenant_id)
    await model_credentials.put(world.db, settings, name, "api_key", "own")
    assert await headers_of(apis, world.tenant_id) == {"x-api-key": "the-operators"}
    monkeypatch.setattr(model_credentials, "KEEP_SECONDS", 0.0)
    apis = ModelApis(world.db, settings)
    assert await headers_of(apis, world.tenant_id) == {"x-api-key": "own"}
    await model_credentials.delete(world.db, name)
    assert await headers_of(apis, world.tenant_id) == {"x-api-key": "the-operators"}


async def test_none_is_taken_where_agents_go_past_the_gateway(world: World) -> None:
    settings = world.settings.model_copy(update={"anthropic_api_key": None, "claude_code_oauth_token": "a-token"})
    with pytest.raises(Conflict) as raised:
        await model_credentials.put(world.db, settings, await name_of(world), "api_key", "own")
    assert raised.value.code == "model_credential_unused"


async def test_a_tenants_own_goes_to_the_messages_api_where_the_operators_is_in_a_cloud(world: World) -> None:
    settings, name = configured(world, claude_code_use_bedrock=True), await name_of(world)
    assert await ModelApis(world.db, settings).of(world.tenant_id) is None
    await model_credentials.put(world.db, settings, name, "api_key", "own")
    api = await ModelApis(world.db, settings).of(world.tenant_id)
    assert api is not None
    assert (api.url, api.headers) == ("http://127.0.0.1:1", {"x-api-key": "own"})
