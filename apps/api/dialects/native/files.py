"""Files of sessions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Body, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from apps.api.auth import Principal
from apps.api.core.codec import timestamp
from apps.api.core.config.names import Text
from apps.api.core.files import paths, views
from apps.api.core.files.views import Condition, Item, Tree
from apps.api.core.sessions import session_files
from apps.api.core.tenant import quotas
from apps.api.dialects.native.common import PREFIX, SessionId, errors
from apps.api.dialects.native.schemas import Closed, Page
from apps.api.errors import NotFound, ValidationError
from apps.api.web import whereabouts
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, Writer
from apps.api.web.doors import FileRoute, Router
from apps.api.web.download import Download, headers_of, part_of
from apps.api.web.route import core_of, instance_of, stream_of
from apps.api.web.whereabouts import INTERNAL, Asked

router = Router(prefix=PREFIX, tags=["files"])
content = Router(prefix=PREFIX, tags=["files"], route_class=FileRoute)
internal = Router(route_class=FileRoute, include_in_schema=False)

FilePath = Annotated[str, Path(description="The file's path below the workspace.", examples=["src/main.py"])]
Recursive = Annotated[bool, Query(description="Also what is in directories.")]
Below = Annotated[str, Query(max_length=paths.MAX_BYTES, description="A directory below the workspace.")]
After = Annotated[str | None, Query(max_length=2 * paths.MAX_BYTES, description="`next_cursor` of the page before.")]
IfMatch = Annotated[str | None, Header(max_length=1000, description="Only if the file has one of these ETags.")]
IfNoneMatch = Annotated[str | None, Header(max_length=1000, description="Only if it has none of these; `*`: is new.")]

_EXAMPLE: dict[str, Any] = {
    "path": "src/main.py",
    "type": "file",
    "size": 1204,
    "modified_at": "2026-01-31T12:00:00.000000Z",
    "etag": '"18cf3a2b4c5d6e7f-4b4"',
}


class FileState(BaseModel):
    """A file, directory or link of a workspace."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    path: str = Field(description="Below the workspace. What is no UTF-8 in an agent's name is replaced by U+FFFD.")
    type: Literal["file", "directory", "link"]
    size: int = Field(description="Bytes of a file; 0 of others.")
    modified_at: datetime
    etag: str | None = Field(None, description="For `If-Match`, `If-None-Match` and `If-Range`; of files only.")
    leads: str | None = Field(None, description="Where a link leads. Links are never followed here.")


class Move(Closed):
    """What is to get another path."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"source": "draft.md", "target": "docs/final.md"}]}, extra="forbid"
    )

    source: Text = Field(max_length=paths.MAX_BYTES, description="Its path below the workspace.")
    target: Text = Field(max_length=paths.MAX_BYTES, description="The path that it gets.")
    overwrite: bool = Field(False, description="A file or link at `target` goes; else that is 409 `file_exists`.")


def shown(item: Item) -> dict[str, Any]:
    """An item, as it is told."""
    return {
        "path": paths.shown(item.path),
        "type": item.kind,
        "size": item.size,
        "modified_at": timestamp(item.modified_at),
        "etag": item.etag,
        "leads": paths.shown(item.leads) if item.kind == "link" else None,
    }


# --- what is done where the files are ------------------------------------------------------------------------------


async def _list(tree: Tree, asked: Asked) -> Response:
    query = asked.request.query_params
    limit, cursor = int(query.get("limit", 100)), _after(query.get("cursor"))
    found = await tree.items(asked.path, recursive=_is_set(asked.request, "recursive"))
    rest = [item for item in found if cursor is None or item.path > cursor]
    more = len(rest) > limit
    return Json(
        {
            "data": [shown(item) for item in rest[:limit]],
            "next_cursor": _cursor(rest[limit - 1].path) if more else None,
        }
    )


def _cursor(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode("utf-8", "surrogateescape")).decode()


def _after(cursor: str | None) -> str | None:
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode("utf-8", "surrogateescape") if cursor else None
    except (ValueError, binascii.Error) as error:
        raise ValidationError.of("cursor", "not a cursor that this list gave") from error


async def _get(tree: Tree, asked: Asked) -> Response:
    item, headers = await tree.item(asked.path), asked.request.headers
    if item.kind != "file":
        raise views.no_file(item)
    told = headers_of(item)
    if item.etag in _etags(headers.get("if-none-match")):
        return Response(
            status_code=304, headers={name: told[name] for name in ("ETag", "Last-Modified", "Cache-Control")}
        )
    part = part_of(item, headers.get("range"), headers.get("if-range"))
    if asked.request.method == "HEAD":
        return Response(headers=told)
    if part is None:
        return Download(tree.read(item, 0, item.size), asked.held, told)
    begin, length = part
    told |= {"Content-Length": str(length), "Content-Range": f"bytes {begin}-{begin + length - 1}/{item.size}"}
    return Download(tree.read(item, begin, length), asked.held, told, 206)


async def _put(tree: Tree, asked: Asked) -> Response:
    core = core_of(asked.request)
    room = await session_files.room(core, asked.session_id)
    item, is_new = await tree.write(asked.path, _bounded(asked.request, room), _condition(asked.request))
    headers = {"ETag": item.etag or ""}
    return Json(shown(item), status_code=201 if is_new else 200, headers=headers)


async def _bounded(request: Request, room: int | None) -> AsyncIterator[bytes]:
    """The body, as far as the limits of tenant and key allow it. Raises RateLimited."""
    announced, seen = request.headers.get("content-length", "0"), 0
    _require_room(room, int(announced) if announced.isdecimal() else 0)
    async for some in request.stream():
        seen += len(some)
        _require_room(room, seen)
        yield some


def _require_room(room: int | None, size: int) -> None:
    if room is not None and size > room:
        raise quotas.no_room(room)


async def _delete(tree: Tree, asked: Asked) -> Response:
    await tree.remove(asked.path, _condition(asked.request), recursive=_is_set(asked.request, "recursive"))
    return Response(status_code=204)


async def _move(tree: Tree, asked: Asked) -> Response:
    body = Move.model_validate(await asked.request.json())
    source, target = paths.checked(body.source, "source"), paths.checked(body.target, "target")
    if target == source or target.startswith(f"{source}/"):
        raise ValidationError.of("target", "must not be the source, or in it")
    return Json(shown(await tree.move(source, target, _condition(asked.request), overwrite=body.overwrite)))


def _is_set(request: Request, name: str) -> bool:
    """A parameter that the route, perhaps another instance's, has taken for a boolean."""
    return request.query_params.get(name, "false").lower() in ("true", "1", "yes", "y", "on", "t")


