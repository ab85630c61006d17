"""Files of sessions travel: instances on hosts with disks of their own, whose agents go on with what others have left.

Where it matters which instance executes the next run, the others are paused until it has the session.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.acceptance.test_previews import SERVER, told
from tests.acceptance.test_rewind import rewind
from tests.acceptance.test_skills import REPORT
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse
from tests.free_ports import free_port
from tests.git_server import git_serving
from tests.watch import until

BYPASS = {"permission_mode": "bypassPermissions"}
GIVEN_BACK_AT_ONCE = {"SESSION_IDLE_SECONDS": "0"}


@pytest.fixture(scope="module")
async def hosts(start_lasting_fleet: StartFleet) -> Fleet:
    """Three, that give sessions back after each run."""
    return await start_lasting_fleet(3, **GIVEN_BACK_AT_ONCE)


async def owner_of(instance: Instance, session_id: str) -> str | None:
    owner: str | None = (await instance.get(f"/sessions/{session_id}")).json()["owner"]
    return owner


async def runs_of(instance: Instance, session_id: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = (await instance.get(f"/sessions/{session_id}/runs")).json()["data"]
    return runs


async def is_free(instance: Instance, session_id: str) -> None:
    """Wait until nobody owns a session."""

    async def free() -> bool:
        return await owner_of(instance, session_id) is None

    await until(free)


@asynccontextmanager
async def alone(fleet: Fleet, instance: Instance, session_id: str) -> AsyncIterator[None]:
    """The run that is sent in this block is executed by this instance: the others are paused until it has begun."""
    await is_free(instance, session_id)
    before = len(await runs_of(instance, session_id))
    others = await fleet.others(instance)
    for other in others:
        other.signal(signal.SIGSTOP)
    try:
        yield

        async def has_begun() -> bool:
            runs = await runs_of(instance, session_id)
            return len(runs) > before and all(run["status"] != "queued" for run in runs)

        await until(has_begun)
    finally:
        for other in others:
            other.signal(signal.SIGCONT)


async def run_on(fleet: Fleet, instance: Instance, session_id: str, prompt: str, **more: Any) -> list[Sse]:
    """The events of a run that this instance has executed."""
    async with alone(fleet, instance, session_id):
        run_id = await instance.prompt(session_id, prompt, **more)
    events = await instance.follow(run_id)
    assert fleet.has_files_of(session_id) is instance
    return events


def result(events: list[Sse]) -> str:
    return str(next(event.data["result"] for event in events if event.event == "result"))


def named(events: list[Sse]) -> list[str]:
    """What events there were; a status by its name."""
    return [e.data["status"] if e.event == "status" else e.event for e in events if e.event != "partial"]


def one(events: list[Sse], name: str) -> dict[str, Any]:
    """The data of the one event, or status, of this name."""
    [found] = [e.data for e in events if name == (e.data["status"] if e.event == "status" else e.event)]
    return found


def contents(workspace: Path) -> dict[str, str]:
    return {str(p.relative_to(workspace)): p.read_text() for p in workspace.rglob("*") if p.is_file()}


# --- what agents do --------------------------------------------------------------------------------------------------


async def test_an_agent_elsewhere_reads_and_changes_what_was_written(hosts: Fleet) -> None:
    one_, two, three = hosts.instances
    session_id = await one_.session(**BYPASS)
    first = await run_on(hosts, one_, session_id, "write a.txt: one then run mkdir -p ~/d && echo mine > ~/d/of-home")
    assert "restoring" not in named(first), "of a new session there is nothing to bring"
    second = await run_on(hosts, two, session_id, "read a.txt then edit a.txt: one => two then run cat ~/d/of-home")
    assert "mine" in result(second)
    brought = one(second, "restoring")
    assert (brought["files"] >= 2, brought["bytes"] > 0, bool(brought["stored_at"])) == (True, True, True)
    assert named(second).index("restoring") < named(second).index("init")
    third = await run_on(hosts, three, session_id, "run cat a.txt && rm a.txt && ln -s b.txt link && echo b > b.txt")
    assert result(third).endswith("two")
    again = await run_on(hosts, one_, session_id, "run ls -x && cat link && chmod 755 b.txt")
    assert "workspace_missing" not in named(again)
    assert await asyncio.to_thread(contents, hosts.files_of(session_id)) == {"b.txt": "b\n", "link": "b\n"}
    assert "755" in result(await run_on(hosts, two, session_id, "run stat -c %a b.txt"))


async def test_what_this_host_has_is_not_brought_again(hosts: Fleet) -> None:
    session_id = await hosts[0].session(**BYPASS)
    await run_on(hosts, hosts[0], session_id, "run head -c 1000000 /dev/zero > large; echo one > small")
    assert "restoring" not in named(await run_on(hosts, hosts[0], session_id, "run ls"))
    await run_on(hosts, hosts[1], session_id, "write small: two")
    brought = one(await run_on(hosts, hosts[0], session_id, "run cat small"), "restoring")
    assert (brought["files"], brought["bytes"]) == (1, 3)


async def test_the_end_of_a_run_tells_which_files_are_others_now(hosts: Fleet) -> None:
    session_id = await hosts[0].session(**BYPASS)
    begun = await run_on(hosts, hosts[0], session_id, "run mkdir sub; echo 1 > sub/a; echo 1 > b; echo 1 > c")
    assert one(begun, "files")["created"] == ["b", "c", "sub/a"]
    assert named(begun)[-3:] == ["files", "result", "done"]
    changed = one(await run_on(hosts, hosts[1], session_id, "run echo 2 > sub/a; rm b; echo 1 > d; touch c"), "files")
    assert {kind: changed[kind] for kind in ("created", "changed", "deleted")} == {
        "created": ["d"],
        "changed": ["sub/a"],
        "deleted": ["b"],
    }
    assert changed["counts"] == {"created": 1, "changed": 1, "deleted": 1}
    for prompt in ("say nothing was done", "run ls"):
        assert "files" not in named(await run_on(hosts, hosts[1], session_id, prompt)), prompt


async def test_files_are_rewound_on_a_host_that_has_never_had_them(hosts: Fleet) -> None:
    session_id = await hosts[0].session(**BYPASS, enable_file_checkpointing=True)
    prompts = []
    for instance, prompt in zip(
        (hosts[0], hosts[1], hosts[0]),
        ("write a.txt: one", "edit a.txt: one => two then write b.txt: new", "edit a.txt: two => three"),
        strict=True,
    ):
        prompts.append((await run_on(hosts, instance, session_id, prompt))[-1].data["run_id"])
    for number, files in ((2, {"a.txt": "two", "b.txt": "new"}), (1, {"a.txt": "one"})):
        async with alone(hosts, hosts[2], session_id):
            rewinding = asyncio.create_task(rewind(hosts[2], session_id, prompts[number]))
        assert (await rewinding)["not_restored"] == []
        assert hosts.has_files_of(session_id) is hosts[2]
        assert await asyncio.to_thread(contents, hosts.files_of(session_id)) == files
    assert result(await run_on(hosts, hosts[1], session_id, "run cat *")).endswith("one")


async def test_a_fork_has_the_files_wherever_it_runs_and_neither_changes_the_others(hosts: Fleet) -> None:
    parent = await hosts[0].session(**BYPASS)
    await run_on(hosts, hosts[0], parent, "write a.txt: of both then run echo there > $HOME/of-home")
    await is_free(hosts[1], parent)
    forked = await hosts[1].post(f"/sessions/{parent}/fork", {})
    assert forked.status_code == 201, forked.text
    child = forked.json()["session_id"]
    said = await run_on(hosts, hosts[2], child, "run cat a.txt $HOME/of-home && echo of the fork > a.txt")
    assert "of both" in result(said)
    assert "there" in result(said)
    assert "of both" in result(await run_on(hosts, hosts[2], parent, "run cat a.txt && rm a.txt"))
    assert "of the fork" in result(await run_on(hosts, hosts[1], child, "run cat a.txt"))


async def test_what_an_agent_elsewhere_serves_is_seen_through_every_instance(hosts: Fleet) -> None:
    port, session_id = free_port(), await hosts[0].session(**BYPASS)
    await run_on(hosts, hosts[0], session_id, "run mkdir site && echo served > site/page")
    program = hosts.files_of(session_id) / "server.py"
    await asyncio.to_thread(program.write_text, SERVER)
    await run_on(hosts, hosts[0], session_id, "run ls")
    served = f"run in background python3 server.py {port} then run cat site/page"
    async with alone(hosts, hosts[1], session_id):
        run_id = await hosts[1].prompt(session_id, served)
    await told(hosts[2], session_id, [port])
    for instance in hosts.instances:
        assert (await instance.client.get(f"/preview/{session_id}/{port}/here")).text.startswith("GET /here ")
    assert "served" in result(await hosts[2].follow(run_id))
    assert (await hosts[2].post(f"/sessions/{session_id}/reset", {"mode": "soft"})).is_success


async def test_a_repository_is_cloned_once_for_all_hosts(hosts: Fleet, tmp_path: Path) -> None:
    with git_serving(tmp_path) as git:
        git.repository("plain.git", {"README.md": "read me", "src/app.py": "print()"})
        session_id = await hosts[0].session(repository={"url": git.url("plain.git")}, **BYPASS)
        cloned = await run_on(hosts, hosts[0], session_id, "say hello")
        assert {"cloning", "cloned"} <= set(named(cloned))
        commit = "git config user.name A && git config user.email a@b.example && git commit -qam mine"
        here = await run_on(hosts, hosts[1], session_id, f"run echo more >> README.md && {commit}")
        assert "cloning" not in named(here)
    said = result(
        await run_on(hosts, hosts[2], session_id, "run git status --short && git log --format=%s && git fsck")
    )
    assert "mine" in said
    assert "first" in said
    assert "README" not in said


async def test_skills_are_there_on_every_host(hosts: Fleet) -> None:
    assert (await hosts[0].client.put("/api/v1/skills/report", json=REPORT)).status_code in (200, 201)
    session_id = await hosts[0].session(skills=["tenant:report"], **BYPASS)
    for number, instance in enumerate(hosts.instances):
        prompt = f'write {number}.txt: x then use tool Skill {{"skill": "tenant:report"}}'
        assert "the skill speaks" in result(await run_on(hosts, instance, session_id, prompt))
    assert set(await asyncio.to_thread(contents, hosts.files_of(session_id))) == {"0.txt", "1.txt", "2.txt"}


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_what_a_killed_owner_has_not_stored_is_told_with_its_run(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3)
    session_id = await fleet[0].session(**BYPASS)
    await run_on(fleet, fleet[0], session_id, "write a.txt: stored")
    lost = await begun(fleet[0], session_id, "write a.txt: lost then write b.txt: lost then hang")
    await until(lambda: asyncio.to_thread(lambda: (fleet.files_of(session_id) / "b.txt").exists()))
    fleet[0].signal(signal.SIGKILL)
    assert (await fleet[1].follow(lost))[-1].data["status"] == "failed"
    heir = fleet[2]
    events = await run_on(fleet, heir, session_id, "run cat *")
    assert result(events).endswith("stored")
    assert named(events)[:3] == ["restoring", "workspace_restored", "init"]
    restored = one(events, "workspace_restored")
    assert restored["stored_at"] == one(events, "restoring")["stored_at"] < restored["unstored_since"]
    assert restored["lost_run_ids"] == [lost]
    assert (one(events, "restoring")["files"] >= 1, one(events, "restoring")["bytes"] >= 6) == (True, True)
    assert not {"restoring", "workspace_restored"} & set(
        named(await heir.follow(await heir.prompt(session_id, "say x")))
    )


async def test_what_was_lost_elsewhere_is_told_also_where_nothing_must_be_brought(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, **GIVEN_BACK_AT_ONCE)
    session_id = await fleet[1].session(**BYPASS)
    await run_on(fleet, fleet[1], session_id, "write a.txt: stored")
    async with alone(fleet, fleet[0], session_id):
        lost = await fleet[0].prompt(session_id, "write b.txt: lost then hang")
    await until(lambda: asyncio.to_thread((fleet[0].disk / session_id / "b.txt").exists))
    fleet[0].signal(signal.SIGKILL)
    assert (await fleet[1].follow(lost))[-1].data["status"] == "failed"
    events = await run_on(fleet, fleet[1], session_id, "run ls")
    assert one(events, "workspace_restored")["lost_run_ids"] == [lost]
    assert one(events, "restoring")["files"] == 0
    assert result(events).endswith("a.txt")


async def test_a_session_with_too_many_files_works_on_and_is_told_that_they_stay_behind(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(2, WORKSPACE_MAX_FILES="100", **GIVEN_BACK_AT_ONCE)
    session_id = await fleet[0].session(**BYPASS)
    await run_on(fleet, fleet[0], session_id, "write a.txt: stored")
    events = await run_on(
        fleet, fleet[0], session_id, "run mkdir many && touch many/$(seq -s ' many/' 1 200) && ls | wc"
    )
    assert one(events, "workspace_not_stored")["reason"] == "too_many_files"
    assert named(events)[-3:] == ["workspace_not_stored", "result", "done"]
    assert events[-1].data["status"] == "succeeded"
    elsewhere = await run_on(fleet, fleet[1], session_id, "run ls")
    assert one(elsewhere, "workspace_restored")["lost_run_ids"] == [events[-1].data["run_id"]]
    assert result(elsewhere).endswith("a.txt")


async def test_a_session_whose_files_cannot_be_brought_says_so_and_works_again_afterwards(
    start_fleet: StartFleet,
) -> None:
    fleet = await start_fleet(2, **GIVEN_BACK_AT_ONCE)
    store = Path(fleet.env["WORKSPACE_STORE_URL"].removeprefix("file://"))
    session_id = await fleet[0].session(**BYPASS)
    await run_on(fleet, fleet[0], session_id, "write a.txt: stored")
    await is_free(fleet[0], session_id)
    with replaced(store):
        async with alone(fleet, fleet[1], session_id):
            run_id = await fleet[1].prompt(session_id, "run cat a.txt")
        failed = one(await fleet[1].follow(run_id), "error")
        assert (failed["code"], failed["retryable"]) == ("workspace_not_restored", True)
        warm = await fleet[0].session(**BYPASS)
        kept = await fleet[0].follow(await fleet[0].prompt(warm, "write b.txt: here"))
        assert one(kept, "workspace_not_stored")["reason"] == "store_failed"
        assert kept[-1].data["status"] == "succeeded"
    assert result(await run_on(fleet, fleet[1], session_id, "run cat a.txt")).endswith("stored")


@contextmanager
def replaced(directory: Path) -> Iterator[None]:
    """A file is in the place of a directory."""
    away = directory.rename(directory.with_name("away"))
    directory.write_text("")
    try:
        yield
    finally:
        directory.unlink()
        away.rename(directory)


async def begun(instance: Instance, session_id: str, prompt: str) -> str:
    """A run whose agent is at work."""
    run_id = await instance.prompt(session_id, prompt)
    async with instance.stream(f"/runs/{run_id}/events") as events:
        await anext(event async for event in events if event.event == "init")
    return run_id


@pytest.mark.parametrize("prompt", ["say nothing is changed", "run cat a.txt; echo of the heir > b.txt"])
async def test_who_comes_back_from_a_pause_does_not_replace_what_its_heir_has_stored(
    start_fleet: StartFleet, prompt: str
) -> None:
    fleet = await start_fleet(2)
    owner, heir = fleet.instances
    session_id = await owner.session(**BYPASS)
    await run_on(fleet, owner, session_id, "write a.txt: stored")
    cut_off = await begun(owner, session_id, "write a.txt: of the zombie then hang")

    async def written() -> bool:
        return (await asyncio.to_thread((owner.disk / session_id / "a.txt").read_text)) == "of the zombie"

    await until(written)
    owner.signal(signal.SIGSTOP)
    assert (await heir.follow(cut_off))[-1].data["status"] == "failed"
    events = await heir.follow(await heir.prompt(session_id, prompt))
    assert "workspace_restored" in named(events)
    assert "of the zombie" not in result(events)
    owner.signal(signal.SIGCONT)

    async def fenced() -> bool:
        return not owner.agent_of(session_id)

    await until(fenced)
    heir.signal(signal.SIGKILL)  # else it stores once more
    await heir.ended()
    last = await owner.follow(await owner.prompt(session_id, "run cat *"))
    assert "stored" in result(last)
    assert "of the zombie" not in result(last)
    assert ("of the heir" in result(last)) is prompt.endswith("b.txt")


async def test_what_the_store_has_lost_is_told_once_and_what_comes_after_is_stored(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(3, **GIVEN_BACK_AT_ONCE)
    session_id = await fleet[0].session(**BYPASS)
    await run_on(fleet, fleet[0], session_id, "write a.txt: stored")
    await is_free(fleet[0], session_id)
    for pack in await asyncio.to_thread(packs, fleet):
        pack.unlink()
    lacking = await run_on(fleet, fleet[1], session_id, "run cat a.txt; echo new > b.txt")
    assert "workspace_missing" in named(lacking)
    assert lacking[-1].data["status"] == "succeeded"
    there = await run_on(fleet, fleet[2], session_id, "run cat b.txt")
    assert "workspace_missing" not in named(there)
    assert result(there).endswith("new")


def packs(fleet: Fleet) -> list[Path]:
    store = Path(fleet.env["WORKSPACE_STORE_URL"].removeprefix("file://"))
    return [path for path in store.glob("tenants/*/packs/*/*") if path.is_file()]


# --- a bucket --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def bucket() -> AsyncIterator[dict[str, str]]:
    """Settings of a store in a bucket of an S3 server on this machine."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    await asyncio.to_thread(server.start)
    host, port = server.get_host_and_port()
    url, name = f"http://{host}:{port}", f"files-{uuid4().hex[:8]}"
    async with httpx.AsyncClient() as client:
        assert (await client.put(f"{url}/{name}")).is_success
    yield {
        "WORKSPACE_STORE_URL": f"s3://{name}/below/this",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": f"secret-{uuid4().hex}",
        "AWS_REGION": "us-east-1",
    }
    await asyncio.to_thread(server.stop)


