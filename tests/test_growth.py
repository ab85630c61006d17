"""What statements on hot paths cost where much is stored: as much as where little is, for the same that is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from apps.api.db import Database
from apps.api.dev.embedded import Servers
from apps.api.redis import open_redis
from tests import growth
from tests.conftest import settings_for
from tests.growth import Cost, Scale
from tests.world import World

SMALL = Scale(5_000, events=4, tenants=50, queued=400, instances=5, webhooks=40, asking=200)
LARGE = Scale(20_000, events=4, tenants=50, queued=400, instances=5, webhooks=40, asking=200)
"""The same is under way in both."""

SLACK = 60
"""Pages that plans may differ by where the same is asked."""

GROWS = {
    "sessions, search": "looks into titles, the newest first",
    "sessions, tag": "sorts those that have it",
    "settled commands forgotten": "removes them, so many at a time",
}
"""What grows with what is stored of a tenant, and why."""


@asynccontextmanager
async def grown(servers: Servers, template: str, directory: Path, scale: Scale) -> AsyncIterator[World]:
    name = f"grown_{uuid4().hex}"
    await servers.create_database(name, template)
    settings = settings_for(servers, name, redis_key_prefix=f"{name}:", workspaces_dir=directory)
    await growth.fill(settings, scale)
    async with Database.open(settings) as db, open_redis(settings) as redis:
        yield World(settings, db, redis, uuid4())


async def costs(servers: Servers, template: str, directory: Path, scale: Scale) -> dict[tuple[str, str], Cost]:
    """By what is done, and the text of each statement of it."""
    found: dict[tuple[str, str], Cost] = {}
    async with grown(servers, template, directory, scale) as world:
        async for name, statements in growth.costs(world, scale):
            found |= {(name, statement.text): cost for statement, cost in statements}
    return found


async def test_costs_grow_with_what_is_asked_and_not_with_what_is_stored(
    servers: Servers, template: str, tmp_path: Path
) -> None:
    small = await costs(servers, template, tmp_path, SMALL)
    large = await costs(servers, template, tmp_path, LARGE)
    assert len(large) > 50
    wrong = []
    for (name, text), cost in large.items():
        before = small[name, text].pages
        if cost.scans or (cost.pages > before + SLACK and name not in GROWS):
            wrong.append(f"{name}: {before} → {cost.pages} pages, scans {cost.scans}\n{text}\n{cost.plan[:6000]}")
    assert not wrong, "\n\n".join(wrong)
