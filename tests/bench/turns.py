"""Targets 1 to 3: time to the first delta, of new sessions and of warm turns, and second turns."""

from __future__ import annotations

import time
from uuid import uuid4

from tests.bench import sdk
from tests.bench.client import Connection
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk, Turn
from tests.bench.stage import Stage
from tests.fleet import Instance

PROMPT = "say hello to the benchmark"
PARTIAL, DONE = b"event: partial\n", b"event: done\n"


def _ms(turns: list[Turn], attribute: str = "first_delta") -> list[float]:
    return [getattr(turn, attribute) * 1000 for turn in turns]


async def ask(connection: Connection, path: str) -> Turn:
    """One turn through the API, timed from sending the request to `partial` and to `done` on the wire."""
    first: list[float] = []
    done: list[float] = []

    def feed(data: bytes) -> None:
        if not first and PARTIAL in data:
            first.append(time.monotonic() - began)
        if not done and DONE in data:
            done.append(time.monotonic() - began)

    request = connection.prepare("POST", path, {"prompt": PROMPT})
    began = time.monotonic()
    status, body = await connection.send(request, feed)
    if status != 200 or not first:
        raise RuntimeError(f"{status}: {body[:300]!r}")
    return Turn(first[0], done[0] if done else time.monotonic() - began)


class _Cold:
    """First turns of new sessions, one kind after the other, so that noise hits them alike."""

    def __init__(self, stage: Stage, driven: Sdk) -> None:
        self._stage, self._driven = stage, driven
        self.turns: dict[str, list[Turn]] = {}

    async def run(self, rounds: int) -> None:
        for _ in range(rounds):
            await self._alone("sdk", guard=False)
            await self._through("owner", self._stage.owner)
            await self._through("front", self._stage.front)
            await self._alone("guarded", guard=True)

    async def _alone(self, name: str, *, guard: bool) -> None:
        began = time.monotonic()
        async with self._driven.client(guard=guard) as client:
            self.turns.setdefault(name, []).append(await sdk.timed(client, PROMPT, began))

    async def _through(self, name: str, instance: Instance) -> None:
        connection = await self._stage.connect(instance)
        self.turns.setdefault(name, []).append(await ask(connection, "/api/v1/query"))
        session_id = connection.header("X-Session-ID")
        connection.close()
        # End the agent process, so that it does not disturb the next measurement.
        await instance.client.delete(f"/api/v1/sessions/{session_id}")


async def cold(stage: Stage, driven: Sdk, report: Report, rounds: int) -> None:
    """Target 2."""
    measured = _Cold(stage, driven)
    await measured.run(rounds)
    ms = {name: _ms(turns) for name, turns in measured.turns.items()}
    report.head("first delta of a new session, ms")
    report.row("SDK alone", ms["sdk"])
    report.row("SDK alone, its CLI started through the service's guard", ms["guarded"])
    report.row("API, on the instance that runs the agent", ms["owner"])
    report.row("API, on a pure API node", ms["front"])
    middle = {name: percentile(values, 0.5) for name, values in ms.items()}
    report.at_most("2 first delta, new session, same instance", middle["owner"] / middle["sdk"], 1.1, "× SDK (p50)")
    report.at_most("2 first delta, new session, other instance", middle["front"] / middle["sdk"], 1.1, "× SDK (p50)")


async def warm(stage: Stage, driven: Sdk, report: Report, rounds: int) -> None:
    """Targets 1 and 3: warm turns through the API on another instance, beside the SDK's, warm and resumed."""
    session_id = await stage.front.session()
    connection = await stage.connect(stage.front)
    path = f"/api/v1/sessions/{session_id}/resume"
    resumed_id = uuid4()
    async with driven.client(resumed_id) as client:
        await sdk.timed(client, PROMPT)
    alone, api, resumed = [], [], []
    async with driven.client() as client:
        for _ in range(3):
            await sdk.timed(client, PROMPT)
            await ask(connection, path)
        for number in range(rounds):
            alone.append(await sdk.timed(client, PROMPT))
            api.append(await ask(connection, path))
            if number % 10 == 0:
                resumed.append(await _resumed(driven, resumed_id))
    connection.close()
    await stage.front.client.delete(f"/api/v1/sessions/{session_id}")
    _report_warm(report, alone, api, resumed)


async def _resumed(driven: Sdk, session_id: object) -> Turn:
    began = time.monotonic()
    async with driven.client(session_id, resume=True) as client:  # type: ignore[arg-type]
        return await sdk.timed(client, PROMPT, began)


def _report_warm(report: Report, alone: list[Turn], api: list[Turn], resumed: list[Turn]) -> None:
    report.head("second and later turns, ms")
    report.row("first delta: SDK alone, live client", _ms(alone))
    report.row("first delta: API, client on another instance", _ms(api))
    report.row("first delta: SDK, one process per turn with resume", _ms(resumed))
    report.row("whole turn: SDK alone, live client", _ms(alone, "result"))
    report.row("whole turn: API (to `done`), other instance", _ms(api, "result"))
    report.row("whole turn: SDK, one process per turn (to the result)", _ms(resumed, "result"))
    for share in (0.5, 0.99):
        added = percentile(_ms(api), share) - percentile(_ms(alone), share)
        report.at_most(f"1 first delta, warm, added at p{share * 100:.0f}", added, 5 if share == 0.5 else 20, "ms")
    faster = percentile(_ms(resumed, "result"), 0.5) / percentile(_ms(api, "result"), 0.5)
    report.at_least("3 second turn against resume, whole turn", faster, 10, "× faster (p50)")
