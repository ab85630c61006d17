"""Health, metrics and the documents: what is told without a key, and what only with DEBUG."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from apps.api import __version__
from apps.api.main import DIALECTS, create_app
from apps.api.openapi import target
from apps.api.runner.guard import isolation, trial
from apps.api.settings import Settings
from apps.api.web.health import Dependents, Health
from tests import contract
from tests.conftest import StartFleet
from tests.fleet import NO_TLS, Fleet
from tests.world import World, core_of, lone_world

__all__ = ["lone_world"]

PUBLIC = ["/health", "/api/v1/health", "/health/live", "/health/ready", "/metrics"]


@pytest.fixture
async def nobody(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key, of the first instance."""
    async with httpx.AsyncClient(base_url=fleet[0].url, timeout=60, verify=NO_TLS) as client:
        yield client


@pytest.mark.parametrize("path", PUBLIC)
async def test_no_key_is_needed(nobody: httpx.AsyncClient, path: str) -> None:
    response = await nobody.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["X-Request-ID"]


@pytest.mark.parametrize("path", PUBLIC)
async def test_a_wrong_key_is_no_hindrance(nobody: httpx.AsyncClient, path: str) -> None:
    assert (await nobody.get(path, headers={"X-API-Key": "wrong"})).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/api/v1/health", "/health/ready"])
async def test_an_instance_that_works_tells_its_parts(nobody: httpx.AsyncClient, fleet: Fleet, path: str) -> None:
    told, found = (await nobody.get(path)).json(), await trial.strongest(Settings())
    assert told.pop("default_model") in ("ok", "unknown")  # it may not have been asked yet
    assert told == {
        "status": "ok",
        "version": __version__,
        "instance_id": fleet[0].id,
        "draining": False,
        "dependencies": {"postgres": "ok", "redis": "ok", "claude_cli": "ok"},
        "failing_loops": [],
        "unfit": [],
        "isolation": found.layer,
        "warnings": isolation.warnings(Settings(), found.layer, found.lacking),
    }