def _etags(header: str | None) -> tuple[str, ...]:
    return tuple(tag.strip().removeprefix("W/") for tag in header.split(",")) if header else ()


def _condition(request: Request) -> Condition:
    match, none_match = (request.headers.get(name) for name in ("if-match", "if-none-match"))
    return Condition(_etags(match) if match else None, _etags(none_match) if none_match else None)


WORK = {"list": _list, "get": _get, "put": _put, "delete": _delete, "move": _move}


# --- routes --------------------------------------------------------------------------------------------------------


async def _serve(request: Request, caller: Principal, session_id: UUID, what: str, path: str, scope: str) -> Response:
    with stream_of(request, caller, scope) as held:
        asked = Asked(what, path, request, held, session_id)
        return await whereabouts.serve(asked, caller.tenant_id, WORK[what])


_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_CONTENT: dict[str, Any] = {
    "description": "The file. Always as an attachment: it may be an agent's making.",
    "content": {"application/octet-stream": {"schema": _FILE, "example": "a,b\n1,2\n"}},
    "headers": {name: {"schema": {"type": "string"}} for name in ("ETag", "Last-Modified", "Content-Disposition")},
}
_PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range` asks for."},
    304: {"description": "It still has an ETag of `If-None-Match`."},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": _FILE, "example": "a,b\n1,2\n"}},
    }
}


@router.get("/sessions/{session_id}/files", responses=errors(404, 409, 413), response_model=Page[FileState])
async def list_files(
    request: Request,
    caller: Reader,
    session_id: SessionId,
    path: Below = "",
    recursive: Recursive = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="Entries on a page.")] = 100,
    cursor: After = None,
) -> Response:
    """What is in a session's workspace, in the order of paths; with `path`, in a directory of it. While an agent is at
    work it may change between two pages.
    """
    return await _serve(request, caller, session_id, "list", paths.checked(path, root=True), "read")


@router.head(
    "/sessions/{session_id}/files/{path:path}",
    response_class=Response,
    responses={304: _PARTS[304], **errors(404, 409)},
)
async def head_file(
    request: Request, caller: Reader, session_id: SessionId, path: FilePath, if_none_match: IfNoneMatch = None
) -> Response:
    """The headers of a file of a session's workspace."""
    return await _serve(request, caller, session_id, "get", paths.checked(path), "read")


@router.get(
    "/sessions/{session_id}/files/{path:path}",
    response_class=Response,
    responses={200: _CONTENT, **_PARTS, **errors(404, 409, 416)},
)
async def get_file(
    request: Request,
    caller: Reader,
    session_id: SessionId,
    path: FilePath,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A file of a session's workspace, wherever it is: on the host of the agent that is at work, or in the store.

    One range of bytes may be asked for (`Range`, `If-Range`). Links are not followed: 409 `not_a_file`, as for
    directories.
    """
    return await _serve(request, caller, session_id, "get", paths.checked(path), "read")


@content.put(
    "/sessions/{session_id}/files/{path:path}",
    responses={201: {"model": FileState, "description": "It is new."}, **errors(400, 404, 408, 409, 412, 413)},
    response_model=FileState,
    openapi_extra=_BODY,
)
async def put_file(
    request: Request,
    caller: Writer,
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
    return await _serve(request, caller, session_id, "put", paths.checked(path), "write")


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
    return await _serve(request, caller, session_id, "delete", paths.checked(path), "write")


@router.post("/sessions/{session_id}/files/move", responses=errors(400, 404, 409, 412, 413), response_model=FileState)
async def move_file(
    request: Request,
    caller: Writer,
    session_id: SessionId,
    body: Annotated[Move, Body()],
    if_match: IfMatch = None,
) -> Response:
    """Give a file, directory or link of a session's workspace another path; directories on the way are made."""
    return await _serve(request, caller, session_id, "move", "", "write")


@internal.api_route(INTERNAL, methods=["GET", "HEAD", "PUT", "POST", "DELETE"])
async def forwarded(request: Request, session_id: UUID, what: str, of: str = "") -> Response:
    """What another instance passes on to the owner of a session. It has seen who asks, and whether they may."""
    if what not in WORK:
        raise NotFound.of("file")
    with instance_of(request).opened.hold(None, None) as held:
        asked = Asked(what, paths.checked(of, "of", root=True), request, held, session_id)
        return await whereabouts.serve_forwarded(asked, WORK[what])
