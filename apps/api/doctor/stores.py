"""What `doctor` finds of Redis, and of the store of sessions' files."""

from __future__ import annotations

from pathlib import Path

from apps.api import migrate
from apps.api.core.files.objects import Objects, StoreFailed
from apps.api.doctor.check import Check
from apps.api.redis import REDIS_ERRORS, open_redis, unfit
from apps.api.settings import Settings

OLDEST_REDIS = (7, 0)


async def redis(settings: Settings) -> Check:
    """Whether it answers, is of the right kind and new enough, and drops what is old when it is full."""
    try:
        async with open_redis(settings) as redis:
            facts = await redis.client.info("everything")
    except REDIS_ERRORS as error:
        return Check("FAIL", "Redis", f"{migrate.reason(error)}: check REDIS_URL, or start `dev`")
    if (reason := unfit(facts)) is not None:
        return Check("FAIL", "Redis", reason)
    version = str(facts.get("redis_version", "0.0"))
    name = f"Valkey {facts['valkey_version']}" if "valkey_version" in facts else f"Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        return Check("FAIL", "Redis", f"{name}: use Redis 7.0, Valkey 7.2 or later")
    policy = str(facts.get("maxmemory_policy"))
    if facts.get("maxmemory") and not policy.startswith("allkeys-"):
        full = f"maxmemory-policy is {policy}: when its memory is used up, it refuses what is live"
        return Check("warn", "Redis", f"{name}: {full}; set allkeys-lru")
    return Check("ok", "Redis", name)


async def objects(settings: Settings) -> Check:
    """Whether the store of sessions' files may be read and written. Nothing is stored."""
    if not settings.runner_slots and settings.workspace_store_url is None:
        return Check("ok", "File store", "none: this instance runs no agents, and has no WORKSPACE_STORE_URL")
    store = Objects.of(settings, make=False)
    if settings.workspace_store_url is None and not Path(store.shown).is_dir():  # noqa: ASYNC240 - one look
        return Check("ok", "File store", f"{store.shown}, which the first start makes")
    try:
        await store.try_out()
    except (StoreFailed, TimeoutError) as error:
        advice = "check WORKSPACE_STORE_URL, what its credentials may do, and the network"
        return Check("FAIL", "File store", f"{store.shown}: {migrate.reason(error)}: {advice}")
    return Check("ok", "File store", f"{store.shown} can be read and written")
