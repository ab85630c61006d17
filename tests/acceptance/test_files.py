"""Files of a session for its clients: before it has begun, while an agent is at work on any instance, and when it is
idle."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance

WRITES: dict[str, Any] = {"allowed_tools": ["Write", "Read", "Bash"]}


def url(session_id: str, path: str = "") -> str:
    return f"/api/v1/sessions/{session_id}/files{path and f'/{path}'}"


async def put(instance: Instance, session_id: str, path: str, content: bytes, **headers: str) -> httpx.Response:
    return await instance.client.put(url(session_id, path), content=content, headers=headers)


async def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def names(instance: Instance, session_id: str, **query: Any) -> list[str]:
    answer = await instance.client.get(url(session_id), params=query)
    assert answer.status_code == 200, answer.text
    return [item["path"] for item in answer.json()["data"]]


@pytest.fixture(scope="module")
async def places(fleet: Fleet) -> dict[str, str]:
    """Sessions whose files are in three places: stored and never begun, live, and stored after a run."""
    never = await fleet[0].session(**WRITES)
    live = await fleet[0].session(**WRITES)
    await fleet[1].ask(live, "say here")
    return {"never begun": never, "live": live}


@pytest.mark.parametrize("where", ["never begun", "live"])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_files_are_written_read_listed_moved_and_removed(
    fleet: Fleet, places: dict[str, str], where: str, at: int
) -> None:
    instance, session_id, above = fleet[at], places[where], f"dir-{at}"
    answer = await put(instance, session_id, f"{above}/a b.txt", b"hello")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["path"], made["type"], made["size"], made["leads"]) == (f"{above}/a b.txt", "file", 5, None)
    assert answer.headers["etag"] == made["etag"]
    other = fleet[(at + 1) % 3]
    got = await other.client.get(url(session_id, f"{above}/a b.txt"))
    assert (got.status_code, got.content, got.headers["etag"]) == (200, b"hello", made["etag"])
    assert got.headers["content-disposition"].startswith("attachment; ")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in got.headers["content-security-policy"]
    head = await other.client.head(url(session_id, f"{above}/a b.txt"))
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "5", b"")
    assert await names(other, session_id, path=above) == [f"{above}/a b.txt"]
    moved = await other.post(
        f"/sessions/{session_id}/files/move", {"source": f"{above}/a b.txt", "target": f"{above}/x/b"}
    )
    assert moved.status_code == 200, moved.text
    assert (moved.json()["path"], moved.json()["etag"]) == (f"{above}/x/b", made["etag"])
    assert await names(instance, session_id, path=above, recursive=True) == [f"{above}/x", f"{above}/x/b"]
    full = await instance.client.delete(url(session_id, above))
    assert await code(full) == (409, "directory_not_empty")
    gone = await instance.client.delete(url(session_id, above), params={"recursive": "true"})
    assert gone.status_code == 204, gone.text
    assert await code(await other.client.get(url(session_id, f"{above}/x/b"))) == (404, "file_not_found")


@pytest.mark.parametrize("where", ["never begun", "live"])
async def test_conditions_and_ranges(fleet: Fleet, places: dict[str, str], where: str) -> None:
    session_id, path = places[where], "conditions.bin"
    content = bytes(range(256)) * 100
    first = (await put(fleet[0], session_id, path, content, **{"If-None-Match": "*"})).json()
    again = await put(fleet[1], session_id, path, b"x", **{"If-None-Match": "*"})
    assert await code(again) == (412, "etag_mismatch")
    assert await code(await put(fleet[1], session_id, path, b"x", **{"If-Match": '"other"'})) == (412, "etag_mismatch")
    get = fleet[2].client.get
    same = await get(url(session_id, path), headers={"If-None-Match": first["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    for wanted, part in (
        ("bytes=10-19", content[10:20]),
        ("bytes=-5", content[-5:]),
        ("bytes=25599-", content[25599:]),
    ):
        some = await get(url(session_id, path), headers={"Range": wanted})
        assert (some.status_code, some.content) == (206, part)
    beyond = await get(url(session_id, path), headers={"Range": "bytes=25600-"})
    assert (await code(beyond), beyond.headers["content-range"]) == ((416, "range_not_satisfiable"), "bytes */25600")
    changed = await put(fleet[1], session_id, path, b"new", **{"If-Match": first["etag"]})
    assert changed.status_code == 200, changed.text
    whole = await get(url(session_id, path), headers={"Range": "bytes=0-0", "If-Range": first["etag"]})
    assert (whole.status_code, whole.content) == (200, b"new")


async def test_an_agent_sees_what_was_put_and_clients_what_it_writes(fleet: Fleet, places: dict[str, str]) -> None:
    session_id = places["live"]
    await put(fleet[2], session_id, "for-the-agent.txt", b"the word is cheese")
    answer = await fleet[0].ask(session_id, "run cat for-the-agent.txt; echo mine > from-the-agent.txt")
    assert "cheese" in answer["result"]
    for instance in fleet.instances:
        got = await instance.client.get(url(session_id, "from-the-agent.txt"))
        assert got.text == "mine\n"


async def test_what_was_put_before_the_first_run_is_there_in_it(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**WRITES)
    await put(fleet[1], session_id, "data/in.csv", b"a,b\n1,2\n")
    assert "1,2" in (await fleet[2].ask(session_id, "run cat data/in.csv"))["result"]


async def test_a_run_tells_which_files_it_has_changed(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**WRITES)
    for name in ("old.txt", "gone.txt"):
        await put(fleet[0], session_id, name, b"before")
    prompt = "run echo new > new.txt; echo after > old.txt; rm gone.txt"
    events = await fleet[1].follow(await fleet[1].prompt(session_id, prompt))
    told = [event.data for event in events if event.event == "files"]
    assert [{key: found[key] for key in ("created", "changed", "deleted")} for found in told] == [
        {"created": ["new.txt"], "changed": ["old.txt"], "deleted": ["gone.txt"]}
    ]
    assert [event.event for event in events[-3:]] == ["files", "result", "done"]
    quiet = await fleet[1].follow(await fleet[1].prompt(session_id, "say nothing"))
    assert "files" not in [event.event for event in quiet]


async def test_pages_of_a_list_go_on_where_the_last_one_ended(fleet: Fleet, places: dict[str, str]) -> None:
    session_id = places["never begun"]
    for number in range(7):
        await put(fleet[0], session_id, f"pages/{number}", b"")
    seen, cursor = list[str](), None
    while True:
        query: dict[str, Any] = {"path": "pages", "limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await fleet[1].client.get(url(session_id), params=query)).json()
        seen += [item["path"] for item in page["data"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [f"pages/{number}" for number in range(7)]


async def as_written(instance: Instance, method: str, path: str) -> int:
    """The status of an answer to a request for a path that no client tidies up."""
    there = httpx.URL(instance.url)
    reader, writer = await asyncio.open_connection(there.host, there.port)
    key = instance.client.headers["x-api-key"]
    head = f"{method} {path} HTTP/1.1\r\nHost: {there.host}\r\nX-API-Key: {key}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: 1\r\n\r\nx".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


BAD = ["..", "a/../../b", "%2e%2e/x", "a/%2E%2E/%2E%2E/b", "/etc/passwd", "a//b", "a/./b", "a/", "x%00y", "x%0Ay"]
BAD += ["n" * 256, "d/" * 101 + "f"]


@pytest.mark.parametrize("where", ["never begun", "live"])
@pytest.mark.parametrize("path", BAD)
async def test_no_path_leads_out(fleet: Fleet, places: dict[str, str], where: str, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert await as_written(fleet[0], method, f"{url(places[where])}/{path}") in (404, 405, 422), method
    moved = await fleet[0].post(f"/sessions/{places[where]}/files/move", {"source": path, "target": "ok"})
    assert moved.status_code in (404, 422), moved.text


async def test_links_are_told_and_never_followed(fleet: Fleet, places: dict[str, str]) -> None:
    session_id = places["live"]
    await fleet[0].ask(session_id, "run ln -sf /etc/passwd out; ln -sfn /etc etc; mkfifo pipe; ln -sf a.txt inside")
    found = (await fleet[1].client.get(url(session_id))).json()["data"]
    links = {item["path"]: item["leads"] for item in found if item["type"] == "link"}
    assert {name: links[name] for name in ("out", "etc", "inside")} == {
        "out": "/etc/passwd",
        "etc": "/etc",
        "inside": "a.txt",
    }
    assert "pipe" not in [item["path"] for item in found]
    for path, wanted in (
        ("out", (409, "not_a_file")),
        ("etc/passwd", (404, "file_not_found")),
        ("pipe", (404, "file_not_found")),
    ):
        assert await code(await fleet[2].client.get(url(session_id, path))) == wanted
    assert await code(await put(fleet[2], session_id, "etc/new", b"x")) == (409, "not_a_directory")
    assert (await put(fleet[2], session_id, "out", b"mine")).status_code == 200
    assert (await fleet[0].client.get(url(session_id, "out"))).content == b"mine"


@pytest.mark.parametrize("where", ["never begun", "live"])
async def test_of_those_who_make_the_same_file_at_once_one_does(
    fleet: Fleet, places: dict[str, str], where: str
) -> None:
    answers = await asyncio.gather(
        *(put(fleet[n % 3], places[where], "race.txt", b"%d" % n, **{"If-None-Match": "*"}) for n in range(12))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [412] * 11
    [winner] = [n for n, answer in enumerate(answers) if answer.status_code == 201]
    assert (await fleet[0].client.get(url(places[where], "race.txt"))).content == b"%d" % winner


async def test_of_many_that_are_put_at_once_none_is_lost(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**WRITES)
    answers = await asyncio.gather(*(put(fleet[n % 3], session_id, f"many/{n:02d}", b"%d" % n) for n in range(30)))
    wrong = [answer.text for answer in answers if answer.status_code not in (201, 409)]
    assert wrong == []
    made = sorted(f"many/{n:02d}" for n, answer in enumerate(answers) if answer.status_code == 201)
    assert await names(fleet[0], session_id, path="many") == made
    assert len(made) >= 25


async def test_sizes_are_bounded(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, MAX_FILE_BYTES="20000", WORKSPACE_MAX_FILES="100", RUNNER_SLOTS="0")
    session_id = await fleet[0].session()
    assert (await put(fleet[0], session_id, "fits", bytes(20_000))).status_code == 201
    assert await code(await put(fleet[0], session_id, "large", bytes(20_001))) == (413, "body_too_large")

    async def unannounced() -> Any:
        for _ in range(3):
            yield bytes(10_000)

    answer = await fleet[0].client.put(url(session_id, "large"), content=unannounced())
    assert await code(answer) == (413, "body_too_large")
    assert await names(fleet[0], session_id) == ["fits"]


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(fleet: Fleet, places: dict[str, str]) -> None:
    async def broken() -> Any:
        yield bytes(100_000)
        raise RuntimeError("gone")

    for session_id in places.values():
        with pytest.raises(RuntimeError, match="gone"):
            await fleet[0].client.put(url(session_id, "half"), content=broken())
        assert await code(await fleet[1].client.get(url(session_id, "half"))) == (404, "file_not_found")


def tarred(**contents: bytes) -> bytes:
    """As most programs make them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def zipped(**contents: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize("where", ["never begun", "live"])
@pytest.mark.parametrize("make", [tarred, zipped])
async def test_archives_are_taken_in_and_given(
    fleet: Fleet, places: dict[str, str], where: str, make: Callable[..., bytes]
) -> None:
    session_id = places[where]
    contents = {"sub/é.txt": b"accent", "sub/deep/er.bin": bytes(3_000_000), "top.txt": b"top"}
    archive = f"/api/v1/sessions/{session_id}/archive"
    body = make(**{f"arch/{name}": content for name, content in contents.items()})
    taken = await fleet[1].client.put(archive, content=body)
    assert (taken.status_code, taken.json()) == (200, {"members": 3}), taken.text
    given = await fleet[2].client.get(archive, params={"path": "arch"})
    with tarfile.open(fileobj=io.BytesIO(given.content)) as read:
        found = {m.name: read.extractfile(m).read() for m in read if m.isfile()}  # type: ignore[union-attr]
    assert found == {f"arch/{name}": content for name, content in contents.items()}
    given = await fleet[0].client.get(archive, params={"path": "arch", "format": "zip"})
    with zipfile.ZipFile(io.BytesIO(given.content)) as opened:
        assert opened.testzip() is None
        assert {n: opened.read(n) for n in opened.namelist() if not n.endswith("/")} == found


def linked(name: str, leads: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, leads
        archive.addfile(info)
    return made.getvalue()


HOSTILE = {
    "up": tarred(**{"../out": b"x"}),
    "absolute": zipped(**{"/etc/out": b"x"}),
    "up in a zip": zipped(**{"a/../../out": b"x"}),
    "link out": linked("a", "/etc"),
    "link up": linked("a/b", "../../x"),
    "no archive": b"hello",
    "cut off": tarred(a=os.urandom(10_000))[:5_000],
    "cut off zip": zipped(a=os.urandom(10_000))[:5_000],
    "bomb": gzip.compress(tarfile.TarInfo("x").tobuf()[:124] + bytes(20_000_000)),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_an_archive_that_is_not_what_it_should_be_leaves_nothing(
    fleet: Fleet, places: dict[str, str], what: str
) -> None:
    for session_id in places.values():
        before = await names(fleet[0], session_id, recursive=True, limit=1000)
        answer = await fleet[0].client.put(f"/api/v1/sessions/{session_id}/archive", content=HOSTILE[what])
        assert await code(answer) == (422, "validation_error"), answer.text
        assert await names(fleet[0], session_id, recursive=True, limit=1000) == before


@pytest.mark.parametrize("where", ["never begun", "live"])
async def test_of_an_archive_that_does_not_fit_nothing_is_taken_in(
    fleet: Fleet, places: dict[str, str], where: str
) -> None:
    session_id = places[where]
    await put(fleet[0], session_id, f"fit-{where}/inner", b"here")
    for name in (f"fit-{where}", f"fit-{where}/inner/below"):
        body = zipped(**{"a-first": b"x", name: b"y", "z-last": b"z"})
        answer = await fleet[1].client.put(f"/api/v1/sessions/{session_id}/archive", content=body)
        assert await code(answer) == (409, "file_exists"), answer.text
    assert not {"a-first", "z-last"} & {*await names(fleet[2], session_id)}


async def test_what_a_run_has_changed_is_shown_as_a_patch(fleet: Fleet) -> None:
    session_id = await fleet[0].session(**WRITES)
    await put(fleet[0], session_id, "a.txt", b"one\ntwo\n")
    await fleet[1].ask(session_id, "run echo three >> a.txt; echo new > b.txt")
    for instance in fleet.instances:
        found = (await instance.get(f"/sessions/{session_id}/diff")).json()
        assert found["files_changed"] == ["a.txt", "b.txt"]
        assert "+three\n" in found["diff"]
        assert "diff --git a/b.txt b/b.txt\nnew file" in found["diff"]
        assert not found["diff_omitted"]
