"""What `doctor` says of a machine, and that it changes nothing there."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apps.api.dev import valkey
from apps.api.dev.processes import accepts
from apps.api.doctor import Check, examine
from apps.api.redis import Redis, UnfitRedis, open_redis
from apps.api.settings import Settings
from tests.free_ports import free_ports
from tests.proxy import changed
from tests.world import until


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


KINDS = {"cluster": "cluster-enabled yes\ncluster-port {bus}", "Sentinel": "sentinel monitor main 127.0.0.1 1 1"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cluster_and_a_sentinel_are_refused(settings: Settings, tmp_path: Path, kind: str) -> None:
    port, path = free_ports(2), tmp_path / "socket"
    usual = f"port {port}\nbind 127.0.0.1\nunixsocket {path}\ndir {tmp_path}\n"
    (file := tmp_path / "valkey.conf").write_text(usual + KINDS[kind].format(bus=port + 1))
    words = (valkey.program(), file, *(("--sentinel",) if kind == "Sentinel" else ()))
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.DEVNULL)
    other = changed(settings, redis_url=f"unix://{path}")
    try:
        await until(lambda: accepts(path))
        found = await checked(other, "Redis")
        assert (found.verdict, kind in found.finding) == ("FAIL", True)
        async with open_redis(other) as redis:
            with pytest.raises(UnfitRedis, match=kind):
                await redis.check_kind()
    finally:
        process.terminate()
        await process.wait()


async def test_a_misspelt_setting_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNER_SLOTS", "4")
    found = await checked(settings, "Settings")
    assert found == Check(
        "FAIL", "Settings", "RUNER_SLOTS in the environment is no setting; did you mean RUNNER_SLOTS?"
    )


async def test_few_descriptors_are_told(settings: Settings) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = await checked(settings, "Descriptors")
    assert found.verdict == ("ok" if hard == resource.RLIM_INFINITY or hard >= 4096 else "warn")
    code = "import asyncio; from apps.api.doctor import host; print(asyncio.run(host.descriptors(None)).verdict)"
    command = ["prlimit", "--nofile=1024:1024", sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"warn\n"
