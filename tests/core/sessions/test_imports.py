"""Imports of what a stranger has written: refused with a reason, and nothing is left; or nothing keeps its id."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import tarfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from apps.api import transfer
from apps.api.core.codec import encode
from apps.api.core.files import tarball, trees
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.tarball import BadArchive, Packer
from apps.api.core.sessions import workspaces
from apps.api.core.sessions.importing import Imported, Refused
from apps.api.core.tenant import mcp, skills
from apps.api.models import Base
from apps.api.settings import Settings
from tests.core.files.travel import bring, objects_in
from tests.world import World, core_of

NOW = "2026-11-01T12:00:00+00:00"
OLD, CONVERSATION, RUN, PRESET = (str(UUID(int=number)) for number in range(1, 5))
ELSEWHERE = "/srv/else/where"
PROFILES = """
[narrow]
description = "x"
tools = ["Read"]
permission_modes = ["default"]
mcp = []
hooks = false
"""


def session_line(**more: Any) -> dict[str, Any]:
    return {
        "id": OLD,
        "title": "t",
        "tags": ["a"],
        "metadata": {"k": "v"},
        "config": {"model": "claude-x", "env": {"A": "***"}},
        "profile": None,
        "surface": "native",
        "agent": None,
        "conversation": CONVERSATION,
        "parent_session_id": None,
        "num_turns": 1,
        "total_cost_usd": 0.5,
        "usage": {"input_tokens": 3},
        "permission_mode": "default",
        "tools": ["Bash"],
        "created_at": NOW,
        "updated_at": NOW,
        "last_seq": 3,
        "expired_seq": 0,
    } | more


def run_line(**more: Any) -> dict[str, Any]:
    return {
        "id": RUN,
        "kind": "prompt",
        "origin": "client",
        "status": "succeeded",
        "prompt": '"say hello"',
        "expand_prompt": False,
        "timeout_seconds": 60.0,
        "first_seq": 1,
        "last_seq": 3,
        "error": None,
        "result": '{"result":"hello"}',
        "total_cost_usd": 0.5,
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": NOW,
    } | more


def event_line(seq: int, type_: str = "status", run_id: str | None = RUN, **fields: Any) -> dict[str, Any]:
    own = fields or {"status": "x"}
    head = {"session_id": OLD, "run_id": run_id, "seq": seq, "created_at": NOW}
    return {"seq": seq, "run_id": run_id, "type": type_, "data": json.dumps({**head, **own}), "created_at": NOW}


def message(**more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "x"}], "parent_tool_use_id": None, "uuid": RUN} | more


def entry_line(subpath: str = "", **entry: Any) -> dict[str, Any]:
    own = {"type": "user", "uuid": RUN, "sessionId": CONVERSATION, "cwd": f"{ELSEWHERE}/{OLD}"}
    return {"subpath": subpath, "entry": encode(own | entry).decode()}


def usage_line(**more: Any) -> dict[str, Any]:
    tokens = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    given = {"run_id": RUN, "model": "m", "day": "2026-11-01", "web_search_requests": 0, "cost_usd": 0.5}
    return {**given, **dict.fromkeys(tokens, 1), **more}


@dataclass
class Archive:
    """What is packed: `lines` by the member that has them, then `tree`, then the end."""

    manifest: dict[str, Any] = field(
        default_factory=lambda: {
            "format": "claude-agent-api",
            "version": 1,
            "kind": "session",
            "server": "0.1.0",
            "created_at": NOW,
            "workspaces_dir": ELSEWHERE,
        }
    )
    lines: dict[str, list[Any]] = field(default_factory=dict)
    tree: list[tuple[str, str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    after: bytes | None = None

    def of(self, kind: str, session_id: str = OLD) -> list[Any]:
        name = {"session": "session.json"}.get(kind, f"{kind}-0001.jsonl")
        return self.lines[f"sessions/{session_id}/{name}"]

    def pack(self) -> bytes:
        packer = Packer()
        data = packer.file("manifest.json", json.dumps(self.manifest).encode())
        for name, lines in self.lines.items():
            raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
            data += packer.file(name, b"\n".join(raw))
        for name, kind, what in self.tree:
            if kind == "file":
                data += packer.file(name, what)
            else:
                data += packer.link(name, what) if kind == "link" else packer.directory(name, 0o755)
        end = {"members": packer.members} if self.end is None else self.end
        data += packer.file("end.json", json.dumps(end).encode())
        if self.after is not None:
            data += packer.file("after", self.after)
        return data + packer.finish()


def of_session() -> Archive:
    at = f"sessions/{OLD}"
    archive = Archive()
    archive.lines = {
        f"{at}/session.json": [session_line()],
        f"{at}/runs-0001.jsonl": [run_line()],
        f"{at}/usage-0001.jsonl": [usage_line()],
        f"{at}/events-0001.jsonl": [
            event_line(1, "message", **message()),
            event_line(2, "checkpoint", checkpoint_id=RUN, prompt="x"),
            event_line(3, "done", status="succeeded"),
        ],
        f"{at}/transcript-0001.jsonl": [
            entry_line(),
            entry_line("subagents/a", uuid="a"),
            entry_line(uuid="s", message={"thinking": f"{OLD} said", "signature": "abc"}),
        ],
    }
    archive.tree = [
        (f"{at}/files", "directory", None),
        (f"{at}/files/a/b.txt", "file", b"content"),
        (f"{at}/files/up", "link", "a/b.txt"),
        (f"{at}/files/own", "link", f"{ELSEWHERE}/{OLD}/a"),
        (f"{at}/output/{CONVERSATION}/1.txt", "file", b"put out"),
        (f"{at}/history/{CONVERSATION}/x@v1", "file", b"earlier"),
    ]
    return archive


def of_tenant(*, sessions: bool = True) -> Archive:
    archive = of_session() if sessions else Archive()
    archive.manifest["kind"] = "tenant"
    own = [
        {"type": "tenant", "name": f"t{uuid4().hex}", "retention": {"events_days": 3, "usage_days": None}},
        {"type": "preset", "id": PRESET, "name": "p", "description": None, "version": 1},
        {
            "type": "preset_version",
            "agent_id": PRESET,
            "version": 1,
            "profile": None,
            "config": {"tools": ["Bash"]},
            "created_at": NOW,
        },
        {"type": "mcp_server", "name": "plain", "spec": {"type": "http", "url": "https://example.org/"}},
        {"type": "skill", "of": "skill", "name": "s", "description": "d", "files": {"SKILL.md": "x", "a.md": "y"}},
        {"type": "webhook", "url": "https://example.org/", "description": None, "events": ["run.failed"]},
        {"type": "secret", "name": "TOKEN"},
    ]
    archive.lines = {"tenant-0001.jsonl": own, **archive.lines}
    return archive


@pytest.fixture
def here(world: World, tmp_path: Path) -> Settings:
    """This installation, with a profile."""
    (tmp_path / "profiles.toml").write_text(PROFILES)
    return world.settings.model_copy(update={"profiles_file": tmp_path / "profiles.toml"})


async def name_of(world: World) -> str:
    name: str = await world.db.pool.fetchval("SELECT name FROM tenants WHERE id = $1", world.tenant_id)
    return name


async def load(settings: Settings, data: bytes, tenant: str | None, tmp_path: Path, most: int = 1 << 30) -> Imported:
    source = tmp_path / "archive.tar.gz"
    source.write_bytes(data)
    return await transfer.load(settings, source, tenant, most)


_OF_STORE = r"\.store/tenants(/[^/]+(/packs.*|/sessions(/[^/]+)?)?)?$"
"""Whatever is in the store, but for manifests."""


async def state(world: World) -> tuple[dict[str, int], list[str]]:
    """How many rows each table has, and all that is on the disk, but for packs that no manifest may name any more."""
    rows = {name: await world.db.pool.fetchval(f'SELECT count(*) FROM "{name}"') for name in Base.metadata.tables}
    root = world.settings.workspaces_root
    places = sorted(str(path.relative_to(root)) for path in root.rglob("*")) if root.exists() else []
    aside = (".imports", ".exports", ".removed", ".store")
    return rows, [path for path in places if path not in aside and not re.match(_OF_STORE, path)]


async def refused(world: World, settings: Settings, data: bytes, tmp_path: Path, **more: Any) -> str:
    """Why it is refused. Nothing is left of it."""
    before = await state(world)
    tenant = more.pop("tenant", await name_of(world))
    with pytest.raises((BadArchive, Refused)) as why:
        await load(settings, data, tenant, tmp_path, **more)
    assert await state(world) == before
    return str(why.value)


# --- what is taken -------------------------------------------------------------------------------------------------


async def test_nothing_of_an_archive_keeps_its_id(world: World, here: Settings, tmp_path: Path) -> None:
    fetch = world.db.pool.fetch
    imported = await load(here, of_session().pack(), await name_of(world), tmp_path)
    new = imported.sessions[UUID(OLD)]
    [run] = await fetch("SELECT * FROM runs WHERE session_id = $1", new)
    assert run["id"] not in (new, UUID(RUN))
    [session] = await fetch("SELECT * FROM sessions WHERE id = $1", new)
    assert session["last_active_at"].year > 2025, "it is used today"
    assert (session["tenant_id"], session["sdk_session_id"], session["last_seq"]) == (world.tenant_id, new, 3)
    assert (session["num_turns"], session["total_cost_usd"], session["usage"]) == (1, 0.5, {"input_tokens": 3})
    assert (session["config"], session["owner_id"]) == ({"model": "claude-x"}, None)
    assert imported.lacking == [f"session {new}: env is not there"]
    events = await fetch("SELECT * FROM events WHERE session_id = $1 ORDER BY seq", new)
    assert [(e["type"], e["run_id"], e["subject"]) for e in events] == [
        ("message", run["id"], str(run["id"])),
        ("checkpoint", run["id"], str(run["id"])),
        ("done", run["id"], None),
    ]
    entries = await fetch("SELECT * FROM transcript_entries WHERE session_id = $1 ORDER BY id", new)
    assert [(e["subpath"], e["uuid"], e["sdk_session_id"]) for e in entries] == [
        ("", str(run["id"]), str(new)),
        ("subagents/a", "a", str(new)),
        ("", "s", str(new)),
    ]
    root = here.workspaces_root
    assert json.loads(entries[0]["entry"])["cwd"] == f"{root}/{new}"
    signed = json.loads(entries[2]["entry"])
    assert (signed["message"]["thinking"], signed["sessionId"]) == (f"{OLD} said", str(new))
    [used] = await fetch("SELECT * FROM usage WHERE session_id = $1", new)
    assert (used["run_id"], used["tenant_id"], used["cost_usd"]) == (run["id"], world.tenant_id, 0.5)
    texts = [row[name] for row in (*events, *entries[:2], run) for name in ("data", "entry", "prompt") if name in row]
    assert not [text for text in texts if OLD in text or RUN in text or CONVERSATION in text]
    assert not (root / str(new)).exists(), "whichever instance runs it brings its files"
    assert await bring(world, here, new)
    assert (root / str(new) / "a/b.txt").read_bytes() == b"content"
    assert os.readlink(root / str(new) / "own") == f"{root}/{new}/a"
    assert (root / ".outputs" / str(new) / str(new) / "1.txt").read_bytes() == b"put out"
    assert (root / ".checkpoints" / str(new) / str(new) / "x@v1").read_bytes() == b"earlier"
    assert session["stored_bytes"] == len(b"content" + b"put out" + b"earlier")
    again = await load(here, of_session().pack(), await name_of(world), tmp_path)
    assert again.sessions[UUID(OLD)] != new, "and it is another one each time"


async def test_ids_of_what_is_here_are_nothing_but_texts(world: World, here: Settings, tmp_path: Path) -> None:
    """A session and a run of another tenant's, named wherever an archive names one, stay as they are."""
    lease = await world.instance()
    other_tenant = await world.other_tenant()
    theirs = await world.session()
    run = (await world.queue(theirs)).run_id
    await world.claim(lease)
    await world.db.pool.execute("UPDATE sessions SET title = 'theirs' WHERE id = $1", theirs)
    workspaces.create(here, theirs, None)
    (here.workspaces_root / str(theirs) / "secret").write_text("secret")
    query = "SELECT s.*, r.* FROM sessions s JOIN runs r ON r.session_id = s.id WHERE s.id = $1"
    before = await world.db.pool.fetchrow(query, theirs)
    known = {OLD: str(theirs), RUN: str(run), CONVERSATION: str(before["sdk_session_id"])}
    archive = of_session()
    archive.manifest["workspaces_dir"] = str(here.workspaces_root)
    at = f"sessions/{OLD}/files"
    archive.tree.append((f"{at}/theirs", "link", f"{here.workspaces_root}/{uuid4()}/secret"))
    archive.of("session")[0]["parent_session_id"] = str(theirs)
    archive.of("session")[0]["agent"] = {"id": str(theirs), "version": 1}
    text = json.dumps([archive.lines, archive.tree[:3] + archive.tree[-1:]], default=str)
    for old, one in known.items():
        text = text.replace(old, one)
    archive.lines, tree = json.loads(text)
    archive.tree = [(name, kind, b"content" if kind == "file" else what) for name, kind, what in tree]
    name = await world.db.pool.fetchval("SELECT name FROM tenants WHERE id = $1", other_tenant)
    imported = await load(here, archive.pack(), name, tmp_path)
    assert await world.db.pool.fetchrow(query, theirs) == before
    assert imported.sessions[theirs] != theirs
    assert imported.links_left_out == 1
    row = await world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", imported.sessions[theirs])
    assert (row["parent_session_id"], row["agent_id"], row["tenant_id"]) == (None, None, other_tenant)
    assert (here.workspaces_root / str(theirs) / "secret").read_text() == "secret"


