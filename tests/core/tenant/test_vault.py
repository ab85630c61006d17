"""Secrets: stored encrypted, named, replaced, and found again under rotated keys."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet

from apps.api.core.tenant import vault
from apps.api.errors import NotFound, Unavailable, ValidationError
from apps.api.settings import Settings
from tests.conftest import ENCRYPTION_KEY
from tests.world import World

NEW_KEY = Fernet.generate_key().decode()


def with_keys(world: World, *keys: str) -> Settings:
    return Settings(_env_file=None, encryption_keys=",".join(keys))


async def test_what_is_stored_does_not_hold_the_value(world: World) -> None:
    assert await vault.put(world.db, world.settings, world.tenant_id, "TOKEN", "very-secret")
    stored = await world.one("SELECT sealed FROM secrets WHERE tenant_id = $1", world.tenant_id)
    assert "very-secret" not in stored
    assert vault.unseal(world.settings, stored) == "very-secret"


async def test_a_secret_is_replaced_by_a_second_value(world: World) -> None:
    assert await vault.put(world.db, world.settings, world.tenant_id, "TOKEN", "one")
    assert not await vault.put(world.db, world.settings, world.tenant_id, "TOKEN", "two")
    found = await vault.resolve(world.db, world.settings, world.tenant_id, ["TOKEN"])
    assert found == {"TOKEN": "two"}


async def test_another_tenants_secret_does_not_exist(world: World) -> None:
    other = await world.other_tenant()
    await vault.put(world.db, world.settings, other, "TOKEN", "theirs")
    with pytest.raises(NotFound, match="TOKEN"):
        await vault.resolve(world.db, world.settings, world.tenant_id, ["TOKEN"])
    with pytest.raises(NotFound):
        await vault.delete(world.db, world.tenant_id, "TOKEN")
    with pytest.raises(ValidationError, match="url: there is no secret named TOKEN"):
        await vault.require(world.db, world.tenant_id, {"TOKEN": "url"})
    assert (await vault.list_page(world.db, world.tenant_id, limit=10, cursor=None)).data == []
    await vault.require(world.db, other, {"TOKEN": "url"})


async def test_a_new_key_in_front_still_opens_what_the_old_one_sealed(world: World) -> None:
    await vault.put(world.db, world.settings, world.tenant_id, "TOKEN", "before")
    rotated = with_keys(world, NEW_KEY, ENCRYPTION_KEY)
    assert await vault.resolve(world.db, rotated, world.tenant_id, ["TOKEN"]) == {"TOKEN": "before"}
    await vault.put(world.db, rotated, world.tenant_id, "TOKEN", "after")
    assert await vault.resolve(world.db, with_keys(world, NEW_KEY), world.tenant_id, ["TOKEN"]) == {"TOKEN": "after"}
    with pytest.raises(Unavailable, match="ENCRYPTION_KEYS"):
        await vault.resolve(world.db, world.settings, world.tenant_id, ["TOKEN"])


async def test_without_a_key_nothing_is_stored(world: World) -> None:
    with pytest.raises(Unavailable, match="ENCRYPTION_KEYS") as refused:
        await vault.put(world.db, with_keys(world), world.tenant_id, "TOKEN", "value")
    assert refused.value.code == "encryption_not_configured"
    assert (await vault.list_page(world.db, world.tenant_id, limit=10, cursor=None)).data == []


def test_references_are_found_and_filled() -> None:
    texts = ["Bearer ${TOKEN}", "${A}/${B_2}", "$PLAIN ${lower} ${}"]
    assert vault.names_in(texts) == {"TOKEN", "A", "B_2"}
    assert vault.fill("${A}-${B_2}-${lower}", {"A": "${B_2}", "B_2": "2"}) == "${B_2}-2-${lower}"
