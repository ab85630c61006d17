"""What agents reach, tried by real Bash in the real CLI.

`test_network.py` runs this where addresses of the internet are this machine's, see `tests/own_network.py`.
"""

from __future__ import annotations

import os
import socket
import socketserver
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests import knocks
from tests.conftest import StartFleet
from tests.fleet import Fleet
from tests.layers import namespaces_work
from tests.mcp_things import serving as things
from tests.proxy import Proxy
from tests.world import until

BYPASS = {"permission_mode": "bypassPermissions"}
ABSTRACT = "\0of-the-host"
NO_SUCH = ("EPROTONOSUPPORT", "ENOTSUP", "EPERM", "ESOCKTNOSUPPORT")
NOBODY = ("ENETUNREACH", "ECONNREFUSED")
"""What an agent gets in a network of its own, where else a rule refuses."""
OF_NO_AGENT = {
    "family 2 3": "EPERM",  # raw
    "family 17 3": "EPERM",  # packets
    "family 40 1": "EPERM",  # of virtual machines
    "family 43 1": "EPERM",  # SMC, which is TCP underneath
    "bind 80": "EACCES",
}
"""Sockets that no agent has."""

MODES = ("open", "limited", "model_only")
PROFILES = """
[open]
description = "Everything but the fleet's databases and the machine's own services"
network = "open"
[limited]
description = "Three hosts"
network = "limited"
allowed_hosts = [
  "public.example", "*.public.example", "internal.example", "metadata.example", "tools.public.example:8090",
]
[model_only]
description = "The model"
network = "model_only"
"""


class Page(BaseHTTPRequestHandler):
    """Says which host was asked for."""

    def do_GET(self) -> None:
        body = f"this is {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Greeting(socketserver.BaseRequestHandler):
    """Speaks first."""

    def handle(self) -> None:
        self.request.sendall(b"220 hello\r\n")
        self.request.recv(1)


@dataclass(frozen=True)
class Surroundings:
    """What is there to be reached: ports of both databases and of the API, and a server at every address."""

    fleet: Fleet
    databases: tuple[Proxy, Proxy]
    path: Path

    @property
    def api(self) -> int:
        port = urlsplit(self.fleet[0].url).port
        assert port is not None
        return port

    @property
    def ports(self) -> tuple[int, ...]:
        """Of PostgreSQL and Redis."""
        return tuple(proxy.port for proxy in self.databases)

    async def knock(self, session_id: str, *lines: str) -> dict[str, str]:
        """What the session's agent gets, by its words."""
        told = " ".join(f"'{line}'" for line in lines)
        result = await self.fleet[0].ask(session_id, f"run {sys.executable} -I {knocks.__file__} {told}")
        said = [line.partition(" = ") for line in str(result["result"]).replace("\\n", "\n").splitlines()]
        found = {before.rpartition("answered: ")[2].strip(): after.strip() for before, equals, after in said if equals}
        assert set(found) == set(lines), result
        return found


@pytest.fixture(scope="module", autouse=True)
def internet() -> Iterator[None]:
    """The same page at ports 80, 8080 and 8081 of every address, and a host that speaks first at 443."""
    with ExitStack() as stack:
        servers: list[socketserver.BaseServer] = []
        for port in (80, 8080, 8081):
            servers.append(stack.enter_context(ThreadingHTTPServer(("0.0.0.0", port), Page)))
        servers.append(stack.enter_context(socketserver.ThreadingTCPServer(("0.0.0.0", 443), Greeting)))
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        for server in servers:
            server.shutdown()


