"""Vaults: secrets that no session has but those which were created with their vault.

Two kinds: a bearer token for the MCP servers at one URL, and the value of a variable. The vaults of a session are fixed
when it is created; what is in them is looked up whenever an agent starts, and never read back by anybody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from apps.api import audit
from apps.api.core.codec import timestamp
from apps.api.core.pages import Page, read_cursor, write_cursor
from apps.api.core.tenant import vault
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound, ValidationError
from apps.api.settings import Settings

Kind = Literal["bearer", "variable"]

MAX_VAULTS, MAX_CREDENTIALS = 1_000, 20
"""Of a tenant, archived ones included; of a vault, those that are not archived."""

_VAULT = "id, name, metadata, created_at, updated_at, archived_at"
_CREDENTIAL = "id, vault_id, kind, target, name, metadata, created_at, updated_at, archived_at"


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    names = [name for name in ("id", "vault_id") if name in row.keys()]  # noqa: SIM118 - a record's
    kept = {name: row[name] for name in ("kind", "target", "name", "metadata") if name in row.keys()}  # noqa: SIM118
    times = {name: row[name] and timestamp(row[name]) for name in ("created_at", "updated_at", "archived_at")}
    return {**{name: str(row[name]) for name in names}, **kept, **times}


def _archived(noun: str) -> Conflict:
    return Conflict(f"This {noun} is archived and changes no more.", code="vault_archived")


# --- vaults --------------------------------------------------------------------------------------------------------


async def get(db: Database, tenant_id: UUID, vault_id: UUID) -> dict[str, Any]:
    """A vault. Raises NotFound."""
    query = f"SELECT {_VAULT} FROM vaults WHERE id = $1 AND tenant_id = $2"  # noqa: S608 - ours
    if (row := await db.pool.fetchrow(query, vault_id, tenant_id)) is None:
        raise NotFound.of("vault")
    return _shown(row)


_CREATE = f"""
INSERT INTO vaults (tenant_id, name, metadata) SELECT $1, $2, $3
WHERE (SELECT count(*) FROM vaults WHERE tenant_id = $1) < {MAX_VAULTS} RETURNING {_VAULT}
"""  # noqa: S608 - ours


async def create(db: Database, tenant_id: UUID, name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Make an empty vault; others may have its name. Raises Conflict `too_many_vaults`."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(_CREATE, tenant_id, name, dict(metadata))
        if row is None:
            raise Conflict(f"There are {MAX_VAULTS} vaults already.", code="too_many_vaults")
        await audit.note(connection, "vault.created", tenant_id, row["id"], name=name)
        return _shown(row)


async def change(
    db: Database, tenant_id: UUID, vault_id: UUID, name: str | None, metadata: Mapping[str, str] | None
) -> dict[str, Any]:
    """Change what is given, each as a whole. Raises NotFound, Conflict `vault_archived`."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "UPDATE vaults SET name = coalesce($3, name), metadata = coalesce($4, metadata), updated_at = now()"  # noqa: S608
            f" WHERE id = $1 AND tenant_id = $2 AND archived_at IS NULL RETURNING {_VAULT}",
            vault_id,
            tenant_id,
            name,
            None if metadata is None else dict(metadata),
        )
        if row is None:
            await get(db, tenant_id, vault_id)
            raise _archived("vault")
        await audit.note(connection, "vault.changed", tenant_id, vault_id, name=row["name"])
        return _shown(row)


async def archive(db: Database, tenant_id: UUID, vault_id: UUID) -> dict[str, Any]:
    """Forget the secrets of a vault, and let no session begin with it. Once is enough. Raises NotFound."""
    if (found := await get(db, tenant_id, vault_id))["archived_at"] is not None:
        return found
    async with db.transaction() as connection:
        await connection.execute(_EMPTY, vault_id, tenant_id, None)
        row = await connection.fetchrow(
            "UPDATE vaults SET archived_at = coalesce(archived_at, now()), updated_at = now()"  # noqa: S608 - ours
            f" WHERE id = $1 AND tenant_id = $2 RETURNING {_VAULT}",
            vault_id,
            tenant_id,
        )
        if row is None:
            raise NotFound.of("vault")
        await audit.note(connection, "vault.archived", tenant_id, vault_id, name=row["name"])
        return _shown(row)


_EMPTY = """
UPDATE credentials SET sealed = NULL, archived_at = now(), updated_at = now()
WHERE vault_id = $1 AND tenant_id = $2 AND archived_at IS NULL AND ($3::uuid IS NULL OR id = $3)
"""


