"""Previews: what an agent's programs serve, through any instance, and nobody else's."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import websockets

from tests.conftest import NewKey
from tests.fleet import Fleet, Instance
from tests.free_ports import free_port

SERVER = r"""
import base64, hashlib, http.server, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            return self.echo()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/away"):
            there = self.path[6:].replace("PORT", sys.argv[1]) or "/there?x=1"
            return self.answer(302, b"", {"Location": there, "Link": f"<{there}>; rel=next"})
        names = sorted(name.lower() for name in self.headers)
        text = f"{self.command} {self.path} {body.decode()} {' '.join(names)}".encode()
        self.answer(200, text, {"Set-Cookie": "a=b", "X-Own": "1", "Access-Control-Allow-Origin": "https://x.example"})
    do_POST = do_PUT = do_GET
    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
    def echo(self):
        key = self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
        for name, value in {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}.items():
            self.send_header(name, value)
        self.end_headers()
        while True:
            first, second = self.rfile.read(2)
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(second & 127)))
            self.wfile.write(bytes([first, len(data)]) + data)
            self.wfile.flush()
            if first & 15 == 8:
                self.close_connection = True
                return

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Served:
    """A session whose agent serves on a port."""

    def __init__(self, fleet: Fleet, session_id: str, port: int, owner: Instance, others: list[Instance]) -> None:
        self.fleet, self.session_id, self.port, self.owner, self.others = fleet, session_id, port, owner, others

    @property
    def path(self) -> str:
        return f"/preview/{self.session_id}/{self.port}"


async def told(instance: Instance, session_id: str, ports: list[int]) -> None:
    """Wait until an event tells these ports."""
    async with asyncio.timeout(60), instance.stream(f"/sessions/{session_id}/events?after=0") as events:
        async for event in events:
            if event.event == "status" and event.data.get("ports") == ports:
                return


async def serving(fleet: Fleet, first: Instance) -> Served:
    port = free_port()
    session_id = await first.session(permission_mode="bypassPermissions")
    await first.ask(session_id, "say hi")
    program = fleet.files_of(session_id) / "server.py"
    await asyncio.to_thread(program.write_text, SERVER)
    await first.ask(session_id, f"run in background python3 server.py {port}")
    await told(first, session_id, [port])
    owner = await fleet.owner_of(session_id)
    return Served(fleet, session_id, port, owner, await fleet.others(owner))


@pytest.fixture(scope="module")
async def served(fleet: Fleet) -> Served:
    return await serving(fleet, fleet[0])


async def link(instance: Instance, served: Served) -> str:
    """Of the port, without the instance's own address."""
    listed = (await instance.get(f"/sessions/{served.session_id}/ports")).json()["data"]
    assert [entry["port"] for entry in listed] == [served.port]
    url: str = listed[0]["url"]
    assert url.startswith(instance.url + served.path)
    return url.removeprefix(instance.url)


async def test_every_instance_serves_what_the_agent_serves(served: Served) -> None:
    for instance in served.fleet.instances:
        response = await instance.client.post(
            f"{served.path}/a%2Fb/c?d=e&f", content=b"body", headers={"Cookie": "z=1"}
        )
        assert response.status_code == 200, response.text
        method, path, body, *names = response.text.split(" ")
        assert (method, path, body) == ("POST", "/a%2Fb/c?d=e&f", "body")
        assert not {"x-api-key", "authorization", "cookie", "x-preview-ticket", "x-request-id"} & set(names)
        assert response.headers["x-own"] == "1"
        assert response.headers["content-security-policy"].startswith("sandbox ")
        assert "allow-same-origin" not in response.headers["content-security-policy"]
        assert not {"set-cookie", "access-control-allow-origin"} & set(response.headers)
    state = (await served.others[0].get(f"/sessions/{served.session_id}")).json()
    assert state["ports"] == [served.port]


async def test_a_link_lets_a_browser_in_without_a_key_through_every_instance(served: Served) -> None:
    path = await link(served.others[0], served)
    for instance in served.fleet.instances:
        async with httpx.AsyncClient(base_url=instance.url) as browser:
            response = await browser.get(path + "page.html")
            assert response.text.startswith("GET /page.html ")
            assert response.headers.get_list("access-control-allow-origin") == ["*"]
            assert response.headers["referrer-policy"] == "no-referrer"
            away = await browser.get(path + "away")
            assert (away.status_code, away.headers["location"]) == (302, path + "there?x=1")
            asked = {"Origin": "null", "Access-Control-Request-Method": "PUT"}
            assert (await browser.options(path, headers=asked)).status_code == 204


