"""Files of sessions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Header, Path, Query, Request, Response

from apps.api.core.files import paths
from apps.api.dialects.native.common import PREFIX, SessionId, errors
from apps.api.dialects.native.file_work import FileState, Move, serve
from apps.api.dialects.native.schemas import Page
from apps.api.web.callers import FileReader, FileWriter, Writer
from apps.api.web.doors import FileRoute, Router

router = Router(prefix=PREFIX, tags=["files"])
content = Router(prefix=PREFIX, tags=["files"], route_class=FileRoute)

FilePath = Annotated[str, Path(description="The file's path below the workspace.", examples=["src/main.py"])]
Recursive = Annotated[bool, Query(description="Also what is in directories.")]
Below = Annotated[str, Query(max_length=paths.MAX_BYTES, description="A directory below the workspace.")]
After = Annotated[str | None, Query(max_length=2 * paths.MAX_BYTES, description="`next_cursor` of the page before.")]
IfMatch = Annotated[str | None, Header(max_length=1000, description="Only if the file has one of these ETags.")]
IfNoneMatch = Annotated[str | None, Header(max_length=1000, description="Only if it has none of these; `*`: is new.")]

FILE: dict[str, Any] = {"type": "string", "format": "binary"}
CONTENT: dict[str, Any] = {
    "description": "The file. Always as an attachment: it may be an agent's making.",
    "content": {"application/octet-stream": {"schema": FILE, "example": "a,b\n1,2\n"}},
    "headers": {name: {"schema": {"type": "string"}} for name in ("ETag", "Last-Modified", "Content-Disposition")},
}
PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range` asks for."},
    304: {"description": "It still has an ETag of `If-None-Match`."},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": FILE, "example": "a,b\n1,2\n"}},
    }
}


@router.get("/sessions/{session_id}/files", responses=errors(404, 409, 413), response_model=Page[FileState])
async def list_files(
    request: Request,
    caller: FileReader,
    session_id: SessionId,
    path: Below = "",
    recursive: Recursive = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="Entries on a page.")] = 100,
    cursor: After = None,
) -> Response:
    """What is in a session's workspace, in the order of paths; with `path`, in a directory of it. While an agent is at
    work it may change between two pages.
    """
    return await serve(request, caller, session_id, "list", paths.checked(path, root=True), "read")


@router.head(
    "/sessions/{session_id}/files/{path:path}",
    response_class=Response,
    responses={304: PARTS[304], **errors(404, 409)},
)
async def head_file(
    request: Request, caller: FileReader, session_id: SessionId, path: FilePath, if_none_match: IfNoneMatch = None
) -> Response:
    """The headers of a file of a session's workspace."""
    return await serve(request, caller, session_id, "get", paths.checked(path), "read")


@router.get(
    "/sessions/{session_id}/files/{path:path}",
    response_class=Response,
    responses={200: CONTENT, **PARTS, **errors(404, 409, 416)},
)
async def get_file(
    request: Request,
    caller: FileReader,
    session_id: SessionId,
    path: FilePath,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A file of a session's workspace, wherever it is: on the host of the agent that is at work, or in the store.

    One range of bytes may be asked for (`Range`, `If-Range`). Links are not followed: 409 `not_a_file`, as for
    directories.
    """
    return await serve(request, caller, session_id, "get", paths.checked(path), "read")


@content.put(
    "/sessions/{session_id}/files/{path:path}",
    responses={201: {"model": FileState, "description": "It is new."}, **errors(400, 404, 408, 409, 412, 413)},
    response_model=FileState,
    openapi_extra=_BODY,
)
async def put_file(
    request: Request,
    caller: FileWriter,
    session_id: SessionId,
    path: FilePath,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Store the body as a file of a session's workspace (201), or replace it (200), whole or not at all; directories on
    the way are made. Once it is answered the file is stored, also if the instance that runs the session dies.

    `If-None-Match: *` only makes a new one, `If-Match` only replaces the one with that ETag: else 412 `etag_mismatch`.
    At most MAX_FILE_BYTES.
    """
    return await serve(request, caller, session_id, "put", paths.checked(path), "write")


@router.delete("/sessions/{session_id}/files/{path:path}", status_code=204, responses=errors(404, 409, 412))
async def delete_file(
    request: Request,
    caller: Writer,
    session_id: SessionId,
    path: FilePath,
    recursive: Annotated[bool, Query(description="A directory with all that is in it.")] = False,
    if_match: IfMatch = None,
) -> Response:
    """Remove a file, a link or an empty directory of a session's workspace."""
    return await serve(request, caller, session_id, "delete", paths.checked(path), "write")


@router.post("/sessions/{session_id}/files/move", responses=errors(400, 404, 409, 412, 413), response_model=FileState)
async def move_file(
    request: Request,
    caller: Writer,
    session_id: SessionId,
    body: Annotated[Move, Body()],
    if_match: IfMatch = None,
) -> Response:
    """Give a file, directory or link of a session's workspace another path; directories on the way are made."""
    return await serve(request, caller, session_id, "move", "", "write")
