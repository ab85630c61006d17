"""Resources of sessions: files and repositories that their workspaces are given."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query, Request, Response
from pydantic import Field

from apps.api.auth import Principal
from apps.api.core.config.resources import Resource
from apps.api.core.context import Core
from apps.api.core.files import views
from apps.api.core.files.views import Tree
from apps.api.core.sessions import given
from apps.api.core.tenant import disk, uploads
from apps.api.dialects.managed import examples, mounts
from apps.api.dialects.managed.common import (
    Closed,
    ManagedObject,
    ManagedPage,
    PageOf,
    answer,
    errors,
    explained,
    page,
    router,
    unsupported,
)
from apps.api.dialects.managed.mounts import ManagedFileMount
from apps.api.dialects.managed.sessions import SessionId, state_of
from apps.api.errors import NotFound, ValidationError
from apps.api.web import whereabouts
from apps.api.web.callers import Reader, Writer
from apps.api.web.incoming import within
from apps.api.web.route import CoreDep, core_of, stream_of
from apps.api.web.whereabouts import Asked

routes = router()

ResourceId = Annotated[str, Path(max_length=100, description="The resource's id.")]
PUT, REMOVE = "managed-put", "managed-remove"


class ManagedResourceUpdate(Closed):
    """A new token for a repository. Not supported."""

    model_config = explained()

    authorization_token: Annotated[str, Field(max_length=10_000)]


async def _put(tree: Tree, asked: Asked) -> Response:
    """Put an uploaded file, which the body names, to a path of a workspace."""
    core = core_of(asked.request)
    one = mounts.resource(ManagedFileMount.model_validate(await asked.request.json()))
    upload = await uploads.find(core.db.pool, asked.tenant_id, UUID(one.file_id or ""))
    content = uploads.read(core, asked.tenant_id, upload, 0, upload.size)
    room = await disk.room(core.db, asked.session_id)
    await tree.write(
        asked.path, within(content, room, "workspace_bytes", upload.size), views.Condition(none_match=("*",))
    )
    return answer({})


async def _remove(tree: Tree, asked: Asked) -> Response:
    with suppress(NotFound):  # the agent has removed it
        await tree.remove(asked.path, views.Condition(), recursive=False)
    return answer({})


whereabouts.WORK |= {PUT: _put, REMOVE: _remove}


async def _in_workspace(request: Request, caller: Principal, session_id: UUID, what: str, path: str) -> Response:
    """What is done in the workspace of a session whose agent has been at work."""
    with stream_of(request, caller, "write") as held:
        return await whereabouts.serve(Asked(what, path, request, held, caller.tenant_id, session_id))


async def _one(core: Core, caller: Principal, session_id: UUID, resource_id: str) -> tuple[Resource, dict[str, Any]]:
    state = await state_of(core, caller, session_id)
    for one, told in mounts.listed(state):
        if told["id"] == resource_id:
            return one, told
    raise NotFound("This session has no such resource.", code="file_not_found")


@routes.post(
    "/sessions/{session_id}/resources",
    response_model=ManagedObject,
    responses=errors(404, 409, 413, shows=examples.RESOURCE),
)
async def add_managed_resource(
    request: Request, core: CoreDep, caller: Writer, session_id: SessionId, body: ManagedFileMount
) -> Response:
    """Give a session one more file: it comes with the first run, or at once if an agent has been at work."""
    state, whose = await state_of(core, caller, session_id), (caller.tenant_id, session_id)
    mounts.require_room(one := mounts.resource(body), (other for other, _ in mounts.listed(state)))
    path = mounts.path_of(one)
    if not await given.add(core, *whose, one):
        answered = await _in_workspace(request, caller, session_id, PUT, path)
        if answered.status_code != 200:
            return answered
        await given.add(core, *whose, one, there=True)
    _, told = await _one(core, caller, session_id, mounts.id_of(session_id, path))
    return answer(told)


@routes.get(
    "/sessions/{session_id}/resources",
    response_model=ManagedPage,
    responses=errors(404, shows=examples.page_of(examples.RESOURCE)),
)
async def list_managed_resources(
    core: CoreDep,
    caller: Reader,
    session_id: SessionId,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Resources on a page; all of them if left out.")] = 1_000,
    page_of: PageOf = None,
) -> Response:
    """What a session was given, in the order in which it came."""
    found = mounts.shown(await state_of(core, caller, session_id))
    start = 0
    if page_of is not None:
        places = [number for number, told in enumerate(found) if told["id"] == page_of]
        if not places:
            raise ValidationError.of("page", "not a page that this list gave")
        start = places[0] + 1
    rest = found[start:]
    return page(rest[:limit], rest[limit - 1]["id"] if len(rest) > limit else None)


@routes.get(
    "/sessions/{session_id}/resources/{resource_id}",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.RESOURCE),
)
async def get_managed_resource(
    core: CoreDep, caller: Reader, session_id: SessionId, resource_id: ResourceId
) -> Response:
    """One resource of a session."""
    return answer((await _one(core, caller, session_id, resource_id))[1])


@routes.post(
    "/sessions/{session_id}/resources/{resource_id}",
    response_model=ManagedObject,
    responses=errors(404, 413, shows=examples.RESOURCE),
)
async def update_managed_resource(
    core: CoreDep, caller: Writer, session_id: SessionId, resource_id: ResourceId, body: ManagedResourceUpdate
) -> Response:
    """Nothing of a resource can be changed: 400."""
    await _one(core, caller, session_id, resource_id)
    raise unsupported("authorization_token", "is not kept with a session: store the tenant's secret GIT_TOKEN")


@routes.delete(
    "/sessions/{session_id}/resources/{resource_id}",
    response_model=ManagedObject,
    responses=errors(404, 409, shows=examples.gone(examples.RESOURCE)),
)
async def delete_managed_resource(
    request: Request, core: CoreDep, caller: Writer, session_id: SessionId, resource_id: ResourceId
) -> Response:
    """Take a resource from a session; a file also from its workspace. A repository that is in the workspace stays."""
    one, told = await _one(core, caller, session_id, resource_id)
    path, whose = mounts.path_of(one), (caller.tenant_id, session_id)
    if not await given.remove(core, *whose, path):
        if one.repository is not None:
            raise unsupported("resource_id", "the agent has worked in this repository: delete the session instead")
        answered = await _in_workspace(request, caller, session_id, REMOVE, path)
        if answered.status_code != 200:
            return answered
        await given.remove(core, *whose, path, gone=True)
    return answer({"id": told["id"], "type": "session_resource_deleted"})
