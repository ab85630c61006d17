"""Presets: named, versioned configurations of agents.

A version never changes. A session keeps the configuration that it was created with, so a new version of a preset, or
its removal, changes no session that exists.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from apps.api import audit
from apps.api.core.codec import timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.pages import Page, as_told, bounded, cut, number_of, read_cursor, write_cursor
from apps.api.core.tenant import idempotency
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound, ValidationError

ATTEMPTS = 20
"""To add a version while others do; one of those who try at the same moment always succeeds."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A preset as a client gives it, or a version of it as it is stored.

    Attributes:
        title: what people call it, where that is not its name. Others may have the same.
        metadata: what a client hangs on it for its own use.
    """

    description: str | None
    profile: str | None
    config: AgentConfig
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Draft:
        """A version as it is stored."""
        config = AgentConfig.stored(row["config"])
        return cls(row["description"], row["profile"], config, row["title"], row["metadata"])

    @classmethod
    def merged(cls, before: Draft, changes: Mapping[str, Any]) -> Draft:
        """The draft with these fields changed; None takes a field away. Raises ValueError (pydantic's)."""
        own = {name: getattr(before, name) for name in ("description", "profile", "title", "metadata")}
        fields = {**before.config.given(), **own, **changes}
        own = {name: fields.pop(name) for name in own}
        given = {name: value for name, value in fields.items() if value is not None}
        return cls(config=AgentConfig.stored(given), **{**own, "metadata": own["metadata"] or {}})


Judge = Callable[[Draft], Awaitable[None]]
"""Whether a caller may store a draft: raises ValidationError, Forbidden. It may ask the network for names."""


async def create(
    db: Database, tenant_id: UUID, name: str, draft: Draft, judge: Judge, repeat: Idempotency | None = None
) -> UUID:
    """Store a preset's first version; returns its id.

    Raises:
        ValidationError: the name looks like an id.
        Conflict: `name_in_use`, `idempotency_key_reused`.
        ValidationError, Forbidden: as `judge`.
    """
    if as_id(name) is not None:
        raise ValidationError.of("name", "must not look like an id")
    await judge(draft)
    try:
        async with db.transaction() as connection:
            if repeat and (before := await idempotency.repeated(connection, tenant_id, repeat)):
                if before.object_id is None:
                    raise idempotency.reused()
                return before.object_id
            agent_id: UUID = await connection.fetchval(
                "INSERT INTO agents (tenant_id, name, description) VALUES ($1, $2, $3) RETURNING id",
                tenant_id,
                name,
                draft.description,
            )
            await _add_version(connection, agent_id, 1, draft)
            await audit.note(connection, "preset.created", tenant_id, agent_id, name=name)
            if repeat:
                await idempotency.remember(connection, tenant_id, repeat, object_id=agent_id)
            return agent_id
    except asyncpg.UniqueViolationError as error:
        raise Conflict(f"A preset of the name {name} exists.", code="name_in_use") from error


async def _add_version(connection: asyncpg.Connection, agent_id: UUID, version: int, draft: Draft) -> None:
    await connection.execute(
        "INSERT INTO agent_versions (agent_id, version, profile, config, title, metadata)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        agent_id,
        version,
        draft.profile,
        draft.config.given(),
        draft.title,
        dict(draft.metadata),
    )


async def revise(
    db: Database,
    tenant_id: UUID,
    reference: str,
    changes: Mapping[str, Any],
    judge: Judge,
    *,
    whole: bool,
    expected: int | None = None,
    only_news: bool = False,
) -> None:
    """Add a version: the newest with these changes, or with `whole` nothing but them (title and metadata stay).

    Args:
        expected: the version that is to be the newest one, where that matters.
        only_news: what changes nothing adds no version.

    Raises:
        NotFound: no such preset.
        Conflict: `preset_busy`, others go on changing it; `preset_changed`, another version is the newest;
            `preset_archived`.
        ValidationError, Forbidden: as `judge`.
    """
    for _ in range(ATTEMPTS):
        newest = await find(db.pool, tenant_id, reference.partition("@")[0])
        if newest["archived_at"] is not None:
            raise Conflict("This preset is archived and changes no more.", code="preset_archived")
        if expected not in (None, newest["version"]):
            text = f"The newest version is {newest['version']}, not {expected}: read it, and send the change again."
            raise Conflict(text, code="preset_changed")
        stored = Draft.of(newest)
        before = Draft(None, None, AgentConfig(), stored.title, stored.metadata) if whole else stored
        draft = Draft.merged(before, changes)
        if only_news and draft == stored:
            return
        await judge(draft)
        async with db.transaction() as connection:
            # Whoever changed it meanwhile has made another draft of this one.
            follows = await connection.fetchval(_FOLLOW, newest["id"], newest["version"], draft.description)
            if follows is not None:
                await _add_version(connection, newest["id"], follows, draft)
                told = {"name": newest["name"], "version": follows}
                await audit.note(connection, "preset.changed", tenant_id, newest["id"], **told)
                return
    raise Conflict("Others are changing this preset at this moment; send it again.", code="preset_busy")


_FOLLOW = """
UPDATE agents SET version = version + 1, description = $3, updated_at = now()
WHERE id = $1 AND version = $2 AND deleted_at IS NULL RETURNING version
"""


async def delete(db: Database, tenant_id: UUID, reference: str) -> None:
    """Remove a preset. Sessions that began with it keep what they have. Raises NotFound."""
    id_, name, _ = parse_reference(reference)
    async with db.transaction() as connection:
        gone = await connection.fetchrow(
            "UPDATE agents SET deleted_at = now() WHERE tenant_id = $1 AND (id = $2 OR ($2 IS NULL AND name = $3))"
            " AND deleted_at IS NULL RETURNING id, name",
            tenant_id,
            id_,
            name,
        )
        if gone is None:
            raise NotFound.of("agent")
        await audit.note(connection, "preset.deleted", tenant_id, gone["id"], name=gone["name"])


async def archive(db: Database, tenant_id: UUID, reference: str) -> None:
    """Let nobody begin sessions with a preset any more, nor change it. Once is enough. Raises NotFound."""
    id_, name, _ = parse_reference(reference)
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "UPDATE agents a SET archived_at = coalesce(a.archived_at, now()) FROM agents before"
            " WHERE a.tenant_id = $1 AND (a.id = $2 OR ($2 IS NULL AND a.name = $3)) AND a.deleted_at IS NULL"
            " AND before.id = a.id RETURNING a.id, a.name, before.archived_at",
            tenant_id,
            id_,
            name,
        )
        if row is None:
            raise NotFound.of("agent")
        if row["archived_at"] is None:
            await audit.note(connection, "preset.archived", tenant_id, row["id"], name=row["name"])


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "agent_id": str(row["id"]),
        "name": row["name"],
        "title": row["title"],
        "metadata": row["metadata"],
        "archived_at": timestamp(row["archived_at"]) if row["archived_at"] else None,
        "description": row["description"],
        "version": row["version"],
        "newest_version": row["newest"],
        "profile": row["profile"],
        "config": AgentConfig.stored(row["config"]).public(),
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
    }


