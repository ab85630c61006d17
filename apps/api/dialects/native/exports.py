"""Archives of sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response

from apps.api.core.sessions import exports
from apps.api.core.sessions.exports import Exporter
from apps.api.dialects.native.common import PREFIX, SessionId, errors
from apps.api.web.callers import Writer
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.sse import EventStream

router = Router(prefix=PREFIX)

_MEMBERS = (
    "manifest.json\nsessions/9a499a4a-…/session.json\nsessions/9a499a4a-…/runs-0001.jsonl\n"
    "sessions/9a499a4a-…/events-0001.jsonl\nsessions/9a499a4a-…/transcript-0001.jsonl\n"
    "sessions/9a499a4a-…/files/notes.txt\nend.json"
)
_ARCHIVE: dict[str, Any] = {
    "description": "A gzipped tar; the example is what `tar tz` tells of it. Without `end.json` it was cut off.",
    "content": {
        "application/gzip": {
            "schema": {"type": "string", "contentMediaType": "application/gzip"},
            "example": _MEMBERS,
        }
    },
    "headers": {"Content-Disposition": {"schema": {"type": "string"}}},
}


@router.get(
    "/sessions/{session_id}/export",
    tags=["sessions"],
    response_class=Response,
    responses={200: _ARCHIVE, **errors(404, 409, 413, 429)},
)
async def export_session(request: Request, core: CoreDep, caller: Writer, session_id: SessionId) -> Response:
    """All of a session as one archive: its runs and their usage, its events, what its agent remembers, and its files as
    they were stored last. No values of `env`, of headers and of secrets are in it. `claude-agent-api import`
    reads it, also at another installation.

    409 `session_busy` while a run is queued or active, or waits for a person. If one begins meanwhile, the archive ends
    early; `import` refuses one that was cut off. 413 `workspace_too_large`: the files are more than
    MAX_WORKSPACE_COPY_BYTES. 409 `workspace_not_copied`: the store does not have them, or fails. The key must be
    allowed to `write`, since nothing else shows a session's files.
    """
    limit = core.settings.max_workspace_copy_bytes
    own = Exporter(core.db, core.settings, core.blocking.copies, core.objects, limit)
    with stream_of(request, caller, "write") as held:
        chunks = exports.session(own, caller.tenant_id, session_id)
        first = await anext(chunks)  # what cannot be exported is told as an error
        headers = {
            "Content-Type": "application/gzip",
            "Content-Disposition": f'attachment; filename="session-{session_id}.tar.gz"',
        }
        return EventStream(_whole(first, chunks), held, farewell=lambda _: b"", headers=headers)


async def _whole(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk
