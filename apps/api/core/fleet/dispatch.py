"""Sending a prompt: queued, announced to the runners, and the run that is in its way interrupted if so asked."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

from apps.api.core.context import Core
from apps.api.core.fleet import cancellation
from apps.api.core.sessions import prompts
from apps.api.core.sessions.prompts import Request, Submitted
from apps.api.errors import Conflict, ValidationError


def check(core: Core, texts: Iterable[str]) -> None:
    """Raises ValidationError when these texts of a prompt are too long together."""
    if sum(map(len, texts)) > core.settings.max_prompt_chars:
        raise ValidationError.of("prompt", f"longer than {core.settings.max_prompt_chars} characters")


async def send(core: Core, tenant_id: UUID, api_key_id: UUID, request: Request) -> Submitted:
    """Queue a prompt and announce it. Raises as `prompts.submit`."""
    limit = core.settings.max_queued_runs_per_session
    run = await prompts.submit(core.db, tenant_id, api_key_id, request, max_queued=limit)
    await announce(core, tenant_id, run)
    return run


async def announce(core: Core, tenant_id: UUID, run: Submitted) -> None:
    """Wake who may execute a run that was queued, and interrupt the one that is in its way, if it says so."""
    if not run.repeated:
        core.wake(tenant_id, run.session_id)
    if run.busy_with is not None:
        with suppress(Conflict):  # it has ended meanwhile
            await cancellation.cancel(core, tenant_id, run.busy_with)
