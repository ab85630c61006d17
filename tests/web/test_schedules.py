"""Schedules over HTTP: what is told of them, what is refused, and one that is fired and answered."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import NewKey
from tests.fleet import Fleet
from tests.watch import until

YEARLY: dict[str, Any] = {"cron": "0 0 1 1 *", "prompt": "say hello"}


async def test_a_schedule_is_made_shown_changed_and_removed(fleet: Fleet) -> None:
    body = {**YEARLY, "name": "n", "time_zone": "Europe/Berlin", "title": "t", "tags": ["a"], "metadata": {"k": "v"}}
    answer = await fleet[0].post("/schedules", body)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    path = f"/schedules/{made['schedule_id']}"
    assert {name: made[name] for name in body} == body
    assert [time[4:] for time in made["upcoming"]] == ["-12-31T23:00:00.000Z"] * 5
    assert (made["next_at"], made["last"], made["session"]) == (made["upcoming"][0], None, "new")
    assert (await fleet[1].get(path)).json() == made
    listed = (await fleet[2].get("/schedules?limit=200")).json()["data"]
    assert next(one for one in listed if one["schedule_id"] == made["schedule_id"])["name"] == "n"
    patch: dict[str, Any] = {
        "cron": "0 0 2 1 *",
        "name": None,
        "metadata": {},
        "jitter_seconds": 60,
        "pause_after_failures": None,
    }
    changed = (await fleet[1].client.patch(f"/api/v1{path}", json=patch)).json()
    assert {name: changed[name] for name in patch} == patch
    assert (changed["title"], changed["tags"], changed["upcoming"][0][4:10]) == ("t", ["a"], "-01-01")
    paused = (await fleet[2].post(f"{path}/pause")).json()
    assert (paused["status"], paused["upcoming"], paused["paused_reason"]) == ("paused", [], "by request")
    assert (await fleet[0].post(f"{path}/resume")).json()["upcoming"] == changed["upcoming"]
    assert (await fleet[0].client.delete(f"/api/v1{path}")).status_code == 204
    for method, of in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/pause"),
        ("POST", "/run"),
        ("GET", "/runs"),
    ):
        gone = await fleet[1].client.request(
            method, f"/api/v1{path}{of}", json={"name": "x"} if method == "PATCH" else None
        )
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "schedule_not_found")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cron": "@daily"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"cron": "* " * 60}, "cron"),
        ({"cron": None}, "cron"),
        ({"prompt": ""}, "prompt"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"overlap": "wait"}, "overlap"),
        ({"jitter_seconds": 3601}, "jitter_seconds"),
        ({"pause_after_failures": 0}, "pause_after_failures"),
        ({"session": "new", "session_id": str(uuid4())}, "session"),
        ({"profile": "nobody"}, "profile"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"every": "day"}, "every"),
        ({"model": "m"}, "model"),
    ],
)
async def test_what_is_wrong_is_refused_alike_when_it_is_made_and_changed(
    fleet: Fleet, change: dict[str, Any], field: str
) -> None:
    path = f"/schedules/{(await fleet[0].post('/schedules', YEARLY)).json()['schedule_id']}"
    for method, at, body in (("POST", "/schedules", {**YEARLY, **change}), ("PATCH", path, change)):
        answer = await fleet[1].client.request(method, f"/api/v1{at}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_error"), (method, answer.text)
        assert answer.json()["error"]["details"]["errors"][0]["field"].split(".")[0] == field
    assert (await fleet[0].client.delete(f"/api/v1{path}")).status_code == 204


async def test_a_repeated_request_makes_one_and_fires_once(fleet: Fleet) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    made = [
        (await fleet[n].post("/schedules", YEARLY, headers={**fleet[n].client.headers, **key})).json() for n in (0, 1)
    ]
    assert made[0] == made[1]
    path = f"/schedules/{made[0]['schedule_id']}"
    run = {"Idempotency-Key": uuid4().hex}
    fired = [(await fleet[n].post(f"{path}/run", headers=run)) for n in (1, 2)]
    assert [answer.status_code for answer in fired] == [202, 202]
    assert fired[0].json()["firing_id"] == fired[1].json()["firing_id"]

    async def ended() -> bool:
        return bool((await fleet[0].get(f"{path}/runs")).json()["data"][0]["state"] == "succeeded")

    await until(ended)
    [firing] = (await fleet[2].get(f"{path}/runs")).json()["data"]
    assert (await fleet[0].get(path)).json()["last"] == firing
    messages = (await fleet[1].get(f"/sessions/{firing['session_id']}/messages")).text
    assert "say hello" in messages
    await fleet[0].client.delete(f"/api/v1{path}")


async def test_who_may_only_read_makes_none_and_a_bound_key_sees_its_own(fleet: Fleet, new_key: NewKey) -> None:
    tenant = f"t{uuid4().hex}"  # what other tests schedule is none of its own
    reads, free_key = await new_key(tenant, scopes=("read",)), await new_key(tenant)
    bound = await new_key(tenant, profiles=["readonly"])
    assert (await fleet[0].post("/schedules", YEARLY, headers=reads)).status_code == 403
    free = (await fleet[0].post("/schedules", YEARLY, headers=free_key)).json()["schedule_id"]
    own = (await fleet[0].post("/schedules", YEARLY, headers=bound)).json()
    assert own["profile"] == "readonly"
    listed = (await fleet[1].get("/schedules?limit=200", headers=bound)).json()["data"]
    assert [one["schedule_id"] for one in listed] == [own["schedule_id"]]
    for of in ("", "/runs"):
        refused = await fleet[1].get(f"/schedules/{free}{of}", headers=bound)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "profile_not_permitted")
    for schedule_id in (free, own["schedule_id"]):
        await fleet[0].client.delete(f"/api/v1/schedules/{schedule_id}", headers=free_key)


async def test_half_of_a_surrogate_pair_in_a_prompt_is_told_as_it_was_sent(fleet: Fleet, new_key: NewKey) -> None:
    own = {**await new_key(f"t{uuid4().hex}"), "Content-Type": "application/json"}
    body = b'{"cron": "0 0 1 1 *", "prompt": "a\\ud800b"}'
    answer = await fleet[0].client.post("/api/v1/schedules", content=body, headers=own)
    assert answer.status_code == 201, answer.text
    made = (await fleet[1].get(f"/schedules/{answer.json()['schedule_id']}", headers=own)).json()
    [listed] = (await fleet[1].get("/schedules", headers=own)).json()["data"]
    assert made["prompt"] == listed["prompt"] == answer.json()["prompt"] == "a\ud800b"
