"""What a server does outside for tenants is counted, whatever asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartFleet
from tests.fleet import Instance
from tests.git_server import GitServer, git_serving
from tests.receiver import Receiver, receiving
from tests.world import until


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_serving(tmp_path_factory.mktemp("git")) as server:
        server.repository("plain.git", {"README.md": "read me"})
        yield server


async def counted(instance: Instance) -> dict[tuple[str, str], float]:
    metrics = (await instance.client.get("/metrics")).text
    return {
        (sample.labels["kind"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "claude_agent_api_outbound_calls_total"
    }


async def test_every_call_for_a_tenant_is_counted(start_fleet: StartFleet, receiver: Receiver, git: GitServer) -> None:
    instance = (await start_fleet(1))[0]
    assert await counted(instance) == {}
    await instance.client.put("/api/v1/secrets/HOOK_SECRET", json={"value": "x" * 24})
    hook = {"url": receiver.url("/hook"), "secret": "${HOOK_SECRET}"}
    webhook = (await instance.post("/webhooks", {"url": receiver.url("/in"), "events": ["session.created"]})).json()
    assert await counted(instance) == {("lookup", "ok"): 1}
    await instance.post(f"/webhooks/{webhook['webhook_id']}/test")
    await receiver.until(lambda got: any(request.target == "/in" for request in got))

    async def told() -> bool:
        return (await counted(instance)).get(("webhook", "ok")) == 1

    await until(told)
    body = {"mcp_servers": {"there": {"type": "http", "url": receiver.url("/mcp")}}, "hooks": {"Stop": [hook]}}
    assert (await instance.post("/agents/preview", body)).status_code == 200
    assert (await counted(instance))["check", "ok"] >= 1
    before = await counted(instance)
    session_id = await instance.session(hooks={"Stop": [hook]}, repository={"url": git.url("plain.git")})
    assert (await instance.ask(session_id, "say hello"))["status"] == "succeeded"
    after = await counted(instance)
    assert {key: after[key] - before.get(key, 0) for key in (("hook", "ok"), ("clone", "ok"))} == {
        ("hook", "ok"): 1,
        ("clone", "ok"): 1,
    }
    other = await instance.session(repository={"url": git.url("no-such.git")})
    await instance.follow(await instance.prompt(other, "say hello"))
    assert (await counted(instance))["clone", "failed"] == 1
