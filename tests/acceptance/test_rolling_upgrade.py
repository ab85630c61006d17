"""Every instance of a fleet is replaced under load, behind nginx, with a migration before: no client notices."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import httpx
import pytest

from apps.api import migrate
from apps.api.db import SCHEMA_REVISION
from tests.faults.load import Load
from tests.faults.remains import violations
from tests.faults.stage import Stage
from tests.fleet import events_of

NEXT = "9999"
MIGRATION = f'''
from alembic import op
from apps.api.migrate import build_index, slow_builds

revision, down_revision = "{NEXT}", "{SCHEMA_REVISION}"
branch_labels = depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table in ("tenants", "api_keys", "sessions", "runs", "events", "commands", "requests", "instances"):
            op.execute(f"ALTER TABLE {{table}} ADD COLUMN IF NOT EXISTS of_the_next text")
        op.execute("ALTER TABLE runs DROP CONSTRAINT IF EXISTS of_the_next")
        op.execute("ALTER TABLE runs ADD CONSTRAINT of_the_next CHECK (of_the_next <> '') NOT VALID")
        op.execute("ALTER TABLE runs VALIDATE CONSTRAINT of_the_next")
        with slow_builds():
            build_index("of_the_next_idx", "events (of_the_next)")
'''
"""One of the next release, with each kind of step that ours have, one table at a time."""


async def migrated(stage: Stage, directory: Path) -> None:
    """Bring the schema to the next release's."""
    scripts = directory / "migrations"
    shutil.copytree(migrate.SCRIPTS, scripts)
    (scripts / "versions" / f"{NEXT}_next.py").write_text(MIGRATION)
    await migrate.upgrade(stage.settings, scripts=scripts)


class Asking:
    """Clients that repeat nothing: whatever is refused or cut off is noted."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client, self._over = client, asyncio.Event()
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []

    async def sessions(self) -> None:
        """Begin, read and delete one session after the other: what nginx must not send twice, and what it may."""
        while not self._over.is_set():
            made = await self._ask("POST", "/sessions", {})
            if made is not None:
                path = f"/sessions/{made['session_id']}"
                await self._ask("GET", path)
                await self._ask("DELETE", path)

    async def waiting(self) -> None:
        """Ask and wait for the result, in one request each."""
        body = {"permission_mode": "bypassPermissions", "prompt": "run sleep 3; echo done"}
        while not self._over.is_set():
            if (told := await self._ask("POST", "/query/single", body)) is not None:
                body["session_id"] = told["session_id"]

    async def streaming(self) -> None:
        """Ask, and follow the run to its end in the same answer."""
        body = {"permission_mode": "bypassPermissions", "prompt": "run sleep 3; echo done"}
        while not self._over.is_set():
            last = "nothing"
            try:
                async with self._client.stream("POST", "/api/v1/query", json=body) as response:
                    async for event in events_of(response):
                        last = f"{event.event} {event.data.get('status')}"
            except httpx.TransportError as error:
                last = repr(error)
            self.answers[last] += 1
            if last != "done succeeded":
                self.failed.append(f"a stream ended with {last}")

    async def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, str] | None:
        try:
            response = await self._client.request(method, f"/api/v1{path}", json=body)
        except httpx.TransportError as error:
            self.failed.append(f"{method} {path}: {error!r}")
            return None
        self.answers[f"{method} {response.status_code}"] += 1
        if response.status_code >= 300:
            self.failed.append(f"{method} {path}: {response.status_code} {response.text[:300]}")
            return None
        return dict(response.json()) if response.content else {}

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Some at a time, as long as the block lasts."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(6):
                clients.create_task(self.sessions())
            clients.create_task(self.waiting())
            clients.create_task(self.streaming())
            try:
                yield
            finally:
                self._over.set()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_instance_is_replaced_by_the_next_version_and_no_client_notices(tmp_path: Path) -> None:
    chance = Random(10)
    defaults = {"SHUTDOWN_GRACE_SECONDS": "30", "INSTANCE_LEASE_SECONDS": "10"}
    async with Stage.opened(10, ("both", "both", "both"), more=defaults, plain=True) as stage, stage.client() as client:
        load, asking = Load(stage, client, chance, harmless=True), Asking(client)
        users = [asyncio.create_task(load.client()) for _ in range(3)]
        async with asking.going_on():
            await asyncio.sleep(3)
            await migrated(stage, tmp_path)
            for host in stage.hosts:
                host.instance.signal(signal.SIGTERM)
                assert await host.instance.ended(90) == 0, host.instance.log.read_text()[-2000:]
                await stage.fleet.again(host.instance)
                await asyncio.sleep(3)
        load.end()
        await asyncio.gather(*users)
        # Sessions of `asking` are none of the load's.
        found = [told for told in await violations(stage, load) if not told.endswith("is nobody's")]
        await load.close()
        for host in stage.hosts:
            shutil.copy(host.instance.log, tmp_path)
        assert asking.failed == []
        assert load.refused == []
        assert found == []
        ends = Counter(p.run.get("status") for s in load.sessions if not s.deleted for p in s.prompts)
        assert ends["succeeded"] > 5
        assert set(ends) <= {"succeeded", "interrupted"}, ends
        assert asking.answers["POST 201"] > 50
        assert asking.answers["POST 200"] > 3
        assert asking.answers["done succeeded"] > 3
