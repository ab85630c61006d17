"""Managed Agents: files, with the official client against two instances."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anthropic
import pytest

from apps.api.dialects.managed import files, ids
from tests.conftest import NewKey
from tests.dialects.managed_clients import agent_and_environment, at, error_of, turn
from tests.fleet import Fleet


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with at(fleet[0]) as client:
        yield client


@pytest.fixture
async def other(fleet: Fleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The same at another instance."""
    async with at(fleet[1]) as client:
        yield client


async def test_a_file_is_uploaded_listed_read_and_deleted(
    client: anthropic.AsyncAnthropic, other: anthropic.AsyncAnthropic
) -> None:
    made = await client.beta.files.upload(file=("cities.csv", b"city\nOslo\n", "text/csv"), expires_in_seconds=3600)
    assert (made.type, made.filename, made.mime_type, made.size_bytes) == ("file", "cities.csv", "text/csv", 10)
    assert made.id.startswith("file_")
    assert made.expires_at is not None
    assert (made.expires_at - made.created_at).total_seconds() == 3600
    assert made.downloadable
    assert made.scope is None
    assert await other.beta.files.retrieve_metadata(made.id) == made
    assert await (await other.beta.files.download(made.id)).read() == b"city\nOslo\n"
    second = await client.beta.files.upload(file=("b.txt", b"b"))
    assert second.expires_at is None
    listed = [file.id async for file in other.beta.files.list(limit=1)]
    assert listed[:2] == [second.id, made.id]
    chosen = await other.beta.files.list(ids=[made.id, made.id, "file_nobody", second.id])
    assert [file.id for file in chosen.data] == [made.id, second.id]
    assert (await client.beta.files.delete(made.id)).type == "file_deleted"
    assert (await error_of(lambda: other.beta.files.retrieve_metadata(made.id)))["status"] == 404
    assert [file.id for file in (await other.beta.files.list(ids=[made.id])).data] == []


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [("a/b\\c.txt", "text/plain", "c.txt"), ("", "application/pdf", "unnamed.pdf"), ("", "x/unknown", "unnamed")],
)
async def test_the_last_part_of_a_name_is_kept(
    client: anthropic.AsyncAnthropic, name: str, kind: str, kept: str
) -> None:
    assert (await client.beta.files.upload(file=(name, b"x", kind))).filename == kept


IN_SESSION = files._write(ids.NOBODY, "a.txt")
REFUSED: dict[str, tuple[Callable[[anthropic.AsyncAnthropic], Any], str]] = {
    "a short life": (lambda c: c.beta.files.upload(file=("a", b"a"), expires_in_seconds=60), "expires_in_seconds"),
    "a long life": (lambda c: c.beta.files.upload(file=("a", b"a"), expires_in_seconds=10**8), "expires_in_seconds"),
    "another field": (lambda c: c.beta.files.upload(file=("a", b"a"), extra_body={"purpose": "x"}), "purpose"),
    "ids and a limit": (lambda c: c.beta.files.list(ids=["file_a"], limit=3), "limit"),
    "ids and a scope": (lambda c: c.beta.files.list(ids=["file_a"], scope_id="sesn_a"), "scope_id"),
    "ids of a session": (lambda c: c.beta.files.list(ids=[IN_SESSION]), "ids"),
    "a page of nothing": (lambda c: c.beta.files.list(page="x"), "cursor"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_be_honoured_is_refused(client: anthropic.AsyncAnthropic, what: str) -> None:
    ask, field = REFUSED[what]
    found = await error_of(lambda: ask(client))
    assert (found["status"], found["type"]) == (400, "invalid_request_error")
    assert found["text"].startswith(field)


@pytest.mark.parametrize("file", ["file_", "file_a", "sesn_a", "x", "file_" + "a" * 3000, "file_é"])
async def test_an_id_of_nothing_is_not_found(client: anthropic.AsyncAnthropic, file: str) -> None:
    for ask in (client.beta.files.retrieve_metadata, client.beta.files.download, client.beta.files.delete):
        assert (await error_of(partial(ask, file)))["status"] == 404


async def test_files_that_an_agent_makes_are_those_of_its_session(
    fleet: Fleet, client: anthropic.AsyncAnthropic, other: anthropic.AsyncAnthropic, new_key: NewKey
) -> None:
    agent, environment = await agent_and_environment(client)
    session = await client.beta.sessions.create(agent=agent, environment_id=environment)
    await turn(client, session.id, "write out/report.txt: all is well")
    await turn(client, session.id, "write notes.md: mine")
    for one in (client, other):  # one of them does not own it
        found = [file async for file in one.beta.files.list(scope_id=session.id, limit=1)]
        assert [(f.filename, f.mime_type) for f in found] == [
            ("notes.md", "text/markdown"),
            ("report.txt", "text/plain"),
        ]
        report = found[1]
        assert report.scope is not None
        assert (report.scope.id, report.scope.type, report.downloadable) == (session.id, "session", True)
        assert await (await one.beta.files.download(report.id)).read() == b"all is well"
        assert await one.beta.files.retrieve_metadata(report.id) == report
    for key, status in ((await new_key(), 404), (await new_key("default", profiles=["readonly"]), 403)):
        async with at(fleet[1], key["X-API-Key"]) as theirs:
            for ask in (
                lambda c=theirs: c.beta.files.list(scope_id=session.id),
                lambda c=theirs: c.beta.files.retrieve_metadata(report.id),
                lambda c=theirs: c.beta.files.download(report.id),
                lambda c=theirs: c.beta.files.delete(report.id),
            ):
                assert (await error_of(ask))["status"] == status
    assert (await other.beta.files.delete(report.id)).id == report.id
    assert [f.filename async for f in client.beta.files.list(scope_id=session.id)] == ["notes.md"]
    assert (await error_of(lambda: client.beta.files.download(report.id)))["status"] == 404


async def test_uploads_are_of_their_tenant_and_a_bound_key_changes_none(
    fleet: Fleet, client: anthropic.AsyncAnthropic, new_key: NewKey
) -> None:
    made = await client.beta.files.upload(file=("a.txt", b"a"))
    async with at(fleet[0], (await new_key())["X-API-Key"]) as theirs:
        for ask in (theirs.beta.files.retrieve_metadata, theirs.beta.files.download, theirs.beta.files.delete):
            assert (await error_of(partial(ask, made.id)))["status"] == 404
        assert (await theirs.beta.files.list(ids=[made.id])).data == []
    async with at(fleet[0], (await new_key("default", profiles=["readonly"]))["X-API-Key"]) as theirs:
        assert (await error_of(lambda: theirs.beta.files.delete(made.id)))["status"] == 403
        assert (await error_of(lambda: theirs.beta.files.upload(file=("a", b"a"))))["status"] == 403
