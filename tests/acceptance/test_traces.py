"""A prompt through two instances is one trace, sent to a collector by both, and gone on with by whoever is told."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from apps.api import clock
from apps.api.tracing import trace_of
from tests.acceptance.asking import ASKING, COMMAND, asked, decide, parked
from tests.conftest import StartFleet
from tests.fleet import Fleet
from tests.receiver import Received, Receiver, receiving
from tests.recorder import Recorder
from tests.world import until

CLIENT = "00f067aa0ba902b7"
SECRET = "x" * 24
SERVER, INTERNAL, OUTGOING = 2, 1, 3
"""Kinds of spans, by their numbers in the protocol."""


@dataclass(frozen=True)
class Span:
    """One as the collector gets it."""

    id: str
    parent: str
    name: str
    kind: int
    instance: str
    about: dict[str, Any]
    began: int
    ended: int
    failed: bool


def spans(received: list[Received], trace: str) -> list[Span]:
    """Those of a trace, in the order in which they began."""
    found = []
    for request in received:
        if request.target != "/v1/traces":
            continue
        for of in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            resource = _told(of.resource.attributes)
            assert resource["service.name"] == "claude-agent-api"
            for span in [span for scope in of.scope_spans for span in scope.spans if span.trace_id.hex() == trace]:
                times, failed = (span.start_time_unix_nano, span.end_time_unix_nano), span.status.code == 2
                ids = span.span_id.hex(), span.parent_span_id.hex(), span.name, span.kind
                about = _told(span.attributes)
                found.append(Span(*ids, resource["service.instance.id"], about, *times, failed))
    return sorted(found, key=lambda span: span.began)


def _told(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
async def collector() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


def sent_to(collector: Receiver) -> dict[str, str]:
    """Settings of instances that send spans soon, and keep their leases on a machine that is busy."""
    sent = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url(""), "OTEL_BSP_SCHEDULE_DELAY": "100"}
    return {**sent, "INSTANCE_LEASE_SECONDS": "60"}


async def all_of(collector: Receiver, trace: str, *names: str) -> list[Span]:
    """The spans of a trace, once those with these names are among them, however often each is named."""

    def there(received: list[Received]) -> bool:
        got = [span.name for span in spans(received, trace)]
        return all(got.count(name) >= names.count(name) for name in names)

    return spans(await collector.until(there), trace)


def lines(log: Path, event: str) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in read if line["event"] == event]


POST = "POST /api/v1/sessions/{session_id}/query"


async def test_a_prompt_through_two_instances_is_one_tree(
    collector: Receiver, receiver: Receiver, start_fleet: StartFleet, recorded: Recorder
) -> None:
    fleet = await start_fleet(0, **sent_to(collector))
    await fleet.start(1, RUNNER_SLOTS="0")
    await fleet.start(1)
    api, worker = fleet.instances
    await api.client.put("/api/v1/secrets/HOOK_SECRET", json={"value": SECRET})
    await api.post("/webhooks", {"url": receiver.url("/in"), "events": ["run.succeeded"]})
    hook = {"url": receiver.url("/hook"), "secret": "${HOOK_SECRET}"}
    session_id = await api.session(permission_mode="bypassPermissions", hooks={"PreToolUse": [hook]})
    trace, before = "4bf92f3577b34da6a3ce929d0e0e4736", recorded.count
    asking = await api.post(
        f"/sessions/{session_id}/query",
        {"prompt": "run echo hello"},
        headers={"traceparent": f"00-{trace}-{CLIENT}-01"},
    )
    run_id = asking.json()["run_id"]
    events = await api.follow(run_id)
    assert events[-1].data["status"] == "succeeded"
    found = await all_of(collector, trace, POST, "queue", "run", "chat", "chat", "execute_tool Bash")
    by_name = {span.name: span for span in found}
    request, run, tool = by_name[POST], by_name["run"], by_name["execute_tool Bash"]
    chats = [span for span in found if span.name == "chat"]

    parents = {(span.name, span.parent, span.kind, span.instance) for span in found}
    assert parents == {
        (POST, CLIENT, SERVER, api.id),
        ("queue", request.id, INTERNAL, worker.id),
        ("run", request.id, INTERNAL, worker.id),
        ("chat", run.id, OUTGOING, worker.id),
        ("execute_tool Bash", run.id, INTERNAL, worker.id),
    }
    assert not [span for span in found if span.failed]
    ids = {"claude_agent_api.session_id": session_id, "claude_agent_api.run_id": run_id}
    assert all(span.about | ids == span.about for span in found)
    assert request.about["http.response.status_code"] == 202
    assert run.about["claude_agent_api.status"] == "succeeded"
    assert chats[0].about["gen_ai.response.model"]
    assert chats[0].about["gen_ai.usage.input_tokens"] > 0
    assert run.began <= chats[0].began < tool.began < tool.ended <= chats[1].ended <= run.ended
    # The queue's times are the database's; an instance knows that clock as well as an answer of it was quick.
    queue, apart = by_name["queue"], int(clock.PRECISION * 1e9)
    assert request.began - apart <= queue.began <= queue.ended <= run.began + apart

    # Who is told goes on with it.
    assert asking.headers["traceparent"] == f"00-{trace}-{request.id}-01"
    conversation = next(event.data["sdk_session_id"] for event in events if event.event == "init")
    told = [a.headers["traceparent"] for a in recorded.of(conversation, before) if "traceparent" in a.headers]
    assert {f"00-{trace}-{chat.id}-01" for chat in chats} == set(told)
    got = await receiver.until(lambda got: {request.target for request in got} == {"/in", "/hook"})
    by_target = {request.target: request.headers["traceparent"] for request in got}
    assert by_target == {"/hook": f"00-{trace}-{run.id}-01", "/in": f"00-{trace}-{request.id}-01"}

    # And so do the logs.
    [line] = [line for line in lines(api.log, "request") if line["path"] == POST.removeprefix("POST ")]
    assert line["request_id"] == asking.headers["X-Request-ID"]
    ids = {"trace_id": trace, "session_id": session_id, "run_id": run_id, "instance_id": api.id}
    assert line | ids == line


async def test_a_run_that_another_instance_goes_on_with_goes_on_in_its_trace(
    collector: Receiver, start_fleet: StartFleet
) -> None:
    fleet = await start_fleet(0, **sent_to(collector), PARK_AFTER_SECONDS="1")
    await fleet.start(1, RUNNER_SLOTS="0")
    await fleet.start(1)
    api, first = fleet.instances
    session_id = await api.session(**ASKING)
    asking = await api.post(f"/sessions/{session_id}/query", {"prompt": COMMAND})
    trace, run_id = trace_of(asking.headers["traceparent"]), asking.json()["run_id"]
    request = await asked(api, run_id)
    await parked(api, run_id)
    await stop(fleet, 1)
    await fleet.start(1)
    second = fleet[2]
    await decide(api, request, decision="allow")
    assert (await api.follow(run_id))[-1].data["status"] == "succeeded"
    found = await all_of(collector, trace, POST, "queue", "run", "run", "chat")
    runs = [span for span in found if span.name == "run"]
    assert [(span.instance, span.about["claude_agent_api.status"]) for span in runs] == [
        (first.id, "left"),
        (second.id, "succeeded"),
    ]
    [above] = [span for span in found if span.name == POST]
    assert above.parent == ""
    assert {span.parent for span in runs} == {above.id}
    assert {span.instance for span in found if span.parent == runs[1].id} == {second.id}


async def stop(fleet: Fleet, number: int) -> None:
    fleet[number].signal(signal.SIGTERM)
    await fleet[number].ended()


async def test_without_a_collector_a_clients_trace_is_passed_on_as_it_came(
    receiver: Receiver, start_fleet: StartFleet
) -> None:
    instance = (await start_fleet(1))[0]
    await instance.post("/webhooks", {"url": receiver.url("/in"), "events": ["run.succeeded", "session.created"]})
    given = f"00-{'ab' * 16}-{CLIENT}-01"
    asking = await instance.post("/query/single", {"prompt": "say hello"}, headers={"traceparent": given})
    assert asking.headers["traceparent"] == given
    assert "traceparent" not in (await instance.get("/sessions")).headers
    got = await receiver.until(lambda got: len(got) == 2)
    told = {request.json["type"]: request.headers.get("traceparent") for request in got}
    assert told == {"session.created": None, "run.succeeded": given}
    await until(lambda: bool([line for line in lines(instance.log, "request") if line.get("trace_id") == "ab" * 16]))
