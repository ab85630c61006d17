"""Imports: what `exports` has written, perhaps elsewhere, or a stranger has. Run by a command, on its own connection.

Nothing of an archive keeps its id, and each line is judged before it is stored. All of it comes in one transaction, and
its files are in the store before that is committed: what is refused leaves nothing that anything refers to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO
from uuid import UUID, uuid4

import asyncpg

from apps.api import audit
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.tarball import BadArchive, Members
from apps.api.core.sessions import archive_lines as wire
from apps.api.core.sessions.importing import Imported, Importer, Preset, Refused, config_of
from apps.api.core.sessions.session_import import MAX_HEAD, MAX_LINE, SessionImport
from apps.api.core.tenant import mcp, signing, skills, vault, webhooks
from apps.api.errors import Unavailable
from apps.api.settings import TENANT_NAME

MAX_LINES = {"mcp_server": mcp.MAX_PER_TENANT, "skill": skills.MAX_PER_TENANT, "webhook": webhooks.MAX_WEBHOOKS}
"""Of a tenant."""


async def load(core: Importer, packed: BinaryIO, tenant: str | None, most: int) -> Imported:
    """Import an archive.

    Args:
        packed: the archive, opened for reading.
        tenant: the one that gets the session, which must exist; or the name of the new one in place of the archive's.
        most: bytes that the archive may have when it is unpacked, see `tarball.members`.

    Raises:
        BadArchive: what is wrong with it, and where.
        Refused: what is wrong here.
        StoreFailed: files cannot be stored.
        OSError: files cannot be written.
    """
    reading, begun = Members(packed, most), list[SessionImport]()
    whole = False
    try:
        async with core.connection.transaction():
            imported = await _load(core, reading, tenant, begun)
            whole = True
        return imported
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        raise BadArchive(str(error)) from error
    finally:
        reading.close()
        if not whole:  # else it may have been committed, whatever came instead of the answer
            await _remove(core, begun)


async def _remove(core: Importer, begun: list[SessionImport]) -> None:
    """Remove what was placed aside and stored. What resists is looked for later, see `workspaces.discard_forgotten` and
    `files.garbage`."""
    for session in begun:
        with suppress(OSError, StoreFailed):
            await session.discard()


async def _load(core: Importer, reading: Members, tenant: str | None, begun: list[SessionImport]) -> Imported:
    manifest = wire.read(wire.Manifest, reading.take("manifest.json").whole(MAX_HEAD), "manifest.json")
    alone = manifest.kind == "session"
    tenant_id, imported = await (_existing(core, tenant) if alone else _new(core, reading, tenant))
    while reading.peek().name != "end.json":
        if begun and alone:
            raise BadArchive(f"{reading.peek().name[:200]!r} does not belong into the archive of one session")
        begun.append(SessionImport(core, tenant_id, manifest, imported, alone=alone))
        await begun[-1].take(reading)
    if not begun and alone:
        raise BadArchive("end.json: there is no session before it")
    end = wire.read(wire.End, reading.take("end.json").whole(MAX_HEAD), "end.json")
    if end.members != reading.count - 1:
        raise BadArchive(f"end.json: members: {end.members} were written, and {reading.count - 1} are here")
    reading.end()
    # Nobody is told of runs that ended elsewhere: triggers have written that down in this transaction.
    await core.connection.execute(
        "DELETE FROM webhook_deliveries d USING webhooks w WHERE w.id = d.webhook_id AND w.tenant_id = $1"
        " AND d.created_at = now() AND d.type LIKE 'run.%'",
        tenant_id,
    )
    return imported


async def _existing(core: Importer, tenant: str | None) -> tuple[UUID, Imported]:
    if tenant is None:
        raise Refused("This is the archive of a session: name the tenant that gets it.")
    # KEY SHARE makes a deletion of the tenant wait.
    query = "SELECT id, deleting_at FROM tenants WHERE name = $1 FOR KEY SHARE"
    row = await core.connection.fetchrow(query, tenant)
    if row is None or row["deleting_at"] is not None:
        raise Refused(f"There is no tenant {tenant}.")
    return row["id"], Imported(tenant)


# --- what a tenant has beside its sessions -------------------------------------------------------------------------


async def _new(core: Importer, reading: Members, tenant: str | None) -> tuple[UUID, Imported]:
    if tenant is not None and not re.fullmatch(TENANT_NAME, tenant):
        raise Refused("A tenant's name has letters, digits, dots, dashes and underscores, at most 63.")
    lines = _tenant_lines(reading)
    first = next(lines, ("nothing", ""))[0]
    if not isinstance(first, wire.TenantLine):
        raise BadArchive("tenant-0001.jsonl line 1: is not about the tenant")
    imported = Imported(tenant or first.name)
    # With a conflict the transaction is over, so that this is asked first; whoever comes between is told as one.
    if await core.connection.fetchval("SELECT EXISTS (SELECT 1 FROM tenants WHERE name = $1)", imported.tenant):
        raise Refused(f"A tenant of the name {imported.tenant} exists; name another one.")
    tenant_id: UUID = await core.connection.fetchval(
        "INSERT INTO tenants (name, retention) VALUES ($1, $2) RETURNING id", imported.tenant, first.retention.given()
    )
    await audit.note(core.connection, "tenant.imported", tenant_id)
    counts = Counter[str]()
    for line, where in lines:
        counts[line.type] += 1
        if counts[line.type] > MAX_LINES.get(line.type, counts.total()):
            raise BadArchive(f"{where}: a tenant has at most {MAX_LINES[line.type]} of these")
        await _of_tenant(core, tenant_id, line, where, imported)
        imported.rows += 1
    for old, preset in imported.presets.items():
        if preset.newest not in preset.versions:
            raise BadArchive(f"preset {old}: its version {preset.newest} is missing")
    return tenant_id, imported


def _tenant_lines(reading: Members) -> Iterator[tuple[wire.AnyOfTenant, str]]:
    while re.fullmatch(r"tenant-[0-9]{4,9}\.jsonl", reading.peek().name):
        member = reading.take()
        for number, line in member.lines(MAX_LINE):
            where = f"{member.name} line {number}"
            yield wire.read(wire.OF_TENANT, line, where), where


async def _of_tenant(core: Importer, tenant_id: UUID, line: Any, where: str, imported: Imported) -> None:
    execute = core.connection.execute
    match line:
        case wire.PresetLine():
            if line.id in imported.presets:
                raise BadArchive(f"{where}: id: is there twice")
            imported.presets[line.id] = made = Preset(uuid4(), line.version)
            query = "INSERT INTO agents (id, tenant_id, name, description, version) VALUES ($1, $2, $3, $4, $5)"
            await execute(query, made.id, tenant_id, line.name, line.description, line.version)
        case wire.PresetVersionLine():
            await _version(core, line, where, imported)
        case wire.McpServerLine():
            spec = line.spec.model_dump()
            if spec.get("env") or spec.get("headers"):
                imported.lacking.append(f"MCP server {line.name}: register it again, with its values")
            else:
                query = "INSERT INTO mcp_servers (tenant_id, name, spec) VALUES ($1, $2, $3)"
                await execute(query, tenant_id, line.name, spec)
        case wire.SkillLine():
            query = "INSERT INTO skills (tenant_id, kind, name, description, files) VALUES ($1, $2, $3, $4, $5)"
            await execute(query, tenant_id, line.of, line.name, line.description, line.files)
        case wire.WebhookLine():
            await _webhook(core, tenant_id, line, imported)
        case wire.SecretLine():
            imported.lacking.append(f"secret {line.name}: give it a value")
        case _:
            raise BadArchive(f"{where}: does not belong here")


async def _version(core: Importer, line: wire.PresetVersionLine, where: str, imported: Imported) -> None:
    preset = imported.presets.get(line.agent_id)
    if preset is None:
        raise BadArchive(f"{where}: agent_id: no preset before it has this id")
    if line.version > preset.newest:
        raise BadArchive(f"{where}: version: is newer than the preset's newest, {preset.newest}")
    config, lacks = config_of(line.config, line.profile, core.policy, where)
    imported.lacking += [f"preset {preset.id}@{line.version}: {what}" for what in lacks]
    query = "INSERT INTO agent_versions (agent_id, version, profile, config, created_at) VALUES ($1, $2, $3, $4, $5)"
    given = (line.version, line.profile, config.given(), line.created_at)
    await core.connection.execute(query, preset.id, *given)
    preset.versions.add(line.version)


async def _webhook(core: Importer, tenant_id: UUID, line: wire.WebhookLine, imported: Imported) -> None:
    try:
        secret = vault.seal(core.settings, signing.new_secret())
    except Unavailable:
        imported.lacking.append(f"webhook {line.url}: register it once there are ENCRYPTION_KEYS")
        return
    await core.connection.execute(
        "INSERT INTO webhooks (tenant_id, url, description, events, secret, disabled_at, disabled_reason)"
        " VALUES ($1, $2, $3, $4, $5, now(), 'imported')",
        tenant_id,
        line.url,
        line.description,
        list(dict.fromkeys(line.events)),
        secret,
    )
    imported.lacking.append(f"webhook {line.url}: enable it, and rotate its secret to know the new one")
