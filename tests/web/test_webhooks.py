"""Webhooks over HTTP: registered once, shown without their secret, changed, rotated, tested, removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from apps.api.core.tenant.webhooks import WEBHOOK_EVENTS
from tests.fleet import Fleet
from tests.receiver import Receiver, receiving

BODY = {"url": "http://127.0.0.1:9/in", "events": ["session.deleted"], "description": "of a test"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
async def webhook(fleet: Fleet, receiver: Receiver) -> AsyncIterator[dict[str, Any]]:
    response = await fleet[0].post("/webhooks", {**BODY, "url": receiver.url()})
    assert response.status_code == 201, response.text
    yield response.json()
    await fleet[0].client.delete(f"/api/v1/webhooks/{response.json()['webhook_id']}")


async def test_a_webhook_shows_its_secret_once(fleet: Fleet, webhook: dict[str, Any]) -> None:
    path = f"/webhooks/{webhook['webhook_id']}"
    assert webhook["secret"].startswith("whsec_")
    shown, listed = await fleet[1].get(path), await fleet[2].get("/webhooks")
    assert {**shown.json(), "secret": webhook["secret"]} == webhook
    assert shown.json() in listed.json()["data"]
    assert webhook["secret"] not in shown.text + listed.text
    rotated = (await fleet[1].post(f"{path}/rotate")).json()
    assert rotated["secret"] != webhook["secret"]
    assert rotated["previous_secret_expires_at"]


async def test_a_webhook_that_names_no_events_is_told_all(fleet: Fleet) -> None:
    made = (await fleet[0].post("/webhooks", {"url": BODY["url"]})).json()
    await fleet[0].client.delete(f"/api/v1/webhooks/{made['webhook_id']}")
    assert made["events"] == list(WEBHOOK_EVENTS)


async def test_a_webhook_is_changed_stopped_and_started(fleet: Fleet, webhook: dict[str, Any]) -> None:
    path = f"/api/v1/webhooks/{webhook['webhook_id']}"
    changed = await fleet[1].client.patch(path, json={"events": ["run.failed"], "enabled": False})
    assert changed.json()["events"] == ["run.failed"]
    assert (changed.json()["enabled"], changed.json()["disabled_reason"]) == (False, "by request")
    refused = await fleet[0].post(f"/webhooks/{webhook['webhook_id']}/test")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "webhook_disabled")
    started = await fleet[2].client.patch(path, json={"enabled": True})
    assert (started.json()["enabled"], started.json()["url"]) == (True, webhook["url"])


async def test_a_test_message_arrives_and_is_delivered_again_by_hand(
    fleet: Fleet, webhook: dict[str, Any], receiver: Receiver
) -> None:
    path = f"/webhooks/{webhook['webhook_id']}"
    queued = await fleet[1].post(f"{path}/test")
    assert queued.status_code == 202
    [first] = await receiver.until(len)
    assert (first.id, first.json["type"], first.json["data"]) == (queued.json()["delivery_id"], "webhook.test", {})
    again = await fleet[2].post(f"{path}/deliveries/{first.id}/redeliver")
    assert again.status_code == 202
    _, second = await receiver.until(lambda got: len(got) == 2)
    assert (second.id, second.body) == (first.id, first.body)
    page = (await fleet[0].get(f"{path}/deliveries", params={"limit": 1})).json()
    assert [entry["delivery_id"] for entry in page["data"]] == [first.id]


async def test_a_repeated_request_makes_one_webhook(fleet: Fleet) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first = await fleet[0].post("/webhooks", BODY, headers=headers)
    second = await fleet[1].post("/webhooks", BODY, headers=headers)
    assert first.json() == second.json()
    other = await fleet[2].post("/webhooks", {**BODY, "description": "another"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    for status in (204, 404):
        gone = await fleet[0].client.delete(f"/api/v1/webhooks/{first.json()['webhook_id']}")
        assert gone.status_code == status
    anew = await fleet[2].post("/webhooks", BODY, headers=headers)
    assert anew.json()["webhook_id"] != first.json()["webhook_id"]
    await fleet[0].client.delete(f"/api/v1/webhooks/{anew.json()['webhook_id']}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "https://u:p@example.com/"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["run.exploded"]}, "events.0"),
        ({"description": "x" * 501}, "description"),
        ({"more": 1}, "more"),
    ],
)
async def test_what_is_no_webhook_is_refused_by_its_field(
    fleet: Fleet, webhook: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    for response in (
        await fleet[0].post("/webhooks", {**BODY, **change}),
        await fleet[0].client.patch(f"/api/v1/webhooks/{webhook['webhook_id']}", json=change),
    ):
        assert response.status_code == 422, response.text
        assert [error["field"] for error in response.json()["error"]["details"]["errors"]] == [field]


async def test_an_unknown_webhook_is_not_found(fleet: Fleet) -> None:
    path = f"/webhooks/{uuid4()}"
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/test"), ("GET", "/deliveries")):
        response = await fleet[0].client.request(method, f"/api/v1{path}{more}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "webhook_not_found")
