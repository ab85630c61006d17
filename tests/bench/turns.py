"""Targets 1 to 3: time to the first delta, of new sessions and of warm turns, and second turns."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from apps.api.runner.guard import trial
from apps.api.settings import Layer
from tests.bench import sdk
from tests.bench.client import Connection
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk, Turn
from tests.bench.stage import Stage
from tests.fleet import Instance
from tests.world import until

WARM_UP = 3
PROMPT = "say hello to the benchmark"
PARTIAL, DONE = b"event: partial\n", b"event: done\n"


def _ms(turns: list[Turn], attribute: str = "first_delta") -> list[float]:
    return [getattr(turn, attribute) * 1000 for turn in turns]


def _note_missing(report: Report, turns: list[Turn]) -> None:
    missing = sum(turn.first_delta == turn.result for turn in turns)
    report.note(f"{missing} of {len(turns)} turns through the API came without deltas, as the complete message only")


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
    if status != 200 or not done:
        raise RuntimeError(f"{status}: {body[:300]!r}")
    # Deltas may be missing where the message that they build is there already: then the text came with the end.
    return Turn(first[0] if first else done[0], done[0])


class _Cold:
    """First turns of new sessions, one kind after the other, so that noise hits them alike."""

    def __init__(self, stage: Stage, driven: Sdk, ahead: Instance) -> None:
        """`ahead`: keeps an agent that was started ahead."""
        self._stage, self._driven, self._ahead = stage, driven, ahead
        self.turns: dict[str, list[Turn]] = {}
        self._found: Layer | None = None

    async def run(self, rounds: int) -> None:
        await self._through("first", self._ahead)  # from which it learns what is wanted
        for _ in range(rounds):
            await self._until_ahead()
            await self._alone("sdk")
            await self._through("owner", self._stage.owner)
            await self._through("front", self._stage.front)
            await self._alone("guarded", await self._layer())
            await self._through("ahead", self._ahead)

    async def _until_ahead(self) -> None:
        """Wait for the next one, so that its start disturbs nothing that is measured."""

        async def waits() -> bool:
            return "\nclaude_agent_api_agents_ahead 1.0\n" in (await self._ahead.client.get("/metrics")).text

        await until(waits, every=0.1, seconds=60)

    async def _layer(self) -> Layer:
        """That of the service."""
        if self._found is None:
            self._found = (await trial.strongest(self._driven.settings)).layer
        return self._found

    async def _alone(self, name: str, layer: Layer | None = None) -> None:
        began = time.monotonic()
        async with self._driven.client(layer=layer) as client:
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
    async with stage.starting_ahead() as ahead:
        measured = _Cold(stage, driven, ahead)
        await measured.run(rounds)
    ms = {name: _ms(turns) for name, turns in measured.turns.items()}
    report.head("first delta of a new session, ms")
    report.row("SDK alone", ms["sdk"])
    report.row("SDK alone, its CLI started through the service's guard", ms["guarded"])
    report.row("API, on the instance that runs the agent", ms["owner"])
    report.row("API, on a pure API node", ms["front"])
    report.row("API, with an agent that was started ahead", ms["ahead"])
    _note_missing(report, [*measured.turns["owner"], *measured.turns["front"], *measured.turns["ahead"]])
    middle = {name: percentile(values, 0.5) for name, values in ms.items()}
    report.at_most("2 first delta, new session, same instance", middle["owner"] / middle["sdk"], 1.1, "× SDK (p50)")
    report.at_most("2 first delta, new session, other instance", middle["front"] / middle["sdk"], 1.1, "× SDK (p50)")
    report.at_most("2 first delta, new session, started ahead", middle["ahead"] / middle["sdk"], 0.3, "× SDK (p50)")


async def warm(stage: Stage, driven: Sdk, report: Report, rounds: int) -> None:
    """Targets 1 and 3: warm turns through the API on another instance, beside the SDK's, warm and resumed.

    Args:
        rounds: turns of each of the two sessions; fewer than RECYCLE_AFTER_TURNS, whose next turn would be a cold one.
    """
    resumed_id = uuid4()
    async with driven.client(resumed_id) as client:
        await sdk.timed(client, PROMPT)
    series = _Warm()
    for _ in range(2):
        session_id = await stage.front.session()
        connection = await stage.connect(stage.front)
        path = f"/api/v1/sessions/{session_id}/resume"
        async with driven.client() as client:
            for _ in range(WARM_UP):
                await sdk.timed(client, PROMPT)
                await ask(connection, path)
            for number in range(rounds):
                series.alone.append(await sdk.timed(client, PROMPT))
                series.api.append(await ask(connection, path))
                if number % 20 == 0:
                    series.resumed.append(await _resumed(driven, resumed_id))
        connection.close()
        await stage.front.client.delete(f"/api/v1/sessions/{session_id}")
    series.tell(report)


async def _resumed(driven: Sdk, session_id: UUID) -> Turn:
    began = time.monotonic()
    async with driven.client(session_id, resume=True) as client:
        return await sdk.timed(client, PROMPT, began)


@dataclass
class _Warm:
    """The three series that are measured in turn."""

    alone: list[Turn] = field(default_factory=list)
    api: list[Turn] = field(default_factory=list)
    resumed: list[Turn] = field(default_factory=list)

    def tell(self, report: Report) -> None:
        report.head("second and later turns, ms")
        report.row("first delta: SDK alone, live client", _ms(self.alone))
        report.row("first delta: API, client on another instance", _ms(self.api))
        report.row("first delta: SDK, one process per turn with resume", _ms(self.resumed))
        report.row("whole turn: SDK alone, live client", _ms(self.alone, "result"))
        report.row("whole turn: API (to `done`), other instance", _ms(self.api, "result"))
        report.row("whole turn: SDK, one process per turn (to the result)", _ms(self.resumed, "result"))
        _note_missing(report, self.api)
        for share, limit in ((0.5, 5), (0.99, 20)):
            added = percentile(_ms(self.api), share) - percentile(_ms(self.alone), share)
            report.at_most(f"1 first delta, warm, added at p{share * 100:.0f}", added, limit, "ms")
        faster = percentile(_ms(self.resumed, "result"), 0.5) / percentile(_ms(self.api, "result"), 0.5)
        report.at_least("3 second turn against resume, whole turn", faster, 10, "× faster (p50)")