async def delete(db: Database, tenant_id: UUID, vault_id: UUID) -> None:
    """Remove a vault with all that is in it. Sessions that name it have it no more. Raises NotFound."""
    async with db.transaction() as connection:
        name = await connection.fetchval(
            "DELETE FROM vaults WHERE id = $1 AND tenant_id = $2 RETURNING name", vault_id, tenant_id
        )
        if name is None:
            raise NotFound.of("vault")
        await audit.note(connection, "vault.deleted", tenant_id, vault_id, name=name)


async def list_page(db: Database, tenant_id: UUID, *, archived: bool, limit: int, cursor: str | None) -> Page:
    """Vaults, newest first. `archived`: those, too. Raises ValidationError."""
    return await _page(db, f"SELECT {_VAULT} FROM vaults WHERE tenant_id = $1", tenant_id, archived, limit, cursor)  # noqa: S608


async def _page(db: Database, query: str, of: UUID, archived: bool, limit: int, cursor: str | None) -> Page:
    after = read_cursor(cursor) if cursor else (None, None)
    rows = await db.pool.fetch(
        f"{query} AND ($2 OR archived_at IS NULL) AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))"
        " ORDER BY created_at DESC, id DESC LIMIT $5",
        of,
        archived,
        *after,
        limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return Page([_shown(row) for row in rows[:limit]], write_cursor(last["created_at"], last["id"]) if last else None)


# --- what is in them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """A credential as a client gives it. `target`: the URL of an MCP server, or the name of a variable."""

    kind: Kind
    target: str
    value: str
    name: str | None
    metadata: Mapping[str, str]


async def credential(db: Database, tenant_id: UUID, vault_id: UUID, credential_id: UUID) -> dict[str, Any]:
    """One of a vault. Raises NotFound."""
    query = f"SELECT {_CREDENTIAL} FROM credentials WHERE id = $1 AND vault_id = $2 AND tenant_id = $3"  # noqa: S608
    if (row := await db.pool.fetchrow(query, credential_id, vault_id, tenant_id)) is None:
        raise NotFound.of("credential")
    return _shown(row)


async def credentials(
    db: Database, tenant_id: UUID, vault_id: UUID, *, archived: bool, limit: int, cursor: str | None
) -> Page:
    """What is in a vault, newest first. Raises NotFound, ValidationError."""
    await get(db, tenant_id, vault_id)
    query = f"SELECT {_CREDENTIAL} FROM credentials WHERE vault_id = $1"  # noqa: S608 - ours
    return await _page(db, query, vault_id, archived, limit, cursor)


async def add(db: Database, settings: Settings, tenant_id: UUID, vault_id: UUID, given: Given) -> dict[str, Any]:
    """Put a credential into a vault.

    Raises:
        NotFound: `vault_not_found`.
        Conflict: `vault_archived`; `name_in_use`: there is one for this URL or variable; `too_many_credentials`.
        Unavailable: `encryption_not_configured`.
    """
    sealed = vault.seal(settings, given.value)
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            "SELECT archived_at FROM vaults WHERE id = $1 AND tenant_id = $2 FOR NO KEY UPDATE", vault_id, tenant_id
        )
        if row is None:
            raise NotFound.of("vault")
        if row["archived_at"] is not None:
            raise _archived("vault")
        there = await connection.fetch(
            "SELECT kind, target FROM credentials WHERE vault_id = $1 AND archived_at IS NULL", vault_id
        )
        if any((one["kind"], _same(one["target"])) == (given.kind, _same(given.target)) for one in there):
            raise Conflict("The vault has a credential for this already: change or archive that.", code="name_in_use")
        if len(there) >= MAX_CREDENTIALS:
            raise Conflict(f"A vault has at most {MAX_CREDENTIALS} credentials.", code="too_many_credentials")
        made = await connection.fetchrow(
            "INSERT INTO credentials (tenant_id, vault_id, kind, target, name, metadata, sealed)"  # noqa: S608 - ours
            f" VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {_CREDENTIAL}",
            tenant_id,
            vault_id,
            given.kind,
            given.target,
            given.name,
            dict(given.metadata),
            sealed,
        )
        await audit.note(connection, "credential.put", tenant_id, made["id"], new=True)
        return _shown(made)


