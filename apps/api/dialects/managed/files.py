"""Files: those that the tenant has uploaded, and those that are in the workspaces of its sessions."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from fastapi import Depends, Header, Path, Query, Request, Response
from pydantic import Field

from apps.api.auth import Principal
from apps.api.core.codec import timestamp
from apps.api.core.context import Core
from apps.api.core.files import paths, views
from apps.api.core.files.views import Item, Tree
from apps.api.core.tenant import uploads
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.uploads import Given, Upload
from apps.api.dialects.managed import examples, ids
from apps.api.dialects.managed.common import (
    IdempotencyKey,
    ManagedFileRoute,
    ManagedObject,
    ManagedPage,
    PageOf,
    answer,
    errors,
    listed,
    page,
    router,
    unsupported,
)
from apps.api.dialects.managed.sessions import state_of
from apps.api.errors import ValidationError
from apps.api.web import whereabouts
from apps.api.web.answer import Json
from apps.api.web.callers import Configurer, Reader, Writer, may_touch
from apps.api.web.doors import Router
from apps.api.web.download import UNKNOWN, media_type_of, of_file
from apps.api.web.incoming import FORM, Form, within
from apps.api.web.route import CoreDep, core_of, stream_of
from apps.api.web.whereabouts import Asked, telling

content = router(ManagedFileRoute)
resource = router()

FIELD, MIN_SECONDS, MAX_SECONDS = "expires_in_seconds", 3_600, 7_776_000
MAX_IDS = 100
FileId = Annotated[str, Path(max_length=8_000, description="The file's id.")]

_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {"file": _BINARY, FIELD: {"type": "integer"}},
                    "required": ["file"],
                },
                "example": {"file": "a,b\n1,2\n"},
            }
        },
    }
}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {UNKNOWN: {"schema": _BINARY, "example": "a,b\n1,2\n"}}},
    206: {"description": "The part that `Range` asks for."},
    304: {"description": "It still has an ETag of `If-None-Match`."},
}


# --- ids: of an upload, or of a session and a path in its workspace -------------------------------------------------


class InSession(NamedTuple):
    """A file of a session's workspace."""

    session_id: UUID
    path: str


def _write(session_id: UUID, path: str) -> str:
    return "file_" + base64.b32encode(session_id.bytes + path.encode()).decode().rstrip("=").lower()


def _read(text: str) -> UUID | InSession:
    """What an id names: NOBODY's upload if it names nothing."""
    if (upload := ids.read("file", text)) != ids.NOBODY:
        return upload
    digits = text.removeprefix("file_").upper()
    try:
        data = base64.b32decode(digits + "=" * (-len(digits) % 8))
        found = InSession(UUID(bytes=data[:16]), paths.checked(data[16:].decode()))
    except (ValueError, ValidationError):
        return ids.NOBODY
    return found if _write(*found) == text else ids.NOBODY


async def _of_session(core: Core, caller: Principal, session_id: UUID) -> None:
    """Whether the caller may see a session of this surface. Raises NotFound, Forbidden."""
    await may_touch(core, caller, {"session_id": str(session_id)})
    await state_of(core, caller, session_id)


# --- how they are told ----------------------------------------------------------------------------------------------


def _uploaded(upload: Upload) -> dict[str, Any]:
    return {
        "id": ids.write("file", upload.id),
        "type": "file",
        "filename": upload.name,
        "mime_type": upload.media_type,
        "size_bytes": upload.size,
        "created_at": timestamp(upload.created_at),
        "downloadable": True,
        "expires_at": timestamp(upload.expires_at) if upload.expires_at else None,
        "scope": None,
    }


def _made(session_id: UUID, item: Item) -> dict[str, Any]:
    name = item.path.rpartition("/")[2]
    return {
        "id": _write(session_id, item.path),
        "type": "file",
        "filename": name,
        "mime_type": media_type_of(name),
        "size_bytes": item.size,
        "created_at": timestamp(item.modified_at),
        "downloadable": True,
        "expires_at": None,
        "scope": {"id": ids.write("sesn", session_id), "type": "session"},
    }