async def test_redirects_to_the_programs_own_origin_lead_back_to_the_preview(served: Served) -> None:
    path = await link(served.others[0], served)
    for instance in served.fleet.instances:
        for there in (
            "http://127.0.0.1:PORT/there",
            "HTTP://LOCALHOST:PORT/there",
            "//[::1]:PORT/there",
            "../../there",
        ):
            for target, headers in ((path, {"X-API-Key": ""}), (served.path + "/", {})):
                away = await instance.client.get(f"{target}away?{there}", headers=headers)
                assert away.headers["location"] == target + "there", (instance.url, there)
                assert away.headers["link"] == f"<{target}there>; rel=next"
        elsewhere = await instance.client.get(f"{served.path}/away?http://127.0.0.1:1/there")
        assert elsewhere.headers["location"] == "http://127.0.0.1:1/there"


async def test_web_sockets_pass_with_a_key_and_by_link(served: Served) -> None:
    path = await link(served.owner, served)
    for instance in (served.owner, served.others[0]):
        url = instance.url.replace("http", "ws")
        for target, headers in ((served.path + "/", dict(instance.client.headers)), (path, {})):
            key = {name: value for name, value in headers.items() if name == "x-api-key"}
            async with websockets.connect(url + target, additional_headers=key, proxy=None) as connection:
                for message in ("hello", b"bytes"):
                    await connection.send(message)
                    async with asyncio.timeout(20):
                        assert await connection.recv() == message


async def test_what_a_key_has_opened_ends_with_it(served: Served) -> None:
    made = (await served.owner.post("/admin/keys", {"name": "k", "tenant": "default", "scopes": ["write"]})).json()
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        opened = []
        for instance in (served.owner, served.others[0]):
            url, key = instance.url.replace("http", "ws") + served.path + "/", {"x-api-key": made["secret"]}
            opened.append(await stack.enter_async_context(websockets.connect(url, additional_headers=key, proxy=None)))
            await opened[-1].send("hello")
            assert await opened[-1].recv() == "hello"
        await served.owner.post(f"/admin/keys/{made['key_id']}/revoke")
        for connection in opened:
            await connection.wait_closed()
            assert (connection.close_code, connection.close_reason) == (4401, "invalid_api_key")


async def test_strangers_and_spoilt_links_are_turned_away(served: Served, new_key: NewKey) -> None:
    stranger = await new_key()
    path = await link(served.owner, served)
    for instance in (served.owner, served.others[0]):
        assert (await instance.client.get(f"{served.path}/", headers=stranger)).status_code == 404
        assert (await instance.get(f"/sessions/{served.session_id}/ports", headers=stranger)).status_code == 404
        async with httpx.AsyncClient(base_url=instance.url) as nobody:
            for bad in (served.path + "/", path.replace("~", "~A"), path[:-4] + "AAA/", served.path + "/~/"):
                assert (await nobody.get(bad)).status_code == 401, bad
            forged = {"X-Preview-Ticket": path.partition("~")[2].rstrip("/")}
            assert (await nobody.get(served.path + "/", headers=forged)).status_code == 401
            other_port = path.replace(f"/{served.port}/", f"/{free_port()}/")
            assert (await nobody.get(other_port)).status_code == 401
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(instance.url.replace("http", "ws") + served.path + "/", proxy=None)
        assert refused.value.response.status_code == 401


async def test_ports_of_other_processes_are_not_reached(served: Served, fleet: Fleet) -> None:
    session_id = await served.owner.session(permission_mode="bypassPermissions")
    await served.owner.ask(session_id, "run in background sleep 60")
    own = int(served.owner.url.rpartition(":")[2])
    for foreign in (served.port, own, 22, free_port()):
        for instance in fleet.instances:
            response = await instance.client.get(f"/preview/{session_id}/{foreign}/")
            assert response.status_code == 404, (foreign, response.text)
            assert response.json()["error"]["code"] == "port_not_found"
    assert (await served.owner.client.get(f"/preview/{session_id}/70000/")).status_code == 422


async def test_the_chat_server_tells_ports_with_links(served: Served) -> None:
    url = f"{served.others[0].url}/compat/chat-server/chat/{served.session_id}"
    response = await served.others[0].client.post(url, json={"prompt": "say hi"})
    lines: list[dict[str, Any]] = [
        httpx.Response(200, content=x[6:]).json() for x in response.text.split("\n") if x[:6] == "data: "
    ]
    for kind in ("ports", "complete"):
        urls = next(line["exposed_urls"] for line in lines if line["type"] == kind)
        assert list(urls) == [str(served.port)]
        async with httpx.AsyncClient() as browser:
            assert (await browser.get(urls[str(served.port)])).text.startswith("GET / ")


async def test_a_preview_is_gone_with_its_session(served: Served) -> None:
    """The last test: they all share the session."""
    fleet = served.fleet
    path = await link(served.owner, served)
    processes = [
        p
        for p in served.owner.descendants()
        if "server.py" in str(p.cmdline()) and str(served.port) in str(p.cmdline())
    ]
    assert processes
    assert (await served.others[0].client.delete(f"/api/v1/sessions/{served.session_id}")).is_success
    for instance in fleet.instances:
        for target in (served.path + "/", path):
            response = await instance.client.get(target)
            assert response.status_code == 404, response.text
    for process in processes:
        await asyncio.to_thread(process.wait, 20)
