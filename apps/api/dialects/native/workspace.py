"""All files of a session: as archives, and what the last run has changed in them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query, Request, Response
from pydantic import BaseModel, Field

from apps.api.core.files import paths
from apps.api.dialects.native.common import PREFIX, SessionId, errors
from apps.api.dialects.native.file_work import serve
from apps.api.dialects.native.files import FILE, Below
from apps.api.errors import ValidationError
from apps.api.web.callers import Reader, Writer
from apps.api.web.doors import FileRoute, Router

router = Router(prefix=PREFIX, tags=["files"])
content = Router(prefix=PREFIX, tags=["files"], route_class=FileRoute)


class Unpacked(BaseModel):
    """What an archive has brought."""

    members: int = Field(description="Files, directories and links in it.", examples=[12])


_ARCHIVE: dict[str, Any] = {
    "description": "The archive; the example is what `tar tz` tells of it.",
    "content": {
        "application/gzip": {"schema": FILE, "example": "src\nsrc/main.py\n"},
        "application/zip": {"schema": FILE, "example": "src\nsrc/main.py\n"},
    },
}


@router.get(
    "/sessions/{session_id}/archive", response_class=Response, responses={200: _ARCHIVE, **errors(404, 409, 413)}
)
async def get_archive(
    request: Request,
    caller: Reader,
    session_id: SessionId,
    path: Below = "",
    format: Annotated[Literal["tar.gz", "zip"], Query(description="Of the archive.")] = "tar.gz",  # noqa: A002 - its name
) -> Response:
    """All files of a session's workspace, or of the directory `path`, as one archive, made while it is sent. One that
    breaks off is not whole. Links are in it as links.
    """
    return await serve(request, caller, session_id, "archive", paths.checked(path, root=True), "read")


@content.put(
    "/sessions/{session_id}/archive",
    responses=errors(400, 404, 408, 409, 413),
    response_model=Unpacked,
    openapi_extra={"requestBody": {"required": True, "content": _ARCHIVE["content"]}},
)
async def put_archive(request: Request, caller: Writer, session_id: SessionId) -> Response:
    """Unpack the body, a gzipped tar or a zip, into a session's workspace: all of it or nothing. Files replace files of
    the same path; what else is there stays.

    422 for an archive that cannot be read, has a path or a link that leads out, or becomes too many times as large as
    it is.
    """
    return await serve(request, caller, session_id, "unpack", "", "write")


Since = Literal["run", "checkpoint"]


class Difference(BaseModel):
    """What has changed in a workspace."""

    since: Since
    files_changed: list[str] = Field(description="Paths, the first 1,000.", examples=[["app.py"]])
    diff: str = Field(
        description="A patch for `git apply`, from then to now.",
        examples=["diff --git a/app.py b/app.py\n--- a/app.py\n+++ b/app.py\n@@ -1 +1 @@\n-def old():\n+def new():\n"],
    )
    diff_omitted: bool = Field(description="Whether files were left out of it: large ones, or too many.")


@router.get("/sessions/{session_id}/diff", responses=errors(404, 409, 413), response_model=Difference)
async def get_diff(
    request: Request,
    caller: Reader,
    session_id: SessionId,
    since: Annotated[
        Since | None,
        Query(description="The beginning of the last run that changed files, or a checkpoint; `run` if left out."),
    ] = None,
    checkpoint_id: Annotated[UUID | None, Query(description="Since this checkpoint; else the newest.")] = None,
) -> Response:
    """What has changed in a session's workspace since the last run that changed files began, by agents and clients; or
    since a checkpoint, of the files that the agent's own tools (Write, Edit, NotebookEdit) have changed.

    409 `checkpointing_off` and 404 `checkpoint_not_found` as for `POST /sessions/{id}/rewind`, which leads back there.
    """
    if checkpoint_id is not None and since == "run":
        raise ValidationError.of("checkpoint_id", "goes with since=checkpoint")
    return await serve(request, caller, session_id, "diff", "", "read")
