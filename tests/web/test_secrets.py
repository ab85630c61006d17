"""Secrets over HTTP: written on one instance, listed and removed on another, never shown."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.fleet import Fleet

VALUE = "the-value-that-nobody-sees"


def a_name() -> str:
    return f"S_{uuid4().hex.upper()}"


async def test_a_secret_is_written_listed_replaced_and_removed_and_never_shown(fleet: Fleet) -> None:
    name = a_name()
    path = f"/api/v1/secrets/{name}"
    made = await fleet[0].client.put(path, json={"value": VALUE})
    assert (made.status_code, made.json()["name"]) == (201, name)
    again = await fleet[1].client.put(path, json={"value": f"{VALUE}-2"})
    assert again.status_code == 200
    assert again.json()["created_at"] == made.json()["created_at"]
    listed = await fleet[2].get("/secrets", params={"limit": 200})
    assert name in [secret["name"] for secret in listed.json()["data"]]
    assert VALUE not in made.text + again.text + listed.text
    assert (await fleet[1].client.delete(path)).status_code == 204
    gone = await fleet[0].client.delete(path)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "secret_not_found")


async def test_secrets_are_listed_page_by_page(fleet: Fleet) -> None:
    names = sorted(a_name() for _ in range(3))
    for name in names:
        await fleet[0].client.put(f"/api/v1/secrets/{name}", json={"value": VALUE})
    found, cursor = [], {"cursor": "S"}
    while cursor:
        page = (await fleet[1].get("/secrets", params={"limit": 1, **cursor})).json()
        found += [secret["name"] for secret in page["data"]]
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
    assert [name for name in found if name in names] == names


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("lower", {"value": "v"}, "name"),
        ("1A", {"value": "v"}, "name"),
        ("A" * 65, {"value": "v"}, "name"),
        ("A", {"value": ""}, "value"),
        ("A", {"value": "v" * 8001}, "value"),
        ("A", {"value": "a\x00b"}, "value"),
        ("A", {"value": "v", "more": 1}, "more"),
        ("A", {}, "value"),
    ],
)
async def test_what_is_no_secret_is_refused_by_its_field(
    fleet: Fleet, name: str, body: dict[str, object], field: str
) -> None:
    response = await fleet[0].client.put(f"/api/v1/secrets/{name}", json=body)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["error"]["details"]["errors"]] == [field]
