"""What is done to files of sessions where these are: on the instance that was asked, or that owns the session."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Any, Literal
from uuid import UUID, uuid4

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from apps.api.auth import Principal
from apps.api.core.codec import timestamp
from apps.api.core.config.names import Text
from apps.api.core.files import archives, paths, trees, views
from apps.api.core.files.patches import joined
from apps.api.core.files.views import Condition, Item, Tree
from apps.api.core.sessions import diffs, ports, session_files, workspaces
from apps.api.core.tenant import disk
from apps.api.dialects.native.schemas import Closed
from apps.api.errors import NotFound, ValidationError
from apps.api.web import whereabouts
from apps.api.web.answer import Json
from apps.api.web.doors import FileRoute, Router
from apps.api.web.download import Download, attached, etags, of_file
from apps.api.web.incoming import within
from apps.api.web.middleware import body_of
from apps.api.web.ports import FORWARDED
from apps.api.web.route import core_of, instance_of, stream_of
from apps.api.web.whereabouts import INTERNAL, Asked

router = Router(route_class=FileRoute, include_in_schema=False)

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
    item = await tree.item(asked.path)
    if item.kind != "file":
        raise views.no_file(item)
    return of_file(asked.request, item, partial(tree.read, item), asked.held)


async def _put(tree: Tree, asked: Asked) -> Response:
    core = core_of(asked.request)
    room = await disk.room(core.db, asked.session_id)
    item, is_new = await tree.write(asked.path, _within(asked.request, room), _condition(asked.request))
    headers = {"ETag": item.etag or ""}
    return Json(shown(item), status_code=201 if is_new else 200, headers=headers)


def _within(request: Request, room: int | None) -> AsyncIterator[bytes]:
    """The body, as far as the limits of tenant and key allow it. Raises RateLimited."""
    return within(request.stream(), room, "workspace_bytes", body_of(request.scope).announced)


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


def _condition(request: Request) -> Condition:
    match, none_match = (request.headers.get(name) for name in ("if-match", "if-none-match"))
    return Condition(etags(match) if match else None, etags(none_match) if none_match else None)


async def _give_archive(tree: Tree, asked: Asked) -> Response:
    format_: archives.Format = "zip" if asked.request.query_params.get("format") == "zip" else "tar.gz"
    items = await tree.items(asked.path, recursive=True)
    headers = attached(f"{asked.path.rpartition('/')[2] or asked.session_id}.{format_}")
    return Download(archives.packed(tree, items, format_), asked.held, headers)


async def _take_archive(tree: Tree, asked: Asked) -> Response:
    core, made = core_of(asked.request), uuid4().hex
    above, threads = core.settings.workspaces_root / workspaces.UPLOADS, core.blocking.stores
    archive, draft = above / f"{made}.archive", above / made
    await threads.run(trees.make_directory, draft)
    try:
        room = await disk.room(core.db, asked.session_id)
        with await threads.run(archive.open, "xb") as spool:
            async for some in _within(asked.request, room):
                await threads.run(spool.write, some)
        limits = session_files.limits(core.settings)
        allowed = limits if room is None else limits._replace(bytes=min(limits.bytes, max(room, 0)))
        count = await threads.run(archives.unpack, archive, draft, allowed)
        await tree.merge(draft)
    finally:
        await threads.run(workspaces.put_away, core.settings, archive)
        await threads.run(workspaces.put_away, core.settings, draft)
    return Json({"members": count})


MAX_DIFF_CHARS = 1_000_000


async def _diff(tree: Tree, asked: Asked) -> Response:
    core, whose, query = core_of(asked.request), (asked.tenant_id, asked.session_id), asked.request.query_params
    named = query.get("checkpoint_id")
    since = query.get("since") or ("checkpoint" if named else "run")
    if since == "run":
        found = await diffs.since_run(core, *whose, tree)
    else:
        found = await diffs.since_checkpoint(core, *whose, tree, UUID(named) if named else None)
    text, cut = await core.blocking.stores.run(joined, found.contents, MAX_DIFF_CHARS)
    return Json({"since": since, "files_changed": found.paths, "diff": text, "diff_omitted": found.omitted or cut})


whereabouts.WORK |= {
    "list": _list,
    "get": _get,
    "put": _put,
    "delete": _delete,
    "move": _move,
    "archive": _give_archive,
    "unpack": _take_archive,
    "diff": _diff,
}


async def serve(request: Request, caller: Principal, session_id: UUID, what: str, path: str, scope: str) -> Response:
    """Do something to a file of a session of the caller's tenant. `scope`: what the key must be allowed meanwhile."""
    with stream_of(request, caller, scope) as held:
        asked = Asked(what, path, request, held, caller.tenant_id, session_id)
        return await whereabouts.serve(asked)


@router.api_route(INTERNAL, methods=["GET", "HEAD", "PUT", "POST", "DELETE"])
async def forwarded(request: Request, session_id: UUID, what: str, of: str = "") -> Response:
    """What another instance passes on to the owner of a session. It has seen who asks, and whether they may."""
    tenant_id = ports.tenant_of(request.headers.get(FORWARDED, ""))
    if what not in whereabouts.WORK:
        raise NotFound.of("file")
    with instance_of(request).opened.hold(None, None) as held:
        asked = Asked(what, paths.checked(of, "of", root=True), request, held, tenant_id, session_id)
        return await whereabouts.serve_forwarded(asked)