@pytest.fixture(scope="module")
async def around(
    start_lasting_fleet: StartFleet, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Surroundings]:
    directory = tmp_path_factory.mktemp("around")
    (directory / "profiles.toml").write_text(PROFILES)
    settings = {"OUTBOUND_ALLOW": "", "PROFILES_FILE": str(directory / "profiles.toml")}
    fleet = await start_lasting_fleet(0, AGENT_READ_PATHS=knocks.__file__, **settings)
    database, cache = urlsplit(fleet.env["DATABASE_URL"]), urlsplit(fleet.env["REDIS_URL"])
    postgresql, redis = Proxy(Path(parse_qs(database.query)["host"][0]) / ".s.PGSQL.5432"), Proxy(Path(cache.path))
    with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as abstract:
        for made, name in ((by_path, str(directory / "s")), (abstract, ABSTRACT)):
            made.bind(name)
            made.listen(100)
        for proxy in (postgresql, redis):
            await proxy.start()
        there = f"{database.username}:{database.password}@127.0.0.1:{postgresql.port}{database.path}"
        redis_url = f"redis://:{cache.password}@127.0.0.1:{redis.port}/0"
        await fleet.start(1, DATABASE_URL=f"postgresql://{there}", REDIS_URL=redis_url)
        yield Surroundings(fleet, (postgresql, redis), directory / "s")
        await fleet.stop()
        for proxy in (postgresql, redis):
            await proxy.close()