async def get(db: Database, tenant_id: UUID, reference: str) -> dict[str, Any]:
    """A preset's version, the newest unless the reference names one. Raises NotFound."""
    return _shown(await find(db.pool, tenant_id, reference))


async def version(db: Database, tenant_id: UUID, agent_id: UUID, number: int) -> dict[str, Any] | None:
    """A version that a session began with, also of a preset that was removed since; None where there is none."""
    query = f"{_COLUMNS} WHERE a.id = $1 AND a.tenant_id = $2 AND v.version = $3"
    row = await db.pool.fetchrow(query, agent_id, tenant_id, number)
    return row and _shown(row)


_COLUMNS = """
SELECT a.id, a.name, a.description, v.title, v.metadata, v.profile, v.config, v.version, a.version AS newest,
  a.created_at, a.archived_at, v.created_at AS updated_at FROM agents a JOIN agent_versions v ON v.agent_id = a.id
"""

_PAGE = bounded(
    f"""{_COLUMNS} AND v.version = a.version WHERE a.tenant_id = $1 AND a.deleted_at IS NULL
  AND a.archived_at IS NULL
  AND ($2::text IS NULL OR strpos(lower(a.name || ' ' || coalesce(a.description, '')), lower($2)) > 0)
  AND ($3::text IS NULL OR a.name COLLATE "C" > $3) ORDER BY a.name COLLATE "C" LIMIT $4""",
    "config",
    'name COLLATE "C"',
    size="pg_column_size",
)