# --- what is done where a session's files are ------------------------------------------------------------------------


async def _file(tree: Tree, path: str) -> Item:
    item = await tree.item(path)
    if item.kind != "file":
        raise views.not_found(path)
    return item


def _tellable(item: Item) -> bool:
    try:
        item.path.encode()
    except UnicodeEncodeError:
        return False
    return item.kind == "file"


async def _list(tree: Tree, asked: Asked) -> Response:
    query = asked.request.query_params
    limit, after = int(query.get("limit", 20)), _after(query.get("page"))
    found = [item for item in await tree.items("", recursive=True) if item.path > after and _tellable(item)]
    more = base64.urlsafe_b64encode(found[limit - 1].path.encode()).decode() if len(found) > limit else None
    return page([_made(asked.session_id, item) for item in found[:limit]], more)


def _after(cursor: str | None) -> str:
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode() if cursor else ""
    except ValueError as error:
        raise ValidationError.of("page", "not a page that this list gave") from error


async def _get(tree: Tree, asked: Asked) -> Response:
    return answer(_made(asked.session_id, await _file(tree, asked.path)))


async def _content(tree: Tree, asked: Asked) -> Response:
    item = await _file(tree, asked.path)
    return of_file(asked.request, item, partial(tree.read, item), asked.held)


async def _delete(tree: Tree, asked: Asked) -> Response:
    item = await _file(tree, asked.path)
    await tree.remove(item.path, views.Condition(), recursive=False)
    return _deleted(_write(asked.session_id, item.path))


def _deleted(id_: str) -> Json:
    return answer({"id": id_, "type": "file_deleted"})


LIST, GET, CONTENT, DELETE = "managed-list", "managed-get", "managed-content", "managed-delete"
whereabouts.WORK |= {LIST: _list, GET: _get, CONTENT: _content, DELETE: _delete}


async def _there(request: Request, caller: Principal, what: str, session_id: UUID, path: str, scope: str) -> Response:
    await _of_session(core_of(request), caller, session_id)
    with stream_of(request, caller, scope) as held:
        return await whereabouts.serve(Asked(what, path, request, held, caller.tenant_id, session_id))


Upon = Callable[[UUID], Awaitable[Response]]


async def _either(request: Request, caller: Principal, file: str, what: str, scope: str, upon: Upon) -> Response:
    named = _read(file)
    if isinstance(named, UUID):
        return await upon(named)
    return await _there(request, caller, what, *named, scope)


# --- routes ----------------------------------------------------------------------------------------------------------


def _name(form: Form) -> str:
    name = form.filename.replace("\\", "/").rpartition("/")[2]
    if not name:
        kind = form.media_type.partition(";")[0].strip().lower()
        name = f"unnamed{mimetypes.guess_extension(kind, strict=False) or ''}"
    return paths.checked(name, "file")


def _seconds(form: Form) -> int | None:
    if (given := form.fields.get(FIELD)) is None:
        return None
    if not given.isascii() or not given.isdecimal() or not MIN_SECONDS <= int(given) <= MAX_SECONDS:
        raise ValidationError.of(FIELD, f"must be between {MIN_SECONDS} and {MAX_SECONDS}")
    return int(given)