@pytest.fixture(scope="module")
async def sessions(around: Surroundings) -> dict[str, str]:
    """One session of each mode, its agent live."""
    return {mode: await around.fleet[0].session(profile=mode, **BYPASS) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
async def test_no_agent_reaches_the_fleets_databases(around: Surroundings, sessions: dict[str, str], mode: str) -> None:
    ports = around.ports
    ways = ("tcp 127.0.0.1", "tcp 127.1", "tcp ::ffff:127.0.0.1", "tcp 10.1.2.3", "tcp public.example")
    lines = [f"{way} {port}" for way in (*ways, "sent 127.0.0.1", "deferred 127.0.0.1") for port in ports]
    lines += [f"stream 127.0.0.1 {port} {protocol}" for port in ports for protocol in (262, 132, 33)]
    names = ("127.0.0.1", "localhost", "10.1.2.3", "2130706433", "public.example")
    lines += [f"tunnel {host} {port}" for host in names for port in ports]
    lines += [f"bind {port}" for port in ports]
    for line, outcome in (await around.knock(sessions[mode], *lines)).items():
        alone = NOBODY if mode == "model_only" and namespaces_work() else ()
        refused = outcome.startswith(("403", "502")) or outcome in ("no proxy", "EACCES", *NO_SUCH, *alone)
        assert refused, f"{line} = {outcome}"


@pytest.mark.parametrize("mode", MODES)
async def test_no_agent_reaches_what_clouds_tell_their_machines(
    around: Surroundings, sessions: dict[str, str], mode: str
) -> None:
    hosts = ("169.254.169.254", "metadata.example", "0xa9fea9fe", "2852039166")
    lines = [line for host in hosts for line in (f"tcp {host} 80", f"sent {host} 80", f"get http://{host}/")]
    lines += [f"tunnel {host} 443" for host in hosts]
    found = await around.knock(sessions[mode], *lines)
    assert not [line for line, outcome in found.items() if outcome == "ok" or "this is" in outcome or "200" in outcome]
    if mode != "model_only":
        assert "address_not_allowed" in found["get http://metadata.example/"]


async def test_open_agents_reach_everything_else(around: Surroundings, sessions: dict[str, str]) -> None:
    wanted = {
        "get http://public.example/": "this is public.example",
        "get http://other.example/": "this is other.example",
        "get http://internal.example/": "this is internal.example",
        "get http://other.example:8081/": "this is other.example:8081",
        "tunnel public.example 443": "200 OK",
        "tcp other.example 8080": "ok",
        f"tcp 127.0.0.1 {around.api}": "ok",
        "udp other.example 53": "ok",
        f"unix {around.path}": "ENOENT" if namespaces_work() else "ok",
        "unix @of-the-host": "EPERM",
        "bind 0": "ok",
        "bind 8931": "ok",
        f"bind {around.api}": "EACCES",
        "tcp public.example 443": "EACCES",  # by the proxy alone, which looks at addresses
        "serve 8931": "direct ok, by name ok",
        **OF_NO_AGENT,
    }
    assert await around.knock(sessions["open"], *wanted) == wanted


async def test_limited_agents_reach_the_listed_hosts(around: Surroundings, sessions: dict[str, str]) -> None:
    wanted = {
        "get http://public.example/": "this is public.example",
        "get http://more.public.example/": "this is more.public.example",
        "get http://PUBLIC.example.:80/": "this is PUBLIC.example.",
        "tunnel public.example 443": "200 OK",
        "hear public.example 443": "220 hello",
        "tunnel public.example 8080": "403 Forbidden",
        "tunnel public.example.evil.example 443": "403 Forbidden",
        "tunnel other.example 443": "403 Forbidden",
        "tunnel 93.184.216.34 443": "403 Forbidden",
        f"tunnel 127.0.0.1 {around.api}": "403 Forbidden",
        "get http://internal.example/": "403 This session may not reach internal.example:80 (address_not_allowed).",
        "get http://other.example/": "403 This session may not reach other.example:80 (host_not_allowed).",
        "tcp public.example 8080": "EACCES",
        f"tcp 127.0.0.1 {around.api}": "EACCES",
        f"sent 127.0.0.1 {around.api}": "ENOTSUP",
        f"deferred 127.0.0.1 {around.api}": "EACCES",
        "udp other.example 53": "EPERM",
        "unix @of-the-host": "EPERM",
        f"bind {around.api}": "EACCES",
        "serve 8932": "direct EACCES, by name ok",
        **OF_NO_AGENT,
    }
    assert await around.knock(sessions["limited"], *wanted) == wanted


async def test_agents_with_the_model_alone_reach_nothing(around: Surroundings, sessions: dict[str, str]) -> None:
    away, here, any_port = ("ENETUNREACH", "ECONNREFUSED", "EPERM") if namespaces_work() else ("EACCES",) * 3
    wanted = {
        "get http://public.example/": away,
        "tunnel public.example 443": "no proxy",
        "tcp public.example 8080": away,
        f"tcp 127.0.0.1 {around.api}": here,
        f"sent 127.0.0.1 {around.api}": "ENOTSUP",
        "udp other.example 53": "EPERM",
        f"unix {around.path}": "EPERM",
        "unix @of-the-host": "EPERM",
        "bind 0": any_port,
        f"bind {around.api}": any_port,
        "listen": "EPERM",
        **OF_NO_AGENT,
        "bind 80": any_port,
    }
    assert await around.knock(sessions["model_only"], *wanted) == wanted


@pytest.mark.skipif(not namespaces_work(), reason="needs bubblewrap")
async def test_agents_with_the_model_alone_have_a_network_of_their_own(
    around: Surroundings, sessions: dict[str, str]
) -> None:
    """In which a server of the host's is not there, at whatever port, but for the gateway."""
    asked = [around.fleet[0].ask(sessions[mode], "run readlink /proc/self/ns/net") for mode in MODES]
    host, same, own = [(await answer)["result"].rpartition("answered: ")[2] for answer in asked]
    assert host == same == os.readlink("/proc/self/ns/net") != own


async def test_a_token_is_of_one_process_while_it_lives(around: Surroundings, sessions: dict[str, str]) -> None:
    instance, own = around.fleet[0], await around.fleet[0].session(profile="limited", **BYPASS)
    theirs = (await instance.ask(sessions["limited"], "run echo =$HTTPS_PROXY="))["result"].split("=")[1]
    port, token = urlsplit(theirs).port, urlsplit(theirs).password
    knock = f"curl -s -o /dev/null -w %{{http_code}} -x http://agent:{token}@127.0.0.1:{port} http://public.example/"
    assert "200" in (await instance.ask(own, f"run {knock}"))["result"]  # good for what its own session may reach
    for guess in ("wrong", "a" * 43):
        assert "407" in (await instance.ask(own, f"run {knock.replace(str(token), guess)}"))["result"]
    assert (await instance.post(f"/sessions/{sessions['limited']}/reset", {"mode": "soft"})).status_code in (200, 202)
    assert "407" in (await instance.ask(own, f"run {knock}"))["result"]


async def test_what_is_refused_is_told_once_in_a_run_and_counted(around: Surroundings) -> None:
    instance = around.fleet[0]
    session_id = await instance.session(profile="limited", **BYPASS)
    hosts = " ".join(f"http://h{number}.other.example/" for number in range(30))
    run = await instance.prompt(session_id, f"run curl -s http://other.example/ http://other.example/ {hosts}; echo")
    events = await instance.follow(run)
    denied = [event.data for event in events if event.event == "network_denied"]
    assert {name: denied[0][name] for name in ("host", "port", "reason")} == {
        "host": "other.example",
        "port": 80,
        "reason": "host_not_allowed",
    }
    assert len(denied) == 20
    kinds = [event.event for event in events]
    assert kinds.index("network_denied") < kinds.index("result")
    told = (await instance.client.get("/metrics")).text
    assert 'claude_agent_api_network_denied_total{reason="host_not_allowed"}' in told
    run = await instance.prompt(session_id, "run curl -s http://other.example/")
    assert [e.data["host"] for e in await instance.follow(run) if e.event == "network_denied"] == ["other.example"]


async def test_programs_find_the_proxy(around: Surroundings, sessions: dict[str, str]) -> None:
    for mode in ("open", "limited"):
        said = await around.fleet[0].ask(sessions[mode], "run curl -sS http://public.example/ && env | grep -i proxy")
        assert "this is public.example" in said["result"]
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            assert f"{name}=http://agent:" in said["result"]


async def test_mcp_servers_are_reached_or_refused_by_the_same_rule(around: Surroundings) -> None:
    instance = around.fleet[0]

    def using(host: str) -> dict[str, Any]:
        return {"mcp_servers": {"things": {"type": "http", "url": f"http://{host}:8090/mcp"}}, **BYPASS}

    for mode, host in (("limited", "other.example"), ("model_only", "tools.public.example")):
        answer = await instance.post("/sessions", {"profile": mode, **using(host)})
        [problem] = answer.json()["error"]["details"]["errors"]
        assert (answer.status_code, problem["field"]) == (403, "mcp_servers.things.url")
    with things("http", "0.0.0.0", 8090):
        for mode in ("open", "limited"):
            session_id = await instance.session(profile=mode, **using("tools.public.example"))
            said = await instance.ask(session_id, 'use tool mcp__things__weigh {"thing": "a cat"}')
            assert "a cat weighs 0 stone" in said["result"], mode


async def test_who_lists_hosts_has_nobody_else_asked_about_them(around: Surroundings, sessions: dict[str, str]) -> None:
    fetch = 'use tool WebFetch {"url": "https://public.example/", "prompt": "what"}'
    said = {mode: (await around.fleet[0].ask(sessions[mode], fetch))["result"] for mode in ("open", "limited")}
    assert "Unable to verify" in said["open"]  # nobody is there to be asked
    assert "Unable to verify" not in said["limited"]


async def test_a_preview_shows_what_a_limited_agent_serves(around: Surroundings, sessions: dict[str, str]) -> None:
    instance, session_id = around.fleet[0], sessions["limited"]
    await instance.ask(
        session_id,
        "write index.html: <h1>Hello</h1> then run in background python3 -m http.server 8933 then run"
        " curl -s --retry 9 --retry-connrefused --retry-all-errors http://localhost:8933",
    )

    async def is_told() -> bool:
        return bool((await instance.get(f"/sessions/{session_id}/ports")).json()["data"])

    await until(is_told, seconds=20)
    shown = await instance.client.get(f"/preview/{session_id}/8933/")
    assert (shown.status_code, shown.text.strip()) == (200, "<h1>Hello</h1>")
