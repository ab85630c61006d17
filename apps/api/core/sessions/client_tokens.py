"""Making client tokens, see `core/config/grants.py`."""

from __future__ import annotations

from uuid import UUID

from apps.api import audit, clock
from apps.api.core.config import grants
from apps.api.core.config.grants import Grant
from apps.api.core.context import Core
from apps.api.errors import NotFound


async def issue(core: Core, tenant_id: UUID, secret_hash: str, grant: Grant) -> str:
    """A token for a session, in the name of the key whose secret has this hash.

    Raises:
        NotFound: no such session of this tenant, or deleted.
        Unavailable: `encryption_not_configured`.
    """
    token = grants.seal(core.settings.encryption_keys, secret_hash, grant)
    async with core.db.transaction() as connection:
        known = await connection.fetchval(
            "SELECT 1 FROM sessions WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL",
            grant.session_id,
            tenant_id,
        )
        if known is None:
            raise NotFound.of("session")
        seconds = round((grant.expires_at - clock.now()).total_seconds())
        told = {"allow": list(grant.allow), "end_user": grant.end_user, "origin": grant.origin, "seconds": seconds}
        await audit.note(connection, "client_token.created", tenant_id, grant.session_id, **told)
    return token


async def require_run(core: Core, tenant_id: UUID, session_id: UUID, run_id: UUID) -> None:
    """Raises NotFound for a run that is not of this session, or when the session was deleted."""
    known = await core.db.pool.fetchval(
        "SELECT 1 FROM runs r JOIN sessions s ON s.id = r.session_id"
        " WHERE r.id = $1 AND s.id = $2 AND s.tenant_id = $3 AND s.deleted_at IS NULL",
        run_id,
        session_id,
        tenant_id,
    )
    if known is None:
        raise NotFound.of("run")