@content.post(
    "/files", response_model=ManagedObject, openapi_extra=_BODY, responses=errors(408, 409, 413, shows=examples.FILE)
)
async def upload_managed_file(
    request: Request,
    core: CoreDep,
    caller: Configurer,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store a file of the tenant's, for sessions that name it in `resources`."""
    if not (content_type or "").lower().startswith(FORM):
        raise ValidationError.of("body", f"must be {FORM}, with a part named file")
    with stream_of(request, caller, "write"):
        room = await uploads.room(core.db.pool, caller.tenant_id, caller.key_id)
        form = Form(request, "file", (FIELD,))
        with telling():
            stored = await uploads.send(core, caller.tenant_id, within(form.content(), room, "file_bytes"))
        name = _name(form)
        given = Given(name, uploads.media_type(form.media_type) or media_type_of(name), _seconds(form))
        once = Idempotency.given(idempotency_key, request.scope["path"], name, stored.digest, given.seconds)
        upload = await uploads.add(core, caller.tenant_id, caller.key_id, given, stored, once)
    return answer(_uploaded(upload))


@resource.get("/files", response_model=ManagedPage, responses=errors(404, 409, shows=examples.page_of(examples.FILE)))
async def list_managed_files(
    request: Request,
    core: CoreDep,
    caller: Reader,
    wanted: Annotated[list[str], Depends(listed("ids", Annotated[str, Field(max_length=8_000)]))],
    scope_id: Annotated[str | None, Query(max_length=80, description="A session: the files of its workspace.")] = None,
    limit: Annotated[int | None, Query(ge=1, le=1_000, description="Files on a page; 20 if left out.")] = None,
    page_of: PageOf = None,
) -> Response:
    """The tenant's files, newest first; with `scope_id` those of a session, by their paths."""
    if wanted:
        for field, value in (("scope_id", scope_id), ("limit", limit), ("page", page_of)):
            if value is not None:
                raise ValidationError.of(field, "does not go with ids")
        return page(await _by_ids(core, caller, list(dict.fromkeys(wanted))), None)
    if scope_id is not None:
        return await _there(request, caller, LIST, ids.read("sesn", scope_id), "", "read")
    found = await uploads.list_page(core.db, caller.tenant_id, limit=limit or 20, cursor=page_of)
    return page([_uploaded(upload) for upload in found.rows], found.next_cursor)


async def _by_ids(core: Core, caller: Principal, wanted: list[str]) -> list[dict[str, Any]]:
    if len(wanted) > MAX_IDS:
        raise ValidationError.of("ids", f"has more than {MAX_IDS}")
    named = [_read(id_) for id_ in wanted]
    if any(isinstance(one, InSession) for one in named):
        raise unsupported("ids", "a file of a session is listed by scope_id")
    found = await uploads.some(core.db, caller.tenant_id, {one for one in named if isinstance(one, UUID)})
    return [_uploaded(found[one]) for one in named if isinstance(one, UUID) and one in found]


@resource.get("/files/{file_id}", response_model=ManagedObject, responses=errors(404, 409, shows=examples.FILE))
async def get_managed_file(request: Request, core: CoreDep, caller: Reader, file_id: FileId) -> Response:
    """What is known of a file."""

    async def upon(upload: UUID) -> Response:
        return answer(_uploaded(await uploads.find(core.db.pool, caller.tenant_id, upload)))

    return await _either(request, caller, file_id, GET, "read", upon)


@resource.get("/files/{file_id}/content", response_class=Response, responses={**_CONTENT, **errors(404, 409, 416)})
async def get_managed_file_content(request: Request, core: CoreDep, caller: Reader, file_id: FileId) -> Response:
    """A file, or one range of its bytes (`Range`, `If-Range`). Always as an attachment."""

    async def upon(id_: UUID) -> Response:
        with stream_of(request, caller, "read") as held, telling():
            upload = await uploads.find(core.db.pool, caller.tenant_id, id_)
            item = Item(upload.name, "file", upload.size, int(upload.created_at.timestamp() * 1e9))
            read = partial(uploads.read, core, caller.tenant_id, upload)
            return of_file(request, item, read, held, upload.media_type)

    return await _either(request, caller, file_id, CONTENT, "read", upon)


@resource.delete(
    "/files/{file_id}", response_model=ManagedObject, responses=errors(404, 409, shows=examples.gone(examples.FILE))
)
async def delete_managed_file(request: Request, core: CoreDep, caller: Writer, file_id: FileId) -> Response:
    """Remove a file. Workspaces that it was put into keep theirs."""

    async def upon(upload: UUID) -> Response:
        caller.require_unbound()
        await uploads.delete(core.db, caller.tenant_id, upload)
        return _deleted(ids.write("file", upload))

    return await _either(request, caller, file_id, DELETE, "write", upon)


routes = Router()
routes.include_router(content)
routes.include_router(resource)
