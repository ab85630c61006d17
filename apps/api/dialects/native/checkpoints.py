"""Files in time: checkpoints of a session, and the way back to one."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from apps.api.core.sessions import checkpoints
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import (
    PREFIX,
    Cursor,
    IdempotencyKey,
    Limit,
    SessionId,
    answer,
    errors,
    send_change,
)
from apps.api.dialects.native.examples import IDS
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, Writer
from apps.api.web.doors import Router
from apps.api.web.following import finished, outcome_or_error
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX)

REWIND_WAIT = 30.0
"""Seconds that a rewind is waited for: for the runs before it, and for an agent to start."""


class Checkpoint(BaseModel):
    """A prompt before which the files can be brought back."""

    session_id: UUID
    run_id: UUID | None = Field(description="The prompt's run; in a fork perhaps one of its parent's.")
    seq: int = Field(description="Number of its `checkpoint` event.")
    created_at: datetime
    checkpoint_id: UUID
    user_message_uuid: UUID = Field(description="`uuid` of the prompt's message; the same as `checkpoint_id`.")
    prompt: str = Field(description="The first 200 characters of the prompt.", examples=["Rename the function."])


class RewindBody(wire.Closed):
    """Which message to go back to; one of the two names it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"checkpoint_id": IDS["run_id"], "dry_run": True}]}
    )

    checkpoint_id: UUID | None = Field(None, description="The checkpoint.")
    user_message_uuid: UUID | None = Field(None, description="`uuid` of the prompt's message instead.")
    dry_run: bool = Field(False, description="Only say what would change.")

    @model_validator(mode="after")
    def _one(self) -> RewindBody:
        if (self.checkpoint_id is None) == (self.user_message_uuid is None):
            raise ValueError("give checkpoint_id or user_message_uuid")
        return self


class Rewound(BaseModel):
    """What was changed, or would be."""

    session_id: UUID
    run_id: UUID
    status: Literal["succeeded"]
    checkpoint_id: UUID
    dry_run: bool
    files_changed: list[str] = Field(description="Paths in the workspace, at most 1,000.", examples=[["app.py"]])
    not_restored: list[str] = Field(description="Those that could not be brought back.")
    insertions: int = Field(description="Lines that are added by it.")
    deletions: int = Field(description="Lines that are taken away by it.")
    diff: str | None = Field(
        None,
        description="Of a dry run: a patch for `git apply`, from now to then.",
        examples=["diff --git a/app.py b/app.py\n--- a/app.py\n+++ b/app.py\n@@ -1 +1 @@\n-def new():\n+def old():\n"],
    )
    diff_omitted: bool = Field(False, description="Whether large or binary files were left out of the diff.")


@router.get(
    "/sessions/{session_id}/checkpoints", tags=["sessions"], response_model=wire.Page[Checkpoint], responses=errors(404)
)
async def list_checkpoints(
    core: CoreDep, caller: Reader, session_id: SessionId, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Checkpoints of the session's conversation, one for each prompt, oldest first."""
    page = await checkpoints.list_page(core.db, caller.tenant_id, session_id, limit=limit, cursor=cursor)
    return answer(wire.Page[Checkpoint], page)


@router.post(
    "/sessions/{session_id}/rewind",
    tags=["sessions"],
    response_model=Rewound,
    responses={202: {"model": wire.Accepted}, **errors(400, 404, 409, 413, 502, 504)},
)
async def rewind_session(
    request: Request,
    core: CoreDep,
    caller: Writer,
    session_id: SessionId,
    body: RewindBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Bring files back to what they were before a prompt; the conversation stays as it is.

    Waits its turn behind runs that are queued before it. 202 when it has not come within 30 seconds: `GET /runs/{id}`
    has the result later. 409 `checkpointing_off` when no checkpoint was kept for that prompt.
    """
    message_id = body.checkpoint_id or body.user_message_uuid
    assert message_id is not None  # noqa: S101 - for the type checker
    await checkpoints.require(core.db, caller.tenant_id, session_id, message_id)
    wanted = {"checkpoint_id": str(message_id), "dry_run": body.dry_run}
    idempotency = Idempotency.given(idempotency_key, request.scope["path"], wanted)
    run = await send_change(core, caller, session_id, "rewind", wanted, idempotency)
    state = await finished(request, core, caller, run, REWIND_WAIT)
    if state is None:
        accepted = wire.Accepted(session_id=session_id, run_id=run.run_id)
        return Json(accepted.model_dump(mode="json"), status_code=202)
    return answer(Rewound, outcome_or_error(state))
