"""Repositories: a session's workspace begins with a clone, made by the session's owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet import Fleet, Instance, Sse
from tests.git_server import TOKEN, GitServer, git_serving


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_serving(tmp_path_factory.mktemp("git")) as server:
        server.repository("plain.git", {"README.md": "read me", "src/app.py": "print()"})
        server.repository("private/secret.git", {"README.md": "for members"})
        yield server


def statuses(events: list[Sse]) -> list[dict[str, Any]]:
    return [e.data for e in events if e.event == "status" and e.data["status"] in ("cloning", "cloned")]


async def failure(instance: Instance, url: str, **more: str) -> dict[str, Any]:
    """Of the run of a session with this repository."""
    session_id = await instance.session(repository={"url": url, **more})
    run_id = await instance.prompt(session_id, "say hello")
    events = await instance.follow(run_id)
    assert [e.event for e in events[-2:]] == ["error", "done"]
    error: dict[str, Any] = (await instance.get(f"/runs/{run_id}")).json()["error"]
    return error


async def test_the_workspace_begins_with_the_repository_and_is_not_cloned_again(fleet: Fleet, git: GitServer) -> None:
    url = git.url("plain.git")
    config = {"repository": {"url": url}, "permission_mode": "bypassPermissions", "cwd": "src"}
    session_id = await fleet[0].session(**config)
    events = await fleet[0].follow(await fleet[0].prompt(session_id, "run ls ; cat ../README.md ; git log --oneline"))
    cloning, cloned = statuses(events)
    assert cloning["status"] == "cloning"
    assert (cloned["repository"], len(cloned["commit"])) == (url, 40)
    answer = next(e.data["result"] for e in events if e.event == "result")
    assert "app.py" in answer
    assert "read me" in answer
    assert "first" in answer
    owner = await fleet.owner_of(session_id)
    other = (await fleet.others(owner))[0]
    await other.post(f"/sessions/{session_id}/reset", {"mode": "soft"})
    again = await other.follow(await other.prompt(session_id, "run cat app.py", cwd="src"))
    assert not statuses(again)
    assert "print()" in next(e.data["result"] for e in again if e.event == "result")


async def test_a_branch_can_be_chosen_and_the_tenants_secret_opens_a_private_repository_and_stays_out_of_sight(
    fleet: Fleet, git: GitServer
) -> None:
    url = git.url("private/secret.git")
    assert "GIT_TOKEN" in (await failure(fleet[0], url))["message"]
    assert (await fleet[0].client.put("/api/v1/secrets/GIT_TOKEN_127_0_0_1", json={"value": TOKEN})).is_success
    try:
        repository = {"url": url, "ref": "other"}
        session_id = await fleet[0].session(repository=repository, permission_mode="bypassPermissions")
        run_id = await fleet[0].prompt(session_id, "run cat README.md ; env ; cat .git/config")
        events = await fleet[0].follow(run_id)
    finally:
        await fleet[0].client.delete("/api/v1/secrets/GIT_TOKEN_127_0_0_1")
    assert "for members" in next(e.data["result"] for e in events if e.event == "result")
    assert TOKEN not in str(events)
    assert (await fleet[0].ask(session_id, "run git branch --show-current"))["result"].endswith("other")
    files = [p for p in fleet.files_of(session_id).rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if TOKEN.encode() in p.read_bytes()]
    assert all(TOKEN not in instance.log.read_text() for instance in fleet.instances)


async def test_a_repository_that_cannot_be_cloned_fails_the_run_and_says_why(fleet: Fleet, git: GitServer) -> None:
    missing = await failure(fleet[0], git.url("nothing.git"))
    assert missing["code"] == "repository_failed"
    assert "not found" in missing["message"]
    assert "nowhere" in (await failure(fleet[0], git.url("plain.git"), ref="nowhere"))["message"]


async def test_a_redirect_is_not_followed_to_another_host(fleet: Fleet, git: GitServer) -> None:
    error = await failure(fleet[0], git.url("moved/plain.git"))
    assert error["code"] == "repository_failed"
    assert not [path for path, _ in git.asked if "elsewhere" in path]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://user:password@github.com/a/b", "secret GIT_TOKEN"),
        ("https://example.org/a/b", "REPOSITORY_HOSTS"),
        ("http://github.com/a/b", "https://"),
        ("ssh://git@github.com/a/b", "https://"),
        ("git@github.com:a/b.git", "https://"),
        ("file:///etc", "https://"),
        ("/etc", "https://"),
        ("ext::sh -c id", "match"),
        ("https://github.com", "path"),
        ("https://github.com/a/b?x=--upload-pack", "path"),
        ("--upload-pack=id", "https://"),
    ],
)
async def test_other_addresses_are_refused(fleet: Fleet, url: str, reason: str) -> None:
    response = await fleet[0].post("/sessions", {"repository": {"url": url}})
    assert response.status_code == 422, response.text
    error = response.json()["error"]["details"]["errors"][0]
    assert error["field"].startswith("repository")
    assert reason in error["reason"]
    assert "password" not in response.text.replace("a user or a password", "")


async def test_the_repository_is_fixed_when_the_session_is_created(fleet: Fleet, git: GitServer) -> None:
    session_id = await fleet[0].session(title="without")
    body = {"prompt": "say hello", "repository": {"url": git.url("plain.git")}}
    response = await fleet[0].post(f"/sessions/{session_id}/query", body)
    assert response.status_code == 422
    assert "is fixed" in response.text
