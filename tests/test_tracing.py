"""Which traces are gone on with, and that nothing of OpenTelemetry is there where none are sent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from uuid import uuid4

import pytest

from apps.api import tracing
from apps.api.main import create_app
from apps.api.runner.session.turn import Turn, Turns
from apps.api.settings import Settings
from tests.core.conftest import neighbourhood, world
from tests.world import World

__all__ = ["neighbourhood", "world"]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (GIVEN, GIVEN),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"cc-{TRACE}-{SPAN}-01", GIVEN),  # what a later version adds is not known here
        (f"cc-{TRACE}-{SPAN}-01-what-comes", GIVEN),
        (f"cc-{TRACE}-{SPAN}-01.what-comes", None),
        (f"00-{TRACE}-{SPAN}-01-what-comes", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f" {GIVEN}", None),
        ("", None),
    ],
)
def test_what_is_a_traceparent_is_gone_on_with(header: str, found: str | None) -> None:
    assert tracing.parse(header) == found


def test_where_no_traces_are_sent_the_one_that_came_is_passed_on() -> None:
    assert not tracing.on()
    span = tracing.begin("something", GIVEN)
    span.set({"a": 1})
    span.rename("else")
    span.end("failed")
    assert span.traceparent == GIVEN
    assert tracing.begin("something", None).traceparent is None
    assert tracing.headers(GIVEN) == {"traceparent": GIVEN}
    assert tracing.headers(None) == {}


async def test_a_task_works_on_what_it_was_started_for() -> None:
    async def seen() -> str | None:
        return tracing.current()

    with tracing.working_on(tracing.Work(GIVEN)):
        started = asyncio.create_task(seen())
    assert await started == GIVEN
    assert await asyncio.create_task(seen()) is None
    assert tracing.about() == {}


async def test_a_run_is_of_the_trace_of_its_request_however_often_it_is_claimed(world: World) -> None:
    with tracing.working_on(tracing.Work(GIVEN)):
        submitted = await world.queue()
    first = await world.claim(await world.instance())
    assert first.traceparent == GIVEN
    await world.db.pool.execute("UPDATE runs SET status = 'queued' WHERE id = $1", submitted.run_id)
    await world.db.pool.execute("UPDATE sessions SET owner_id = NULL WHERE id = $1", submitted.session_id)
    second = await world.claim(await world.instance())
    assert (second.run_id, second.traceparent) == (submitted.run_id, GIVEN)


async def test_what_works_for_a_session_works_for_the_run_that_its_agent_is_in(world: World) -> None:
    with tracing.working_on(tracing.Work(GIVEN)):
        await world.queue()
    claim = await world.claim(await world.instance())
    turns = Turns(lambda: None, claim.session_id)
    assert turns.told() == {"session_id": str(claim.session_id)}
    turn = turns.assign(claim)
    told = {"session_id": str(claim.session_id), "run_id": str(claim.run_id), "trace_id": TRACE}
    assert turns.told() == told
    turns.enter(Turn(claim.run_id, None, guest=True))
    assert turns.told() == told
    background = Turn(uuid4(), None)
    turns.enter(background)
    assert turns.told() == {"session_id": str(claim.session_id), "run_id": str(background.run_id)}
    turns.end(background)
    turns.end(turn, "succeeded")
    turns.leave()
    assert turns.told() == {"session_id": str(claim.session_id)}


OURS = ("opentelemetry.exporter", "opentelemetry.sdk.trace", "apps.api.spans")
"""What sends traces. Of the SDK's metrics the client of Redis loads some where they are installed."""


def test_nothing_of_opentelemetry_is_loaded_unless_traces_are_sent() -> None:
    program = (
        f"OURS = {OURS};"
        " import sys; from apps.api.main import create_app; from apps.api.settings import Settings;"
        " create_app(Settings(_env_file=None));"
        " print([name for name in sys.modules if name.startswith(OURS)])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


async def test_traces_without_what_sends_them_keep_an_instance_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apps.api.spans", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    app = create_app(Settings(_env_file=None, otel_exporter_otlp_endpoint="http://127.0.0.1:9"))
    with pytest.raises(RuntimeError, match=r"install claude-agent-api\[otel\]"):
        async with app.router.lifespan_context(app):
            raise AssertionError
