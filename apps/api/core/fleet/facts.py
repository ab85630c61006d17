"""What all instances of a fleet must have in common, and in what one differs from the eldest that lives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from apps.api.core import codec
from apps.api.core.context import Core
from apps.api.core.files.objects import Objects, StoreFailed
from apps.api.db import Database
from apps.api.settings import Settings

_FINGERPRINT = 12
"""Hexadecimal digits of a key's SHA-256 that are told: enough to tell keys apart, and no help to find one."""

_MARKER = "fleet"
"""The object that tells a store from others at the same URL, such as a share that is not mounted: it holds an id."""

_STORE_SECONDS = 5.0
"""For looking at it: who cannot see the store compares the rest."""

_COMPARE = """
WITH mine AS (UPDATE instances SET facts = $2 WHERE id = $1 AND facts <> $2)
SELECT facts FROM instances
WHERE id <> $1 AND lease_expires_at > now() AND facts <> '{}'
  AND (started_at, id) < (SELECT started_at, id FROM instances WHERE id = $1)
"""

_LIVING = "SELECT facts FROM instances WHERE lease_expires_at > now() AND facts <> '{}' ORDER BY started_at, id"


def _own(settings: Settings, store: str | None) -> dict[str, Any]:
    """Those of an instance with these settings, and with this id in its store, if that could be read.

    Of one that runs no agents `workspaces` is None: it may do without the files of sessions.
    """
    secrets = [key.get_secret_value().encode() for key in settings.encryption_keys]
    return {
        "workspaces": str(settings.workspaces_root) if settings.runner_slots else None,
        "store": store,
        "keys": sorted(hashlib.sha256(b"fleet:" + secret).hexdigest()[:_FINGERPRINT] for secret in secrets),
        "prefix": settings.redis_key_prefix,
        "port": settings.port,  # not in common: see `ports`
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """In what one instance differs from another, in words for an operator."""
    found = []
    if ours["workspaces"] and theirs["workspaces"]:
        # Conversations hold paths. What is at that path is each instance's own: files come from the store.
        if ours["workspaces"] != theirs["workspaces"]:
            found.append(
                f"WORKSPACES_DIR differs from that of the fleet: {ours['workspaces']}, not {theirs['workspaces']}"
            )
        # An earlier release tells nothing of a store.
        if ours["store"] and theirs.get("store") and ours["store"] != theirs["store"]:
            found.append("the store of files is not that of the fleet: see WORKSPACE_STORE_URL; is it mounted?")
    # While keys are rotated, instances have some in common.
    if ours["keys"] != theirs["keys"] and not {*ours["keys"]} & {*theirs["keys"]}:
        found.append("ENCRYPTION_KEYS has no key of the fleet's: what tenants have stored cannot be read here")
    if ours["prefix"] != theirs["prefix"]:
        found.append("REDIS_KEY_PREFIX differs from that of the fleet: instances do not hear each other")
    return found


async def compare(core: Core, instance_id: UUID) -> list[str]:
    """Tell this instance's facts, and in what they differ from those of the elder ones that live. Raises OSError."""
    store = None
    if core.settings.runner_slots:
        await asyncio.to_thread(core.settings.workspaces_root.mkdir, parents=True, exist_ok=True)
        with suppress(StoreFailed, TimeoutError):  # runs fail of it, or not: warm agents need no store
            store = await _marker(core.objects, make=True)
    ours = _own(core.settings, store)
    theirs = [row["facts"] for row in await core.db.pool.fetch(_COMPARE, instance_id, ours)]
    return list(dict.fromkeys(words for each in theirs for words in differences(ours, each)))


async def ports(db: Database, hostname: str) -> set[int]:
    """Ports of the instances on one host, as far as they have told them."""
    rows = await db.pool.fetch("SELECT facts->'port' AS port FROM instances WHERE hostname = $1", hostname)
    return {row["port"] for row in rows if isinstance(row["port"], int) and row["port"]}


async def differing(connection: asyncpg.Connection, settings: Settings) -> list[str]:
    """In what an instance with these settings would differ from the eldest that lives. Its jsonb are texts.

    Nothing is made. Raises StoreFailed, TimeoutError.
    """
    store = await _marker(Objects.of(settings, make=False), make=False) if settings.runner_slots else None
    found = await connection.fetchval(_LIVING)
    return differences(_own(settings, store), codec.decode(found)) if found else []


async def _marker(objects: Objects, *, make: bool) -> str | None:
    """The id of a store; None where nobody has marked it, and `make` does not say to.

    Raises StoreFailed, TimeoutError.
    """
    async with asyncio.timeout(_STORE_SECONDS):
        found = await objects.get(_MARKER)
        if found is None and make:
            await objects.put_new(_MARKER, uuid4().hex.encode())
            found = await objects.get(_MARKER)
    return None if found is None else bytes(found[:100]).decode(errors="replace")
