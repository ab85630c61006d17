"""What `doctor` asks PostgreSQL, and what is between us and it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg

from apps.api import clock, migrate, roles
from apps.api.core.files.objects import StoreFailed
from apps.api.core.fleet import facts
from apps.api.core.tenant import vault
from apps.api.db import PER_INSTANCE, connect
from apps.api.doctor.check import Check
from apps.api.pool import CONNECT_TIMEOUT
from apps.api.settings import Settings

OLDEST = 15

ROUNDS = 5
"""In which two connections ask who serves them. Behind a pooler others may come in between."""

_ROOM = """
SELECT current_setting('max_connections')::int AS most,
  least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true)::int, 0),
    (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
    (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())) AS room,
  (SELECT count(*) FROM instances WHERE lease_expires_at > now()) AS living
"""

_CANNOT = (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)

_Look = Callable[[asyncpg.Connection, Settings], Awaitable[Check]]


def _asking(subject: str) -> Callable[[_Look], Callable[[Settings], Awaitable[Check]]]:
    """Make a check of what asks the database."""

    def made(look: _Look) -> Callable[[Settings], Awaitable[Check]]:
        async def check(settings: Settings) -> Check:
            try:
                connection = await connect(settings)
                try:
                    return await look(connection, settings)
                finally:
                    await connection.close(timeout=CONNECT_TIMEOUT)
            except asyncpg.UndefinedTableError:
                return Check("warn", subject, "unknown until the schema is there: see Schema")
            except _CANNOT as error:
                return Check("FAIL", subject, f"unknown ({migrate.reason(error)}): see PostgreSQL")

        return check

    return made


async def server(settings: Settings) -> Check:
    """Whether it answers, and is new enough."""
    try:
        connection = await connect(settings)
    except _CANNOT as error:
        return Check("FAIL", "PostgreSQL", f"{migrate.reason(error)}: check DATABASE_URL, or start `dev`")
    found = connection.get_server_version().major
    shown = await connection.fetchval("SHOW server_version")
    await connection.close(timeout=CONNECT_TIMEOUT)
    if found < OLDEST:
        return Check("FAIL", "PostgreSQL", f"{shown}: use {OLDEST} or later")
    return Check("ok", "PostgreSQL", shown)


@_asking("Database role")
async def role(connection: asyncpg.Connection, _settings: Settings) -> Check:
    """Whether it may more than serving needs."""
    found = await roles.excess(connection)
    return Check("warn", "Database role", found) if found else Check("ok", "Database role", "serves, and has no DDL")


async def schema(settings: Settings) -> Check:
    """Whether it is that of this release."""
    try:
        state = await migrate.state(settings, 0)
    except migrate.ERRORS as error:
        return Check("FAIL", "Schema", f"unknown ({migrate.reason(error)}): see PostgreSQL")
    findings = {
        "current": "up to date",
        "empty": "no tables yet: run `claude-agent-api migrate`",
        "unreleased": "from before the first release: name a new, empty database, or a new data directory",
        "behind": "out of date: run `claude-agent-api migrate`",
        "ahead": "migrated by a newer release: install that one",
    }
    return Check("ok" if state == "current" else "FAIL", "Schema", findings[state])


@_asking("Connections")
async def connections(connection: asyncpg.Connection, settings: Settings) -> Check:
    """Whether PostgreSQL has room for all that the fleet may open."""
    if await _is_pooled(connection, settings):
        return Check("ok", "Connections", f"are a pooler's: let it take {PER_INSTANCE} of each instance")
    found = await connection.fetchrow(_ROOM)
    living, room = max(found["living"], 1), found["room"]
    told = f"room for {room} (max_connections {found['most']}), of which {living} of {PER_INSTANCE} each may be taken"
    raising = "raise max_connections (or the limit of the role or the database), or put a pooler in between"
    if room < living * PER_INSTANCE:
        return Check("FAIL", "Connections", f"{told}: {raising}, for at least {(living + 1) * PER_INSTANCE}")
    if room < (living + 1) * PER_INSTANCE:
        advice = f"a rolling update has one instance more: {raising}, for at least {(living + 1) * PER_INSTANCE}"
        return Check("warn", "Connections", f"{told}: {advice}")
    return Check("ok", "Connections", told)


@_asking("Pooler")
async def pooler(connection: asyncpg.Connection, settings: Settings) -> Check:
    """Whether each transaction has another connection, and the settings know it."""
    if not await _is_pooled(connection, settings):
        return Check("ok", "Pooler", "none that gives each transaction another connection")
    if settings.database_statement_cache:
        advice = "set DATABASE_STATEMENT_CACHE=false, or its mode to `session`"
        return Check(
            "FAIL", "Pooler", f"DATABASE_URL leads to one that gives each transaction another connection: {advice}"
        )
    return Check("ok", "Pooler", "gives each transaction another connection, as DATABASE_STATEMENT_CACHE=false says")


async def _is_pooled(one: asyncpg.Connection, settings: Settings) -> bool:
    """Whether two connections that are both open are served by the same process, one after the other."""
    other = await connect(settings)
    try:
        pids: dict[asyncpg.Connection, set[int]] = {one: set(), other: set()}
        for _ in range(ROUNDS):
            for each, found in pids.items():
                found.add(await each.fetchval("SELECT pg_backend_pid()"))
        return any(len(found) > 1 for found in pids.values()) or pids[one] == pids[other]
    finally:
        await other.close(timeout=CONNECT_TIMEOUT)


@_asking("Encryption")
async def keys(connection: asyncpg.Connection, settings: Settings) -> Check:
    """Whether there are keys, and they open what is stored."""
    seen, closed = await vault.unreadable(connection, settings)
    if closed:
        told = (
            f"ENCRYPTION_KEYS opens {seen - closed} of {seen} stored secrets"
            if settings.encryption_keys
            else (f"ENCRYPTION_KEYS is unset, and {seen} secrets are stored")
        )
        return Check("FAIL", "Encryption", f"{told}: add the key that they were stored with")
    if not settings.encryption_keys:
        advice = "set ENCRYPTION_KEYS to the output of `openssl rand -base64 32 | tr +/ -_`"
        return Check("warn", "Encryption", f"no key: secrets and webhooks of tenants are refused; {advice}")
    return Check("ok", "Encryption", f"opens what is stored ({seen} looked at)" if seen else "nothing is stored yet")


@_asking("Fleet")
async def fleet(connection: asyncpg.Connection, settings: Settings) -> Check:
    """Whether an instance with these settings would fit to those that live."""
    try:
        found = await facts.differing(connection, settings)
    except StoreFailed as error:
        return Check("FAIL", "Fleet", f"the store of sessions' files cannot be read: {error}; see WORKSPACE_STORE_URL")
    return Check("FAIL", "Fleet", "; ".join(found)) if found else Check("ok", "Fleet", "no instance differs from this")


@_asking("Clock")
async def clock_(connection: asyncpg.Connection, _settings: Settings) -> Check:
    """Whether it agrees with the database's."""
    asked_at = clock.uptime()
    clock.heard(await connection.fetchval("SELECT now()"), asked_at)
    off = clock.offset()
    if abs(off) > clock.TOLERANCE:
        side = "ahead of" if off > 0 else "behind"
        return Check("warn", "Clock", f"{abs(off):.1f} s {side} PostgreSQL's: {clock.ADVICE}")
    return Check("ok", "Clock", "agrees with that of PostgreSQL")
