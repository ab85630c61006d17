"""Managed Agents: what sessions are given, with the official client against two instances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anthropic
import pytest

from apps.api.dialects.managed import ids
from tests.conftest import NewKey
from tests.dialects.managed_clients import agent_and_environment, at, error_of, turn
from tests.fleet import Fleet
from tests.git_server import git_serving

GONE = ids.write("file", uuid4())
"""Of a file that nobody has."""


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with at(fleet[0]) as client:
        yield client


@pytest.fixture
async def other(fleet: Fleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The same at another instance."""
    async with at(fleet[1]) as client:
        yield client


async def session_with(client: anthropic.AsyncAnthropic, *resources: Any) -> Any:
    agent, environment = await agent_and_environment(client)
    return await client.beta.sessions.create(agent=agent, environment_id=environment, resources=list(resources))


def said(events: list[Any]) -> str:
    texts = [block.text for e in events if e.type in ("agent.message", "agent.tool_result") for block in e.content]
    return "\n".join(texts)


async def uploaded(client: anthropic.AsyncAnthropic, text: str) -> str:
    return (await client.beta.files.upload(file=("data.csv", text.encode(), "text/csv"))).id


async def test_a_session_begins_with_files_and_a_repository(
    client: anthropic.AsyncAnthropic, other: anthropic.AsyncAnthropic, tmp_path: Path
) -> None:
    first, second, third = [await uploaded(client, text) for text in ("Oslo", "Rome", "Bern")]
    with git_serving(tmp_path) as git:
        url = git.repository("tools.git", {"a.txt": "main"}, branches={"next": {"a.txt": "from next"}})
        session = await session_with(
            client,
            {"type": "file", "file_id": first, "mount_path": "/workspace/data/cities.csv"},
            {"type": "file", "file_id": second},
            {"type": "github_repository", "url": url, "checkout": {"type": "branch", "name": "next"}},
        )
        told = [(r.type, r.mount_path) for r in session.resources]
        assert told == [
            ("file", "/workspace/data/cities.csv"),
            ("file", f"/workspace/uploads/{second}"),
            ("github_repository", "/workspace/tools"),
        ]
        assert (session.resources[2].url, session.resources[2].checkout.name) == (url, "next")
        assert [r.file_id for r in session.resources[:2]] == [first, second]
        added = await other.beta.sessions.resources.add(session.id, type="file", file_id=third, mount_path="third.csv")
        listed: list[Any] = [one async for one in client.beta.sessions.resources.list(session.id, limit=2)]
        assert [one.id for one in listed] == [*(r.id for r in session.resources), added.id]
        assert await other.beta.sessions.resources.retrieve(listed[0].id, session_id=session.id) == listed[0]
        gone = await other.beta.sessions.resources.delete(listed[1].id, session_id=session.id)
        assert (gone.id, gone.type) == (listed[1].id, "session_resource_deleted")
        seen = await turn(client, session.id, "run cat data/cities.csv third.csv tools/a.txt; ls uploads")
    text = said(seen)
    assert all(word in text for word in ("Oslo", "Bern", "from next", "No such file"))
    assert "Rome" not in text


async def test_a_file_comes_and_goes_while_a_session_lives(
    client: anthropic.AsyncAnthropic, other: anthropic.AsyncAnthropic
) -> None:
    session = await session_with(client)
    await turn(client, session.id, "say begun")
    for number, one in enumerate((client, other)):  # one of them does not own it
        file = await uploaded(client, f"Oslo {number}")
        added = await one.beta.sessions.resources.add(
            session.id, type="file", file_id=file, mount_path=f"/workspace/new/{number}.csv"
        )
        assert (added.file_id, added.mount_path) == (file, f"/workspace/new/{number}.csv")
        assert f"Oslo {number}" in said(await turn(client, session.id, f"run cat new/{number}.csv"))
        state = await other.beta.sessions.retrieve(session.id)
        assert [getattr(r, "id", None) for r in state.resources] == [added.id]
        await one.beta.sessions.resources.delete(added.id, session_id=session.id)
        assert "No such file" in said(await turn(client, session.id, f"run cat new/{number}.csv"))
        assert (await other.beta.sessions.retrieve(session.id)).resources == []


