"""Sending a prompt: queued, announced to the runners, and the run that is in its way interrupted if so asked."""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import UUID

import structlog

from apps.api.core.context import Core
from apps.api.core.fleet import cancellation
from apps.api.core.sessions import forks, prompts
from apps.api.core.sessions.prompts import Submission, Submitted
from apps.api.db import retrying
from apps.api.errors import Conflict, NotFound, Unavailable

log = structlog.get_logger(__name__)

PATIENCE = 10.0
"""Seconds for which what is in a prompt's way is tried to be interrupted. The prompt is stored: after that it waits."""


async def send(core: Core, tenant_id: UUID, api_key_id: UUID | None, submission: Submission) -> Submitted:
    """Queue a prompt and announce it. Raises as `prompts.submit`."""
    run = await prompts.submit(core, tenant_id, api_key_id, submission)
    await _announce(core, tenant_id, run)
    return run


async def fork(core: Core, tenant_id: UUID, api_key_id: UUID | None, asked: forks.Fork) -> forks.Forked:
    """Fork a session, and announce the first run of the fork if it has one. Raises as `forks.fork`."""
    forked = await forks.fork(core, tenant_id, api_key_id, asked)
    if forked.run is not None:
        await _announce(core, tenant_id, forked.run)
    return forked


async def _announce(core: Core, tenant_id: UUID, run: Submitted) -> None:
    """Wake who may execute a run that was queued, and interrupt the one that is in its way, if it says so."""
    if not run.repeated:
        core.wake(tenant_id, run.session_id)
    if run.busy_with is not None:
        until = asyncio.get_running_loop().time() + PATIENCE
        try:
            await retrying(
                partial(cancellation.cancel, core, tenant_id, run.busy_with),
                until=lambda: asyncio.get_running_loop().time() > until,
            )
        except (Conflict, NotFound):
            return  # it has ended meanwhile
        except Unavailable:
            log.warning("prompt.nothing_interrupted", run_id=str(run.run_id), busy_with=str(run.busy_with))
