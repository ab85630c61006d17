"""API keys: who gets in, as what, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import orjson
import pytest
from typer.testing import CliRunner, Result

from apps.api import cli
from apps.api.auth import SCOPES, Principal, authenticate
from apps.api.db import Database
from apps.api.errors import Forbidden, Unauthorized
from apps.api.keys import DEFAULT_TENANT, create_key, ensure_first_key, list_keys, revoke_key
from apps.api.redis import Redis, open_redis
from apps.api.settings import Settings
from tests.proxy import changed
from tests.world import administrator, until, waiting_for_locks

API_KEY = "the-key-that-an-operator-has-chosen"


@pytest.fixture
async def no_redis(settings: Settings) -> AsyncIterator[Redis]:
    """A Redis that is away."""
    async with open_redis(changed(settings, redis_url="redis://127.0.0.1:1/0")) as opened:
        yield opened


async def refused(db: Database, redis: Redis, secret: str | None) -> str:
    """The code with which a key is refused."""
    with pytest.raises(Unauthorized) as caught:
        await authenticate(db, redis, secret)
    assert caught.value.status == 401
    return caught.value.code


async def cached_keys(redis: Redis) -> list[bytes | str]:
    """Cache entries that name a principal."""
    entries = [await redis.client.get(key) async for key in redis.client.scan_iter(f"{redis.keys.prefix}key:*")]
    return [entry for entry in entries if entry]


# --- creating and using --------------------------------------------------------------------------------------------


async def test_a_new_key_is_let_in_as_what_it_was_made(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="ci", scopes=("write",), expires_in_days=2)
    caller = await authenticate(db, redis, created.secret)
    assert (caller.tenant, caller.key_id, caller.key_name) == ("acme", created.id, "ci")
    assert caller.scopes == ("write",)
    assert caller.expires_at is not None
    assert timedelta(days=1, hours=23) < caller.expires_at - datetime.now(UTC) <= timedelta(days=2)
    assert created.secret.startswith(caller.prefix)


async def test_the_cache_gives_the_same_principal_as_the_database(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="ci", scopes=SCOPES, expires_in_days=1)
    looked_up = await authenticate(db, redis, created.secret)
    assert len(await cached_keys(redis)) == 1
    assert await authenticate(db, redis, created.secret) == looked_up


async def test_keys_are_long_and_never_the_same(db: Database) -> None:
    secrets = {(await create_key(db, tenant="acme", name="k", scopes=SCOPES)).secret for _ in range(20)}
    assert len(secrets) == 20
    assert all(secret.startswith("cak_") and len(secret) == 47 for secret in secrets)


async def test_keys_of_one_tenant_share_it_and_others_do_not(db: Database, redis: Redis) -> None:
    callers = [
        await authenticate(db, redis, (await create_key(db, tenant=tenant, name="k", scopes=SCOPES)).secret)
        for tenant in ("acme", "acme", "other")
    ]
    assert callers[0].tenant_id == callers[1].tenant_id != callers[2].tenant_id


async def test_the_use_of_a_key_is_noted(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    assert (await list_keys(db))[0].last_used_at is None
    await authenticate(db, redis, created.secret)
    assert (await list_keys(db))[0].last_used_at is not None


async def test_keys_work_without_redis(db: Database, no_redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    assert (await authenticate(db, no_redis, created.secret)).key_id == created.id
    assert await revoke_key(db, no_redis, created.id)
    assert await refused(db, no_redis, created.secret) == "invalid_api_key"


async def test_a_tenant_needs_a_plain_name(db: Database) -> None:
    for name in ("", "a b", "-a", ".", "ä", "a/b", "x" * 64, "a\n", "a;b"):
        with pytest.raises(ValueError, match="tenant"):
            await create_key(db, tenant=name, name="k", scopes=SCOPES)
    assert await db.pool.fetchval("SELECT count(*) FROM tenants") == 0


async def test_a_key_needs_scopes_that_exist(db: Database) -> None:
    for scopes in ((), ("root",), ("read", "root"), ("READ",)):
        with pytest.raises(ValueError, match="scopes"):
            await create_key(db, tenant="acme", name="k", scopes=scopes)
    assert await list_keys(db) == []


async def test_a_secret_belongs_to_one_key_only(db: Database, redis: Redis) -> None:
    await create_key(db, tenant="acme", name="k", scopes=SCOPES, secret=API_KEY)
    with pytest.raises(ValueError, match="already"):
        await create_key(db, tenant="other", name="k", scopes=SCOPES, secret=API_KEY)
    assert (await authenticate(db, redis, API_KEY)).tenant == "acme"
    assert await db.pool.fetchval("SELECT count(*) FROM tenants") == 1


# --- refusing ------------------------------------------------------------------------------------------------------


async def test_without_a_key_one_is_asked_for(db: Database, redis: Redis) -> None:
    for secret in (None, ""):
        assert await refused(db, redis, secret) == "authentication_required"


async def test_an_unknown_key_is_refused(db: Database, redis: Redis) -> None:
    await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    for secret in ("cak_unknown", " ", "\x00", "ÿ" * 10_000, "' OR 1=1 --", "*"):
        assert await refused(db, redis, secret) == "invalid_api_key"
    assert await cached_keys(redis) == []


async def test_nothing_but_the_exact_key_is_let_in(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    stored = await db.pool.fetchval("SELECT secret_hash FROM api_keys")
    near = (created.secret[:-1], created.secret + "x", created.secret.upper(), created.prefix, stored, str(created.id))
    for secret in near:
        assert await refused(db, redis, secret) == "invalid_api_key"


async def test_a_revoked_key_is_refused_at_once_although_it_was_cached(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    await authenticate(db, redis, created.secret)
    assert len(await cached_keys(redis)) == 1
    assert await revoke_key(db, redis, created.id)
    assert await refused(db, redis, created.secret) == "invalid_api_key"
    assert await cached_keys(redis) == []


async def test_a_request_that_meets_the_revocation_does_not_bring_the_key_back(db: Database, redis: Redis) -> None:
    for _ in range(30):
        created = await create_key(db, tenant="acme", name="k", scopes=SCOPES)
        meeting = [authenticate(db, redis, created.secret) for _ in range(3)]
        await asyncio.gather(*meeting, revoke_key(db, redis, created.id), return_exceptions=True)
        assert await refused(db, redis, created.secret) == "invalid_api_key"


async def test_revoking_again_keeps_the_first_moment(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    await revoke_key(db, redis, created.id)
    first = (await list_keys(db))[0].revoked_at
    assert first is not None
    assert await revoke_key(db, redis, created.id)
    assert (await list_keys(db))[0].revoked_at == first


async def test_revoking_one_key_leaves_the_others(db: Database, redis: Redis) -> None:
    one, other = [await create_key(db, tenant="acme", name="k", scopes=SCOPES) for _ in range(2)]
    await revoke_key(db, redis, one.id)
    assert (await authenticate(db, redis, other.secret)).key_id == other.id
    assert not await revoke_key(db, redis, uuid4())


async def test_an_expired_key_is_refused(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES, expires_in_days=0)
    assert await refused(db, redis, created.secret) == "invalid_api_key"
    assert await refused(db, redis, created.secret) == "invalid_api_key"


async def test_a_key_that_expires_while_it_is_cached_is_refused(db: Database, redis: Redis) -> None:
    created = await create_key(db, tenant="acme", name="k", scopes=SCOPES, expires_in_days=1)
    await authenticate(db, redis, created.secret)
    [name] = [key async for key in redis.client.scan_iter(f"{redis.keys.prefix}key:*")]
    entry = orjson.loads(await redis.client.get(name) or "")
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await redis.client.set(name, orjson.dumps({**entry, "expires_at": over}))
    assert await refused(db, redis, created.secret) == "invalid_api_key"


# --- scopes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        (("read",), {"read"}),
        (("write",), {"read", "write"}),
        (("admin",), {"read", "write", "admin"}),
        (("read", "write"), {"read", "write"}),
        ((), set()),
        (("something else",), set()),
    ],
)
def test_a_wider_scope_holds_the_narrower_ones(scopes: tuple[str, ...], may: set[str]) -> None:
    caller = Principal(uuid4(), "acme", uuid4(), "k", "cak_", scopes, None, None)
    for scope in SCOPES:
        if scope in may:
            caller.require(scope)
            continue
        with pytest.raises(Forbidden) as caught:
            caller.require(scope)
        assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")
        assert scope in caught.value.message


# --- listing, and what is kept -------------------------------------------------------------------------------------


async def test_keys_are_listed_by_tenant_or_all_oldest_first(db: Database, redis: Redis) -> None:
    made = [
        await create_key(db, tenant=t, name=f"key {n}", scopes=SCOPES) for n, t in enumerate(("acme", "other", "acme"))
    ]
    await revoke_key(db, redis, made[0].id)
    assert [(key.tenant, key.name) for key in await list_keys(db)] == [
        ("acme", "key 0"),
        ("other", "key 1"),
        ("acme", "key 2"),
    ]
    assert [key.id for key in await list_keys(db, "acme")] == [made[0].id, made[2].id]
    assert [key.revoked_at is None for key in await list_keys(db)] == [False, True, True]
    assert await list_keys(db, "nobody") == []


async def test_a_key_is_kept_nowhere_in_clear(db: Database, redis: Redis) -> None:
    secrets = [
        (await create_key(db, tenant="acme", name="k", scopes=SCOPES)).secret,
        (await create_key(db, tenant="acme", name="k", scopes=SCOPES, secret=API_KEY)).secret,
    ]
    for secret in secrets:
        await authenticate(db, redis, secret)
    tables = await db.pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = [
        str(row[0]) for table in tables for row in await db.pool.fetch(f'SELECT t::text FROM "{table["tablename"]}" t')
    ]
    hot = [key async for key in redis.client.scan_iter(f"{redis.keys.prefix}*")]
    hot += [await redis.client.get(key) for key in hot]
    kept = "\n".join([*rows, *(item.decode() for item in hot), *(repr(key) for key in await list_keys(db))])
    assert str((await list_keys(db))[0].id) in kept
    for secret in secrets:
        assert secret not in kept
        assert secret[8:] not in kept  # all that is known of a key is the beginning that tells it from others


# --- the command line ----------------------------------------------------------------------------------------------


async def test_a_key_is_bound_to_networks_on_the_command_line(settings: Settings, db: Database) -> None:
    given = {"DATABASE_URL": settings.database_url.get_secret_value(), "REDIS_URL": "redis://127.0.0.1:1/0"}
    create = ["keys", "create", "--tenant", "acme", "--name", "ci", "--network", "10.1.0.0/16", "--network"]

    async def ran(network: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli.app, [*create, network], env=given)

    made = await ran("::ffff:192.0.2.7")
    assert made.exit_code == 0, made.output
    assert [key.networks for key in await list_keys(db)] == [("10.1.0.0/16", "192.0.2.7/32")]
    refused = await ran("10.0.0.5/8")
    assert refused.exit_code == 2
    assert "--network: '10.0.0.5/8' has bits set beyond its prefix: write 10.0.0.0/8" in refused.stderr
    assert len(await list_keys(db)) == 1


# --- the first key -------------------------------------------------------------------------------------------------


async def test_ten_instances_that_start_at_once_make_the_first_key_once(
    settings: Settings, db: Database, redis: Redis
) -> None:
    async with administrator(settings) as admin, administrator(settings) as blocker:
        # So that each of them has seen that there is no key before one of them makes it.
        await blocker.execute("BEGIN; LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        starting = [asyncio.create_task(ensure_first_key(db, API_KEY)) for _ in range(10)]
        try:
            await until(lambda: waiting_for_locks(admin, 10))
        finally:
            await blocker.execute("COMMIT")
            made = [created.id for created in await asyncio.gather(*starting) if created]
    assert len(made) == 1
    assert [key.id for key in await list_keys(db)] == made
    caller = await authenticate(db, redis, API_KEY)
    assert (caller.tenant, caller.scopes) == (DEFAULT_TENANT, SCOPES)


async def test_a_chosen_key_is_made_valid_beside_others(db: Database, redis: Redis) -> None:
    await create_key(db, tenant="acme", name="k", scopes=SCOPES)
    assert await ensure_first_key(db, API_KEY) is not None
    assert await ensure_first_key(db, API_KEY) is None
    assert (await authenticate(db, redis, API_KEY)).tenant == DEFAULT_TENANT
    assert len(await list_keys(db)) == 2


async def test_a_chosen_key_that_was_revoked_stays_so_after_a_restart(db: Database, redis: Redis) -> None:
    created = await ensure_first_key(db, API_KEY)
    assert created is not None
    await revoke_key(db, redis, created.id)
    assert await ensure_first_key(db, API_KEY) is None
    assert await refused(db, redis, API_KEY) == "invalid_api_key"


async def test_without_a_chosen_key_one_is_minted_only_if_there_is_none(db: Database, redis: Redis) -> None:
    created = await ensure_first_key(db, None)
    assert created is not None
    assert (await authenticate(db, redis, created.secret)).tenant == DEFAULT_TENANT
    assert await ensure_first_key(db, None) is None
    assert len(await list_keys(db)) == 1
