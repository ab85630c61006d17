"""Fair shares: what a key and a tenant may have, held by all instances together."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.fleet import Fleet


async def limited(fleet: Fleet, of_tenant: dict[str, Any], **of_key: Any) -> dict[str, str]:
    """The headers of a key of a new tenant, with such limits."""
    name = f"t{uuid4().hex}"
    assert (await fleet[0].post("/admin/tenants", {"name": name})).status_code == 201
    put = await fleet[0].client.put(f"/api/v1/admin/tenants/{name}/limits", json=of_tenant)
    assert put.status_code == 200, put.text
    made = await fleet[0].post("/admin/keys", {"tenant": name, "name": "k", "limits": of_key})
    assert made.status_code == 201, made.text
    return {"X-API-Key": made.json()["secret"]}


@pytest.mark.parametrize("whose", ["key", "tenant"])
async def test_a_limit_of_60_a_minute_admits_60_over_three_instances(fleet: Fleet, whose: str) -> None:
    limit = {"runs_per_minute": 60}
    headers = await limited(fleet, limit) if whose == "tenant" else await limited(fleet, {}, **limit)
    nowhere = f"/sessions/{uuid4()}/query"  # what is admitted runs nothing
    sent = (
        instance.post(nowhere, {"prompt": "say one"}, headers=headers)
        for instance in fleet.instances
        for _ in range(60)
    )
    answers = await asyncio.gather(*sent)
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(404), statuses.count(429)) == (60, 120)
    refused = next(answer for answer in answers if answer.status_code == 429)
    error = refused.json()["error"]
    assert (error["code"], error["details"]["scope"], error["details"]["used"]) == ("rate_limited", whose, 60)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
