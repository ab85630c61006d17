"""What an answer says of what was removed, and of what is removed later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from apps.api.core.fleet.erasure import Erased
from apps.api.core.sessions.deletion import Deleted, Gone


class RemovedRows(BaseModel):
    """Rows of one kind that are gone. `runs` of a session are kept for reports of usage: what they were asked and what
    came of them is gone."""

    what: str = Field(examples=["events"])
    rows: int = Field(examples=[120])
    bytes: int | None = Field(description="What they held, where that is known.", examples=[48213])


class RemovedLater(BaseModel):
    """What goes without being asked for, and by whom."""

    what: Literal["agent", "files", "rows"] = Field(
        description="`agent`: its process, with its own files, within seconds. `files`: workspace, HOME and outputs, by"
        " each of these instances that has them on its host, at once or with its next look within 10 minutes; one that"
        " is down does it after it has started. `rows`: what is left in the database, within minutes."
    )
    instances: list[UUID] = Field(description="By these; by any, if there are none.")


class Removed(BaseModel):
    """What went, by kind, and what goes later. Redis is told at once; what it does not hear it forgets within 10
    minutes."""

    removed: list[RemovedRows]
    later: list[RemovedLater]


class SessionRemoved(Removed):
    """What became of a session."""

    session_id: UUID


class TenantRemoved(Removed):
    """How far the deletion of a tenant has come. `removed` counts from its beginning."""

    tenant: str = Field(examples=["acme"])
    tenant_id: UUID
    status: Literal["deleting", "deleted"]


def rows_of(removed: Mapping[str, Gone]) -> list[RemovedRows]:
    """In the order of their names."""
    return [RemovedRows(what=what, rows=gone.rows, bytes=gone.size) for what, gone in sorted(removed.items())]


def later_of(gone: Deleted | Erased) -> list[RemovedLater]:
    """What is removed by others, or after the answer."""
    later = [RemovedLater(what="files", instances=gone.instances)]
    owner = gone.owner if isinstance(gone, Deleted) else None
    if owner is not None:
        later.insert(0, RemovedLater(what="agent", instances=[owner]))
    if not gone.whole:
        later.append(RemovedLater(what="rows", instances=[]))
    return later
