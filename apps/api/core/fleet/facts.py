"""What all instances of a fleet must have in common, and in what one differs from the eldest that lives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from apps.api.core import codec
from apps.api.core.context import Core
from apps.api.core.sessions import workspaces
from apps.api.db import Database
from apps.api.settings import Settings

_FINGERPRINT = 12
"""Hexadecimal digits of a key's SHA-256 that are told: enough to tell keys apart, and no help to find one."""

_COMPARE = """
WITH mine AS (UPDATE instances SET facts = $2 WHERE id = $1 AND facts <> $2)
SELECT facts FROM instances
WHERE id <> $1 AND lease_expires_at > now() AND facts <> '{}'
  AND (started_at, id) < (SELECT started_at, id FROM instances WHERE id = $1)
"""

_LIVING = "SELECT facts FROM instances WHERE lease_expires_at > now() AND facts <> '{}' ORDER BY started_at, id"


def own(settings: Settings, *, make: bool = True) -> dict[str, Any]:
    """Those of an instance with these settings. Blocks.

    Of one that runs no agents `workspaces` is None: it may do without the files of sessions.

    Args:
        make: mark the root of the workspaces, if nobody has.

    Raises OSError.
    """
    secrets = [key.get_secret_value().encode() for key in settings.encryption_keys]
    shared = settings.runner_slots > 0
    return {
        "workspaces": str(settings.workspaces_root) if shared else None,
        "marker": workspaces.marker(settings, make=make) if shared else None,
        "keys": sorted(hashlib.sha256(b"fleet:" + secret).hexdigest()[:_FINGERPRINT] for secret in secrets),
        "prefix": settings.redis_key_prefix,
        "port": settings.port,  # not in common: see `ports`
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """In what one instance differs from another, in words for an operator."""
    found = []
    if ours["workspaces"] and theirs["workspaces"]:
        if ours["workspaces"] != theirs["workspaces"]:
            found.append(
                f"WORKSPACES_DIR differs from that of the fleet: {ours['workspaces']}, not {theirs['workspaces']}"
            )
        elif ours["marker"] and ours["marker"] != theirs["marker"]:
            found.append(f"WORKSPACES_DIR is not the directory of the fleet: is it mounted? ({ours['workspaces']})")
    # While keys are rotated, instances have some in common.
    if ours["keys"] != theirs["keys"] and not {*ours["keys"]} & {*theirs["keys"]}:
        found.append("ENCRYPTION_KEYS has no key of the fleet's: what tenants have stored cannot be read here")
    if ours["prefix"] != theirs["prefix"]:
        found.append("REDIS_KEY_PREFIX differs from that of the fleet: instances do not hear each other")
    return found


async def compare(core: Core, instance_id: UUID) -> list[str]:
    """Tell this instance's facts, and in what they differ from those of the elder ones that live."""
    ours = await asyncio.to_thread(own, core.settings)
    theirs = [row["facts"] for row in await core.db.pool.fetch(_COMPARE, instance_id, ours)]
    return list(dict.fromkeys(words for each in theirs for words in differences(ours, each)))


async def ports(db: Database, hostname: str) -> set[int]:
    """Ports of the instances on one host, as far as they have told them."""
    rows = await db.pool.fetch("SELECT facts->'port' AS port FROM instances WHERE hostname = $1", hostname)
    return {row["port"] for row in rows if isinstance(row["port"], int) and row["port"]}


async def differing(connection: asyncpg.Connection, settings: Settings) -> list[str]:
    """In what an instance with these settings would differ from the eldest that lives. Its jsonb are texts."""
    ours, found = await asyncio.to_thread(own, settings, make=False), await connection.fetchval(_LIVING)
    return differences(ours, codec.decode(found)) if found else []
