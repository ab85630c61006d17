"""The two roles of the database: its owner, who migrates, and the one that serves, which has no DDL.

Whoever takes a server over gets what its role may do. A superuser runs programs on the database's host by
`COPY … TO PROGRAM`, an owner drops tables; a role that serves does neither.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from base64 import b64encode
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from apps.api.models import Base
from apps.api.settings import Settings

ROWS = "SELECT, INSERT, UPDATE, DELETE"
"""What serving does to tables."""

APPEND_ONLY = ("audit_log",)
"""Tables whose rows it adds and reads, and neither changes nor removes."""

ITERATIONS = 4096
"""Of SCRAM, where the server has no setting for it (before PostgreSQL 16): what it uses itself."""


class RoleUnavailable(Exception):
    """The role that is to serve does not exist, and cannot be made. The message says what to do."""


async def provide(owner: asyncpg.Connection, settings: Settings) -> None:
    """Let DATABASE_URL's role do what serving needs and no more; make the role where there is none.

    The attributes and the password of a role that exists are its administrator's affair. May be repeated.

    Args:
        owner: a connection of the tables' owner, to the migrated database, in a transaction.

    Raises:
        RoleUnavailable: there is no such role, and the owner may not make it; or DATABASE_URL names none.
        asyncpg.PostgresError: the owner may not grant.
    """
    name, password = _login(settings)
    if name == await owner.fetchval("SELECT current_user"):
        return
    if not await owner.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", name):
        await _create(owner, name, password)
    role = quoted(name)
    facts = await owner.fetchrow(
        """
        SELECT quote_ident(current_schema()) AS schema, quote_ident(current_database()) AS database,
          has_schema_privilege($1::text, current_schema(), 'USAGE') AS may_use,
          has_database_privilege($1::text, current_database(), 'CONNECT') AS may_connect
        """,
        name,
    )
    schema, database = facts["schema"], facts["database"]
    # Conditions, because the owner of the tables need not own schema and database, whose rights it then cannot grant.
    if not facts["may_connect"]:
        await owner.execute(f"GRANT CONNECT ON DATABASE {database} TO {role}")
    if not facts["may_use"]:
        await owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    tables = ", ".join(f"{schema}.{quoted(table)}" for table in Base.metadata.tables)
    for statement in (
        f"GRANT {ROWS} ON {tables} TO {role}",
        *(f"REVOKE UPDATE, DELETE ON {schema}.{table} FROM {role}" for table in APPEND_ONLY),
        f"REVOKE ALL ON {schema}.schema_revision FROM {role}",
        f"GRANT SELECT ON {schema}.schema_revision TO {role}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {ROWS} ON TABLES TO {role}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {role}",
    ):
        await owner.execute(statement)
    for statement in (
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {role}",
        f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM PUBLIC, {role}",
    ):
        # Somebody else's schema or database: `excess` tells what is left.
        with suppress(asyncpg.InsufficientPrivilegeError):
            async with owner.transaction():
                await owner.execute(statement)


async def excess(connection: asyncpg.Connection | asyncpg.Pool) -> str | None:
    """What the role of this connection may do beyond serving, in one sentence; None if it is as it should be.

    Raises:
        asyncpg.PostgresError: the server refuses.
    """
    found = await connection.fetchrow(
        """
        SELECT rolname AS name, rolsuper AS "is a superuser", rolcreaterole AS "may make roles",
          rolcreatedb AS "may make databases", rolreplication AS "may replicate",
          pg_has_role('pg_execute_server_program', 'MEMBER') AS "may run programs on the database's host",
          pg_has_role('pg_read_server_files', 'MEMBER') OR pg_has_role('pg_write_server_files', 'MEMBER')
            AS "may open files of the database's host",
          EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE nspname = current_schema() AND relkind IN ('r', 'p') AND pg_has_role(relowner, 'MEMBER'))
            AS "owns tables",
          has_schema_privilege(current_schema(), 'CREATE') OR has_database_privilege(current_database(), 'CREATE')
            AS "may make tables"
        FROM pg_roles WHERE rolname = current_user
        """
    )
    # A superuser may do all of that.
    abilities = (
        ["is a superuser"] if found["is a superuser"] else [words for words, holds in found.items() if holds][1:]
    )
    if not abilities:
        return None
    advice = "serve with one that has no DDL (docs/deployment.md#roles)"
    return f"DATABASE_URL's role {found['name']} {', '.join(abilities)}: {advice}"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _login(settings: Settings) -> tuple[str, str | None]:
    """Name and password in DATABASE_URL, read as asyncpg reads it."""
    url = urlsplit(settings.asyncpg_dsn)
    login, found, _ = url.netloc.partition("@")
    user, _, password = login.partition(":") if found else ("", "", "")
    query = parse_qs(url.query)
    name = unquote(user) or query.get("user", [""])[-1]
    if not name:
        raise RoleUnavailable("DATABASE_URL names no role: with DATABASE_OWNER_URL it must.")
    return name, unquote(password) or query.get("password", [None])[-1]


async def _create(owner: asyncpg.Connection, name: str, password: str | None) -> None:
    iterations = int(await owner.fetchval("SELECT current_setting('scram_iterations', true)") or ITERATIONS)
    # A verifier, as psql's \password sends it: statements get into logs.
    secret = f" PASSWORD '{_verifier(password, iterations)}'" if password else ""
    try:
        async with owner.transaction():
            await owner.execute(
                f"CREATE ROLE {quoted(name)} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION{secret}"
            )
    except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        pass  # roles belong to all databases of the server: the migration of another one was first
    except asyncpg.InsufficientPrivilegeError as error:
        raise RoleUnavailable(
            f"The role {name} of DATABASE_URL does not exist, and that of DATABASE_OWNER_URL may not make it: "
            f"as an administrator, CREATE ROLE {quoted(name)} LOGIN PASSWORD '…'."
        ) from error


def _verifier(password: str, iterations: int) -> str:
    """What PostgreSQL keeps of a password for SCRAM-SHA-256 (RFC 5803), the password prepared by RFC 4013."""
    mapped = "".join(
        " " if stringprep.in_table_c12(letter) else letter for letter in password if not stringprep.in_table_b1(letter)
    )
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", unicodedata.normalize("NFKC", mapped).encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = [b64encode(part).decode() for part in (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))]
    return f"SCRAM-SHA-256${iterations}:{parts[0]}${parts[1]}:{parts[2]}"
