"""What a workspace costs that travels: stored whole, brought elsewhere, and when little or nothing has changed. In a
directory, and in a bucket of an S3 stand-in (moto) over HTTP."""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from obstore.store import S3Store

from apps.api.core.files import manifest, record, restoring, snapshots
from apps.api.core.files.objects import Objects
from apps.api.core.files.snapshots import Known, Limits
from apps.api.settings import Settings
from apps.api.threads import Threads
from tests.bench import turns
from tests.bench.report import Report, percentile
from tests.bench.stage import Stage
from tests.free_ports import free_port

LIMITS = Limits(1 << 31, 200_000)
SIZE = 10_000
"""Bytes of a file, half of which can be compressed."""


def grow(root: Path, files: int) -> None:
    """A workspace of so many files, in directories of some hundred."""
    rng = random.Random(1)
    for number in range(files):
        above = root / f"{number % 40}" / f"{number % 7}"
        above.mkdir(parents=True, exist_ok=True)
        (above / f"{number}.bin").write_bytes(rng.randbytes(SIZE // 2) + bytes(SIZE // 2))


@asynccontextmanager
async def bucket() -> AsyncIterator[Objects]:
    """A bucket of a stand-in in a process of its own."""
    port = free_port()
    url, words = f"http://127.0.0.1:{port}", ("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=nowhere, stderr=nowhere)
    try:
        async with asyncio.timeout(60), httpx.AsyncClient() as client:
            while True:
                try:
                    await client.put(f"{url}/bench")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        keys: dict[str, Any] = {"access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
        store = S3Store("bench", endpoint=url, client_options={"allow_http": True}, **keys)
        yield Objects(lambda: store, url)
    finally:
        process.terminate()
        await process.wait()


async def _timed(work: Awaitable[Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = await work
    return (time.perf_counter() - began) * 1000, made


class Moves:
    """One workspace, stored in one place."""

    def __init__(self, objects: Objects, root: Path, target: Path) -> None:
        self._objects, self._places, self._target = objects, {"files": root}, {"files": target}
        self._threads, self._tenant = Threads("bench", 4), uuid4()
        self._settings = Settings(_env_file=None, workspaces_dir=target.parent)

    async def store(self, known: Known | None = None) -> Known | None:
        """As at the end of a run, but for the database."""
        taken = await snapshots.take(self._objects, self._threads, self._tenant, self._places, known, LIMITS)
        if taken is None:
            return None
        name = manifest.name_of(self._tenant, self._tenant, 1)
        before = known or Known("", {}, {})
        frames = await self._threads.run(manifest.frames, taken.entries, before.entries, before.frames)
        await self._objects.put(name, b"".join(frames))
        return Known(name, *taken, frames)

    async def bring(self, name: str, known: Known | None = None) -> Known:
        """As before a run on another host."""
        entries = await restoring.read(self._objects, self._threads, name)
        planned = await self._threads.run(restoring.plan, self._target, entries, known)
        work = restoring.restore(self._objects, self._threads, self._tenant, self._target, entries, planned)
        there = Known(name, entries, (known.signs if known else {}) | await work, manifest.frames(entries))
        await self._threads.run(record.write, self._settings, self._tenant, there)
        return there

    async def look(self, stored: Known, there: Known) -> None:
        """As where a session comes back to a host that has what is stored."""
        found = await self._threads.run(record.name, self._settings, self._tenant)
        assert found == there.name == stored.name


async def _measured(objects: Objects, where: str, directory: Path, report: Report, files: int) -> None:
    root = directory / "from"
    moves = Moves(objects, root, directory / f"to-{where}")
    stored, known = await _timed(moves.store())
    brought, there = await _timed(moves.bring(known.name))
    unchanged, _ = await _timed(moves.store(known))
    again, _ = await _timed(moves.look(known, there))
    for number in range(10):
        (root / f"{number}" / f"{number % 7}" / f"{number}.bin").write_bytes(os.urandom(SIZE))
    await asyncio.sleep(0.05)  # past the tick of the kernel's clock: see snapshots.TICK
    ten, _ = await _timed(moves.store(known))
    figures = {"stored": stored, "brought": brought, "nothing stored": unchanged, "nothing brought": again, "ten": ten}
    for what, taken in figures.items():
        report.row(f"{where}, {what}", [taken])
    size = f"{files * SIZE // 1_000_000} MB in {files:,} files, {where}"
    report.at_most(f"{size}: stored and brought", (stored + brought) / 1000, 15 * files / 20_000, "s")
    report.at_most(f"{size}: unchanged, stored and brought", unchanged + again, 300 * files / 20_000, "ms")
    report.at_most(f"{size}: ten changed ones stored", ten, 200 * files / 20_000, "ms")


def _packed(root: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as tar:
        tar.add(root, "large")
    return made.getvalue()


async def untouched(stage: Stage, report: Report, *, files: int, rounds: int) -> None:
    """Warm turns without a tool, by turns in a session without files and in one with so many."""
    with tempfile.TemporaryDirectory() as made:
        await asyncio.to_thread(grow, Path(made), files)
        archive = await asyncio.to_thread(_packed, Path(made))
    client, taken = stage.front.client, dict[str, list[float]]()
    sessions = {what: await stage.front.session() for what in ("without files", f"with {files:,} files")}
    large = sessions[f"with {files:,} files"]
    answer = await client.put(f"/api/v1/sessions/{large}/archive", content=archive, timeout=300)
    assert answer.status_code == 200, answer.text
    connections = {what: await stage.connect(stage.front) for what in sessions}
    for number in range(turns.WARM_UP + rounds):
        for what, session_id in sessions.items():
            turn = await turns.ask(connections[what], f"/api/v1/sessions/{session_id}/resume")
            if number >= turns.WARM_UP:
                taken.setdefault(what, []).append(turn.result * 1000)
    report.head("whole warm turn without a tool, ms")
    for what, values in taken.items():
        report.row(f"in a workspace {what}", values)
        connections[what].close()
        await client.delete(f"/api/v1/sessions/{sessions[what]}", timeout=60)
    without, with_files = (percentile(values, 0.5) for values in taken.values())
    report.at_most(f"warm turn that touches none of {files:,} files", with_files / without, 1.1, "× one without (p50)")


async def travels(report: Report, *, files: int) -> None:
    """A workspace of so many files; targets are those of 20,000, by their number."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        await asyncio.to_thread(grow, directory / "from", files)
        await asyncio.sleep(0.05)
        walks = []
        for _ in range(3):
            began = time.perf_counter()
            sum(
                1
                for above in os.walk(directory / "from")
                for name in above[2]
                if os.lstat(os.path.join(above[0], name))
            )
            walks.append((time.perf_counter() - began) * 1000)
        report.head("ms")
        report.row("a look at each file by os.lstat, nothing else", walks)
        await _measured(Objects.in_directory(directory / "store"), "a directory", directory, report, files)
        async with bucket() as objects:
            await _measured(objects, "a bucket", directory, report, files)
