"""What can be done to a session while it lives."""

from __future__ import annotations

from fastapi import APIRouter

from apps.api.core import commands
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, SessionId, errors
from apps.api.http.route import CoreDep, Writer

router = APIRouter(prefix=PREFIX)


@router.post("/sessions/{session_id}/interrupt", tags=["sessions"], responses=errors(404, 409))
async def interrupt(core: CoreDep, caller: Writer, session_id: SessionId) -> wire.Interrupted:
    """Stop the current run, whichever instance executes it. The session stays and takes the next prompt.

    409 `no_live_run` when nothing runs.
    """
    status, run_id = await commands.send(
        core.db, core.redis, core.publisher, core.subscriptions, caller.tenant_id, session_id, "interrupt"
    )
    return wire.Interrupted.model_validate({"session_id": session_id, "run_id": run_id, "status": status})