async def test_what_no_archive_holds_is_left_out_and_told(world: World, here: Settings, tmp_path: Path) -> None:
    archive = of_session()
    plain = {"type": "http", "url": "https://example.org/"}
    secret = plain | {"headers": {"A": "***"}}
    helper = {
        "description": "d",
        "prompt": "p",
        "mcp_servers": {"c": {"type": "stdio", "command": "c", "env": {"A": "x"}}},
    }
    servers = {"a": secret, "b": plain}
    archive.of("session")[0]["config"] = {"env": {"A": "***"}, "mcp_servers": servers, "agents": {"helper": helper}}
    imported = await load(here, archive.pack(), await name_of(world), tmp_path)
    new = imported.sessions[UUID(OLD)]
    stored = await world.db.pool.fetchval("SELECT config FROM sessions WHERE id = $1", new)
    assert [*stored["mcp_servers"]] == ["b"]
    assert stored["agents"]["helper"]["mcp_servers"] == {}
    assert "env" not in stored
    told = ("env is not there", "MCP server a is not there", "MCP server c is not there")
    assert imported.lacking == [f"session {new}: {what}" for what in told]


async def test_a_fork_tells_of_the_runs_of_its_parent(world: World, here: Settings, tmp_path: Path) -> None:
    archive, fork = of_tenant(), str(UUID(int=9))
    at, gone = f"sessions/{fork}", str(UUID(int=8))
    archive.lines[f"{at}/session.json"] = [session_line(id=fork, parent_session_id=OLD, conversation=fork)]
    events = [
        event_line(number + 1, "message", None, **message(uuid=id_)) for number, id_ in enumerate((RUN, gone, gone))
    ]
    for event, of in zip(events, (RUN, gone, gone), strict=True):
        event["data"] = json.dumps({**json.loads(event["data"]), "run_id": of})
    archive.lines[f"{at}/events-0001.jsonl"] = events
    archive.lines[f"{at}/transcript-0001.jsonl"] = [entry_line(uuid=RUN), entry_line(uuid=gone)]
    trees, archive.tree = archive.tree, []
    assert trees
    imported = await load(here, archive.pack(), None, tmp_path)
    new, parent = imported.sessions[UUID(fork)], imported.sessions[UUID(OLD)]
    run = await world.db.pool.fetchval("SELECT id FROM runs WHERE session_id = $1", parent)
    rows = await world.db.pool.fetch("SELECT * FROM events WHERE session_id = $1 ORDER BY seq", new)
    told = [json.loads(row["data"])["run_id"] for row in rows]
    assert told[0] == str(run)
    assert told[1] == told[2] != gone
    assert [row["subject"] for row in rows] == told
    assert {row["run_id"] for row in rows} == {None}
    entries = await world.db.pool.fetch("SELECT uuid FROM transcript_entries WHERE session_id = $1 ORDER BY id", new)
    assert [row["uuid"] for row in entries] == told[:2]
    assert await world.db.pool.fetchval("SELECT parent_session_id FROM sessions WHERE id = $1", new) == parent
    await world.db.pool.execute("DELETE FROM tenants WHERE name = $1", imported.tenant)