@pytest.mark.parametrize(
    ("resource", "status", "field"),
    [
        ({"type": "memory_store", "memory_store_id": "memstore_1"}, 400, "resources.0.type"),
        ({"type": "file", "file_id": "file_nobody"}, 400, "resources.0.file_id"),
        ({"type": "file", "file_id": GONE}, 404, "resources.0.file_id"),
        ({"type": "file", "file_id": GONE, "mount_path": "/etc/x"}, 400, "resources.0.mount_path"),
        ({"type": "file", "file_id": GONE, "mount_path": "../x"}, 400, "resources.0.mount_path"),
        ({"type": "github_repository", "url": "https://example.org/a/b"}, 400, "resources.0"),
        ({"type": "github_repository", "url": "file:///etc"}, 400, "resources.0.url"),
        (
            {"type": "github_repository", "url": "https://github.com/a/b", "authorization_token": "t"},
            400,
            "resources.0.authorization_token",
        ),
        (
            {"type": "github_repository", "url": "https://github.com/a/b", "checkout": {"type": "commit", "sha": "a"}},
            400,
            "resources.0.checkout.type",
        ),
        ({"type": "file"}, 400, "resources.0"),
        ({"type": "volume"}, 400, "resources.0"),
    ],
)
async def test_what_cannot_be_given_is_refused(
    client: anthropic.AsyncAnthropic, resource: dict[str, Any], status: int, field: str
) -> None:
    found = await error_of(lambda: session_with(client, resource))
    assert found["status"] == status
    assert field in found["text"]


async def test_two_resources_do_not_go_to_one_place(client: anthropic.AsyncAnthropic) -> None:
    file = await uploaded(client, "x")
    one: Any = {"type": "file", "file_id": file, "mount_path": "a/b"}
    found = await error_of(lambda: session_with(client, one, {**one, "mount_path": "/workspace/a"}))
    assert (found["status"], "resources.1.mount_path" in found["text"]) == (400, True)
    session = await session_with(client, one)
    found = await error_of(lambda: client.beta.sessions.resources.add(session.id, **one))
    assert (found["status"], "mount_path" in found["text"]) == (400, True)
    resource = session.resources[0].id
    updating = partial(client.beta.sessions.resources.update, resource, session_id=session.id)
    found = await error_of(partial(updating, authorization_token="new"))
    assert (found["status"], "authorization_token" in found["text"]) == (400, True)


async def test_resources_are_those_of_their_session(
    fleet: Fleet, client: anthropic.AsyncAnthropic, new_key: NewKey
) -> None:
    file = await uploaded(client, "x")
    session = await session_with(client, {"type": "file", "file_id": file})
    resource, another = session.resources[0].id, await session_with(client)
    found = await error_of(lambda: client.beta.sessions.resources.retrieve(resource, session_id=another.id))
    assert found["status"] == 404
    for key, status in ((await new_key(), 404), (await new_key("default", profiles=["readonly"]), 403)):
        async with at(fleet[1], key["X-API-Key"]) as theirs:
            its = theirs.beta.sessions.resources
            for ask in (
                lambda its=its: its.list(session.id),
                lambda its=its: its.retrieve(resource, session_id=session.id),
                lambda its=its: its.add(session.id, type="file", file_id=file),
                lambda its=its: its.delete(resource, session_id=session.id),
            ):
                assert (await error_of(ask))["status"] == status
    async with at(fleet[1], (await new_key())["X-API-Key"]) as theirs:
        found = await error_of(lambda: session_with(theirs, {"type": "file", "file_id": file}))
        assert (found["status"], "resources.0.file_id" in found["text"]) == (404, True)
