"""Files that a tenant uploads, for the workspaces of its sessions."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

from apps.api.core.files import paths
from apps.api.core.files.views import Item
from apps.api.core.tenant import uploads
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.core.tenant.uploads import MAX_SECONDS, Given
from apps.api.dialects.native.common import PREFIX, Cursor, IdempotencyKey, Limit, errors
from apps.api.dialects.native.files import CONTENT, FILE, PARTS
from apps.api.dialects.native.schemas import Page
from apps.api.errors import ValidationError
from apps.api.web.answer import Json
from apps.api.web.callers import Configurer, Reader
from apps.api.web.doors import FileRoute, Router
from apps.api.web.download import media_type_of, of_file
from apps.api.web.incoming import FORM, Form, within
from apps.api.web.middleware import body_of
from apps.api.web.route import CoreDep, stream_of
from apps.api.web.whereabouts import telling

router = Router(prefix=PREFIX, tags=["files"])
content = Router(prefix=PREFIX, tags=["files"], route_class=FileRoute)

FileId = Annotated[UUID, Path(description="The file's id.")]
Seconds = Annotated[
    int | None,
    Query(ge=1, le=MAX_SECONDS, description="For how long it is to stay; until it is deleted if left out."),
]
FileName = Annotated[
    str | None,
    Query(max_length=paths.MAX_NAME_BYTES, description="Its name. Of a form: instead of the part's `filename`."),
]

_EXAMPLE: dict[str, Any] = {
    "file_id": "0b7c1f3e-8d0a-4c3e-9a55-0f5c2d8b7e11",
    "name": "sales.csv",
    "media_type": "text/csv",
    "size": 8,
    "sha256": "ec19ee37bb2d6e0a6e3f1a2c7c0b3b6f3c9d1b8b9a5d5a0f0d6d0e7f3a1c2b4d",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "expires_at": "2026-02-28T12:00:00.000000Z",
}
_FORM_FIELDS = {
    "type": "object",
    "properties": {"file": {**FILE, "description": "The file."}},
    "required": ["file"],
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": FILE, "example": "a,b\n1,2\n"},
            FORM: {"schema": _FORM_FIELDS, "example": {"file": "a,b\n1,2\n"}},
        },
    }
}


class FileObject(BaseModel):
    """A file that the tenant has uploaded."""

    model_config = {"json_schema_extra": {"examples": [_EXAMPLE]}}

    file_id: UUID
    name: str = Field(description="What it is called in a workspace, where a resource names no path.")
    media_type: str = Field(description="As it was uploaded, or as its name tells.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Of its content, in hexadecimal.")
    created_at: datetime
    expires_at: datetime | None = Field(description="When it goes by itself.")


@content.post(
    "/files",
    status_code=201,
    response_model=FileObject,
    openapi_extra=_BODY,
    responses=errors(400, 408, 409, 413),
)
async def upload_file(
    request: Request,
    core: CoreDep,
    caller: Configurer,
    name: FileName = None,
    expires_in_seconds: Seconds = None,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store a file, to be put into workspaces by `resources` of sessions and prompts.

    The body is the file itself, whose name is then in the query, or `multipart/form-data` with a part `file`. At most
    MAX_FILE_BYTES; all of a tenant's or a key's `file_bytes` of its limits.
    """
    with stream_of(request, caller, "write"):
        room = await uploads.room(core.db.pool, caller.tenant_id, caller.key_id)
        form = Form(request, "file") if (content_type or "").lower().startswith(FORM) else None
        if form is None:
            _check_name(name, "name")
            body = within(request.stream(), room, "file_bytes", body_of(request.scope).announced)
        else:
            body = within(form.content(), room, "file_bytes")
        with telling():
            stored = await uploads.send(core, caller.tenant_id, body)
        called, kind = (form.filename, form.media_type) if form else ("", content_type or "")
        name = _check_name(name or called, "name" if name else "file")
        given = Given(name, uploads.media_type(kind) or media_type_of(name), expires_in_seconds)
        once = Idempotency.given(idempotency_key, "/files", given.name, stored.digest, expires_in_seconds)
        upload = await uploads.add(core, caller.tenant_id, caller.key_id, given, stored, once)
    return Json(upload.public(), status_code=201)


def _check_name(name: str | None, field: str) -> str:
    if not name:
        raise ValidationError.of(field, "the file needs a name")
    if "/" in paths.checked(name, field):
        raise ValidationError.of(field, "must be a name, without a slash")
    return name


@router.get("/files", responses=errors(), response_model=Page[FileObject])
async def list_uploads(core: CoreDep, caller: Reader, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """The tenant's files, newest first."""
    page = await uploads.list_page(core.db, caller.tenant_id, limit=limit, cursor=cursor)
    return Json({"data": [upload.public() for upload in page.rows], "next_cursor": page.next_cursor})


@router.get("/files/{file_id}", responses=errors(404), response_model=FileObject)
async def get_upload(core: CoreDep, caller: Reader, file_id: FileId) -> Response:
    """What is known of a file."""
    return Json((await uploads.find(core.db.pool, caller.tenant_id, file_id)).public())


@router.get("/files/{file_id}/content", response_class=Response, responses={200: CONTENT, **PARTS, **errors(404, 416)})
async def get_upload_content(request: Request, core: CoreDep, caller: Reader, file_id: FileId) -> Response:
    """A file, or one range of its bytes (`Range`, `If-Range`)."""
    with stream_of(request, caller, "read") as held, telling():
        upload = await uploads.find(core.db.pool, caller.tenant_id, file_id)
        item = Item(upload.name, "file", upload.size, int(upload.created_at.timestamp() * 1e9))
        read = partial(uploads.read, core, caller.tenant_id, upload)
        return of_file(request, item, read, held, upload.media_type)


@router.delete("/files/{file_id}", status_code=204, responses=errors(404))
async def delete_upload(core: CoreDep, caller: Configurer, file_id: FileId) -> Response:
    """Remove a file. Workspaces that it was put into keep theirs."""
    await uploads.delete(core.db, caller.tenant_id, file_id)
    return Response(status_code=204)