async def test_what_events_lost_to_their_age_is_no_gap(world: World, here: Settings, tmp_path: Path) -> None:
    archive = of_session()
    archive.of("session")[0] |= {"expired_seq": 2}
    archive.of("session")[0] |= {"last_seq": 3}
    del archive.of("events")[:2]
    archive.of("runs")[0] |= {"prompt": None, "result": None}
    imported = await load(here, archive.pack(), await name_of(world), tmp_path)
    row = await world.db.pool.fetchrow("SELECT * FROM sessions WHERE id = $1", imported.sessions[UUID(OLD)])
    assert (row["expired_seq"], row["last_seq"]) == (2, 3)


async def test_nobody_is_told_of_runs_that_ended_elsewhere(world: World, here: Settings, tmp_path: Path) -> None:
    await world.db.pool.execute(
        "INSERT INTO webhooks (tenant_id, url, events, secret) VALUES ($1, 'http://x/', $2, 's')",
        world.tenant_id,
        ["run.succeeded", "session.created"],
    )
    await load(here, of_session().pack(), await name_of(world), tmp_path)
    rows = await world.db.pool.fetch(
        "SELECT type FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id WHERE w.tenant_id = $1",
        world.tenant_id,
    )
    assert [row["type"] for row in rows] == ["session.created"]


