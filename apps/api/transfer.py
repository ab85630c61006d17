"""Archives on the disk of whoever runs a command: written whole or not at all, and read."""

from __future__ import annotations

import os
from contextlib import aclosing, suppress
from pathlib import Path
from uuid import UUID

import orjson

from apps.api.core.config import profiles
from apps.api.core.config.profiles import BadProfiles, Policy
from apps.api.core.files.objects import Objects, StoreFailed
from apps.api.core.files.tarball import BadArchive
from apps.api.core.files.trees import TooMuch
from apps.api.core.sessions import exports, imports
from apps.api.core.sessions.importing import Imported, Importer, Refused
from apps.api.db import Database, connect
from apps.api.errors import ApiError, NotFound
from apps.api.settings import Settings
from apps.api.threads import Threads

AT_A_TIME = 4
"""Threads of a command."""

NOT_EXPORTED: tuple[type[Exception], ...] = (ApiError, TooMuch, OSError)
NOT_IMPORTED: tuple[type[Exception], ...] = (BadArchive, Refused, BadProfiles, StoreFailed, OSError)
"""What the two raise for the reasons that they tell."""


async def export(settings: Settings, tenant: str, session_id: UUID | None, target: Path) -> int:
    """Write the archive of a tenant, or of one session of it, which only the user of this process can read. Returns
    its bytes.

    Raises:
        ApiError: what is not there, or busy.
        TooMuch: a directory has more levels or entries than are walked.
        OSError: the file cannot be written, or exists; or there is no room for what is to be in it.
    """
    threads = Threads("export", AT_A_TIME)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            async with Database.open(settings) as db:
                core = exports.Exporter(db, settings, threads, Objects.of(settings))
                chunks = exports.tenant(core, tenant)
                if session_id is not None:
                    chunks = exports.session(core, await _tenant_id(db, tenant), session_id)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
        except BaseException:
            with suppress(OSError):
                os.unlink(target)
            raise
        finally:
            threads.close()


async def _tenant_id(db: Database, name: str) -> UUID:
    tenant_id: UUID | None = await db.pool.fetchval("SELECT id FROM tenants WHERE name = $1", name)
    if tenant_id is None:
        raise NotFound.of("tenant")
    return tenant_id


async def load(settings: Settings, source: Path, tenant: str | None, most: int) -> Imported:
    """Import an archive. See `imports.load`.

    Raises BadArchive, Refused, StoreFailed, OSError, BadProfiles.
    """
    threads = Threads("import", AT_A_TIME)
    policy = Policy(profiles.load(settings.profiles_file, settings.default_profile), default=settings.default_profile)
    with source.open("rb") as packed:
        connection = await connect(settings)
        try:
            await connection.set_type_codec(
                "jsonb", encoder=lambda value: orjson.dumps(value).decode(), decoder=orjson.loads, schema="pg_catalog"
            )
            core = Importer(connection, settings, policy, Objects.of(settings), threads)
            return await imports.load(core, packed, tenant, most)
        finally:
            await connection.close()
            threads.close()
