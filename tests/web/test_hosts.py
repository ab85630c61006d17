"""Pages of other people, in the browser of somebody who reaches the server, do not become callers without a key."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from apps.api.settings import Settings
from apps.api.web.hosts import Names, names_of
from tests.conftest import StartFleet
from tests.fleet import API_KEY, NO_TLS, Fleet, Instance

PATIENCE = 30.0
PROMPT = {"prompt": "say hi"}


OURS = """localhost LOCALHOST:54000 localhost. app.localhost:80 127.0.0.1:54000 10.9.8.7 [::1] [::1]:54000
[2001:DB8::1]:1 api.example.org API.Example.org:443 x.pages.example.org api.example.org."""

OTHERS = """evil.example localhost.evil.example evil-localhost 127.0.0.1.evil.example pages.example.org xapi.example.org
api.example.org.evil.example evil.example@localhost localhost/x localhost# localhost:1:2 localhost:x
localhost,evil.example ::1 [::1 [localhost] 127.1 0 2130706433 0x7f.0.0.1 localhost: loc\u00e4lhost .localhost.evil *"""


@pytest.mark.parametrize(
    ("host", "known"),
    [*((host, True) for host in OURS.split()), *((host, False) for host in ("", "localhost x", *OTHERS.split()))],
)
def test_a_name_is_one_of_the_servers_or_not(host: str, known: bool) -> None:
    assert (host in Names(["api.example.org", "*.pages.example.org"])) is known


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, debug=True, **given)


def test_names_are_asked_for_where_they_are_listed_or_guests_come_in() -> None:
    assert names_of(settings()) is None
    guests = names_of(settings(anonymous_tenant="guests", host="api-1", advertise_url="http://api-2.internal:54000/x"))
    assert guests is not None
    assert [name in guests for name in ("api-1", "api-2.internal:54000", "localhost", "other")] == [True] * 3 + [False]
    listed = names_of(settings(allowed_hosts="api.example.org"))
    assert listed is not None
    assert [name in listed for name in ("api.example.org", "localhost", "other")] == [True, True, False]
    anything = names_of(settings(allowed_hosts="*", anonymous_tenant="guests"))
    assert anything is not None
    assert "whatever" in anything


# --- on a server -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def guests(start_lasting_fleet: StartFleet) -> Instance:
    given = {"ANONYMOUS_TENANT": "guests", "DEBUG": "true", "ALLOWED_HOSTS": "api.example.org"}
    return (await start_lasting_fleet(1, **given))[0]


async def ask(instance: Instance, method: str, path: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=instance.url, timeout=60, verify=NO_TLS) as client:
        return await client.request(method, path, **more)


PATHS = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/console"),
    ("GET", "/openapi.json"),
    ("GET", "/no/such/path"),
    ("GET", "/api/v1/whoami"),
    ("GET", "/compat/code-server/sessions"),
    ("POST", "/compat/code-server/query"),
    ("POST", "/compat/chat-server/chat"),
    ("POST", "/compat/execute-server/execute/"),
    ("GET", f"/preview/{UUID(int=1)}/3000/"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_name_that_is_not_the_servers_is_refused_everywhere(guests: Instance, method: str, path: str) -> None:
    for headers in ({}, {"X-API-Key": API_KEY}):
        refused = await ask(guests, method, path, headers={"Host": "evil.example:54000", **headers})
        assert refused.status_code == 421
        assert "evil" not in refused.text
        assert "ALLOWED_HOSTS" in refused.text
        known = await ask(guests, method, path, headers={"Host": "api.example.org", **headers})
        assert known.status_code != 421
    if path.startswith("/api/"):
        assert refused.json()["error"]["code"] == "host_not_permitted"
        assert refused.json()["request_id"] == refused.headers["X-Request-ID"]


async def test_load_balancers_ask_by_whatever_name(guests: Instance) -> None:
    for path in ("/health/live", "/health/ready"):
        for host in ("evil.example", "10.0.0.1:54000", ""):
            assert (await ask(guests, "GET", path, headers={"Host": host})).status_code == 200
    assert (await ask(guests, "GET", "/health/live/", headers={"Host": "evil.example"})).status_code == 421


@pytest.mark.parametrize("path", ["/api/v1/query/ws", f"/preview/{UUID(int=1)}/3000/"])
async def test_websockets_are_refused_too(guests: Instance, path: str) -> None:
    url = f"{guests.url.replace('http://', 'ws://')}{path}"
    with pytest.raises(InvalidStatus) as refused:
        async with asyncio.timeout(PATIENCE):
            await connect(url.replace("127.0.0.1", "evil.example"), host="127.0.0.1", port=httpx.URL(guests.url).port)
    assert refused.value.response.status_code == 421


@pytest.mark.parametrize("hosts", [[], ["localhost", "evil.example"], ["localhost", "localhost"]])
async def test_a_request_names_one_host(guests: Instance, hosts: list[str]) -> None:
    url = httpx.URL(guests.url)
    lines = ["GET /api/v1/whoami HTTP/1.1", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
    finally:
        writer.close()
    assert answer.split(b" ")[1] in (b"421", b"400")


async def test_a_server_whose_callers_all_have_keys_takes_any_name(fleet: Fleet) -> None:
    answer = await ask(fleet[0], "GET", "/api/v1/whoami", headers={"Host": "any.example", "X-API-Key": API_KEY})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "known"),
    [
        (None, "localhost:54000", True),
        ("http://localhost:54000", "localhost:54000", True),
        ("http://LOCALHOST:54000", "localhost:54000", True),
        ("https://api.example.org", "api.example.org", True),
        ("https://api.example.org", "api.example.org:443", True),
        ("https://evil.example", "localhost:54000", False),
        ("http://localhost:3000", "localhost:54000", False),
        ("http://localhost", "localhost:54000", False),
        ("null", "localhost:54000", False),
        ("", "localhost:54000", False),
        ("http://localhost:54000@evil.example", "localhost:54000", False),
        ("http://localhost:54000.evil.example", "localhost:54000", False),
    ],
)
async def test_pages_of_other_origins_are_no_guests(
    guests: Instance, origin: str | None, host: str, known: bool
) -> None:
    headers = {"Host": host, **({} if origin is None else {"Origin": origin})}
    for method, path, body in (
        ("GET", "/compat/code-server/sessions", None),
        ("POST", "/compat/code-server/query", {}),
        ("POST", "/compat/chat-server/chat", {}),
        ("POST", "/compat/execute-server/execute/", {}),
    ):
        answer = await ask(guests, method, path, json=body, headers=headers)
        assert (answer.status_code == 403) is not known, answer.text
    with_key = {**headers, "X-API-Key": API_KEY}
    assert (await ask(guests, "GET", "/compat/code-server/sessions", headers=with_key)).status_code == 200


@pytest.mark.parametrize("type_", [None, "text/plain", "application/x-www-form-urlencoded", "text/plain; json"])
async def test_what_a_page_may_send_without_asking_is_no_prompt(guests: Instance, type_: str | None) -> None:
    headers = {} if type_ is None else {"Content-Type": type_}
    for path in ("/compat/code-server/query", "/compat/chat-server/chat", "/compat/execute-server/execute/"):
        answer = await ask(guests, "POST", path, content=b'{"prompt":"say hi","message":"say hi"}', headers=headers)
        assert answer.status_code in (400, 422), (path, answer.text)