async def test_a_tenant_is_there_with_all_that_it_had(world: World, here: Settings, tmp_path: Path) -> None:
    archive = of_tenant()
    archive.of("session")[0]["agent"] = {"id": PRESET, "version": 1}
    imported = await load(here, archive.pack(), f"n{uuid4().hex}", tmp_path)
    fetch = world.db.pool.fetchrow
    tenant = await fetch("SELECT * FROM tenants WHERE name = $1", imported.tenant)
    assert (tenant["suspended_at"], tenant["limits"]) == (None, {})
    assert tenant["retention"] == {"events_days": 3, "usage_days": None}
    preset = await fetch("SELECT * FROM agents WHERE tenant_id = $1", tenant["id"])
    assert preset["id"] != UUID(PRESET)
    session = await fetch("SELECT * FROM sessions WHERE tenant_id = $1", tenant["id"])
    assert (session["agent_id"], session["agent_version"]) == (preset["id"], 1)
    webhook = await fetch("SELECT * FROM webhooks WHERE tenant_id = $1", tenant["id"])
    assert webhook["disabled_reason"] == "imported"
    assert {what.split(":")[0] for what in imported.lacking} == {
        f"session {session['id']}",
        "secret TOKEN",
        "webhook https",
    }
    core = core_of(world)
    assert [s["name"] for s in await mcp.list_all(world.db, tenant["id"])] == ["plain"]
    assert (await skills.get(core.db, tenant["id"], "skill", "s"))["description"] == "d"
    await world.db.pool.execute("DELETE FROM tenants WHERE id = $1", tenant["id"])


async def test_a_profile_narrows_what_comes(world: World, here: Settings, tmp_path: Path) -> None:
    archive = of_session()
    archive.of("session")[0] |= {"config": {}, "profile": "narrow"}
    imported = await load(here, archive.pack(), await name_of(world), tmp_path)
    config = "SELECT config, profile FROM sessions WHERE id = $1"
    row = await world.db.pool.fetchrow(config, imported.sessions[UUID(OLD)])
    assert (row["config"]["tools"], row["profile"]) == (["Read"], "narrow")
    archive.of("session")[0]["profile"] = None
    usual = here.model_copy(update={"default_profile": "narrow"})
    imported = await load(usual, archive.pack(), await name_of(world), tmp_path)
    row = await world.db.pool.fetchrow(config, imported.sessions[UUID(OLD)])
    assert (row["config"]["tools"], row["profile"]) == (["Read"], "narrow"), "as a new session here gets it"


# --- what is refused -----------------------------------------------------------------------------------------------

Change = Callable[[Archive], Any]


def each(*changes: Change) -> Change:
    def change(archive: Archive) -> None:
        for one in changes:
            one(archive)

    return change


def bare(archive: Archive) -> None:
    archive.tree.clear()


def more(kind: str, line: dict[str, Any]) -> Change:
    return lambda archive: archive.of(kind).append(line)


def line(kind: str, number: int, **more: Any) -> Change:
    return lambda archive: archive.of(kind)[number].update(more)


def data(number: int, **more: Any) -> Change:
    def change(archive: Archive) -> None:
        event = archive.of("events")[number]
        event["data"] = json.dumps(json.loads(event["data"]) | more)

    return change


def said(kind: str, number: int, name: str, text: str) -> Change:
    return lambda archive: archive.of(kind)[number].update({name: text})


def raw(kind: str, number: int, text: bytes) -> Change:
    return lambda archive: archive.of(kind).__setitem__(number, text)


def placed(*members: tuple[str, str, Any]) -> Change:
    return lambda archive: archive.tree.extend((f"sessions/{OLD}/{name}", kind, what) for name, kind, what in members)


def config(**options: Any) -> Change:
    return line("session", 0, config=options)


def renamed(before: str, after: str) -> Change:
    def change(archive: Archive) -> None:
        archive.lines = {name.replace(before, after): lines for name, lines in archive.lines.items()}

    return change


def ordered(*kinds: str) -> Change:
    def change(archive: Archive) -> None:
        names = [{"session": "session.json"}.get(kind, f"{kind}-0001.jsonl") for kind in kinds]
        archive.lines = {f"sessions/{OLD}/{name}": archive.lines[f"sessions/{OLD}/{name}"] for name in names}

    return change


