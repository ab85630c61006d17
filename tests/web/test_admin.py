"""Administration over HTTP: for operators only, on any instance, and at once on all of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.fleet import Fleet, Instance, Shared


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def as_key(secret: str) -> dict[str, str]:
    return {"X-API-Key": secret}


async def tenant(fleet: Fleet) -> str:
    made = await fleet[0].post("/admin/tenants", {"name": f"t-{uuid4().hex}"})
    assert (made.status_code, made.json()["keys"]) == (201, 0)
    return str(made.json()["name"])


async def key(fleet: Fleet, **more: Any) -> dict[str, Any]:
    body = {"tenant": await tenant(fleet), "name": "backend", **more}
    made = await fleet[0].post("/admin/keys", body)
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer


def set_of(shown: dict[str, Any]) -> dict[str, Any]:
    """The limits that something has."""
    return {name: limit for name, limit in shown["limits"].items() if limit is not None}


async def status_of(instance: Instance, secret: str) -> int:
    return (await instance.get("/whoami", headers=as_key(secret))).status_code


async def test_a_new_key_has_what_was_asked_for_and_its_secret_is_shown_once(fleet: Fleet) -> None:
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = await key(fleet, scopes=["read"], profiles=["ci", "dev"], limits={"runs_per_minute": 7}, expires_at=expires)
    caller = (await fleet[1].get("/whoami", headers=as_key(made["secret"]))).json()
    assert caller["tenant"] == made["tenant"]
    assert (caller["scopes"], caller["profiles"]) == (["read"], ["ci", "dev"])
    assert set_of(made) == {"runs_per_minute": 7}
    assert caller["expires_at"] is not None
    shown = await fleet[2].get(f"/admin/keys/{made['key_id']}")
    assert shown.json() == {
        **{name: value for name, value in made.items() if name != "secret"},
        "last_used_at": shown.json()["last_used_at"],
    }
    assert made["secret"] not in shown.text
    usual = await key(fleet)
    assert (usual["scopes"], usual["profiles"]) == (["write", "read"], None)


async def test_only_the_scope_admin_administers(fleet: Fleet) -> None:
    made = await key(fleet, scopes=["write"])
    for method, path, body in (
        ("GET", "/admin/tenants", None),
        ("POST", "/admin/tenants", {"name": "mine"}),
        ("GET", f"/admin/tenants/{made['tenant']}/limits", None),
        ("PUT", f"/admin/tenants/{made['tenant']}/limits", {}),
        ("GET", "/admin/keys", None),
        ("POST", "/admin/keys", {"tenant": made["tenant"], "name": "more", "scopes": ["admin"]}),
        ("GET", f"/admin/keys/{made['key_id']}", None),
        ("PATCH", f"/admin/keys/{made['key_id']}", {"scopes": ["admin"]}),
        ("POST", f"/admin/keys/{made['key_id']}/rotate", {}),
        ("POST", f"/admin/keys/{made['key_id']}/revoke", None),
        ("GET", "/admin/instances", None),
        ("GET", "/admin/queue", None),
        ("POST", f"/admin/runs/{uuid4()}/repair", None),
    ):
        response = await fleet[1].client.request(method, f"/api/v1{path}", json=body, headers=as_key(made["secret"]))
        assert refusal(response) == (403, "insufficient_scope"), (method, path)


async def test_a_change_of_a_key_holds_on_every_instance_at_once(fleet: Fleet) -> None:
    made = await key(fleet)
    headers = as_key(made["secret"])
    for instance in fleet.instances:
        assert (await instance.post("/sessions", {}, headers=headers)).json()["profile"] is None
    path = f"/api/v1/admin/keys/{made['key_id']}"
    changed = await fleet[1].client.patch(path, json={"scopes": ["read"], "profiles": ["readonly"]})
    assert (changed.json()["scopes"], changed.json()["profiles"]) == (["read"], ["readonly"])
    assert changed.json()["name"] == "backend"
    for instance in fleet.instances:
        assert refusal(await instance.post("/sessions", {}, headers=headers)) == (403, "insufficient_scope")
    await fleet[2].client.patch(path, json={"scopes": ["write"], "limits": {"runs_per_minute": 1, "streams": 3}})
    for instance in fleet.instances:
        assert (await instance.post("/sessions", {}, headers=headers)).json()["profile"] == "readonly"
    cleared = await fleet[0].client.patch(path, json={"profiles": None, "limits": {"streams": 2}})
    assert (cleared.json()["profiles"], set_of(cleared.json())) == (None, {"streams": 2})


async def bound(instance: Instance, headers: dict[str, str]) -> dict[tuple[str, str], object]:
    """What binds a caller, by name and whose it is."""
    answer = await instance.get("/limits", headers=headers)
    assert answer.status_code == 200, answer.text
    return {(entry["name"], entry["scope"]): entry["limit"] for entry in answer.json()["data"]}


async def test_a_change_of_a_tenants_limits_holds_for_all_its_keys_on_every_instance_at_once(fleet: Fleet) -> None:
    first = await key(fleet, limits={"runs_per_minute": 7})
    second = (await fleet[0].post("/admin/keys", {"tenant": first["tenant"], "name": "second"})).json()
    path = f"/admin/tenants/{first['tenant']}/limits"
    assert set_of((await fleet[1].get(path)).json()) == {}
    for given in ({"tokens_per_day": 3, "streams": 9}, {"queued_runs": 5}, {}):
        for instance in fleet.instances:  # which keep what they have read
            await bound(instance, as_key(first["secret"]))
        put = await fleet[2].client.put(f"/api/v1{path}", json=given)
        assert (put.status_code, put.json()["tenant"], set_of(put.json())) == (200, first["tenant"], given)
        assert (await fleet[0].get(path)).json() == put.json()
        of_tenant = {(name, "tenant"): limit for name, limit in given.items()}
        for instance in fleet.instances:
            own = {("runs_per_minute", "key"): 7, ("streams", "key"): 100}
            assert await bound(instance, as_key(first["secret"])) == own | of_tenant
            assert await bound(instance, as_key(second["secret"])) == {("streams", "key"): 100} | of_tenant
    wrongs: tuple[Any, ...] = ({"runs_per_minute": 0}, {"runs": 1}, {"streams": 1.5}, [])
    for wrong in wrongs:
        assert (await fleet[0].client.put(f"/api/v1{path}", json=wrong)).status_code == 422, wrong
    nobody = "/admin/tenants/nobody/limits"
    for answer in (await fleet[0].get(nobody), await fleet[0].client.put(f"/api/v1{nobody}", json={})):
        assert refusal(answer) == (404, "tenant_not_found")


async def test_what_is_used_of_the_prompts_of_a_minute_is_told(fleet: Fleet) -> None:
    made = await key(fleet, limits={"runs_per_minute": 7})
    headers = as_key(made["secret"])
    await fleet[0].post(f"/sessions/{uuid4()}/query", {"prompt": "say one"}, headers=headers)
    told = {entry["name"]: entry for entry in (await fleet[1].get("/limits", headers=headers)).json()["data"]}
    assert (told["runs_per_minute"]["used"], told["runs_per_minute"]["limit"]) == (1, 7)
    left = datetime.fromisoformat(told["runs_per_minute"]["resets_at"]) - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(seconds=61)


async def test_a_rotated_key_has_two_secrets_for_as_long_as_was_asked(fleet: Fleet) -> None:
    made = await key(fleet)
    first = made["secret"]
    assert await status_of(fleet[0], first) == 200
    second = (await fleet[1].post(f"/admin/keys/{made['key_id']}/rotate", {"overlap_seconds": 3600})).json()["secret"]
    for instance in fleet.instances:
        assert [await status_of(instance, secret) for secret in (first, second)] == [200, 200]
    caller = (await fleet[2].get("/whoami", headers=as_key(first))).json()
    assert caller["key_id"] == made["key_id"]
    assert caller["expires_at"] is not None, "the old secret ends with the overlap"
    third = await fleet[2].post(f"/admin/keys/{made['key_id']}/rotate", {})
    assert third.json()["previous_expires_at"] is None, "without an overlap it is gone, whatever a clock says"
    for instance in fleet.instances:
        statuses = [await status_of(instance, secret) for secret in (first, second, third.json()["secret"])]
        assert statuses == [401, 401, 200]
    revoked = await fleet[0].post(f"/admin/keys/{made['key_id']}/revoke")
    assert revoked.json()["revoked_at"] is not None
    assert await status_of(fleet[1], third.json()["secret"]) == 401
    assert refusal(await fleet[1].post(f"/admin/keys/{made['key_id']}/rotate", {})) == (409, "key_revoked")
    patched = await fleet[1].client.patch(f"/api/v1/admin/keys/{made['key_id']}", json={"scopes": ["read"]})
    assert refusal(patched) == (409, "key_revoked")
    patched = await fleet[1].client.patch(f"/api/v1/admin/keys/{made['key_id']}", json={})
    assert refusal(patched) == (422, "validation_error")


async def test_keys_are_listed_by_tenant_and_page_by_page(fleet: Fleet) -> None:
    first = await key(fleet)
    names = [first["key_id"]]
    for name in ("b", "c"):
        made = await fleet[0].post("/admin/keys", {"tenant": first["tenant"], "name": name})
        names.append(made.json()["key_id"])
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await fleet[1].get("/admin/keys", params={"tenant": first["tenant"], "limit": 2, **cursor})).json()
        found += [entry["key_id"] for entry in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == names
    tenants = (await fleet[2].get("/admin/tenants", params={"limit": 200})).json()["data"]
    assert {entry["name"]: entry["keys"] for entry in tenants}[first["tenant"]] == 3
    after = await fleet[2].get("/admin/tenants", params={"limit": 1, "cursor": first["tenant"][:-1]})
    assert after.json()["data"][0]["name"] == first["tenant"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "n"}, 422, "validation_error"),
        ({"tenant": "default", "name": ""}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "scopes": []}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "scopes": ["root"]}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "profiles": []}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "profiles": ["yolo"]}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": {"runs_per_minute": 0}}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": {"usd_per_day": 0}}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": {"tokens_per_month": 1.5}}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": {"models": []}}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": {"models": ["claude opus"]}}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": {"prompts_per_minute": 60}}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "limits": None}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "expires_at": "2031-01-01T00:00:00"}, 422, "validation_error"),
        ({"tenant": "default", "name": "n", "secret": "mine"}, 422, "validation_error"),
        ({"tenant": "nobody", "name": "n"}, 404, "tenant_not_found"),
    ],
)
async def test_what_is_no_key_is_refused(fleet: Fleet, body: dict[str, object], status: int, code: str) -> None:
    assert refusal(await fleet[0].post("/admin/keys", body)) == (status, code)


async def test_unknown_keys_and_runs_and_a_second_tenant_of_one_name_are_refused(fleet: Fleet) -> None:
    name = await tenant(fleet)
    assert refusal(await fleet[1].post("/admin/tenants", {"name": name})) == (409, "name_in_use")
    unknown = uuid4()
    assert refusal(await fleet[0].get(f"/admin/keys/{unknown}")) == (404, "key_not_found")
    assert refusal(await fleet[0].post(f"/admin/keys/{unknown}/revoke")) == (404, "key_not_found")
    assert refusal(await fleet[0].post(f"/admin/keys/{unknown}/rotate", {})) == (404, "key_not_found")
    assert refusal(await fleet[0].post(f"/admin/runs/{unknown}/repair")) == (404, "run_not_found")


async def test_instances_are_listed_with_what_they_execute(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    owner = await fleet.owner_of(session_id)
    listed = {entry["instance_id"]: entry for entry in (await fleet[1].get("/admin/instances")).json()["data"]}
    assert {instance.id for instance in fleet.instances} <= set(listed)
    found = listed[owner.id]
    assert (found["alive"], found["draining"], found["slots"]) == (True, False, 4)
    assert found["sessions"] >= 1


async def test_the_queue_of_all_tenants_is_told(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    first = await fleet[0].prompt(session_id, "hang after 3 words")
    second = await fleet[0].prompt(session_id, "say two")
    told = (await fleet[1].get("/admin/queue")).json()
    assert told["queued"] >= 1
    assert told["oldest_seconds"] > 0
    for run in (second, first):
        await fleet[0].post(f"/runs/{run}/cancel")


async def test_a_run_that_is_as_it_should_be_is_not_repaired(shared: Shared) -> None:
    fleet, session_id = shared.fleet, await shared.of()
    run_id = await fleet[0].prompt(session_id, "stream 200 words slowly")
    async with fleet[1].stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "init":
                break
    running = await fleet[1].post(f"/admin/runs/{run_id}/repair")
    assert refusal(running) == (409, "nothing_to_repair")
    assert running.json()["error"]["details"]["owner_alive"] is True
    behind = await fleet[0].prompt(session_id, "say second")
    waiting = await fleet[2].post(f"/admin/runs/{behind}/repair")
    assert refusal(waiting) == (409, "nothing_to_repair")
    assert run_id in waiting.json()["error"]["message"]
    await fleet[2].post(f"/sessions/{session_id}/interrupt")
    await fleet[0].follow(behind)
    over = await fleet[1].post(f"/admin/runs/{run_id}/repair")
    assert "The run is over: interrupted" in over.json()["error"]["message"]


async def test_the_models_are_the_default_and_those_that_the_operator_lists(fleet: Fleet) -> None:
    answer = (await fleet[0].get("/models")).json()
    assert answer["data"] == [{"model": answer["default"], "default": True}]


async def test_a_model_credential_is_given_replaced_and_taken_away_and_never_shown(fleet: Fleet) -> None:
    name = await tenant(fleet)
    path = f"/admin/tenants/{name}/model-credential"
    assert refusal(await fleet[1].get(path)) == (404, "model_credential_not_found")
    for body, kind in (({"api_key": "sk-of-theirs"}, "api_key"), ({"auth_token": "token-of-theirs"}, "auth_token")):
        put = await fleet[0].client.put(f"/api/v1{path}", json=body)
        assert put.status_code == 200, put.text
        shown = await fleet[1].get(path)
        assert shown.json() == put.json() == {"tenant": name, "kind": kind, "updated_at": shown.json()["updated_at"]}
        assert "of-theirs" not in put.text + shown.text
    for wrong in ({}, {"api_key": "a", "auth_token": "b"}, {"api_key": "two words"}, {"api_key": ""}, {"key": "a"}):
        assert (await fleet[0].client.put(f"/api/v1{path}", json=wrong)).status_code == 422, wrong
    assert (await fleet[1].client.delete(f"/api/v1{path}")).status_code == 204
    assert refusal(await fleet[0].client.delete(f"/api/v1{path}")) == (404, "model_credential_not_found")
    nobody = "/admin/tenants/nobody/model-credential"
    for answer in (
        await fleet[0].get(nobody),
        await fleet[0].client.put(f"/api/v1{nobody}", json={"api_key": "a"}),
        await fleet[0].client.delete(f"/api/v1{nobody}"),
    ):
        assert refusal(answer) == (404, "tenant_not_found")
