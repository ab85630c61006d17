"""Traffic of one tenant and a probe of another, while something goes wrong; and what has to hold of every such time."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import psutil

from apps.api.db import Database
from tests.fleet import Fleet, Instance
from tests.invariants import logs_hold
from tests.proxy import Proxy
from tests.world import until

PAUSE = 0.5
"""Seconds between the end of one prompt of a session and its next."""

PATIENCE = 180.0
"""Seconds after which what does not come ends the test; nothing here is meant to take as many."""

MOST_GROWTH = 100.0
"""Megabytes that an instance may have more than before."""

DEAD = """
INSERT INTO instances (id, hostname, version, slots, lease_expires_at)
VALUES (gen_random_uuid(), 'dead', '0', 4, now() - interval '1 second') RETURNING id
"""
"""An instance whose lease has run out; gives its id."""

_RUNS = """
SELECT id, session_id, prompt, status, error ->> 'code' AS code FROM runs
WHERE session_id = ANY($1::uuid[]) AND created_at >= $2
"""


@dataclass(frozen=True)
class Place:
    """Three instances that reach PostgreSQL and Redis through proxies, and warm sessions of two tenants.

    Attributes:
        db: past the proxy.
        busy: sessions of the tenant of API_KEY, one owned by each instance at first.
        probed, headers: the session and the key of another tenant.
    """

    fleet: Fleet
    postgres: Proxy
    redis: Proxy
    db: Database
    busy: list[str]
    probed: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """How a prompt or a read went: when it began on the loop's clock, its seconds, and how it ended (`503` …)."""

    began: float
    seconds: float
    how: str


