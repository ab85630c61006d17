"""What `doctor` says of a machine, and that it changes nothing there."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apps.api.doctor import Check, examine
from apps.api.redis import Redis, open_redis
from apps.api.settings import Settings
from tests.proxy import changed


async def checked(settings: Settings, subject: str) -> Check:
    return next(check for check in await examine(settings) if check.subject == subject)


async def test_a_directory_of_workspaces_that_does_not_exist_is_not_made(settings: Settings, tmp_path: Path) -> None:
    there = tmp_path / "not" / "yet"
    found = await checked(changed(settings, workspaces_dir=there), "Workspaces")
    assert found == Check("ok", "Workspaces", f"{there}, which the first start makes")
    assert not (tmp_path / "not").exists()


async def test_a_directory_of_workspaces_that_cannot_be_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = await checked(changed(settings, workspaces_dir=tmp_path / "file" / "below"), "Workspaces")
    assert found.verdict == "FAIL"
    assert str(tmp_path / "file") in found.finding


@pytest.fixture
async def limited(settings: Settings) -> AsyncIterator[Redis]:
    """The tests' Valkey with a bound for its memory, which compose's Redis has as well."""
    async with open_redis(settings) as redis:
        before = await redis.client.config_get("maxmemory*")
        await redis.client.config_set("maxmemory", "512mb")
        yield redis
        for name in ("maxmemory", "maxmemory-policy"):
            await redis.client.config_set(name, str(before[name]))


@pytest.mark.parametrize(("policy", "verdict"), [("allkeys-lru", "ok"), ("noeviction", "warn")])
async def test_what_is_hot_may_be_evicted_but_not_refused(
    settings: Settings, limited: Redis, policy: str, verdict: str
) -> None:
    await limited.client.config_set("maxmemory-policy", policy)
    assert (await checked(settings, "Redis")).verdict == verdict


async def test_without_a_bound_nothing_is_refused(settings: Settings, redis: Redis) -> None:
    assert (await checked(settings, "Redis")).verdict == "ok"


async def test_a_misspelt_setting_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNER_SLOTS", "4")
    found = await checked(settings, "Settings")
    assert found == Check(
        "warn", "Settings", "RUNER_SLOTS in the environment is no setting; did you mean RUNNER_SLOTS?"
    )


async def test_few_descriptors_are_told(settings: Settings) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = await checked(settings, "Descriptors")
    assert found.verdict == ("ok" if hard == resource.RLIM_INFINITY or hard >= 4096 else "warn")
    code = "import asyncio; from apps.api import doctor; print(asyncio.run(doctor._descriptors(None)).verdict)"
    command = ["prlimit", "--nofile=1024:1024", sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"warn\n"
