"""What must hold of every history, whatever went wrong: by what clients were told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from apps.api.db import Database
from apps.api.redis import open_redis
from tests.faults.load import MARKS, Broken, Load, Prompt, Session
from tests.faults.stage import Stage
from tests.invariants import logs_hold

MAY_FAIL = {
    "owner_lost",
    "shutdown",
    "agent_crashed",
    "agent_start_failed",
    "storage_failed",
    "workspace_not_restored",
}
"""How a run may end that nobody has interrupted: its client is told, and can send it again."""

_STRAY = """
SELECT 'command ' || type || ' of ' || session_id || ' is pending' FROM commands
WHERE status = 'pending' AND type <> 'answer' AND created_at < now() - interval '60 s'
UNION ALL SELECT 'run ' || id || ' is ' || status FROM runs WHERE finished_at IS NULL
UNION ALL SELECT 'request ' || id || ' is open' FROM requests q WHERE status = 'open'
  AND EXISTS (SELECT FROM runs r WHERE r.id = q.run_id AND r.finished_at IS NOT NULL)
"""

_COUNT = "SELECT count(*) FROM runs WHERE session_id = $1 AND origin = 'client'"


async def violations(stage: Stage, load: Load) -> list[str]:
    """All that did not hold. Everything works again by now."""
    found: list[str] = []
    for session in load.sessions:
        found += [f"session {session.id}: {told}" for told in of_readers(session)]
        if not session.deleted:
            found += [f"session {session.id}: {told}" for told in of_runs(session)]
            marks = [line for host in stage.hosts for line in _lines(host.instance.disk / session.id / "marks")]
            found += [f"session {session.id}: {told}" for told in of_marks(marks)]
            found += [f"session {session.id}: {told}" async for told in _of_conversation(load, session)]
        else:
            answer = await load.ask("GET", f"/sessions/{session.id}", accept=("session_not_found",))
            if answer.get("code") != "session_not_found":
                found.append(f"session {session.id} was deleted, and is there")
    async with stage.database() as db:
        found += await _of_database(db, load)
    return found


def of_readers(session: Session) -> Iterator[str]:
    """Every reader was told the same, without a gap, and nothing twice."""
    for reader in session.readers:
        yield from (f"reader {reader.name}: {fault}" for fault in reader.faults)
        numbers = reader.order
        if numbers != list(range(1, len(numbers) + 1)):
            wrong = next(at for at, number in enumerate(numbers, 1) if number != at)
            yield f"reader {reader.name}: event {numbers[wrong - 1]} came as number {wrong}"
    one, other = session.readers
    for number in one.told.keys() & other.told.keys():
        if one.told[number] != other.told[number]:
            yield f"event {number} is {one.told[number]} for one reader, {other.told[number]} for the other"


def of_runs(session: Session) -> Iterator[str]:
    """Each accepted prompt has one outcome, which is its own; only what was named is interrupted."""
    for prompt in session.prompts:
        run = prompt.run
        code = (run.get("error") or {}).get("code")
        what = f"run {prompt.run_id} ({prompt.kind} {prompt.token}) is {run.get('status')} {code or ''}"
        match run.get("status"):
            case "succeeded":
                if prompt.kind == "say" and prompt.token not in str(run["result"]["result"]):
                    yield f"{what}, and said {run['result']['result']!r}"
            case "interrupted":
                if not prompt.interrupted:
                    yield f"{what}, and nobody has asked for that"
            case "failed":
                if code not in MAY_FAIL:
                    yield what
            case _:
                yield what


def of_marks(lines: Iterable[str]) -> Iterator[str]:
    """No two agents of a session were at work at one time: what they have written lies in no other's time.

    `lines`: of all hosts, so that those which have travelled are there more than once.
    """
    times: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        token, _, moment = line.partition(" ")
        if moment.isdigit():
            times[token].add(int(moment))
    for token, moments in times.items():
        if len(moments) > MARKS:
            yield f"{token} was carried out more than once: {len(moments)} marks"
    order = sorted(times.items(), key=lambda item: min(item[1]))
    for (token, before), (later, after) in pairwise(order):
        if max(before) > min(after):
            yield f"{token} was at work {(max(before) - min(after)) / 1e6:.0f} ms after {later} had begun"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


async def _of_conversation(load: Load, session: Session) -> Any:
    """The agent knows each prompt that has succeeded, once, and what the session began with."""
    prompt = Prompt("recall", "recall")
    path = f"/sessions/{session.id}/query"
    try:
        prompt.run_id = (await load.ask("POST", path, {"prompt": "recall"}, key=prompt.key))["run_id"]
        run = await load.run_of(prompt)
    except Broken as error:
        yield str(error)
        return
    if run["status"] != "succeeded":
        yield f"recall: {run['status']} {run['error']}"
        return
    known = str(run["result"]["result"])
    for before in (*session.inherits, *session.prompts):
        times = known.count(before.text)
        if times > 1 or (before.run.get("status") == "succeeded" and times == 0):
            yield f"the agent knows {before.token} ({before.run.get('status')}) {times} times"


async def _of_database(db: Database, load: Load) -> list[str]:
    found = [row[0] for row in await db.pool.fetch(_STRAY)]
    try:
        await logs_hold(db)
    except AssertionError as error:
        found += str(error).splitlines()
    for session in load.sessions:
        if not session.deleted:
            count = await db.pool.fetchval(_COUNT, UUID(session.id))
            if count != len(session.prompts) + 1:  # and the recall
                found.append(f"session {session.id}: {count} runs for {len(session.prompts) + 1} prompts")
    return found


async def left_over(stage: Stage, load: Load) -> list[str]:
    """What is there still when all sessions are deleted, and all instances have ended in order."""
    for session in load.sessions:
        await load.ask("DELETE", f"/sessions/{session.id}", accept=("session_deleted", "session_not_found"))
    await load.close()
    started = [process for host in stage.hosts for process in host.instance.descendants()]
    await stage.fleet.stop()
    _, alive = psutil.wait_procs(started, timeout=15)
    found = [f"process {process.pid} lives" for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    async with open_redis(stage.settings) as redis:
        keys = [key async for key in redis.client.scan_iter()]
        lasting = [key for key in keys if await redis.client.ttl(key) == -1]
        found += [f"key {key!r} in Redis has no end" for key in lasting]
    async with stage.database() as db:
        rows = await db.pool.fetch(
            "SELECT 'event' AS what, count(*) FROM events UNION ALL SELECT 'entry', count(*) FROM transcript_entries"
        )
        found += [f"{row['count']} rows of the kind {row['what']} are left" for row in rows if row["count"]]
    return found
