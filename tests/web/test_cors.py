"""Pages of other origins, as their browser asks for them: those of ALLOWED_ORIGINS get to the native API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conftest import StartFleet
from tests.fleet import HEADERS, NO_TLS, Fleet, Instance

OURS, OTHER = "https://app.example.org", "https://evil.example"

SENT = "x-api-key,content-type,idempotency-key,last-event-id,if-match,if-none-match,range"
"""What a client of this API sends beyond what any page may."""

READ = {"Retry-After", "X-Request-ID", "X-Session-ID", "X-Run-ID", "ETag", "Content-Disposition", "Content-Range"}


@pytest.fixture(scope="module")
async def shared(start_lasting_fleet: StartFleet) -> Instance:
    return (await start_lasting_fleet(1, ALLOWED_ORIGINS=f"{OURS}, http://localhost:3000", MAX_BODY_BYTES="2048"))[0]


async def ask(instance: Instance, method: str, path: str, origin: str, **more: Any) -> httpx.Response:
    headers = {"Origin": origin, **more.pop("headers", {})}
    async with httpx.AsyncClient(base_url=instance.url, timeout=60, verify=NO_TLS) as client:
        return await client.request(method, path, headers=headers, **more)


async def may_ask(instance: Instance, method: str, path: str, origin: str) -> httpx.Response:
    """A browser's question before it asks."""
    wants = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": SENT}
    return await ask(instance, "OPTIONS", path, origin, headers=wants)


def allowed(response: httpx.Response) -> Any:
    return response.headers.get("access-control-allow-origin")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_listed_page_may_send_all_that_a_client_sends(shared: Instance, method: str) -> None:
    answer = await may_ask(shared, method, "/api/v1/sessions", OURS)
    assert (answer.status_code, allowed(answer)) == (200, OURS)
    assert method in answer.headers["access-control-allow-methods"]
    granted = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert set(SENT.split(",")) <= granted
    assert "access-control-allow-credentials" not in answer.headers


async def test_a_listed_page_reads_answers_and_errors_with_the_headers_that_matter(shared: Instance) -> None:
    for more, status in (
        ({"method": "GET", "path": "/api/v1/whoami", "headers": HEADERS}, 200),
        ({"method": "GET", "path": "/api/v1/whoami"}, 401),
        ({"method": "POST", "path": "/api/v1/query", "headers": HEADERS, "content": b"x" * 4096}, 413),
        ({"method": "GET", "path": "/api/v1/nothing", "headers": HEADERS}, 404),
    ):
        answer = await ask(shared, origin=OURS, **more)
        assert (answer.status_code, allowed(answer)) == (status, OURS), more
        assert set(answer.headers["access-control-expose-headers"].split(", ")) >= READ
        assert "Origin" in answer.headers["vary"]


async def test_a_listed_page_reads_a_stream(shared: Instance) -> None:
    answer = await ask(shared, "POST", "/api/v1/query", OURS, headers=HEADERS, json={"prompt": "say hello"})
    assert (answer.status_code, allowed(answer)) == (200, OURS)
    assert answer.text.count("event: done") == 1


async def test_other_pages_are_told_nothing(shared: Instance) -> None:
    assert allowed(await may_ask(shared, "POST", "/api/v1/query", OTHER)) is None
    assert allowed(await ask(shared, "GET", "/api/v1/whoami", OTHER, headers=HEADERS)) is None


@pytest.mark.parametrize("path", ["/metrics", "/health", "/compat/code-server/sessions", "/console", "/openapi.json"])
async def test_no_page_reads_what_is_not_the_native_api(shared: Instance, path: str) -> None:
    assert allowed(await may_ask(shared, "GET", path, OURS)) is None
    assert allowed(await ask(shared, "GET", path, OURS)) is None


async def test_without_the_setting_there_is_no_sharing(fleet: Fleet) -> None:
    assert (await may_ask(fleet[0], "POST", "/api/v1/query", OURS)).status_code == 405
    assert allowed(await ask(fleet[0], "GET", "/api/v1/whoami", OURS, headers=HEADERS)) is None


@pytest.mark.parametrize("path", ["/ui/chat", "/ag-ui/helper"])
async def test_a_listed_page_gets_to_the_surfaces_for_front_ends(shared: Instance, path: str) -> None:
    for origin, shown in ((OURS, OURS), (OTHER, None)):
        assert allowed(await may_ask(shared, "POST", path, origin)) == shown
        answer = await ask(shared, "POST", path, origin, json={})
        assert (answer.status_code, allowed(answer)) == (401, shown)
        assert (await ask(shared, "POST", path, origin, headers=HEADERS, json={})).status_code == 422
