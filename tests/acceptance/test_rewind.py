"""Files in time: rewinding a session's files, also where another instance owns it by now."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance
from tests.world import until

CHECKPOINTING = {"permission_mode": "bypassPermissions", "enable_file_checkpointing": True}


async def rewind(instance: Instance, session_id: str, checkpoint_id: str, **more: Any) -> dict[str, Any]:
    headers = {"Idempotency-Key": str(uuid4())}
    body = {"checkpoint_id": checkpoint_id, **more}
    answer = await instance.post(f"/sessions/{session_id}/rewind", body, headers=headers)
    again = await instance.post(f"/sessions/{session_id}/rewind", body, headers=headers)
    assert again.json() == answer.json()
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def files_of(fleet: Fleet, session_id: str) -> dict[str, str]:
    root = fleet.files_of(session_id)
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


VERSIONS = ("write a.txt: one", "edit a.txt: one => two then write b.txt: new", "edit a.txt: two => three")
OF_BOTH = (
    "write a.txt: one then write b.txt: one",
    "edit a.txt: one => two then edit b.txt: one => two",
    "edit a.txt: two => three then edit b.txt: two => three",
)


async def three_versions(
    instance: Instance, prompts: tuple[str, ...] = VERSIONS, **config: Any
) -> tuple[str, list[str]]:
    """A session that has written, changed, and written again; and the ids of its prompts."""
    session_id = await instance.session(**{**CHECKPOINTING, **config})
    return session_id, [(await instance.ask(session_id, prompt))["run_id"] for prompt in prompts]


@pytest.fixture(scope="module")
async def versions(fleet: Fleet) -> tuple[str, list[str]]:
    """See `three_versions`. Its tests leave the conversation as it is but for the last one."""
    return await three_versions(fleet[0])


async def test_checkpoints_are_listed_with_their_prompts_in_pages(
    fleet: Fleet, versions: tuple[str, list[str]]
) -> None:
    session_id, prompts = versions
    first = (await fleet[1].get(f"/sessions/{session_id}/checkpoints", params={"limit": 2})).json()
    assert [c["checkpoint_id"] for c in first["data"]] == prompts[:2]
    assert first["data"][0]["prompt"] == "write a.txt: one"
    rest = await fleet[2].get(f"/sessions/{session_id}/checkpoints", params={"cursor": first["next_cursor"]})
    assert [c["user_message_uuid"] for c in rest.json()["data"]] == prompts[2:]
    assert rest.json()["next_cursor"] is None
    told = [e for e in await fleet[1].follow(prompts[0]) if e.event == "checkpoint"]
    assert [e.data["checkpoint_id"] for e in told] == [prompts[0]]


async def test_a_dry_run_on_another_instance_shows_the_way_back_and_changes_nothing(
    fleet: Fleet, versions: tuple[str, list[str]]
) -> None:
    session_id, prompts = versions
    owner = await fleet.owner_of(session_id)
    before = files_of(fleet, session_id)
    shown = await rewind((await fleet.others(owner))[0], session_id, prompts[1], dry_run=True)
    assert files_of(fleet, session_id) == before == {"a.txt": "three", "b.txt": "new"}
    assert (shown["files_changed"], shown["insertions"], shown["deletions"]) == (["a.txt", "b.txt"], 1, 2)
    assert "-three\n\\ No newline at end of file\n+one\n\\ No newline at end of file\n" in shown["diff"]
    assert "--- a/b.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-new\n" in shown["diff"]
    assert shown["diff_omitted"] is False


async def test_what_has_changed_since_a_checkpoint_is_told_by_every_instance_while_it_is_live_and_later(
    fleet: Fleet, versions: tuple[str, list[str]]
) -> None:
    session_id, prompts = versions
    forked = (await fleet[1].post(f"/sessions/{session_id}/fork", {})).json()["session_id"]  # which nobody owns

    async def diff(instance: Instance, whose: str, **query: str) -> dict[str, Any]:
        answer = await instance.get(f"/sessions/{whose}/diff", params={"since": "checkpoint", **query})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert (found.pop("since"), found.pop("diff_omitted")) == ("checkpoint", False)
        return found

    for instance in fleet.instances:
        for whose in (session_id, forked):
            newest = await diff(instance, whose)
            assert newest["files_changed"] == ["a.txt"]
            assert "-two\n\\ No newline at end of file\n+three\n" in newest["diff"]
            assert newest == await diff(instance, whose, checkpoint_id=prompts[2])
            first = await diff(instance, whose, checkpoint_id=prompts[0])
            assert first["files_changed"] == ["a.txt", "b.txt"]
            assert "--- /dev/null\n+++ b/b.txt\n@@ -0,0 +1 @@\n+new\n" in first["diff"]
    for query, status, code in (
        ({"since": "checkpoint", "checkpoint_id": str(uuid4())}, 404, "checkpoint_not_found"),
        ({"checkpoint_id": str(uuid4())}, 404, "checkpoint_not_found"),
        ({"since": "run", "checkpoint_id": prompts[0]}, 422, "validation_error"),
    ):
        answer = await fleet[0].get(f"/sessions/{session_id}/diff", params=query)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    never = await fleet[0].session()
    answer = await fleet[1].get(f"/sessions/{never}/diff", params={"since": "checkpoint"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "checkpoint_not_found")


async def test_files_are_as_they_were_before_the_message_and_the_conversation_goes_on_until_it_is_reset(
    fleet: Fleet, versions: tuple[str, list[str]]
) -> None:
    session_id, prompts = versions
    await fleet[0].prompt(session_id, "stream 10 words every 100 ms then write c.txt: late")
    await rewind(fleet[2], session_id, prompts[2])
    assert files_of(fleet, session_id) == {"a.txt": "two", "b.txt": "new"}, "it waits for the runs before it"
    rewound = await rewind(fleet[1], session_id, prompts[1])
    assert rewound["not_restored"] == []
    assert files_of(fleet, session_id) == {"a.txt": "one"}
    await rewind(fleet[2], session_id, prompts[0])
    assert files_of(fleet, session_id) == {}
    await rewind(fleet[0], session_id, prompts[2])
    assert files_of(fleet, session_id) == {"a.txt": "two", "b.txt": "new"}
    assert "write a.txt: one" in (await fleet[1].ask(session_id, "recall"))["result"]
    files, status, done = await fleet[2].follow(rewound["run_id"])
    assert (files.data["changed"], files.data["deleted"]) == (["a.txt"], ["b.txt"])
    assert (status.data["status"], status.data["files_changed"]) == ("rewound", ["a.txt", "b.txt"])
    assert done.data["status"] == "succeeded"
    assert (await fleet[0].get(f"/runs/{rewound['run_id']}")).json()["kind"] == "rewind"
    assert (await fleet[1].post(f"/sessions/{session_id}/reset", {"mode": "hard"})).status_code == 200
    assert (await fleet[2].get(f"/sessions/{session_id}/checkpoints")).json()["data"] == []
    answer = await fleet[1].post(f"/sessions/{session_id}/rewind", {"checkpoint_id": prompts[0]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "checkpoint_not_found")


@pytest.mark.slow
async def test_rewinding_works_after_the_owner_was_killed(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id, prompts = await three_versions(fleet[0])
    owner = await fleet.owner_of(session_id)
    heir = (await fleet.others(owner))[0]
    owner.signal(signal.SIGKILL)
    await owner.ended()
    shown = await rewind(heir, session_id, prompts[1], dry_run=True)
    assert "-three\n\\ No newline at end of file\n+one\n\\ No newline at end of file\n" in shown["diff"]
    await rewind(heir, session_id, prompts[1])
    assert files_of(fleet, session_id) == {"a.txt": "one"}
    assert await fleet.owner_of(session_id) is heir


async def test_changes_on_either_side_of_a_move_can_be_undone(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2)
    session_id, prompts = await three_versions(fleet[0])
    owner = await fleet.owner_of(session_id)
    [heir] = await fleet.others(owner)
    owner.signal(signal.SIGTERM)
    await owner.ended()
    prompts.append((await heir.ask(session_id, "edit a.txt: three => four"))["run_id"])
    assert await fleet.owner_of(session_id) is heir
    await rewind(heir, session_id, prompts[3])
    assert files_of(fleet, session_id) == {"a.txt": "three", "b.txt": "new"}
    await rewind(heir, session_id, prompts[1])
    assert files_of(fleet, session_id) == {"a.txt": "one"}
    await fleet.start(1)
    heir.signal(signal.SIGTERM)
    await heir.ended()
    await rewind(fleet[2], session_id, prompts[3])
    assert files_of(fleet, session_id) == {"a.txt": "three", "b.txt": "new"}


async def test_what_cannot_be_rewound_to_is_told_apart(fleet: Fleet) -> None:
    session_id = await fleet[0].session(permission_mode="bypassPermissions")
    run_id = (await fleet[0].ask(session_id, "write a.txt: one"))["run_id"]
    answer = await fleet[1].post(f"/sessions/{session_id}/rewind", {"user_message_uuid": run_id})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "checkpointing_off")
    answer = await fleet[1].post(f"/sessions/{session_id}/rewind", {"checkpoint_id": str(uuid4())})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "checkpoint_not_found")
    answer = await fleet[1].post(f"/sessions/{uuid4()}/rewind", {"checkpoint_id": str(uuid4())})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")
    answer = await fleet[1].post(f"/sessions/{session_id}/rewind", {"dry_run": True})
    assert answer.status_code == 422


async def test_a_working_directory_is_part_of_the_paths_and_copies_of_files_are_missed_and_go_with_the_session(
    fleet: Fleet,
) -> None:
    session_id, prompts = await three_versions(fleet[0], OF_BOTH, cwd="sub")
    shown = await rewind(fleet[1], session_id, prompts[2], dry_run=True)
    assert (shown["files_changed"], shown["diff_omitted"]) == (["sub/a.txt", "sub/b.txt"], False)
    assert "\n-three\n\\ No newline at end of file\n+two\n\\ No newline at end of file\n" in shown["diff"]
    told = (await fleet[2].get(f"/sessions/{session_id}/diff", params={"since": "checkpoint"})).json()
    assert (told["files_changed"], told["diff_omitted"]) == (["sub/a.txt", "sub/b.txt"], False)
    await rewind(fleet[2], session_id, prompts[2])
    assert files_of(fleet, session_id) == {"sub/a.txt": "two", "sub/b.txt": "two"}
    copies = fleet.has_files_of(session_id).disk / ".checkpoints" / session_id
    await check_lost_copies(fleet, session_id, prompts, copies)
    async with fleet[1].stream(f"/sessions/{session_id}/events") as events:
        assert (await fleet[1].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
        async for _ in events:
            continue
    await until(lambda: not copies.exists())


def lose(copies: Path, text: str | None = None) -> None:
    """One copy of a file with this text; without, all copies."""
    found = [copy for copy in copies.rglob("*@v*") if text in (None, copy.read_text())]
    assert found
    for copy in found[: 1 if text else None]:
        copy.rename(copy.with_name(f"lost-{copy.name}".replace("@v", "-")))


async def check_lost_copies(fleet: Fleet, session_id: str, prompts: list[str], copies: Path) -> None:
    """Files whose copies are gone are named, and where there is no other, refused."""
    lose(copies, "one")
    rewound = await rewind(fleet[1], session_id, prompts[1])
    assert rewound["files_changed"] == ["sub/a.txt", "sub/b.txt"]
    [lost] = rewound["not_restored"]
    left = {"sub/a.txt": "one", "sub/b.txt": "one"} | {lost: "two"}
    assert files_of(fleet, session_id) == left
    lose(copies)
    answer = await fleet[1].post(f"/sessions/{session_id}/rewind", {"checkpoint_id": prompts[2]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "rewind_failed")
    assert files_of(fleet, session_id) == left
