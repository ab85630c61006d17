"""What must hold when all is over: of the whole database, and of what a fleet leaves that was given nothing to keep."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil

from apps.api.core.sessions.deletion import CONTENT
from apps.api.db import Database
from apps.api.redis import Redis, open_redis
from apps.api.settings import Settings
from tests.faults.history import Session
from tests.faults.load import Load
from tests.faults.stage import Host, Stage
from tests.invariants import logs_hold
from tests.world import administrator, until

STRAY = """
SELECT 'command ' || type || ' of ' || session_id || ' is pending' FROM commands
WHERE status = 'pending' AND (type = 'answer' OR created_at < now() - interval '60 s')
UNION ALL SELECT 'run ' || id || ' is ' || status FROM runs WHERE finished_at IS NULL
UNION ALL SELECT 'request ' || id || ' is open' FROM requests q WHERE status = 'open'
  AND EXISTS (SELECT FROM runs r WHERE r.id = q.run_id AND r.finished_at IS NOT NULL)
"""
"""What is left open. A command other than an answer is of no use after a minute, and goes with the next one."""

_STATE = """
SELECT s.last_seq, (SELECT count(*) FROM runs r WHERE r.session_id = s.id AND r.origin = 'client') AS runs
FROM sessions s WHERE s.id = $1
"""

_CONTENT = " UNION ALL ".join(
    f"SELECT '{table}', count(*) FROM {table} WHERE session_id = ANY($1::uuid[])" for table in CONTENT
)

_CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND backend_type = 'client backend'
"""

PROCESS_SECONDS, CONNECTIONS_SECONDS = 15.0, 15.0
"""For what the kernel, or PostgreSQL, has still to end."""

LEFT_SECONDS = 90.0
"""In which somebody removes what a deleted session held: one whose deletion was cut off is found after a minute."""


async def of_database(db: Database, sessions: Sequence[Session]) -> list[str]:
    """What does not hold of what is stored. All runs are over, all clients have gone."""
    found = [row[0] for row in await db.pool.fetch(STRAY)]
    try:
        await logs_hold(db)
    except AssertionError as error:
        found += str(error).splitlines()
    known = {session.id for session in sessions}
    there = await db.pool.fetch("SELECT id::text FROM sessions WHERE deleted_at IS NULL")
    found += [f"session {row[0]} is nobody's" for row in there if row[0] not in known]
    for session in sessions:
        if session.deleted or session.wrong or not session.over:
            continue
        row = await db.pool.fetchrow(_STATE, UUID(session.id))
        if row is None:
            found.append(f"session {session.id} is not there any more")
            continue
        if row["runs"] != len(session.prompts):
            found.append(f"session {session.id}: {row['runs']} runs for {len(session.prompts)} prompts")
        for reader in session.readers:
            if reader.end != row["last_seq"]:
                found.append(f"session {session.id}: reader {reader.name} was told {reader.end} of {row['last_seq']}")
    return found


async def violations(stage: Stage, load: Load) -> list[str]:
    """All that does not hold when everything works again, and all clients have ended."""
    found = list(load.wrong)
    for session in load.sessions:
        found += [f"session {session.id}: {told}" for told in session.wrong]
        if session.deleted:
            answer = await load.ask("GET", f"/sessions/{session.id}", accept=("session_not_found",))
            if answer.get("code") != "session_not_found":
                found.append(f"session {session.id} was deleted, and is there")
    async with stage.database() as db:
        found += await of_database(db, load.sessions)
    return found


async def delete_all(load: Load) -> None:
    """Delete every session that is there."""
    for session in load.sessions:
        await load.ask("DELETE", f"/sessions/{session.id}", accept=("session_deleted", "session_not_found"))


async def left_over(stage: Stage, load: Load) -> list[str]:
    """What is there still when all sessions are deleted, and all instances have been restarted and ended in order."""
    ids = [session.id for session in load.sessions]
    started = [process for host in stage.hosts for process in host.instance.descendants()]
    await stage.fleet.stop()
    found = await processes(started)
    for path in stage.scratch():  # as if their time were over
        os.utime(path, (0, 0))
    await asyncio.gather(*(stage.fleet.again(host.instance) for host in stage.hosts))
    async with stage.database() as db:
        found += await rows(db, ids)
    try:
        await until(lambda: not files(stage.hosts, ids), every=0.5, seconds=LEFT_SECONDS)
    except TimeoutError:
        found += files(stage.hosts, ids)
    await stage.fleet.stop()
    found += [f"{path} is left" for path in stage.scratch()]
    found += [f"somebody listens at the port of instance {h.number}" for h in stage.hosts if listens(h)]
    for host in stage.hosts:
        host.postgres.forget()
        host.redis.forget()
    async with open_redis(stage.settings) as redis:
        found += await keys(redis)
    return found + await connections(stage.settings)


async def processes(started: Iterable[psutil.Process]) -> list[str]:
    """Those that live though what has started them has ended."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, list(started), timeout=PROCESS_SECONDS)
    return [f"process {process.pid} lives" for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def rows(db: Database, ids: Sequence[str]) -> list[str]:
    """What is stored of sessions that were deleted."""
    deleted = [UUID(each) for each in ids]

    async def none() -> bool:
        return not any(count for _, count in await db.pool.fetch(_CONTENT, deleted))

    try:
        await until(none, every=1.0, seconds=LEFT_SECONDS)
    except TimeoutError:
        found = await db.pool.fetch(_CONTENT, deleted)
        return [f"{count} rows of deleted sessions are left in {table}" for table, count in found if count]
    return []


def files(hosts: Sequence[Host], ids: Iterable[str]) -> list[str]:
    """What is on any disk of sessions that were deleted."""
    known = set(ids)
    found = [path for host in hosts for path in _named(host.instance.disk)]
    return [f"{path} is left" for path in found if path.name[:36] in known]


def _named(disk: Path) -> list[Path]:
    return [*disk.glob("*"), *disk.glob(".*/*")]


def listens(host: Host) -> bool:
    """Whether anybody takes connections at an instance's port."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", int(host.instance.url.rpartition(":")[2]))) == 0


async def keys(redis: Redis) -> list[str]:
    """Entries in Redis that would stay for ever."""
    names = [key async for key in redis.client.scan_iter()]
    return [f"key {key!r} in Redis has no end" for key in names if await redis.client.ttl(key) == -1]


async def connections(settings: Settings) -> list[str]:
    """Those to PostgreSQL, though nobody is there any more who has made any."""
    async with administrator(settings) as asking:

        async def none() -> bool:
            return int(await asking.fetchval(_CONNECTIONS)) == 0

        with suppress(TimeoutError):
            await until(none, every=0.2, seconds=CONNECTIONS_SECONDS)
        count = await asking.fetchval(_CONNECTIONS)
        return [f"{count} connections to PostgreSQL are left"] if count else []