async def test_files_travel_through_a_bucket_whose_key_no_agent_has(
    start_fleet: StartFleet, bucket: dict[str, str]
) -> None:
    fleet = await start_fleet(2, **bucket, **GIVEN_BACK_AT_ONCE)
    session_id = await fleet[0].session(**BYPASS)
    large = "head -c 10000000 /dev/urandom > large && sha256sum large > sum"
    said = await run_on(fleet, fleet[0], session_id, f"write a.txt: through a bucket then run {large}; env")
    assert bucket["AWS_SECRET_ACCESS_KEY"] not in str(said)
    events = await run_on(fleet, fleet[1], session_id, "run cat a.txt; sha256sum -c sum")
    assert one(events, "restoring")["bytes"] > 10_000_000
    assert "through a bucket" in result(events)
    assert "large: OK" in result(events)
    async with httpx.AsyncClient(base_url=bucket["AWS_ENDPOINT_URL"]) as client:
        name = bucket["WORKSPACE_STORE_URL"].split("/")[2]
        listed = (await client.get(f"/{name}", params={"list-type": "2"})).text
    assert "<Key>below/this/fleet</Key>" in listed
    assert f"/sessions/{session_id}/" in listed
    assert bucket["AWS_SECRET_ACCESS_KEY"] not in "".join(i.log.read_text() for i in fleet.instances)
    assert os.listdir(fleet[0].disk).count(".store") == 0