async def test_an_instance_whose_agents_are_not_confined_says_so_at_its_start_and_in_its_health(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(1, AGENT_ISOLATION="off", AGENT_SECCOMP="off", AGENT_UNCONFINED_IN_PRODUCTION="true")
    warnings = (await fleet[0].client.get("/health")).json()["warnings"]
    assert [warning.partition(":")[0] for warning in warnings] == ["AGENT_ISOLATION=off", "AGENT_SECCOMP=off"]
    logged = fleet[0].log.read_text()
    assert all(warning in logged for warning in warnings)


async def test_every_instance_has_an_id_of_its_own(fleet: Fleet) -> None:
    told = [Health.model_validate_json((await i.client.get("/health")).content) for i in fleet.instances]
    assert len({health.instance_id for health in told}) == len(fleet.instances) == 3


async def test_a_process_that_is_alive_says_so_and_no_more(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/health/live")).json() == {"status": "ok"}


# --- the beginning ------------------------------------------------------------------------------------------------


async def test_a_program_that_asks_at_the_root_is_told_where_to_go_on(nobody: httpx.AsyncClient) -> None:
    told = (await nobody.get("/")).json()
    assert told.pop("name") == "Claude Agent API"
    assert told.pop("version") == __version__
    assert told.pop("api") == "/api/v1"
    assert set(told) == {"health", "console", "docs", "openapi"}
    for path in told.values():
        assert (await nobody.get(path)).status_code == 200, path


async def test_a_browser_that_asks_at_the_root_is_led_to_the_console(nobody: httpx.AsyncClient) -> None:
    led = await nobody.get("/", headers={"Accept": "text/html,application/xhtml+xml;q=0.9"})
    assert (led.status_code, led.headers["Location"]) == (307, "console")


# --- limits -----------------------------------------------------------------------------------------------------------


async def statuses(client: httpx.AsyncClient, path: str, count: int, address: str) -> set[int]:
    """Of that many requests, which are all written at once: a client of HTTP takes longer for each than the server."""
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n"
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        writer.write(f"{request}\r\n".encode() * (count - 1) + f"{request}Connection: close\r\n\r\n".encode())
        answered = re.findall(rb"HTTP/1\.1 (\d{3}) ", await reader.read())
    finally:
        writer.close()
    assert len(answered) == count
    return {int(status) for status in answered}


async def test_whoever_shares_a_balancers_address_does_not_take_the_fleet_down(nobody: httpx.AsyncClient) -> None:
    for path in ("/health/ready", "/health/live", "/health"):
        assert await statuses(nobody, path, 610, "192.0.2.1") == {200}


async def test_the_public_limit_is_per_client_behind_a_trusted_proxy(nobody: httpx.AsyncClient) -> None:
    assert await statuses(nobody, "/console", 610, "192.0.2.2") == {200, 429}
    assert await statuses(nobody, "/console", 10, "192.0.2.3") == {200}


async def test_a_network_of_ipv6_has_one_public_limit(nobody: httpx.AsyncClient) -> None:
    assert await statuses(nobody, "/console", 610, "2001:db8:5::1") == {200, 429}
    assert await statuses(nobody, "/console", 10, "2001:db8:5::2:1:1:1") == {429}
    assert await statuses(nobody, "/console", 10, "2001:db8:5:1::1") == {200}
    assert await statuses(nobody, "/console", 1, "192.0.2.3") == {200}


async def test_dependencies_are_asked_once_a_second_by_all_together(lone_world: World) -> None:
    async def pings() -> int:
        facts = await lone_world.redis.client.info("commandstats")
        return int(facts["cmdstat_ping"]["calls"]) if "cmdstat_ping" in facts else 0

    dependents, before = Dependents(core_of(lone_world)), await pings()
    assert await asyncio.gather(*(dependents.states() for _ in range(300))) == [("ok", "ok")] * 300
    assert await pings() - before < 30


# --- metrics -------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'[a-z_]+(?:\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? [0-9.e+-]+')


async def counted(client: httpx.AsyncClient, labels: str) -> float:
    """Requests so far, by the labels of one counter."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith(f"claude_agent_api_http_requests_total{{{labels}}} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def test_metrics_are_in_the_format_of_prometheus(nobody: httpx.AsyncClient) -> None:
    await nobody.get("/health/live")
    response = await nobody.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples), [s for s in samples if not SAMPLE.fullmatch(s)]
    names = {re.split(r"[{ ]", sample)[0] for sample in samples}
    assert all(name.startswith("claude_agent_api_") for name in names)
    assert not [name for name in names if name.endswith("_created")]
    assert "claude_agent_api_runner_slots 4.0" in lines


async def test_a_request_is_counted_by_its_route_and_status(nobody: httpx.AsyncClient) -> None:
    labels = 'method="GET",route="/api/v1/sessions/{session_id}",status="401"'
    before = await counted(nobody, labels)
    for name in ("one", "other"):
        await nobody.get(f"/api/v1/sessions/{name}")
    assert await counted(nobody, labels) == before + 2


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/compat/code-server/session/one", "/compat/code-server/session/{session_id}"),
        ("/compat/code-server/health", "/compat/code-server/health"),
        ("/compat/execute-server/status/one", "/compat/execute-server/status/{session_id}"),
        ("/compat/code-server/", "/compat/code-server/"),
        ("/health", "/health"),
    ],
)
async def test_a_route_of_a_dialect_keeps_its_prefix(nobody: httpx.AsyncClient, path: str, route: str) -> None:
    status = (await nobody.get(path)).status_code
    assert await counted(nobody, f'method="GET",route="{route}",status="{status}"') >= 1


async def test_paths_that_do_not_exist_do_not_fill_the_metrics(nobody: httpx.AsyncClient) -> None:
    labels = 'method="GET",route="unmatched",status="404"'
    before = await counted(nobody, labels)
    for path in ("/never-seen-before", "/never/seen/either"):
        await nobody.get(path)
    assert await counted(nobody, labels) == before + 2
    assert "never" not in (await nobody.get("/metrics")).text


async def test_metrics_tell_nothing_of_tenants_and_sessions(fleet: Fleet, nobody: httpx.AsyncClient) -> None:
    session_id = await fleet[0].session(title="of a tenant")
    await fleet[0].get(f"/sessions/{session_id}")
    text = (await nobody.get("/metrics")).text
    assert session_id not in text
    assert "default" not in text


# --- documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["", *(dialect.PREFIX for dialect in DIALECTS.values())])
async def test_each_document_is_served_as_it_was_exported(nobody: httpx.AsyncClient, of: str) -> None:
    assert (await nobody.get(f"{of}/openapi.json")).json() == contract.document(target(of))


@pytest.mark.parametrize("api_docs", [True, False])
async def test_documents_can_be_left_out(api_docs: bool) -> None:
    app = create_app(Settings(_env_file=None, api_docs=api_docs))
    there = [f"{of}{path}" for of in ("", "/compat/code-server") for path in ("/docs", "/docs/viewer.js")]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", verify=NO_TLS) as client:
        for path in (*there, "/redoc", "/docs/README.md", "/docs/oauth2-redirect"):
            response = await client.get(path)
            assert response.status_code == (200 if path in there and api_docs else 404), path
            if response.status_code == 404 and not path.startswith("/compat/"):
                assert response.json()["error"]["code"] == "not_found"
        assert (await client.get("/health/live")).status_code == 200
