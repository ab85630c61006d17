"""Following one run until it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from starlette.requests import Request

from apps.api.auth import Principal
from apps.api.core import tasks
from apps.api.core.context import Core
from apps.api.core.events.follow import SessionDeleted
from apps.api.core.events.frames import Frame, Position
from apps.api.core.events.replay import Followed
from apps.api.core.sessions import runs
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.prompts import Submitted
from apps.api.db import retrying
from apps.api.errors import RunFailed, Unavailable
from apps.api.web.opened import Held
from apps.api.web.route import instance_of
from apps.api.web.sse import Leaving, disconnected

WAIT_MARGIN = 600.0
"""Seconds on top of a run's timeout that a waiting request allows for the queue."""

T = TypeVar("T")

READ_SECONDS = 10.0
"""For which the end of a run is read again, where the database does not answer."""


async def run_frames(
    core: Core, tenant_id: UUID, run: Submitted, *, gapless: bool = False
) -> AsyncGenerator[list[Frame]]:
    """Events of one run, up to and with its `done`; empty batches are ticks of silence. `gapless`: see `follow`.

    Raises:
        SessionDeleted: the session was deleted meanwhile.
    """
    followed = Followed(tenant_id, run.session_id)
    batches = core.followers.follow(followed, Position(run.after), run_id=run.run_id, gapless=gapless)
    async with aclosing(batches):
        async for frames in batches:
            yield frames
            if any(frame.type == "done" for frame in frames):
                return


async def finished(
    request: Request,
    core: Core,
    caller: Principal,
    run: Submitted,
    wait_seconds: float,
    held: Held | None = None,
    left: Leaving | None = None,
) -> dict[str, Any] | None:
    """The run as stored once it is over. None when it is not after `wait_seconds`, or cannot be read for READ_SECONDS,
    or when the client has gone away, after `left` was called.

    Args:
        held: what the wait was opened as, unless it is a short one. Of those no key has a share.

    Raises:
        RunFailed: the session was deleted meanwhile, or the database has lost the run.
        Unauthorized, Forbidden: the key may not wait on.
    """
    return await attended(request, caller, _finished(core, caller.tenant_id, run, wait_seconds), held, left)


async def attended(
    request: Request,
    caller: Principal,
    waiting: Coroutine[Any, Any, T],
    held: Held | None = None,
    left: Leaving | None = None,
) -> T | None:
    """What a client waits for; None when it has gone away, after `left` was called. `held`: see `finished`.

    Raises as `waiting`, and Unauthorized, Forbidden: the key may not wait on.
    """
    with held or instance_of(request).opened.hold(None, caller) as place:
        work = asyncio.create_task(waiting, name="wait")
        gone = asyncio.create_task(disconnected(request.receive), name="wait-disconnect")
        try:
            await asyncio.wait({work, gone, place.over}, return_when=asyncio.FIRST_COMPLETED)
            if place.why:
                raise place.why
            # When the instance stops, so does the run, and its client is to hear how.
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if left is not None:
                await left()
            return None
        finally:
            await tasks.end(work, gone)


async def _finished(core: Core, tenant_id: UUID, run: Submitted, wait_seconds: float) -> dict[str, Any] | None:
    frames = run_frames(core, tenant_id, run)
    try:
        async with asyncio.timeout(wait_seconds), aclosing(frames):
            async for _ in frames:
                continue
    except TimeoutError:
        return None
    except SessionDeleted as error:
        ids = {"session_id": str(run.session_id), "run_id": str(run.run_id)}
        raise RunFailed(error.code, failure(error.code)["message"], ids) from error
    until = asyncio.get_running_loop().time() + READ_SECONDS
    try:
        return await retrying(
            partial(runs.get, core.db, tenant_id, run.run_id), until=lambda: asyncio.get_running_loop().time() > until
        )
    except Unavailable:
        return None  # it was accepted, and is told by its id: that it cannot be read now makes it no failure


def outcome_or_error(run: dict[str, Any]) -> dict[str, Any]:
    """The result of a finished run, flat, with its ids.

    Raises:
        RunFailed: it did not succeed; the details hold the ids and the result, if the SDK gave one.
    """
    ids = {"session_id": run["session_id"], "run_id": run["run_id"]}
    if run["status"] != "succeeded":
        error = run["error"] or {"code": "execution_error", "message": "The run failed."}
        details = {**ids, "result": run["result"], **error.get("details", {})}
        raise RunFailed(error["code"], error["message"], details, error.get("retry_after_seconds"))
    return {**ids, **(run["result"] or {})}