@dataclass
class Storm:
    """A time of traffic in a place.

    Attributes:
        through: the instances that clients use.
        may_lose: sessions whose runs may end as `owner_lost`, since the test freezes their owner. It may hold a lock on
            them, so that prompts are refused until PostgreSQL ends what it had begun.
        may_refuse: clients may be answered 503, as of a database that is slow.
        answers: of each session, in order.
        accepted: the runs of prompts that were answered 202 or 200.
        reads: how long the other tenant's reads of its session took.
    """

    place: Place
    through: list[Instance]
    may_lose: set[str] = field(default_factory=set)
    may_refuse: bool = False
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    accepted: set[UUID] = field(default_factory=set)
    reads: list[Answer] = field(default_factory=list)
    lasted: tuple[float, float] = (0.0, 0.0)
    _asked: Counter[str] = field(default_factory=Counter)
    _memory: dict[str, tuple[float, float]] = field(default_factory=dict)
    _over: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def fleet(self) -> Fleet:
        return self.place.fleet

    @property
    def sessions(self) -> list[str]:
        """Of both tenants; the probed one is the last."""
        return [*self.place.busy, self.place.probed]

    # --- what a test does with it ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def cause(self) -> AsyncIterator[None]:
        """Something is wrong while the block lasts."""
        begun = _now()
        yield
        self.lasted = begun, _now()

    async def owner(self, session_id: str) -> Instance:
        """Of a session of either tenant."""
        owner_id = await self.place.db.pool.fetchval("SELECT owner_id FROM sessions WHERE id = $1", UUID(session_id))
        return await self.fleet.by_id(str(owner_id))

    async def probes(self, count: int = 5) -> None:
        """Wait until the other tenant has had so many more answers: what is wrong meanwhile does not keep it."""
        await self.answered([self.place.probed], count)

    async def answered(self, sessions: list[str], count: int) -> None:
        """Wait until each of these has had so many more good answers."""
        wanted = {session: self._good(session) + count for session in sessions}
        await self._until(lambda: all(self._good(session) >= number for session, number in wanted.items()))

    async def leave(self, instance: Instance) -> None:
        """Let clients use the others, and wait for what they have asked this one."""
        self.through = [other for other in self.through if other is not instance]
        await self._until(lambda: not self._asked[instance.url])

    async def settle(self) -> None:
        """Wait until every instance is well, and each session has had its answers through each of them."""
        self.through = list(self.fleet.instances)
        for instance in self.fleet.instances:
            await self._until(lambda instance=instance: _is_well(instance))  # type: ignore[misc]
        await self.answered(self.sessions, len(self.through))

    # --- its traffic -------------------------------------------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def over(cls, place: Place, tell: Callable[[str, object], None]) -> AsyncIterator[Storm]:
        """A storm under way; afterwards all is checked that has to hold of it, and `tell` is told its figures."""
        began = await place.db.pool.fetchval("SELECT now()")
        storm = cls(place, list(place.fleet.instances), answers={s: [] for s in [*place.busy, place.probed]})
        storm._tasks = [asyncio.create_task(storm._traffic(session)) for session in storm.sessions]
        storm._tasks.append(asyncio.create_task(storm._reading()))
        try:
            await storm.answered(storm.sessions, 2)
            storm._memory = {i.url: (now := _memory(i), now) for i in place.fleet.instances}
            yield storm
            await storm.settle()
        finally:
            storm._over = True
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*storm._tasks)
        for name, value in storm.figures().items():
            tell(name, value)
        await storm._check(began)

    async def _traffic(self, session_id: str) -> None:
        """Prompt after prompt, through one instance after the other."""
        for number in itertools.count():
            if self._over:
                return
            ask = partial(self._ask, session_id, f"say {number}")
            self.answers[session_id].append(await self._timed(number, ask))
            for one in self.fleet.instances if self._memory else ():
                before, most = self._memory[one.url]
                self._memory[one.url] = before, max(most, _memory(one))
            await asyncio.sleep(PAUSE)

    @contextmanager
    def _next(self, number: int) -> Iterator[Instance]:
        instance = self.through[number % len(self.through)]
        self._asked[instance.url] += 1
        try:
            yield instance
        finally:
            self._asked[instance.url] -= 1

    async def _reading(self) -> None:
        for number in itertools.count():
            if self._over:
                return
            self.reads.append(await self._timed(number, self._read))
            await asyncio.sleep(PAUSE / 5)

    async def _timed(self, number: int, ask: Callable[[Instance], Awaitable[str]]) -> Answer:
        with self._next(number) as instance:
            began = _now()
            try:
                how = await ask(instance)
            except httpx.TransportError as error:
                how = repr(error)
            return Answer(began, _now() - began, how)

    async def _read(self, instance: Instance) -> str:
        response = await instance.get(f"/sessions/{self.place.probed}", headers=self.place.headers)
        return str(response.status_code)

    async def _ask(self, session_id: str, prompt: str, instance: Instance) -> str:
        headers = self.place.headers if session_id == self.place.probed else {}
        body = {"prompt": prompt, "session_id": session_id}
        response = await instance.post("/query/single", body, headers=headers)
        answer: dict[str, Any] = response.json()
        if response.status_code != 200:
            return str(response.status_code)
        self.accepted.add(UUID(answer["run_id"]))
        return str(answer["status"])

    def _good(self, session_id: str) -> int:
        return sum(answer.how == "succeeded" for answer in self.answers[session_id])

    async def _until(self, condition: Callable[[], Any]) -> None:
        try:
            await until(condition, every=0.05, seconds=PATIENCE)
        except TimeoutError:
            raise AssertionError(f"not in {PATIENCE} s; answered: {self._counted()}") from None

    # --- what holds of it --------------------------------------------------------------------------------------------

    def _counted(self) -> dict[str, Counter[str]]:
        return {session: Counter(answer.how for answer in answers) for session, answers in self.answers.items()}

    def figures(self) -> dict[str, object]:
        """What the other tenant saw, in seconds, and by how much the instances grew, in megabytes."""
        begun, ended = self.lasted
        probes = self.answers[self.place.probed]
        reads = [r.seconds for r in self.reads if r.began < ended and r.began + r.seconds > begun]
        during = [p.seconds for p in probes if p.began < ended and p.began + p.seconds > begun]
        calm = [p.seconds for p in probes if p.began > ended or p.began + p.seconds < begun]
        return {
            "lasted": round(ended - begun, 1),
            "probes": len(during),
            "probe_median": round(statistics.median(during), 2) if during else None,
            "probe_slowest": round(max(during), 2) if during else None,
            "calm_median": round(statistics.median(calm), 2) if calm else None,
            "calm_slowest": round(max(calm), 2) if calm else None,
            "read_median": round(statistics.median(reads), 2) if reads else None,
            "read_slowest": round(max(reads), 2) if reads else None,
            "growth_mb": [round(most - before) for before, most in self._memory.values()],
            "prompts": len(self.accepted),
        }

    async def _check(self, began: datetime) -> None:
        for instance in self.fleet.instances:
            assert instance.process.poll() is None, instance.log.read_text()[-2000:]
        assert {read.how for read in self.reads} <= {"200"} | ({"503"} if self.may_refuse else set())
        may = {"succeeded"} | ({"503"} if self.may_refuse else set())
        for session, told in self._counted().items():
            assert told.keys() <= may | ({"failed", "503"} if session in self.may_lose else set()), (session, told)
        rows = await self.place.db.pool.fetch(_RUNS, [UUID(session) for session in self.sessions], began)
        assert len({(row["session_id"], row["prompt"]) for row in rows}) == len(rows)  # none was run twice
        run = {row["id"] for row in rows}
        assert self.accepted <= run
        assert len(run - self.accepted) <= sum(told["503"] for told in self._counted().values())
        ends = {(row["status"], row["code"]) for row in rows}
        assert ends <= {("succeeded", None)} | ({("failed", "owner_lost")} if self.may_lose else set())
        for url, (before, most) in self._memory.items():
            assert most - before < MOST_GROWTH, (url, before, most)
        await logs_hold(self.place.db, since=began)


async def owned_by(instance: Instance, headers: dict[str, str], **config: Any) -> str:
    """A session whose agent is live on this instance. Whoever is prompted nearly always takes it."""
    for _ in range(10):
        made = (await instance.post("/sessions", config, headers=headers)).json()["session_id"]
        body = {"prompt": "say I am warm", "session_id": made}
        assert (await instance.post("/query/single", body, headers=headers)).status_code == 200
        if (await instance.get(f"/sessions/{made}", headers=headers)).json()["owner"] == instance.id:
            return str(made)
        await instance.client.delete(f"/api/v1/sessions/{made}", headers=headers)
    raise AssertionError(f"{instance.url} takes nothing")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _memory(instance: Instance) -> float:
    """Megabytes of the server itself."""
    return float(psutil.Process(instance.process.pid).memory_info().rss) / 1_000_000


async def _is_well(instance: Instance) -> bool:
    ready = await instance.client.get("/health/ready")
    health = (await instance.client.get("/health")).json()
    return bool(ready.status_code == 200 and (health["status"], health["failing_loops"]) == ("ok", []))