DEEP = "[" * 300 + "]" * 300
HUGE = "[" * 200_000 + "]" * 200_000
HOOKS = {"Stop": [{"url": "https://x.org/", "secret": "${A}"}]}
REFUSED: dict[str, tuple[Change, str]] = {
    # the frame
    "another format": (lambda a: a.manifest.update(format="x"), "manifest.json: format"),
    "another version": (lambda a: a.manifest.update(version=2), "manifest.json: version"),
    "another kind": (lambda a: a.manifest.update(kind="x"), "manifest.json: kind"),
    "a field of nobody's": (lambda a: a.manifest.update(more=1), "manifest.json: more: Extra"),
    "a wrong count": (lambda a: setattr(a, "end", {"members": 5}), "end.json: members: 5 were written, and 12 are"),
    "a wrong end": (lambda a: setattr(a, "end", {}), "end.json: members: Field required"),
    "more after the end": (lambda a: setattr(a, "after", b"x"), "'after' comes after end.json"),
    "no session": (each(bare, lambda a: a.lines.clear()), "end.json: there is no session before it"),
    "another member": (renamed("session.json", "other.json"), "other.json' does not belong here"),
    "an absolute member": (renamed("sessions/", "/sessions/"), "does not belong here"),
    "no id of a directory": (renamed(OLD, "x" * 36), "does not belong here"),
    "a member beside": (lambda a: a.tree.append(("etc/passwd", "file", b"x")), "'etc/passwd' does not belong"),
    "two sessions": (
        lambda a: a.lines.update({f"sessions/{CONVERSATION}/session.json": [session_line(id=CONVERSATION)]}),
        "does not belong",
    ),
    "wrong order": (ordered("session", "events", "runs", "usage", "transcript"), "run_id: no run of this session"),
    "session twice": (lambda a: a.tree.append((f"sessions/{OLD}/session.json", "file", b"{}")), "comes too late"),
    "lines too late": (lambda a: a.tree.append((f"sessions/{OLD}/events-0002.jsonl", "file", b"")), "comes too late"),
    "lines as a link": (
        each(bare, placed(("transcript-0002.jsonl", "link", "/etc/passwd"))),
        "is no file",
    ),
    # a session
    "no json": (raw("session", 0, b"{"), "session.json: is not valid JSON"),
    "another id": (line("session", 0, id=CONVERSATION), "session.json: id: is not that of its directory"),
    "unknown profile": (line("session", 0, profile="other"), "there is no profile other here; there are: narrow"),
    "wider than its profile": (
        lambda a: a.of("session")[0].update(profile="narrow", config={"tools": ["Bash"]}),
        "config.tools: Bash is not among",
    ),
    "a mode that its profile has not": (
        lambda a: a.of("session")[0].update(profile="narrow", config={"permission_mode": "bypassPermissions"}),
        "config.permission_mode",
    ),
    "hooks that its profile has not": (
        lambda a: a.of("session")[0].update(profile="narrow", config={"hooks": HOOKS}),
        "config.hooks: the profile does not allow this",
    ),
    "an option of nobody's": (config(root=True), "session.json: config.root: Extra inputs"),
    "a cwd that leads out": (config(cwd="../.."), "config.cwd: must be a relative path inside"),
    "a wrong rule": (config(allowed_tools=["Bash(a\nb)"]), "config.allowed_tools.0"),
    "a repository with a user": (config(repository={"url": "https://a:b@x.org/y"}), "config.repository.url"),
    "a url that is none": (config(mcp_servers={"a": {"type": "http", "url": "file:///x"}}), "config.mcp_servers.a"),
    "servers as a list": (config(mcp_servers=[1]), "config.mcp_servers"),
    "agents as a list": (config(agents=["x"]), "config.agents"),
    "a hook without a secret": (config(hooks={"Stop": [{"url": "https://x.org/"}]}), "config.hooks.Stop.0.secret"),
    "NUL in a title": (line("session", 0, title="a\0"), "session.json: title: must not contain NUL"),
    "half a pair in a tag": (line("session", 0, tags=["\ud800"]), "tags.0: must"),
    "NUL in metadata": (line("session", 0, metadata={"a\0": "b"}), "metadata.a.*NUL"),
    "too many tags": (line("session", 0, tags=["a"] * 40), "session.json: tags"),
    "negative cost": (line("session", 0, total_cost_usd=-1), "total_cost_usd"),
    "no number": (raw("session", 0, json.dumps(session_line(total_cost_usd=float("nan"))).encode()), "total_cost_usd"),
    "a key twice": (raw("session", 0, b'{"id": 1, "id": 2}'), "must not have a key twice"),
    "from the future": (line("session", 0, created_at="2999-01-01T00:00:00Z"), "created_at: lies in the future"),
    "without a zone": (line("session", 0, created_at="2026-01-01T00:00:00"), "created_at: give a time zone"),
    "more expired than there is": (line("session", 0, expired_seq=9), "expired_seq is beyond last_seq"),
    "deep metadata": (raw("session", 0, HUGE.encode()), "session.json: "),
    # runs
    "a run twice": (lambda a: a.of("runs").append(run_line()), "runs-0001.jsonl line 2: id: is there twice"),
    "a run with the session's id": (line("runs", 0, id=OLD), "line 1: id: is there twice"),
    "a run that is queued": (line("runs", 0, status="queued", finished_at=None), "runs-0001.jsonl line 1: status"),
    "a run that waits": (line("runs", 0, status="requires_action"), "line 1: status"),
    "a run beyond the end": (line("runs", 0, last_seq=4), "first_seq, last_seq: beyond the end"),
    "a prompt that is no JSON": (line("runs", 0, prompt="{"), "line 1: prompt: is not valid JSON"),
    "a deep prompt": (line("runs", 0, prompt=DEEP), "line 1: prompt: is nested more than 200 deep"),
    "a prompt without an end": (line("runs", 0, prompt=HUGE), "line 1: prompt: is not valid JSON"),
    "a prompt that is a number": (line("runs", 0, prompt="7"), "prompt: is neither a text nor blocks"),
    "a prompt of numbers": (line("runs", 0, prompt="[7]"), "run.prompt.0: is no object"),
    "a prompt of no text": (line("runs", 0, prompt='[{"type":"text"}]'), "run.prompt.0.text: is missing"),
    "a prompt that is a reset": (line("runs", 0, prompt='{"mode":"hard"}'), "prompt: is neither a text nor blocks"),
    "a result that is a text": (line("runs", 0, result='"x"'), "result: is no object"),
    "a result of no time": (line("runs", 0, result='{"duration_ms":"x"}'), "result.duration_ms: is not what"),
    "an error of no details": (
        line("runs", 0, error={"code": "x", "message": "x", "details": []}),
        "error.details: is not what",
    ),
    "an error without a code": (line("runs", 0, error={"message": "x"}), "error.code: is missing"),
    "an error with NUL": (line("runs", 0, error={"code": "a\0"}), "line 1: error"),
    "a huge number": (line("runs", 0, first_seq=2**62), "line 1: first_seq"),
    "an owner": (line("runs", 0, parked="{}"), "line 1: parked: Extra"),
    # usage
    "usage of no run": (line("usage", 0, run_id=PRESET), "usage-0001.jsonl line 1: run_id: no run of this session"),
    "usage of the session": (line("usage", 0, run_id=OLD), "run_id: no run of this session"),
    "usage twice": (lambda a: a.of("usage").append(usage_line()), "usage-0001.jsonl line 2.*duplicate key"),
    "usage of the future": (line("usage", 0, day="2999-01-01"), "line 1: day: lies in the future"),
    # events
    "a gap": (line("events", 1, seq=3), "events-0001.jsonl line 2: seq: 3 does not follow 1"),
    "a number twice": (line("events", 1, seq=1), "line 2: seq: 1 does not follow 1"),
    "a number below": (line("events", 0, seq=0), "line 1: seq: 0 does not follow 0"),
    "events beyond the end": (line("session", 0, last_seq=2), "beyond"),
    "events that are missing": (line("session", 0, last_seq=9), f"session {OLD}: events after number 3 are missing"),
    "an event of no run": (line("events", 0, run_id=PRESET), "line 1: run_id: no run of this session"),
    "an event after done": (
        each(line("session", 0, last_seq=4), more("events", event_line(4))),
        "line 4: run_id: of a run whose `done`",
    ),
    "no done": (lambda a: a.of("events").__setitem__(2, event_line(3)), f"run {RUN} has ended, and its event `done`"),
    "a type that is not stored": (line("events", 0, type="partial"), "no event of the type partial is stored"),
    "a type of two lines": (line("events", 0, type="a\nb"), "line 1: type"),
    "data that is no object": (said("events", 0, "data", "[1]"), "line 1: data: is no object"),
    "data that is no JSON": (said("events", 0, "data", "{"), "line 1: data: is not valid JSON"),
    "deep data": (data(0, content=json.loads(DEEP)), "line 1: data: is nested more than 200 deep"),
    "data without an end": (said("events", 0, "data", HUGE), "line 1: data: is not valid JSON"),
    "NUL in data": (said("events", 0, "data", '{"a":"\0"}'), "line 1: data: must not contain NUL"),
    "a message of nobody": (data(0, role="system"), "data.role: is not what"),
    "a message of a text": (data(0, content="x"), "data.content: is not what"),
    "a message of numbers": (data(0, content=[1]), "data.content.0: is no object"),
    "a text without one": (data(0, content=[{"type": "text"}]), "data.content.0.text: is missing"),
    "a call with a list for an id": (data(0, content=[{"type": "tool_use", "id": []}]), "data.content.0.id"),
    "a task without an id": (
        lambda a: a.of("events").__setitem__(0, event_line(1, "task", status="x")),
        "data.task_id: is missing",
    ),
    "a task with a list for an id": (
        lambda a: a.of("events").__setitem__(0, event_line(1, "task", status="x", task_id=[])),
        "data.task_id: is not what",
    ),
    "ports that are none": (
        lambda a: a.of("events").__setitem__(0, event_line(1, status="ports", ports=["x"])),
        "data.ports: are no numbers",
    ),
    "a done of its own": (data(2, status="x"), "data.status: is not what"),
    "a foreign run in the data": (
        each(lambda a: a.of("events").__setitem__(0, event_line(1, run_id=None)), data(0, run_id=7)),
        "line 1: data.run_id: is no id",
    ),
    # the conversation
    "an entry that is no object": (said("transcript", 0, "entry", '"x"'), "transcript-0001.jsonl line 1: entry: is no"),
    "an entry that is no JSON": (said("transcript", 0, "entry", "\n"), "line 1: entry: is not valid JSON"),
    "a deep entry": (said("transcript", 0, "entry", '{"a":' + DEEP + "}"), "line 1: entry: is nested more than 200"),
    "an entry that says what it is": (line("transcript", 0, uuid=RUN), "line 1: uuid: Extra"),
    "a long path": (line("transcript", 0, subpath="a" * 500), "line 1: subpath"),
    "half a pair in a path": (line("transcript", 0, subpath="\udfff"), "line 1: subpath"),
    "a line of nothing": (raw("transcript", 0, b""), "line 1: is not valid JSON"),
    # files
    "up": (placed(("files/../../../up", "file", b"x")), "files/../../../up': leads out"),
    "absolute": (placed(("files//etc/passwd", "file", b"x")), "leads out of its directory"),
    "a directory up": (placed(("home/../x", "directory", None)), "leads out of its directory"),
    "a link up": (placed(("files/..", "link", "a")), "leads out of its directory"),
    "no name": (placed(("files/.", "file", b"x")), "leads out of its directory"),
    "a file twice": (placed(("files/a/b.txt", "file", b"2")), "a/b.txt': is there twice"),
    "a link where a file is": (placed(("files/a/b.txt", "link", "c")), "is there twice"),
    "a file where a directory is": (placed(("files/a", "file", b"2")), "is there twice"),
    "a directory where a file is": (placed(("files/a/b.txt", "directory", None)), "Not a directory"),
    "through a link": (placed(("files/l", "link", "a"), ("files/l/x", "file", b"x")), "files/l/x': Not a directory"),
    "through an own link": (
        placed(("files/l", "link", f"{ELSEWHERE}/{OLD}/a"), ("files/l/x", "file", b"x")),
        "files/l/x': Not a directory",
    ),
    "a directory through a link": (
        placed(("files/l", "link", "a"), ("files/l/x", "directory", None)),
        "files/l/x': Not a directory",
    ),
    "the root as a link": (each(bare, placed(("files", "link", "/etc"))), "files': is no directory"),
    "the root as a file": (each(bare, placed(("home", "file", b"x"))), "home': is no directory"),
    "a name too long": (placed(("files/" + "x" * 300, "file", b"x")), "File name too long"),
    "a name of 20000 bytes": (placed(("files/" + "y" * 20_000, "file", b"x")), "File name too long"),
    "too deep": (placed(("files/" + "d/" * 101 + "f", "file", b"x")), "more than 100 directories deep"),
    "another tree": (placed(("etc/passwd", "file", b"x")), "does not belong"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_a_stranger_has_written_is_refused_and_leaves_nothing(
    what: str, world: World, here: Settings, tmp_path: Path
) -> None:
    change, why = REFUSED[what]
    archive = deepcopy(of_session())
    change(archive)
    told = await refused(world, here, archive.pack(), tmp_path)
    assert matches(why, told), told


def matches(why: str, told: str) -> bool:
    """Whether all of `why`, between `.*`, stands in this order."""
    rest = told
    for part in why.split(".*"):
        if part not in rest:
            return False
        rest = rest.partition(part)[2]
    return True


def own(number: int, **more: Any) -> Change:
    return lambda archive: archive.lines["tenant-0001.jsonl"][number].update(more)


def many(number: int, count: int) -> Change:
    def change(archive: Archive) -> None:
        lines = archive.lines["tenant-0001.jsonl"]
        lines += [lines[number] | {"name": f"n{n}"} if "name" in lines[number] else lines[number] for n in range(count)]

    return change


REFUSED_OF_TENANTS: dict[str, tuple[Change, str]] = {
    "no tenant": (lambda a: a.lines["tenant-0001.jsonl"].pop(0), "line 1: is not about the tenant"),
    "no lines": (lambda a: a.lines.pop("tenant-0001.jsonl"), "line 1: is not about the tenant"),
    "two tenants": (lambda a: a.lines["tenant-0001.jsonl"].append(a.lines["tenant-0001.jsonl"][0]), "does not belong"),
    "a name that is none": (own(0, name="a b"), "tenant-0001.jsonl line 1: tenant.name"),
    "limits": (own(0, limits={}), "tenant.limits: Extra"),
    "retention that is none": (own(0, retention={"events_days": 0}), "retention.events_days"),
    "another type": (own(1, type="key"), "line 2"),
    "a preset with the name of an id": (own(1, name=uuid4().hex), "preset.name: must not look like an id"),
    "a preset twice": (many(1, 1), "line 8: id: is there twice"),
    "two presets of a name": (
        lambda a: a.lines["tenant-0001.jsonl"].append(a.lines["tenant-0001.jsonl"][1] | {"id": OLD}),
        "duplicate key",
    ),
    "a version of no preset": (own(2, agent_id=OLD), "line 3: agent_id: no preset before it"),
    "a version that is too new": (own(2, version=2), "line 3: version: is newer"),
    "a version that is missing": (own(1, version=2), f"preset {PRESET}: its version 2 is missing"),
    "a preset wider than its profile": (own(2, profile="narrow"), "line 3: config.tools: Bash is not among"),
    "a preset of a profile that is not here": (own(2, profile="gone"), "line 3: there is no profile gone here"),
    "a preset that the API refuses": (own(2, config={"cwd": "/"}), "line 3: config.cwd"),
    "a server of another kind": (own(3, spec={"type": "registered", "name": "x"}), "line 4: mcp_server.spec"),
    "sealed values": (own(3, sealed="x"), "line 4: mcp_server.sealed: Extra"),
    "too many servers": (many(3, 200), "a tenant has at most 200 of these"),
    "a skill without a text": (own(4, files={"a.md": "x"}), "has no SKILL.md"),
    "a skill that leads out": (own(4, files={"SKILL.md": "x", "../a": "x"}), "must be a relative path inside"),
    "a skill that is absolute": (own(4, files={"SKILL.md": "x", "/a": "x"}), "must be a relative path inside"),
    "a skill that is too long": (own(4, files={"SKILL.md": "x" * 200_000}), "line 5: skill.files"),
    "a skill of many files": (own(4, files={"SKILL.md": "x"} | {f"{n}": "x" for n in range(60)}), "skill.files"),
    "a command of files": (own(4, of="command"), "a command is one file"),
    "a description of lines": (own(4, description="a\nb"), "skill.description"),
    "too many skills": (many(4, 100), "a tenant has at most 100 of these"),
    "a webhook that is no url": (own(5, url="javascript:x"), "line 6: webhook.url"),
    "a webhook of no event": (own(5, events=[]), "webhook.events"),
    "too many webhooks": (many(5, 20), "a tenant has at most 20 of these"),
    "a secret with its value": (own(6, value="x"), "secret.value: Extra"),
    "a session of a version that is not there": (
        lambda a: a.of("session")[0].update(agent={"id": PRESET, "version": 7}),
        "agent.version: the preset has no version 7",
    ),
    "a session twice": (
        lambda a: a.tree.extend(
            [
                (f"sessions/{CONVERSATION}/session.json", "file", json.dumps(session_line(id=CONVERSATION)).encode()),
            ]
        ),
        "events after number 0 are missing",
    ),
    "tenant's lines too late": (lambda a: a.tree.append(("tenant-0002.jsonl", "file", b"")), "does not belong here"),
}


@pytest.mark.parametrize("what", REFUSED_OF_TENANTS)
async def test_a_tenant_that_a_stranger_has_written_is_refused_and_leaves_nothing(
    what: str, world: World, here: Settings, tmp_path: Path
) -> None:
    change, why = REFUSED_OF_TENANTS[what]
    archive = of_tenant()
    change(archive)
    told = await refused(world, here, archive.pack(), tmp_path, tenant=None)
    assert matches(why, told), told


async def test_what_is_refused_at_its_end_leaves_none_of_its_sessions(
    world: World, here: Settings, tmp_path: Path
) -> None:
    archive = of_tenant()
    second = str(UUID(int=9))
    at = f"sessions/{second}"
    archive.tree.append((f"{at}/session.json", "file", json.dumps(session_line(id=second, last_seq=0)).encode()))
    archive.tree.append((f"{at}/files/x", "file", b"x"))
    archive.end = {"members": 1}
    assert "end.json: members" in await refused(world, here, archive.pack(), tmp_path, tenant=None)


async def test_links_that_lead_elsewhere_are_left_out(world: World, here: Settings, tmp_path: Path) -> None:
    archive = of_session()
    leading = (
        "/etc/passwd",
        "../../..",
        "a/../../..",
        f"{ELSEWHERE}/{OLD}/../../../etc/passwd",
        f"{ELSEWHERE}/{OLD}-other",
        f"{ELSEWHERE}/{PRESET}/x",
        f"{here.workspaces_root}/{PRESET}/x",
        f"/{ELSEWHERE}/{OLD}/a",
        ELSEWHERE,
    )
    archive.tree += [(f"sessions/{OLD}/files/l{n}", "link", leads) for n, leads in enumerate(leading)]
    imported = await load(here, archive.pack(), await name_of(world), tmp_path)
    assert imported.links_left_out == len(leading)
    assert await bring(world, here, imported.sessions[UUID(OLD)])
    place = workspaces.root_of(here, imported.sessions[UUID(OLD)])
    assert sorted(path.name for path in place.iterdir()) == ["a", "own", "up"]


@pytest.mark.parametrize("type_", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
async def test_what_is_neither_file_nor_directory_nor_link_leaves_nothing(
    type_: bytes, world: World, here: Settings, tmp_path: Path
) -> None:
    plain = io.BytesIO(of_session().pack())
    made = io.BytesIO()
    with tarfile.open(fileobj=plain) as source, tarfile.open(fileobj=made, mode="w:gz") as target:
        for info in source:
            if info.name == "end.json":
                odd = tarfile.TarInfo(f"sessions/{OLD}/files/odd")
                odd.type, odd.linkname = type_, f"sessions/{OLD}/files/a/b.txt"
                target.addfile(odd)
            target.addfile(info, source.extractfile(info) if info.isreg() else None)
    assert "files/odd'" in await refused(world, here, made.getvalue(), tmp_path)


async def test_what_is_cut_off_leaves_nothing_wherever_it_ends(world: World, here: Settings, tmp_path: Path) -> None:
    archive = of_session()
    archive.tree.append((f"sessions/{OLD}/files/large", "file", os.urandom(4_000_000)))
    whole = archive.pack()
    for size in (0, 20, 300, 900, 1_500, 3_000_000, len(whole) - 100, len(whole) - 1):
        assert await refused(world, here, whole[:size], tmp_path)
    assert "more than 100000 bytes" in await refused(world, here, whole, tmp_path, most=100_000)


async def test_a_tenant_that_is_cut_off_leaves_nothing_in_the_store(
    world: World, here: Settings, tmp_path: Path
) -> None:
    whole = of_tenant().pack()
    before = objects_in(here.workspaces_root / ".store")
    assert await refused(world, here, whole[:-30], tmp_path, tenant=None)
    assert objects_in(here.workspaces_root / ".store") == before
    await load(here, whole, None, tmp_path)
    assert len(objects_in(here.workspaces_root / ".store") - before) >= 2


@pytest.mark.parametrize(
    ("limit", "why"), [("workspace_max_bytes", "More than 10 bytes"), ("workspace_max_files", "More than 10 files")]
)
async def test_more_files_than_a_session_may_have_are_refused(
    world: World, here: Settings, tmp_path: Path, limit: str, why: str
) -> None:
    archive = of_session()
    archive.tree += [(f"sessions/{OLD}/files/n{n}", "file", b"more") for n in range(12)]
    narrow = here.model_copy(update={limit: 10})
    assert why in await refused(world, narrow, archive.pack(), tmp_path)


async def test_a_store_that_fails_is_told_and_leaves_nothing(world: World, here: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before, url = await state(world), SecretStr((tmp_path / "file" / "store").as_uri())
    broken = here.model_copy(update={"workspace_store_url": url})
    with pytest.raises(StoreFailed):
        await load(broken, of_session().pack(), await name_of(world), tmp_path)
    assert await state(world) == before


async def test_a_session_whose_files_were_missing_is_known_to_lack_them(
    world: World, here: Settings, tmp_path: Path
) -> None:
    archive = of_session()
    archive.tree = []
    imported = await load(here, archive.pack(), await name_of(world), tmp_path)
    assert not await bring(world, here, imported.sessions[UUID(OLD)])


async def test_who_gets_it_must_be_there_and_a_new_one_must_not(world: World, here: Settings, tmp_path: Path) -> None:
    session, tenant = of_session().pack(), of_tenant().pack()
    assert "name the tenant" in await refused(world, here, session, tmp_path, tenant=None)
    assert "no tenant nobody" in await refused(world, here, session, tmp_path, tenant="nobody")
    assert "exists; name another" in await refused(world, here, tenant, tmp_path)
    assert "A tenant's name" in await refused(world, here, tenant, tmp_path, tenant="a b")
    await world.db.pool.execute("UPDATE tenants SET deleting_at = now() WHERE id = $1", world.tenant_id)
    assert "There is no tenant" in await refused(world, here, session, tmp_path)


async def test_a_disk_that_takes_no_more_is_no_fault_of_the_archive(
    world: World, here: Settings, tmp_path: Path
) -> None:
    before, name = await state(world), await name_of(world)
    source = tmp_path / "archive.tar.gz"
    source.write_bytes(of_session().pack())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            await transfer.load(here, source, name, 1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await state(world) == before


def test_whatever_can_be_walked_can_be_placed(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath("from", *["d"] * trees.MAX_DEPTH)
    deepest.mkdir(parents=True)
    (deepest / "f").touch()
    (tmp_path / "to").mkdir()
    packer = Packer()
    packed = b"".join(tarball.tree(packer, tmp_path / "from", "t")) + packer.finish()
    for member in tarball.members(io.BytesIO(packed), 1 << 30):
        path = Path(member.name).relative_to("t")
        if member.kind == "file":
            trees.write_new(tmp_path / "to", path, 0o600, [])  # type: ignore[arg-type]
    assert (tmp_path / "to").joinpath(*["d"] * trees.MAX_DEPTH, "f").exists()
