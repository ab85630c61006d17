"""/skills and /commands: what is stored, what is refused, and whose it is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fleet import Fleet

BODY = {"description": "Writes reports", "content": "Write."}


async def put(fleet: Fleet, path: str, body: dict[str, Any]) -> httpx.Response:
    return await fleet[0].client.put(f"/api/v1{path}", json=body)


async def delete(fleet: Fleet, path: str) -> int:
    return (await fleet[1].client.delete(f"/api/v1{path}")).status_code


async def test_a_skill_is_stored_replaced_read_and_removed(fleet: Fleet) -> None:
    first = await put(fleet, "/skills/one", {**BODY, "files": {"a/b.md": "text"}})
    assert (first.status_code, first.json()["files"]) == (201, {"a/b.md": "text"})
    second = await put(fleet, "/skills/one", {**BODY, "content": "Write more."})
    assert second.status_code == 200
    state = (await fleet[1].get("/skills/one")).json()
    assert (state["content"], state["files"], state["qualified_name"]) == ("Write more.", {}, "tenant:one")
    assert await delete(fleet, "/skills/one") == 204
    assert await delete(fleet, "/skills/one") == 404
    assert (await fleet[2].get("/skills/one")).json()["error"]["code"] == "skill_not_found"


async def test_a_command_is_stored_read_and_removed(fleet: Fleet) -> None:
    assert (await put(fleet, "/commands/two", BODY)).status_code == 201
    state = (await fleet[1].get("/commands/two")).json()
    assert (state["content"], "files" in state) == ("Write.", False)
    assert await delete(fleet, "/commands/two") == 204
    assert (await fleet[2].get("/commands/two")).json()["error"]["code"] == "command_not_found"


async def test_a_skill_and_a_command_do_not_share_a_name(fleet: Fleet) -> None:
    assert (await put(fleet, "/skills/three", BODY)).status_code == 201
    answer = await put(fleet, "/commands/three", BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_in_use")
    assert await delete(fleet, "/skills/three") == 204


@pytest.mark.parametrize(
    "files",
    [
        {"../out.md": ""},
        {"/etc/out.md": ""},
        {"SKILL.md": ""},
        {"a//b.md": ""},
        {".": ""},
        {"a": "", "a/b": ""},
        {"a\nb": ""},
        {"ü" * 150: ""},
        {"a": "\x00"},
        {"a": "x" * 100_001},
        {"a": "x" * 99_999, "b": "x" * 99_999, "c": "xxx"},
    ],
    ids=lambda files: next(iter(files))[:10],
)
async def test_files_that_do_not_fit_in_the_skills_directory_are_refused(fleet: Fleet, files: dict[str, str]) -> None:
    answer = await put(fleet, "/skills/four", {**BODY, "files": files})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["errors"][0]["field"].startswith("files")


@pytest.mark.parametrize("more", [{"description": "two\nlines"}, {"description": ""}, {"content": ""}, {"hooks": {}}])
async def test_a_description_is_one_line_and_nothing_else_is_taken(fleet: Fleet, more: dict[str, Any]) -> None:
    assert (await put(fleet, "/skills/five", {**BODY, **more})).status_code == 422
