"""What sessions begin with, as these clients know it, and the core's resources that mean the same.

The workspace of a session is called `/workspace` here. Paths of others are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

from pydantic import Field, ValidationError

from apps.api.core.config.names import Text
from apps.api.core.config.resources import MAX_RESOURCES, Resource
from apps.api.core.context import Core
from apps.api.core.tenant import uploads
from apps.api.dialects.managed import ids
from apps.api.dialects.managed.common import Closed, explained, unsupported
from apps.api.errors import NotFound
from apps.api.errors import ValidationError as Invalid
from apps.api.web.errors import findings

WORKSPACE = "/workspace"
PREFIX = "sesrsc"

MountPath = Annotated[Text, Field(min_length=1, max_length=1_000)]


class ManagedFileMount(Closed):
    """A file that the tenant has uploaded."""

    model_config = explained()

    type: Literal["file"]
    file_id: Annotated[str, Field(max_length=8_000)]
    mount_path: MountPath | None = None


class Branch(Closed):
    """The newest commit of a branch."""

    type: Literal["branch"]
    name: Annotated[str, Field(max_length=200)]


class Commit(Closed):
    """One commit. Not supported."""

    type: Literal["commit"]
    sha: str


class ManagedRepositoryMount(Closed):
    """A git repository, without its history."""

    type: Literal["github_repository"]
    url: Annotated[str, Field(max_length=2_000)]
    checkout: Annotated[Branch | Commit, Field(discriminator="type")] | None = None
    mount_path: MountPath | None = None
    authorization_token: str | None = None


class ManagedMemoryMount(Closed):
    """A memory store. Not supported."""

    type: Literal["memory_store"]
    memory_store_id: Any = None
    access: Any = None
    instructions: Any = None


Mount = Annotated[ManagedFileMount | ManagedRepositoryMount | ManagedMemoryMount, Field(discriminator="type")]
Mounts = Annotated[list[Mount], Field(max_length=MAX_RESOURCES)]

_FIELDS = {"file_id": "file_id", "repository.url": "url", "repository.ref": "checkout.name", "path": "mount_path"}
"""Fields of the core's → of ours."""


def _path(given: str, field: str) -> str:
    if given.startswith("/") and not given.startswith(f"{WORKSPACE}/"):
        reason = f"must be below {WORKSPACE}, the session's workspace: agents are given nothing elsewhere"
        raise unsupported(f"{field}mount_path", reason)
    return given.removeprefix(f"{WORKSPACE}/")


def _options(mount: ManagedFileMount | ManagedRepositoryMount | ManagedMemoryMount, field: str) -> dict[str, Any]:
    if isinstance(mount, ManagedMemoryMount):
        raise unsupported(f"{field}type", "there are no memory stores: 'file' or 'github_repository'")
    path = {"path": _path(mount.mount_path, field)} if mount.mount_path is not None else {}
    if isinstance(mount, ManagedFileMount):
        id_ = ids.read("file", mount.file_id)
        if id_ == ids.NOBODY:
            raise Invalid.of(f"{field}file_id", "is no id of an uploaded file")
        return {"file_id": str(id_), "path": f"uploads/{ids.write('file', id_)}", **path}
    if mount.authorization_token is not None:
        reason = "is not kept with a session: store it as the tenant's secret GIT_TOKEN"
        raise unsupported(f"{field}authorization_token", reason)
    if isinstance(mount.checkout, Commit):
        raise unsupported(f"{field}checkout.type", "one commit alone is not cloned: 'branch'")
    ref = {"ref": mount.checkout.name} if mount.checkout is not None else {}
    return {"repository": {"url": mount.url, **ref}, **path}


def resource(mount: ManagedFileMount | ManagedRepositoryMount | ManagedMemoryMount, field: str = "") -> Resource:
    """The core's. `field`: where it stands in a request, with a dot at its end. Raises BadRequest, ValidationError."""
    try:
        return Resource.model_validate(_options(mount, field))
    except ValidationError as error:
        first = findings(error.errors())[0]
        where = first["field"].removeprefix("body.")
        raise Invalid.of(f"{field}{_FIELDS.get(where, 'url')}", first["reason"]) from error


def resources(mounts: Sequence[Mount]) -> list[Resource]:
    """All of a new session's. Raises BadRequest, ValidationError."""
    found = list[Resource]()
    for number, mount in enumerate(mounts):
        one = resource(mount, f"resources.{number}.")
        require_room(one, found, f"resources.{number}.")
        found.append(one)
    return found


async def of_session(core: Core, tenant_id: UUID, mounts: Sequence[Mount]) -> list[Resource]:
    """All of a new session's, whose files are there. Raises BadRequest, ValidationError, NotFound."""
    found = resources(mounts)
    missing = await uploads.missing(core.db, tenant_id, {UUID(one.file_id) for one in found if one.file_id})
    for number, one in enumerate(found):
        if one.file_id and UUID(one.file_id) in missing:
            raise NotFound(f"resources.{number}.file_id: No such file.", code="file_not_found")
    return found


def require_room(one: Resource, others: Iterable[Resource], field: str = "") -> None:
    """Whether nothing else is where it goes. Raises ValidationError."""
    path = path_of(one)
    for other in map(path_of, others):
        if f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"):
            raise Invalid.of(f"{field}mount_path", f"another resource is at {WORKSPACE}/{other}")


def path_of(one: Resource) -> str:
    """Where it goes, below the workspace."""
    return one.path or one.own_name or ""


def id_of(session_id: UUID, path: str) -> str:
    """The id of what is at a path of a session."""
    return ids.write(PREFIX, uuid5(session_id, path))


def listed(state: Mapping[str, Any]) -> Iterator[tuple[Resource, dict[str, Any]]]:
    """Those of a session, each with how it is told."""
    session_id, times = (
        UUID(state["session_id"]),
        {"created_at": state["created_at"], "updated_at": state["updated_at"]},
    )
    for one, told in of_config(state["config"]):
        yield one, {**told, "id": id_of(session_id, path_of(one)), **times}


def of_config(config: Mapping[str, Any]) -> Iterator[tuple[Resource, dict[str, Any]]]:
    """Those that a configuration has, each with how it is told where no session has it."""
    for stored in config.get("resources") or ():
        one = Resource.stored(stored)
        where = {"mount_path": f"{WORKSPACE}/{path_of(one)}"}
        if one.file_id is not None:
            yield one, {"type": "file", "file_id": ids.write("file", one.file_id), **where}
        elif one.repository is not None:
            ref = one.repository.ref
            checkout = {"type": "branch", "name": ref} if ref is not None else None
            yield one, {"type": "github_repository", "url": one.repository.url, "checkout": checkout, **where}


def shown(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a session, as these clients know them."""
    return [told for _, told in listed(state)]
