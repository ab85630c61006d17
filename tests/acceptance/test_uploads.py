"""Files that a tenant uploads, and what workspaces are given: by sessions, by prompts, on any instance."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.acceptance.test_files import code, names, put, url
from tests.acceptance.test_shares import limited
from tests.conftest import NewKey, database_of
from tests.fleet import Fleet, Instance, Sse
from tests.git_server import GitServer, git_serving
from tests.receiver import Receiver, Reply, receiving

BYPASS = {"permission_mode": "bypassPermissions"}
FILES = "/api/v1/files"


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_serving(tmp_path_factory.mktemp("git")) as server:
        server.repository("plain.git", {"README.md": "read me", "src/app.py": "print()"})
        yield server


@pytest.fixture
async def site() -> AsyncIterator[Receiver]:
    """What URLs lead to."""
    async with receiving() as receiver:
        yield receiver


async def upload(instance: Instance, content: bytes, name: str = "data.csv", **more: Any) -> dict[str, Any]:
    answer = await instance.client.post(FILES, content=content, params={"name": name}, **more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def end_of(instance: Instance, run_id: str) -> dict[str, Any]:
    """How a run has ended: its error, or nothing."""
    await instance.follow(run_id)
    return (await instance.get(f"/runs/{run_id}")).json()["error"] or {}


def provided(events: list[Sse]) -> list[Any]:
    return [e.data.get("paths") for e in events if e.event == "status" and e.data["status"] == "provided"]


# --- files -----------------------------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_told_listed_read_and_removed_on_any_instance(fleet: Fleet) -> None:
    content = bytes(range(256)) * 100_000  # of several pieces
    made = await upload(fleet[0], content, "päck.bin", headers={"Content-Type": "Image/PNG; x=y"})
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert (made["name"], made["media_type"], made["size"], made["expires_at"]) == (
        "päck.bin",
        "image/png",
        len(content),
        None,
    )
    there = f"{FILES}/{made['file_id']}"
    assert (await fleet[1].client.get(there)).json() == made
    assert made in (await fleet[2].client.get(FILES)).json()["data"]
    got = await fleet[1].client.get(f"{there}/content")
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, content, "image/png")
    assert got.headers["content-disposition"].startswith("attachment; ")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in got.headers["content-security-policy"]
    some = await fleet[2].client.get(f"{there}/content", headers={"Range": "bytes=8388600-8388615"})
    assert (some.status_code, some.content) == (206, content[8388600:8388616])
    assert (await fleet[2].client.delete(there)).status_code == 204
    for answer in (await fleet[0].client.get(there), await fleet[1].client.get(f"{there}/content")):
        assert await code(answer) == (404, "file_not_found")
    assert await code(await fleet[0].client.delete(there)) == (404, "file_not_found")


async def test_a_form_brings_one_file(fleet: Fleet) -> None:
    made = await fleet[0].client.post(FILES, files={"file": ("a b.txt", b"hello\r\n--x", "text/plain")})
    assert made.status_code == 201, made.text
    assert (made.json()["name"], made.json()["media_type"], made.json()["size"]) == ("a b.txt", "text/plain", 10)
    got = await fleet[1].client.get(f"{FILES}/{made.json()['file_id']}/content")
    assert got.content == b"hello\r\n--x"
    named = await fleet[0].client.post(FILES, files={"file": ("x", b"1")}, params={"name": "named.csv"})
    assert (named.json()["name"], named.json()["media_type"]) == ("named.csv", "text/csv")
    empty = await upload(fleet[0], b"", "empty")
    assert (await fleet[1].client.get(f"{FILES}/{empty['file_id']}/content")).content == b""


def form(*parts: bytes, boundary: str = "b") -> dict[str, Any]:
    return {"content": b"".join(parts), "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


_FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
WRONG: dict[str, dict[str, Any]] = {
    "no name": {"content": b"x"},
    "a path": {"content": b"x", "params": {"name": "a/b"}},
    "up": {"content": b"x", "params": {"name": ".."}},
    "control": {"content": b"x", "params": {"name": "a\nb"}},
    "NUL": {"content": b"x", "params": {"name": "a\0"}},
    "long": {"content": b"x", "params": {"name": "ä" * 200}},
    "no time": {"content": b"x", "params": {"name": "a", "expires_in_seconds": 0}},
    "too long a time": {"content": b"x", "params": {"name": "a", "expires_in_seconds": 10**9}},
    "a form without a boundary": {"content": _FILE, "headers": {"Content-Type": "multipart/form-data"}},
    "a form that breaks off": form(_FILE),
    "no form": form(b"nonsense"),
    "two files": form(_FILE, _FILE, b"--b--\r\n"),
    "another field": form(b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n', _FILE, b"--b--\r\n"),
    "a file without a name": form(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n1\r\n--b--\r\n'),
    "a name that leads out": form(_FILE.replace(b'"a"', b'"../../a"'), b"--b--\r\n"),
    "a part with endless headers": form(b"--b\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"),
    "an empty form": form(b"--b--\r\n"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_what_is_no_file_is_refused_with_the_reason(fleet: Fleet, wrong: dict[str, Any]) -> None:
    before = (await fleet[0].client.get(FILES)).json()["data"]
    refused = await fleet[0].client.post(FILES, **wrong)
    assert await code(refused) == (422, "validation_error")
    assert refused.json()["error"]["details"]["errors"][0]["reason"]
    assert (await fleet[0].client.get(FILES)).json()["data"] == before


async def test_another_tenant_sees_nothing(fleet: Fleet, new_key: NewKey) -> None:
    made = await upload(fleet[0], b"secret")
    stranger = await new_key(f"stranger-{uuid4()}")
    there = f"{FILES}/{made['file_id']}"
    for method, path in (("GET", there), ("GET", f"{there}/content"), ("DELETE", there)):
        refused = await fleet[1].client.request(method, path, headers=stranger)
        assert await code(refused) == (404, "file_not_found")
    assert (await fleet[1].client.get(FILES, headers=stranger)).json()["data"] == []
    body = {"resources": [{"file_id": made["file_id"]}]}
    assert await code(await fleet[1].post("/sessions", body, headers=stranger)) == (404, "file_not_found")
    prompt = await fleet[1].post("/query/single", {"prompt": "say hi", **body}, headers=stranger)
    assert await code(prompt) == (404, "file_not_found")


async def test_the_same_request_twice_makes_one_file(fleet: Fleet) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = [await upload(fleet[n], b"once", headers=headers) for n in range(2)]
    assert first == again
    other = await fleet[2].client.post(FILES, content=b"twice", params={"name": "data.csv"}, headers=headers)
    assert await code(other) == (409, "idempotency_key_reused")


async def test_a_tenants_files_have_a_limit_however_many_come_at_once(fleet: Fleet) -> None:
    headers = await limited(fleet, {"file_bytes": 1000})
    client = fleet[0].client
    sent = [client.post(FILES, content=bytes(300), params={"name": f"{n}"}, headers=headers) for n in range(6)]
    answers = await asyncio.gather(*sent)
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert await code(refused) == (429, "quota_exceeded")
    assert refused.json()["error"]["details"]["name"] == "file_bytes"
    made = next(answer.json() for answer in answers if answer.status_code == 201)
    await client.delete(f"{FILES}/{made['file_id']}", headers=headers)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1000)

    assert (await client.post(FILES, content=pieces(), params={"name": "x"}, headers=headers)).status_code == 429
    assert (await client.post(FILES, content=bytes(300), params={"name": "x"}, headers=headers)).status_code == 201


async def test_a_file_goes_when_its_time_is_over(fleet: Fleet) -> None:
    params: dict[str, str | int] = {"name": "short", "expires_in_seconds": 1000}
    made = (await fleet[0].client.post(FILES, content=b"short", params=params)).json()
    assert made["expires_at"] > made["created_at"]
    async with database_of(fleet) as db:
        await db.pool.execute("UPDATE files SET expires_at = now() WHERE id = $1", UUID(made["file_id"]))
    assert await code(await fleet[1].client.get(f"{FILES}/{made['file_id']}")) == (404, "file_not_found")
    assert made["file_id"] not in (await fleet[1].client.get(FILES)).text


# --- resources -------------------------------------------------------------------------------------------------------


async def test_a_session_begins_with_its_resources_and_keeps_them(fleet: Fleet, git: GitServer, site: Receiver) -> None:
    made = await upload(fleet[0], b"from a file", "notes.txt")
    site.replies(Reply(status=302, headers={"Location": site.url("/moved/page.txt")}), Reply(b"from a url"))
    resources = [
        {"file_id": made["file_id"]},
        {"file_id": made["file_id"], "path": "in/a/copy.txt"},
        {"url": site.url("/page.txt")},
        {"repository": {"url": git.url("plain.git")}, "path": "vendor/plain"},
    ]
    session_id = await fleet[0].session(**BYPASS, resources=resources)
    early = await put(fleet[1], session_id, "x", b"x")
    assert await code(early) == (409, "workspace_not_begun")
    await fleet[0].client.delete(f"{FILES}/{made['file_id']}")
    failed = await end_of(fleet[1], await fleet[1].prompt(session_id, "run ls"))
    assert (failed["code"], "resources.0" in failed["message"]) == ("resource_failed", True)
    assert await names(fleet[2], session_id) == []
    again = await upload(fleet[0], b"from a file", "notes.txt")
    for resource in resources[:2]:
        resource["file_id"] = again["file_id"]
    session_id = await fleet[0].session(**BYPASS, resources=resources)
    told = "run cat notes.txt in/a/copy.txt page.txt vendor/plain/README.md"
    events = await fleet[1].follow(await fleet[1].prompt(session_id, told))
    assert provided(events) == [["notes.txt", "in/a/copy.txt", "page.txt", "vendor/plain"]]
    result = next(e.data["result"] for e in events if e.event == "result")
    assert "from a filefrom a filefrom a urlread me" in result.replace("\n", "")
    await fleet[1].ask(session_id, "run rm -r notes.txt in page.txt vendor")
    assert provided(await fleet[0].follow(await fleet[0].prompt(session_id, "run ls"))) == []
    assert await names(fleet[2], session_id) == []


async def test_what_a_session_was_given_outlives_its_owner(fleet: Fleet) -> None:
    made = await upload(fleet[0], b"kept", "kept.txt")
    session_id = await fleet[0].session(resources=[{"file_id": made["file_id"]}])
    await fleet[0].ask(session_id, "say hello")
    await fleet[0].client.delete(f"{FILES}/{made['file_id']}")
    forked = (await fleet[1].post(f"/sessions/{session_id}/fork", {})).json()["session_id"]
    for each in (session_id, forked):
        assert (await fleet[2].client.get(url(each, "kept.txt"))).content == b"kept"


async def test_a_prompt_brings_resources_to_a_new_session_a_warm_agent_and_another_instance(fleet: Fleet) -> None:
    made = await upload(fleet[0], b"first", "one.txt")
    other = await upload(fleet[0], b"second", "one.txt")
    answer = await fleet[0].post(
        "/query/single", {"prompt": "run cat one.txt", **BYPASS, "resources": [{"file_id": made["file_id"]}]}
    )
    assert answer.status_code == 200, answer.text
    assert "first" in answer.json()["result"]
    session_id = answer.json()["session_id"]
    assert "resources" not in (await fleet[0].get(f"/sessions/{session_id}")).json()["config"]
    assert (await put(fleet[1], session_id, "two.txt", b"two")).status_code == 201
    run_id = await fleet[1].prompt(session_id, "run cat one.txt", resources=[{"file_id": other["file_id"]}])
    events = await fleet[2].follow(run_id)
    assert provided(events) == [["one.txt"]]
    assert "second" in next(e.data["result"] for e in events if e.event == "result")
    assert "second" in (await fleet[2].ask(session_id, "run cat one.txt"))["result"]
    assert await names(fleet[0], session_id) == ["one.txt", "two.txt"]


FAILING: dict[str, tuple[Reply, str]] = {
    "not there": (Reply(status=404), "it answered 404"),
    "around in circles": (Reply(status=302, headers={"Location": "/again"}), "it redirects more than 5 times"),
    "to a file": (Reply(status=302, headers={"Location": "file:///etc/passwd"}), "it redirects to what is no"),
    "to a private address": (Reply(status=302, headers={"Location": "http://169.254.169.254/x"}), "not a public one"),
    "nowhere": (Reply(status=302), "it redirects more than 5 times"),
}


@pytest.mark.parametrize(("reply", "reason"), FAILING.values(), ids=FAILING.keys())
async def test_a_url_that_brings_nothing_fails_the_run_and_leaves_the_workspace_as_it_was(
    fleet: Fleet, site: Receiver, reply: Reply, reason: str
) -> None:
    made = await upload(fleet[0], b"x", "one.txt")
    session_id = await fleet[0].session()
    assert (await put(fleet[0], session_id, "mine.txt", b"mine")).status_code == 201
    site.replies(reply)
    resources = [{"file_id": made["file_id"]}, {"url": site.url("/a.txt")}]
    failed = await end_of(fleet[0], await fleet[0].prompt(session_id, "say hello", resources=resources))
    assert failed["code"] == "resource_failed"
    assert failed["message"].startswith("resources.1 was not brought")
    assert reason in failed["message"]
    assert await names(fleet[1], session_id) == ["mine.txt"]
    assert (await fleet[1].ask(session_id, "say on"))["status"] == "succeeded"


async def test_a_resource_follows_no_link_and_replaces_no_directory(fleet: Fleet) -> None:
    made = await upload(fleet[0], b"planted", "x")
    session_id = await fleet[0].session(**BYPASS)
    await fleet[0].ask(session_id, "run ln -s /tmp out ; ln -s inner in ; mkdir inner ; touch inner/kept")
    for path in ("out/planted", "in/planted", "inner"):
        resources = [{"file_id": made["file_id"], "path": path}]
        failed = await end_of(fleet[1], await fleet[1].prompt(session_id, "say hello", resources=resources))
        assert failed["code"] == "resource_failed", path
    assert await names(fleet[2], session_id, recursive=True) == ["in", "inner", "inner/kept", "out"]


NO_RESOURCES: dict[str, list[Any]] = {
    "nothing": [{}],
    "two at once": [{"file_id": str(UUID(int=1)), "url": "https://example.com/a"}],
    "no id": [{"file_id": "x"}],
    "up": [{"url": "https://example.com/a", "path": "../a"}],
    "absolute": [{"url": "https://example.com/a", "path": "/a"}],
    "the workspace": [{"url": "https://example.com/a", "path": "."}],
    "no name": [{"url": "https://example.com/"}],
    "no URL": [{"url": "file:///etc/passwd", "path": "a"}],
    "a host of others": [{"repository": {"url": "https://elsewhere.example/a.git"}}],
    "a field": [{"url": "https://example.com/a", "mode": "0755"}],
    "too many": [{"url": "https://example.com/a"}] * 51,
}


@pytest.mark.parametrize("resources", NO_RESOURCES.values(), ids=NO_RESOURCES.keys())
async def test_what_is_no_resource_is_refused(fleet: Fleet, resources: list[Any]) -> None:
    bodies = {"/sessions": {}, "/query/single": {"prompt": "x"}, "/agents": {"name": f"a-{uuid4().hex}"}}
    for path, body in bodies.items():
        refused = await fleet[0].post(path, {**body, "resources": resources})
        assert await code(refused) == (422, "validation_error"), path
    listed = await fleet[0].post("/agents/preview", {"resources": resources})
    assert any(problem["field"].startswith("resources") for problem in listed.json()["problems"]), listed.text


async def test_a_fork_brings_resources_with_its_prompt_and_only_then(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**BYPASS)
    made = await upload(fleet[0], b"for the fork", "fork.txt")
    asked = {"prompt": "run cat fork.txt", "session_id": session_id, "fork_session": True}
    answer = await fleet[1].post("/query/single", {**asked, "resources": [{"file_id": made["file_id"]}]})
    assert "for the fork" in answer.json()["result"], answer.text
    assert await names(fleet[1], session_id) == []
    body = {"resources": [{"url": "https://example.com/a"}]}
    refused: httpx.Response = await fleet[0].post(f"/sessions/{session_id}/fork", body)
    assert await code(refused) == (422, "validation_error")