async def revise(
    db: Database, settings: Settings, tenant_id: UUID, vault_id: UUID, credential_id: UUID, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Change `value`, `name` or `metadata` of a credential. Raises NotFound, Conflict `vault_archived`, Unavailable."""
    columns = {name: changes[name] for name in ("name", "metadata") if name in changes}
    if changes.get("value") is not None:
        columns["sealed"] = vault.seal(settings, changes["value"])
    sets = "".join(f", {name} = ${place}" for place, name in enumerate(columns, 4))
    async with db.transaction() as connection:
        row = await connection.fetchrow(
            f"UPDATE credentials SET updated_at = clock_timestamp(){sets} WHERE id = $1 AND vault_id = $2"  # noqa: S608
            f" AND tenant_id = $3 AND archived_at IS NULL RETURNING {_CREDENTIAL}",
            credential_id,
            vault_id,
            tenant_id,
            *columns.values(),
        )
        if row is None:
            await credential(db, tenant_id, vault_id, credential_id)
            raise _archived("credential")
        await audit.note(connection, "credential.put", tenant_id, credential_id, new=False)
        return _shown(row)


async def archive_credential(db: Database, tenant_id: UUID, vault_id: UUID, credential_id: UUID) -> dict[str, Any]:
    """Forget the secret. Once is enough. Raises NotFound."""
    found = await credential(db, tenant_id, vault_id, credential_id)
    if found["archived_at"] is None:
        async with db.transaction() as connection:
            await connection.execute(_EMPTY, vault_id, tenant_id, credential_id)
            await audit.note(connection, "credential.archived", tenant_id, credential_id)
    return await credential(db, tenant_id, vault_id, credential_id)


async def delete_credential(db: Database, tenant_id: UUID, vault_id: UUID, credential_id: UUID) -> None:
    """Remove a credential. Raises NotFound."""
    async with db.transaction() as connection:
        query = "DELETE FROM credentials WHERE id = $1 AND vault_id = $2 AND tenant_id = $3"
        if await connection.execute(query, credential_id, vault_id, tenant_id) != "DELETE 1":
            raise NotFound.of("credential")
        await audit.note(connection, "credential.deleted", tenant_id, credential_id)


# --- for sessions ----------------------------------------------------------------------------------------------------


async def require(db: Database, tenant_id: UUID, vault_ids: Sequence[UUID], field_: str = "vault_ids") -> None:
    """Whether a session may begin with these. Raises NotFound, ValidationError."""
    rows = await db.pool.fetch(
        "SELECT id, archived_at FROM vaults WHERE tenant_id = $1 AND id = ANY($2::uuid[])", tenant_id, list(vault_ids)
    )
    archived = {row["id"]: row["archived_at"] is not None for row in rows}
    for number, vault_id in enumerate(vault_ids):
        if vault_id not in archived:
            raise NotFound.of("vault")
        if archived[vault_id]:
            raise ValidationError.of(f"{field_}.{number}", "is archived: no session begins with it")


@dataclass(frozen=True, slots=True)
class Held:
    """What the vaults of a session hold, for its agents.

    Attributes:
        variables: values by name.
        bearers: tokens by the URL of an MCP server.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    bearers: Mapping[str, str] = field(default_factory=dict)

    def authorize(self, spec: dict[str, Any]) -> None:
        """Give an MCP server, as the agent's program takes it, the token for its URL, if there is one."""
        token = self.bearers.get(_same(spec["url"])) if "url" in spec else None
        if token is not None and not any(name.lower() == "authorization" for name in spec["headers"]):
            spec["headers"]["Authorization"] = f"Bearer {token}"


async def resolve(db: Database, settings: Settings, tenant_id: UUID, vault_ids: Sequence[UUID]) -> Held:
    """What is in these vaults now; of two for the same, the first vault's. For the runner only. Raises Unavailable."""
    if not vault_ids:
        return Held()
    rows = await db.pool.fetch(
        "SELECT vault_id, kind, target, sealed FROM credentials WHERE tenant_id = $1 AND vault_id = ANY($2::uuid[])"
        " AND archived_at IS NULL",
        tenant_id,
        list(vault_ids),
    )
    found: dict[str, dict[str, str]] = {"variable": {}, "bearer": {}}
    for row in sorted(rows, key=lambda row: vault_ids.index(row["vault_id"]), reverse=True):
        found[row["kind"]][_same(row["target"])] = vault.unseal(settings, row["sealed"])
    return Held(found["variable"], found["bearer"])


def _same(target: str) -> str:
    """One text for all ways to write a URL; the name of a variable as it is."""
    if "://" not in target:
        return target
    parts = urlsplit(target)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}{query}"
