"""Forks: a new session that begins with what another one has said."""

from __future__ import annotations

from fastapi import Request, Response

from apps.api.core.fleet import dispatch
from apps.api.core.sessions import forks
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, IdempotencyKey, SessionId, errors
from apps.api.dialects.native.examples import STREAMED
from apps.api.dialects.native.prompts import leaving, run_request
from apps.api.dialects.native.sessions import state_of
from apps.api.dialects.native.stream import run_stream
from apps.api.web.answer import Json
from apps.api.web.callers import Prompter
from apps.api.web.doors import ContentRoute, Router
from apps.api.web.route import CoreDep, stream_of

router = Router(prefix=PREFIX, route_class=ContentRoute)


@router.post(
    "/sessions/{session_id}/fork",
    tags=["sessions"],
    response_class=Response,
    responses={**STREAMED, 201: {"model": wire.SessionState}, **errors(400, 404, 409, 413, 429)},
)
async def fork_session(
    request: Request,
    core: CoreDep,
    caller: Prompter,
    session_id: SessionId,
    body: wire.ForkBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a new session of this one: its conversation (all, or up to an event or message), files, options and labels.

    201 with the new session; with `prompt` a stream of its first run. Files are copied as they are now. 409
    `session_busy` while a run is active in what is to be copied. A fork counts as a prompt of the key.
    """
    asked = run_request(request.scope["path"], core, caller, body, body.prompt or "", session_id, idempotency_key)
    cut = forks.Fork(asked, begins=body.prompt is not None, at_seq=body.at_seq, message_uuid=body.message_uuid)
    if body.prompt is None:
        forked = await dispatch.fork(core, caller.tenant_id, caller.key_id, cut)
        state = await state_of(core, caller, forked.session_id)
        return Json(state.model_dump(mode="json"), status_code=201, headers=request.state.limit_headers)
    with stream_of(request, caller, "write") as held:
        run = (await dispatch.fork(core, caller.tenant_id, caller.key_id, cut)).run
        assert run is not None  # noqa: S101 - for the type checker
        left = leaving(core, caller, body, run)
        return run_stream(request, core, caller.tenant_id, run, held, partials=body.include_partial_messages, left=left)
