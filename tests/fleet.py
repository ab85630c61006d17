"""A fleet of real server processes for acceptance tests, and a small SSE client."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import orjson
import psutil

from tests import disks
from tests.contract import check_event
from tests.forked import Forked, fork
from tests.free_ports import free_port

API_KEY = "test-key-of-the-acceptance-tests"
HEADERS = {"X-API-Key": API_KEY}
START_SECONDS = 60
END_SECONDS = 30
NO_TLS = False
"""`verify` of clients of `http://`: each reads the authorities otherwise, which takes a core 30 ms."""

PROGRAM = Path(sys.executable).with_name("claude-agent-api")


@dataclass(frozen=True)
class Sse:
    """One event as a client sees it."""

    id: str
    event: str
    data: dict[str, Any]


async def events_of(response: httpx.Response) -> AsyncIterator[Sse]:
    """Parse a stream, ignoring comments. Every event must be as the document says."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            data = orjson.loads(fields["data"])
            check_event(fields["event"], fields.get("id"), data)
            yield Sse(fields.get("id", ""), fields["event"], data)
            fields = {}


@dataclass
class Instance:
    """One server process.

    Attributes:
        disk: what it has at WORKSPACES_DIR, as others see it.
        env: what it was started with, on top of ours.
        program: what it is, see `Fleet.add`.
        binds: what it sees elsewhere, see `tests.disks`, beside its disk.
    """

    url: str
    process: subprocess.Popen[bytes] | Forked
    log: Path
    client: httpx.AsyncClient
    disk: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    program: Path | None = None
    binds: disks.Binds = ()
    id: str = ""

    def descendants(self) -> list[psutil.Process]:
        """The agents' processes and their tools, at this moment."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:  # it was killed meanwhile, and all that it had with it
            return []

    def agent_of(self, session_id: str) -> list[psutil.Process]:
        """Those of one session: the guard, then the CLI, then what it has started."""
        found = []
        for process in self.descendants():
            with suppress(psutil.Error):
                if any(session_id in value for value in process.environ().values()):
                    found.append(process)
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Its exit code, awaited."""
        return await asyncio.to_thread(self.process.wait, seconds)

    async def post(self, path: str, body: Mapping[str, Any] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(f"/api/v1{path}", json=body, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.client.get(f"/api/v1{path}", **more)

    async def session(self, **config: Any) -> str:
        response = await self.post("/sessions", config)
        assert response.status_code == 201, response.text
        return str(response.json()["session_id"])

    async def prompt(self, session_id: str, prompt: str, **more: Any) -> str:
        """Queue a prompt; returns the run's id."""
        response = await self.post(f"/sessions/{session_id}/query", {"prompt": prompt, **more})
        assert response.status_code == 202, response.text
        return str(response.json()["run_id"])

    async def ask(self, session_id: str, prompt: str, **more: Any) -> dict[str, Any]:
        """Send a prompt and wait for its result."""
        response = await self.post("/query/single", {"prompt": prompt, "session_id": session_id, **more})
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    @asynccontextmanager
    async def stream(self, path: str, **more: Any) -> AsyncIterator[AsyncIterator[Sse]]:
        """Follow a GET stream."""
        async with self.client.stream("GET", f"/api/v1{path}", **more) as response:
            assert response.status_code in (200, 204), (await response.aread()).decode()
            yield events_of(response)

    async def follow(self, run_id: str, **more: Any) -> list[Sse]:
        """All events of a run, until it is done."""
        async with self.stream(f"/runs/{run_id}/events", **more) as events:
            return [event async for event in events]


@dataclass
class Fleet:
    """Server processes on one database, one Redis and one demo model.

    Attributes:
        prefix: words before their commands.
        forked: they begin as copies of one process, see `tests.forked`; else as programs, as those with a prefix do.
        apart: each has a disk of its own at WORKSPACES_DIR, see `tests.disks`; else they share that directory.
        start_seconds: in which an instance must be ready.
    """

    env: Mapping[str, str]
    directory: Path
    instances: list[Instance] = field(default_factory=list)
    prefix: Sequence[str] = ()
    forked: bool = True
    apart: bool = True
    start_seconds: float = START_SECONDS

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]

    async def add(
        self,
        settings: Mapping[str, str],
        *,
        program: Path | None = None,
        binds: disks.Binds = (),
        disk: Path | None = None,
    ) -> Instance:
        """Start one and wait until it is ready.

        Args:
            program: the one to start; None: ours, as the fleet does it.
            binds: what it sees elsewhere, see `tests.disks`.
            disk: what it has at WORKSPACES_DIR; None: see `apart`.
        """
        instance = self._spawn({**self.env, **settings}, program, binds, disk=disk)
        self.instances.append(instance)
        await self._ready(instance)
        return instance

    async def start(self, count: int, **settings: str) -> None:
        """Start instances and wait until they are ready."""
        fresh = [self._spawn({**self.env, **settings}) for _ in range(count)]
        self.instances += fresh
        await asyncio.gather(*(self._ready(instance) for instance in fresh))

    async def again(self, instance: Instance) -> None:
        """Start one that has ended anew, at its place: its port, its disk and its settings."""
        port = int(instance.url.rpartition(":")[2])
        fresh = self._spawn(instance.env, instance.program, instance.binds, port, instance.disk)
        await instance.client.aclose()
        instance.process, instance.client = fresh.process, fresh.client
        try:
            await self._ready(instance)
        except BaseException:
            instance.process.kill()  # its port is the next one's
            raise

    def _spawn(
        self,
        env: Mapping[str, str],
        program: Path | None = None,
        binds: disks.Binds = (),
        port: int | None = None,
        disk: Path | None = None,
    ) -> Instance:
        port, at = port or free_port(), Path(env["WORKSPACES_DIR"])
        disk = disk or (disks.make(at) if self.apart and disks.possible() else at)
        log = self.directory / f"instance-{port}.log"  # all that is there at this port, one after the other
        with log.open("ab") as output:
            arguments = ["serve", "--host", "127.0.0.1", "--port", str(port)]
            seen = [*binds, *([] if disk == at else [(disk, at)])]
            process = self._begin(program, arguments, {**os.environ, **env}, output, seen)
        url = f"http://127.0.0.1:{port}"
        client = httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=60, verify=NO_TLS)
        return Instance(url, process, log, client, disk, env, program, binds)

    def _begin(
        self,
        program: Path | None,
        arguments: list[str],
        env: Mapping[str, str],
        output: IO[bytes],
        binds: disks.Binds,
    ) -> subprocess.Popen[bytes] | Forked:
        if program is None and self.forked and not self.prefix:
            return fork(arguments, env, output, binds)
        command = [*(disks.words(binds) if binds else ()), *self.prefix, str(program or PROGRAM), *arguments]
        return subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    async def _ready(self, instance: Instance) -> None:
        async with asyncio.timeout(self.start_seconds):
            while True:
                assert instance.process.poll() is None, instance.log.read_text()[-2000:]
                try:
                    response = await instance.client.get("/health/ready")
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if response.status_code == 200:
                    instance.id = response.json()["instance_id"]
                    return
                await asyncio.sleep(0.05)

    async def by_id(self, instance_id: str) -> Instance:
        return next(instance for instance in self.instances if instance.id == instance_id)

    async def owner_of(self, session_id: str) -> Instance:
        """Whoever owns the session now."""
        living = next(i for i in self.instances if i.process.poll() is None)
        state = (await living.get(f"/sessions/{session_id}")).json()
        assert state["owner"], state
        return await self.by_id(state["owner"])

    def has_files_of(self, session_id: str) -> Instance:
        """Whoever was the last to start an agent of this session, or to store or restore its files."""
        return max(self.instances, key=lambda instance: _last_at(instance.disk, session_id))

    def files_of(self, session_id: str) -> Path:
        """A session's workspace, as it is on the disk of `has_files_of`."""
        return self.has_files_of(session_id).disk / session_id

    def spread(self, session_id: str) -> None:
        """Copy a session's workspace to the disks of all, for whose agents it is to be out of reach."""
        workspace = self.files_of(session_id)
        for instance in self.instances:
            if (copy := instance.disk / session_id) != workspace:
                shutil.copytree(workspace, copy, symlinks=True, dirs_exist_ok=True)

    async def others(self, owner: Instance) -> list[Instance]:
        return [i for i in self.instances if i is not owner and i.process.poll() is None]

    async def stop(self) -> None:
        """End what still runs; a process that a test has paused is continued first."""
        for instance in self.instances:
            await instance.client.aclose()
            if instance.process.poll() is None:
                instance.signal(signal.SIGCONT)
                instance.signal(signal.SIGTERM)
        for instance in self.instances:
            try:
                await instance.ended()
            except subprocess.TimeoutExpired:
                instance.process.kill()
                await instance.ended()


def _last_at(disk: Path, session_id: str) -> int:
    """When something was written on a disk that each agent's start writes, or each change of what is stored."""
    times = [0]
    for above in (".configs", ".stored"):
        with suppress(FileNotFoundError):
            times.append((disk / above / session_id).lstat().st_mtime_ns)
    return max(times)


class Shared:
    """Sessions that tests share, one for each configuration: the start of an agent is most of what a test costs.

    What a test leaves in its session is there for the next one: files, what was said, and what is remembered.

    Attributes:
        first: what a new one is asked, so that its agent is live.
    """

    def __init__(self, fleet: Fleet, first: str = "say I own this") -> None:
        self.fleet, self.first = fleet, first
        self._made: dict[bytes, str] = {}

    async def of(self, **config: Any) -> str:
        """An idle session with this configuration, its agent live."""
        key = orjson.dumps(config, option=orjson.OPT_SORT_KEYS)
        if (made := self._made.get(key)) is None or await self._status(made) != "idle":
            made = await self.fleet[0].session(**config)
            await self.fleet[0].ask(made, self.first)
            self._made[key] = made
        return made

    async def _status(self, session_id: str) -> str:
        return str((await self.fleet[0].get(f"/sessions/{session_id}")).json().get("status"))