_VERSIONS = bounded(
    f"""{_COLUMNS} WHERE a.id = $1 AND a.tenant_id = $2 AND ($3::bigint IS NULL OR v.version < $3)
  ORDER BY v.version DESC LIMIT $4""",
    "config",
    "version DESC",
    size="pg_column_size",
)


async def list_page(db: Database, tenant_id: UUID, search: str | None, *, limit: int, cursor: str | None) -> Page:
    """Presets with their newest versions, by name. `search`: part of name or description, any case."""
    page, more = cut(await db.pool.fetch(_PAGE, tenant_id, search, cursor, limit + 1), limit)
    return Page([_shown(row) for row in page], page[-1]["name"] if more else None)


_BY_TIME = bounded(
    f"""{_COLUMNS} AND v.version = a.version WHERE a.tenant_id = $1 AND a.deleted_at IS NULL
  AND ($2 OR a.archived_at IS NULL) AND ($3::timestamptz IS NULL OR a.created_at >= $3)
  AND ($4::timestamptz IS NULL OR a.created_at < $4)
  AND ($5::timestamptz IS NULL OR (a.created_at, a.id) < ($5, $6::uuid))
  ORDER BY a.created_at DESC, a.id DESC LIMIT $7""",
    "config",
    "created_at DESC, id DESC",
    size="pg_column_size",
)


async def list_by_time(
    db: Database,
    tenant_id: UUID,
    *,
    archived: bool,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    cursor: str | None,
) -> Page:
    """Presets with their newest versions, newest first. `archived`: those, too. Raises ValidationError."""
    after = read_cursor(cursor) if cursor else (None, None)
    begin, end = since and as_told(">=", since)[1], until and as_told("<=", until)[1]
    rows = await db.pool.fetch(_BY_TIME, tenant_id, archived, begin, end, *after, limit + 1)
    page, more = cut(rows, limit)
    last = page[-1] if more else None
    return Page([_shown(row) for row in page], write_cursor(last["created_at"], last["id"]) if last else None)


async def versions(db: Database, tenant_id: UUID, reference: str, *, limit: int, cursor: str | None) -> Page:
    """All versions of a preset, newest first. Raises NotFound, ValidationError."""
    found = await find(db.pool, tenant_id, reference.partition("@")[0])
    rows = await db.pool.fetch(_VERSIONS, found["id"], tenant_id, number_of(cursor), limit + 1)
    page, more = cut(rows, limit)
    return Page([_shown(row) for row in page], str(page[-1]["version"]) if more else None)


def parse_reference(reference: str) -> tuple[UUID | None, str, int | None]:
    """Id, name and version of a reference: `name` or `id`, perhaps with `@version`. The name of an id is its text."""
    named, _, version = reference.partition("@")
    return as_id(named), named, int(version) if version else None


def as_id(text: Any) -> UUID | None:
    """The id that this text is, if it is one; an id is itself, or a check of it would be left out."""
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except (ValueError, TypeError, AttributeError):
        return None


_FIND = """
SELECT a.id, a.name, a.description, v.title, v.metadata, v.profile, v.config, v.version, a.version AS newest,
  a.created_at, a.archived_at, v.created_at AS updated_at
FROM agents a JOIN agent_versions v ON v.agent_id = a.id AND v.version = coalesce($4, a.version)
WHERE a.tenant_id = $1 AND (a.id = $2 OR ($2 IS NULL AND a.name = $3)) AND a.deleted_at IS NULL
"""


async def find(connection: asyncpg.Connection | asyncpg.Pool, tenant_id: UUID, reference: str) -> asyncpg.Record:
    """A preset's version. Raises NotFound `agent_not_found`."""
    row = await connection.fetchrow(_FIND, tenant_id, *parse_reference(reference))
    if row is None:
        raise NotFound.of("agent")
    return row
