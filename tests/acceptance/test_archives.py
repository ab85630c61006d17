"""A session, and a tenant, go from one installation to another, and go on there."""

from __future__ import annotations

import asyncio
import os
import tarfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.test_suspension import tenant_of
from tests.conftest import StartFleet, database_of
from tests.fleet import PROGRAM, Fleet, Instance

BYPASS = {"permission_mode": "bypassPermissions", "enable_file_checkpointing": True}


async def command(fleet: Fleet, *arguments: str | Path) -> tuple[int, str]:
    """What `claude-agent-api` says at an installation."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *map(str, arguments),
        env={**os.environ, **fleet.env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def exported(instance: Instance, session_id: str, target: Path, **more: Any) -> Path:
    answer = await instance.get(f"/sessions/{session_id}/export", **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/gzip"
    await asyncio.to_thread(target.write_bytes, answer.content)
    return target


def contents_of(archive: Path) -> dict[str, bytes]:
    """What any program for tar finds in it."""
    with tarfile.open(archive) as opened:
        return {m.name: (found.read() if (found := opened.extractfile(m)) else b"") for m in opened if not m.issym()}


def new_id(said: str, old: str) -> str:
    return next(line.split()[-1] for line in said.splitlines() if line.startswith(f"session {old} is "))


@pytest.fixture
async def elsewhere(start_fleet: StartFleet) -> Fleet:
    """Another installation: a database and a directory of its own."""
    return await start_fleet(1)


async def test_a_session_goes_on_in_another_installation(fleet: Fleet, elsewhere: Fleet, tmp_path: Path) -> None:
    session_id = await fleet[0].session(**BYPASS, title="moved", tags=["a"], env={"TOKEN": "hush"})
    await fleet[0].ask(session_id, "remember my name is Ada")
    first = await fleet[0].ask(session_id, "write notes/one.txt: first")
    await fleet[0].ask(
        session_id, "run ln -s notes/one.txt here; ln -s /etc/passwd out; mkfifo pipe; echo 2 > notes/one.txt"
    )
    archive = await exported(fleet[1], session_id, tmp_path / "session.tar.gz")
    contents = contents_of(archive)
    assert f"sessions/{session_id}/files/notes/one.txt" in contents
    assert (next(iter(contents)), [*contents][-1]) == ("manifest.json", "end.json")
    assert b"hush" not in b"".join(contents.values())
    code, said = await command(elsewhere, "import", archive, "--tenant", "default")
    assert code == 0, said
    moved = new_id(said, session_id)
    assert moved != session_id
    assert "1 links that led elsewhere" in said
    assert f"to do: session {moved}: env is not there" in said
    there = elsewhere[0]
    state, was = [(await at.get(f"/sessions/{of}")).json() for at, of in ((there, moved), (fleet[0], session_id))]
    same = ("title", "tags", "num_turns", "total_cost_usd", "usage", "status", "last_seq", "created_at", "tools")
    assert {name: state[name] for name in same} == {name: was[name] for name in same}
    assert (state["title"], state["status"], state["config"].get("env")) == ("moved", "idle", None)
    recalled = await there.ask(moved, "recall")
    assert "Ada" in recalled["result"]
    assert "2" in (await there.ask(moved, "run cat here && test ! -e out && test ! -p pipe && echo whole"))["result"]
    runs = (await there.get(f"/sessions/{moved}/runs")).json()["data"]
    assert len(runs) == 5
    assert first["run_id"] not in [run["run_id"] for run in runs]
    second = runs[-2]["run_id"]
    events = await there.follow(second)
    assert events[-1].event == "done"
    assert {event.data["run_id"] for event in events} == {second}
    assert {event.data["session_id"] for event in events} == {moved}
    told = (await there.get(f"/sessions/{moved}/messages")).json()["data"]
    assert next(m["uuid"] for m in told if m["role"] == "user" and "notes/one.txt: first" in str(m)) == second
    before = (await fleet[0].get(f"/sessions/{session_id}/messages")).json()["data"]
    here = f"{fleet.env['WORKSPACES_DIR']}/{session_id}"
    was_said = str([m["content"] for m in before]).replace(here, f"{elsewhere.env['WORKSPACES_DIR']}/{moved}")
    assert str([m["content"] for m in told[: len(before)]]) == was_said
    assert (await there.get("/usage", params={"session_id": moved})).json()["totals"]["runs"] == 5
    at = next(event.data["seq"] for event in events if event.event == "done")
    forked = await there.post(f"/sessions/{moved}/fork", {"at_seq": at})
    assert forked.status_code == 201, forked.text
    assert "Ada" in (await there.ask(forked.json()["session_id"], "recall"))["result"]
    rewound = await there.post(f"/sessions/{moved}/rewind", {"checkpoint_id": runs[-3]["run_id"]})
    assert (rewound.status_code, rewound.json().get("files_changed")) == (200, ["notes/one.txt"]), rewound.text
    assert "first" in (await there.ask(moved, "run cat notes/one.txt"))["result"]
    kept = await fleet[2].ask(session_id, "recall")
    assert "Ada" in kept["result"], "where it was it goes on as well"


async def test_a_tenant_with_its_sessions_is_imported_under_another_name(
    start_fleet: StartFleet, elsewhere: Fleet, tmp_path: Path
) -> None:
    fleet = await start_fleet(2)
    tenant, headers = await tenant_of(fleet)
    put, post = fleet[0].client.put, fleet[0].post
    preset = (await post("/agents", {"name": "p", "tools": ["Bash"]}, headers=headers)).json()
    for path, body in (
        ("/secrets/TOKEN", {"value": "hush"}),
        ("/skills/one", {"description": "d", "content": "c", "files": {"a.md": "x"}}),
        ("/mcp-servers/plain", {"type": "http", "url": "http://127.0.0.1/"}),
        ("/mcp-servers/secret", {"type": "http", "url": "http://127.0.0.1/", "headers": {"A": "hush"}}),
    ):
        assert (await put(f"/api/v1{path}", json=body, headers=headers)).status_code == 201, path
    await post("/webhooks", {"url": "http://127.0.0.1:9/"}, headers=headers)
    sessions = []
    for instance, name in zip(fleet.instances, ("Ada", "Bea"), strict=True):
        made = await instance.post("/sessions", {"agent": preset["agent_id"], "title": name}, headers=headers)
        sessions.append(made.json()["session_id"])
        asked = {"prompt": f"remember my name is {name}", "session_id": sessions[-1]}
        assert (await instance.post("/query/single", asked, headers=headers)).status_code == 200
    forked = await post(f"/sessions/{sessions[0]}/fork", {"title": "fork"}, headers=headers)
    sessions.append(forked.json()["session_id"])
    archive = tmp_path / "tenant.tar.gz"
    code, said = await command(fleet, "export", archive, "--tenant", tenant)
    assert code == 0, said
    assert archive.stat().st_mode & 0o077 == 0
    assert b"hush" not in b"".join(contents_of(archive).values())
    code, said = await command(elsewhere, "import", archive, "--tenant", "second")
    assert code == 0, said
    assert "Tenant second: 3 sessions" in said
    for lacks in ("secret TOKEN", "MCP server secret", "webhook http://127.0.0.1:9/"):
        assert f"to do: {lacks}" in said
    there = elsewhere[0]
    key = (await there.post("/admin/keys", {"tenant": "second", "name": "k"})).json()
    own = {"X-API-Key": key["secret"]}
    for old, name in zip(sessions, ("Ada", "Bea", "Ada"), strict=True):
        asked = {"prompt": "recall", "session_id": new_id(said, old)}
        recalled = await there.post("/query/single", asked, headers=own)
        assert name in recalled.text
    state = (await there.get(f"/sessions/{new_id(said, sessions[2])}", headers=own)).json()
    assert state["parent_session_id"] == new_id(said, sessions[0])
    assert state["agent"]["name"] == "p"
    assert state["agent"]["agent_id"] != preset["agent_id"]
    assert [m["name"] for m in (await there.get("/mcp-servers", headers=own)).json()["data"]] == ["plain"]
    [webhook] = (await there.get("/webhooks", headers=own)).json()["data"]
    assert (webhook["enabled"], webhook["disabled_reason"]) == (False, "imported")
    assert (await there.get("/usage", headers=own)).json()["totals"]["runs"] == 5
    code, said = await command(elsewhere, "import", archive, "--tenant", "second")
    assert (code, "A tenant of the name second exists" in said) == (1, True)
    lines = (await there.get("/admin/audit", params={"tenant": "second"})).json()["data"]
    told = [(line["action"], line["actor"]["type"]) for line in lines]
    assert told == [("key.created", "key"), *[("session.imported", "cli")] * 3, ("tenant.imported", "cli")]


async def test_what_is_busy_or_gone_is_not_exported(fleet: Fleet, tmp_path: Path) -> None:
    session_id = await fleet[0].session()
    await fleet[0].prompt(session_id, "stream 2000 words slowly")
    for path, code in ((session_id, "session_busy"), (str(uuid4()), "session_not_found")):
        refused = await fleet[1].get(f"/sessions/{path}/export")
        assert refused.json()["error"]["code"] == code
    await fleet[2].post(f"/sessions/{session_id}/interrupt")
    target = tmp_path / "none.tar.gz"
    status, said = await command(fleet, "export", target, "--tenant", "default", "--session", str(uuid4()))
    assert (status, "not exported: No such session" in said) == (1, True), said
    assert not target.exists()
    target.write_text("mine")
    status, said = await command(fleet, "export", target, "--tenant", "default")
    assert (status, target.read_text(), "File exists" in said) == (1, "mine", True), said


async def test_an_import_that_is_cut_off_leaves_nothing(fleet: Fleet, elsewhere: Fleet, tmp_path: Path) -> None:
    session_id = await fleet[0].session(**BYPASS)
    await fleet[0].ask(session_id, "run head -c 3000000 /dev/urandom > large")
    archive = await exported(fleet[0], session_id, tmp_path / "whole.tar.gz")
    whole = archive.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 20):
        archive.write_bytes(whole[:size])
        code, said = await command(elsewhere, "import", archive, "--tenant", "default")
        assert (code, "not imported" in said) == (1, True), said
    async with database_of(elsewhere) as db:
        assert await db.pool.fetchval("SELECT count(*) FROM sessions") == 0
    root = Path(elsewhere.env["WORKSPACES_DIR"])
    assert not list((root / ".imports").iterdir())
