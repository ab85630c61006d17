"""MCP servers in requests and in the registry: what is refused when it arrives, and whose it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet import Fleet
from tests.mcp_things import stdio

THINGS = stdio()


@pytest.mark.parametrize(
    "server",
    [
        {"type": "stdio", "command": "sh", "args": ["-c", "id"]},
        {**THINGS, "args": THINGS["args"][:-1]},
        {**THINGS, "args": ["-c", *THINGS["args"]]},
        {**THINGS, "command": THINGS["command"] + " "},
    ],
    ids=["another", "shorter", "longer", "spaced"],
)
async def test_a_command_that_the_operator_does_not_allow_is_refused(fleet: Fleet, server: dict[str, Any]) -> None:
    for answer in (
        await fleet[0].post("/sessions", {"mcp_servers": {"x": server}}),
        await fleet[0].post("/query", {"prompt": "say hello", "mcp_servers": {"x": server}}),
        await fleet[0].client.put("/api/v1/mcp-servers/x", json=server),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "mcp_command_not_permitted")


@pytest.mark.parametrize(
    ("server", "field"),
    [
        (stdio(PATH="/tmp"), "mcp_servers.x.env"),
        (stdio(npm_config_registry="http://127.0.0.1/"), "mcp_servers.x.env"),
        (stdio(A="${NOT_THERE}"), "mcp_servers.x"),
        ({"type": "registered", "name": "nothing"}, "mcp_servers.x"),
        ({"type": "http", "url": "http://169.254.169.254/latest"}, "mcp_servers.x.url"),
        ({"type": "sse", "url": "http://10.0.0.1/sse"}, "mcp_servers.x.url"),
        ({"type": "http", "url": "http://[::ffff:10.0.0.1]/"}, "mcp_servers.x.url"),
        ({"type": "http", "url": "http://a${HOST}/"}, "mcp_servers.x.url"),
        ({"type": "http", "url": "http://a${b:-c}/"}, "mcp_servers.x.http.url"),
        ({"type": "http", "url": "http://127.0.0.1/${NOT_THERE}"}, "mcp_servers.x"),
        ({"type": "http", "url": "http://127.0.0.1/", "headers": {"A": "${NOT_THERE}"}}, "mcp_servers.x"),
        ({"type": "http", "url": "ftp://127.0.0.1/"}, "mcp_servers.x.http.url"),
        ({"type": "http", "url": "http://127.0.0.1/", "headers": {"A": "b\r\nC: d"}}, "mcp_servers.x.http.headers.A"),
        ({"type": "http", "url": "http://127.0.0.1/", "command": "ls"}, "mcp_servers.x.http.command"),
    ],
)
async def test_a_server_that_cannot_work_is_refused_with_the_field(
    fleet: Fleet, server: dict[str, Any], field: str
) -> None:
    answer = await fleet[0].post("/sessions", {"mcp_servers": {"x": server}})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["details"]["errors"][0]["field"] == field
    assert "NOT_THERE" not in str(server) or "NOT_THERE" in answer.json()["error"]["message"]


async def test_a_dry_run_says_which_variables_a_program_may_not_inherit(fleet: Fleet) -> None:
    body = {"mcp_servers": {"x": THINGS}, "env": {"PIP_INDEX_URL": "http://127.0.0.1/"}}
    answer = (await fleet[0].post("/agents/preview", body)).json()
    assert [(found["field"], "PIP_INDEX_URL" in found["reason"]) for found in answer["problems"]] == [("env", True)]
    refused = await fleet[0].post("/query", {"prompt": "say hello", **body})
    assert refused.json()["error"]["details"]["errors"][0]["field"] == "env"


@pytest.mark.parametrize(
    "body",
    [
        {"type": "registered", "name": "x"},
        {"type": "http"},
        {"type": "http", "url": "http://127.0.0.1/", "command": "ls"},
        {"type": "stdio", "url": "http://127.0.0.1/"},
        {"type": "http", "url": "http://10.0.0.1/"},
        {**THINGS, "env": {"LD_PRELOAD": "x.so"}},
    ],
)
async def test_the_registry_takes_whole_servers_only(fleet: Fleet, body: dict[str, Any]) -> None:
    assert (await fleet[0].client.put("/api/v1/mcp-servers/x", json=body)).status_code == 422
    assert (await fleet[1].get("/mcp-servers/x")).json()["error"]["code"] == "mcp_server_not_found"


async def test_a_server_is_registered_replaced_listed_and_forgotten(fleet: Fleet) -> None:
    remote = {"type": "http", "url": "http://127.0.0.1/mcp", "headers": {"Authorization": "Bearer deep-secret"}}
    assert (await fleet[0].client.put("/api/v1/mcp-servers/one", json=THINGS)).status_code == 201
    answer = await fleet[1].client.put("/api/v1/mcp-servers/one", json=remote)
    assert (answer.status_code, answer.json()["headers"]) == (200, {"Authorization": "***"})
    rows = (await fleet[2].get("/mcp-servers")).json()["data"]
    assert [row["type"] for row in rows if row["name"] == "one"] == ["http"]
    for status in (204, 404):
        assert (await fleet[0].client.delete("/api/v1/mcp-servers/one")).status_code == status
