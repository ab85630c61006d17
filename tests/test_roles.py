"""What the role that serves may do, and what not, at the real server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.exc import ProgrammingError

from apps.api import migrate, roles
from apps.api.db import Database, connect
from apps.api.dev import postgres
from apps.api.dev.embedded import Servers
from apps.api.doctor import examine
from apps.api.models import Base
from apps.api.settings import Settings
from tests.conftest import TEMPLATE, StartFleet, settings_for
from tests.fleet import Fleet
from tests.world import administrator


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A session of the role that serves."""
    connection = await connect(settings)
    yield connection
    await connection.close()


@pytest.fixture
async def fresh(servers: Servers) -> AsyncIterator[Settings]:
    """Settings with an empty database and the name of a role that nobody has made; hostile, as is its password."""
    number = f"{os.getpid()}_{uuid4().hex[:8]}"
    name, role = f"roles_{number}", f'it\'s "{number}" \\; DROP'
    await servers.create_database(name)
    login = f"{quote(role, safe='')}:{quote(PASSWORD, safe='')}"
    url = servers.database_url(name)
    given = settings_for(servers, name, database_url=f"postgresql://{login}@{url.partition('@')[2]}")
    yield given
    async with administrator(given) as admin:
        await admin.execute(f"REASSIGN OWNED BY {roles.quoted(role)} TO postgres")
        await admin.execute(f"DROP OWNED BY {roles.quoted(role)}; DROP ROLE {roles.quoted(role)}")


PASSWORD = "p'a\"s\\s$$ w\u00f6\u00a0\u00ad\uff21@:/%"


def changed(settings: Settings, **more: str | None) -> Settings:
    values = {name: getattr(settings, name) for name in Settings.model_fields} | more
    return Settings(_env_file=None, **values)


# --- what it may not -----------------------------------------------------------------------------------------------

FORBIDDEN = {
    "a table": "CREATE TABLE mine (a int)",
    "a table of a query": "SELECT 1 AS a INTO mine",
    "a temporary table": "CREATE TEMPORARY TABLE mine (a int)",
    "a schema": "CREATE SCHEMA mine",
    "a view": "CREATE VIEW mine AS SELECT 1",
    "a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "another body of a trigger": "CREATE OR REPLACE FUNCTION deliver_run() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN RETURN NULL; END'",
    "a trigger": "CREATE TRIGGER mine AFTER INSERT ON runs EXECUTE FUNCTION deliver_run()",
    "no trigger": "ALTER TABLE runs DISABLE TRIGGER ALL",
    "a column": "ALTER TABLE runs ADD mine int",
    "an owner": "ALTER TABLE runs OWNER TO CURRENT_USER",
    "an index": "CREATE INDEX ON runs (id)",
    "no index": "DROP INDEX runs_unmeasured_idx",
    "no table": "DROP TABLE events",
    "no rows": "TRUNCATE events CASCADE",
    "a rule": "CREATE RULE mine AS ON INSERT TO runs DO INSTEAD NOTHING",
    "a revision": "UPDATE schema_revision SET version_num = '0000'",
    "no revision": "DELETE FROM schema_revision",
    "another past": "UPDATE audit_log SET actor = 'nobody'",
    "no past": "DELETE FROM audit_log",
    "a role": "CREATE ROLE mine SUPERUSER",
    "more of itself": "ALTER ROLE CURRENT_USER SUPERUSER",
    "the owner": "SET ROLE postgres",
    "the owner's session": "SET SESSION AUTHORIZATION postgres",
    "no triggers in a session": "SET session_replication_role = replica",
    "a database": "CREATE DATABASE mine",
    "a program": "COPY (SELECT 1) TO PROGRAM 'cat'",
    "a program's output": "COPY webhooks FROM PROGRAM 'true'",
    "a file": "COPY (SELECT 1) TO '/tmp/mine'",
    "a file's text": "SELECT pg_read_file('/etc/passwd')",
    "a large object of a file": "SELECT lo_import('/etc/passwd')",
    "passwords": "SELECT rolpassword FROM pg_authid",
    "a setting of the server": "ALTER SYSTEM SET archive_command = 'true'",
    "a setting of the database": "ALTER DATABASE postgres SET search_path = mine",
    "a library": "LOAD '/tmp/mine.so'",
    "a sequence": "CREATE SEQUENCE mine",
    "a type": "CREATE TYPE mine AS (a int)",
    "a domain": "CREATE DOMAIN mine AS int",
    "a materialized view": "CREATE MATERIALIZED VIEW mine AS SELECT 1",
    "a procedure": "CREATE PROCEDURE mine() LANGUAGE sql AS 'SELECT 1'",
    "an operator": "CREATE OPERATOR <<<>>> (PROCEDURE = int4eq, LEFTARG = int, RIGHTARG = int)",
    "a language": "CREATE LANGUAGE mine HANDLER plpgsql_call_handler",
    "a wrapper": "CREATE FOREIGN DATA WRAPPER mine",
    "an event trigger": "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION deliver_run()",
    "a publication": "CREATE PUBLICATION mine FOR ALL TABLES",
    "a tablespace": "CREATE TABLESPACE mine LOCATION '/tmp'",
    "no column": "ALTER TABLE api_keys DROP secret_hash",
    "no constraint": "ALTER TABLE api_keys DROP CONSTRAINT api_keys_scopes_check",
    "another type of a column": "ALTER TABLE events ALTER data TYPE text",
    "another name": "ALTER TABLE events RENAME TO mine",
    "no trigger at all": "DROP TRIGGER runs_deliver_new ON runs",
    "no function": "DROP FUNCTION deliver_run()",
    "a function that acts as its owner": "ALTER FUNCTION deliver_run() SECURITY DEFINER",
    "no schema": "DROP SCHEMA public CASCADE",
    "no schema by another name": "ALTER SCHEMA public RENAME TO mine",
    "no database": "DROP DATABASE template1",
    "what the owner has": "REASSIGN OWNED BY postgres TO CURRENT_USER",
    "nothing of the owner's": "DROP OWNED BY postgres",
    "a policy": "CREATE POLICY mine ON runs USING (true)",
    "row security": "ALTER TABLE runs ENABLE ROW LEVEL SECURITY",
    "a role to be": "GRANT pg_execute_server_program TO CURRENT_USER",
    "the password of the owner": "ALTER ROLE postgres PASSWORD 'mine'",
    "an index to be rebuilt": "REINDEX TABLE runs",
    "a table of a file": "COPY webhooks FROM '/etc/passwd'",
    "a file's bytes": "SELECT pg_read_binary_file('/etc/passwd')",
    "a directory": "SELECT pg_ls_dir('/')",
    "a file's size": "SELECT pg_stat_file('/etc/passwd')",
    "the server's log": "SELECT pg_ls_logdir()",
    "a file of a large object": "SELECT lo_export(1, '/tmp/mine')",
    "the files of settings": "SELECT * FROM pg_hba_file_rules",
    "other settings read again": "SELECT pg_reload_conf()",
    "the owner's connections": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "a replication slot": "SELECT pg_create_physical_replication_slot('mine')",
    "a backup": "SELECT pg_backup_start('mine')",
}


async def test_a_server_that_was_taken_over_cannot_have_more(fresh: Settings) -> None:
    await migrate.upgrade(fresh)
    connection = await connect(fresh)
    outcomes = {}
    for wish, statement in FORBIDDEN.items():
        try:
            outcomes[wish] = await connection.execute(statement)
        except asyncpg.PostgresError as error:
            outcomes[wish] = type(error)
    await connection.close()
    assert outcomes == dict.fromkeys(FORBIDDEN, asyncpg.InsufficientPrivilegeError)


# --- what it may ---------------------------------------------------------------------------------------------------


async def test_it_may_do_all_to_rows_but_of_the_audit_log_and_only_read_the_revision(
    serving: asyncpg.Connection,
) -> None:
    rows = await serving.fetch(
        """
        SELECT relname, array(SELECT p FROM unnest(ARRAY['SELECT','INSERT','UPDATE','DELETE','TRUNCATE','TRIGGER']) p
          WHERE has_table_privilege(c.oid, p)) AS may
        FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
        """
    )
    expected = {table: ["SELECT", "INSERT", "UPDATE", "DELETE"] for table in Base.metadata.tables}
    assert {row["relname"]: row["may"] for row in rows} == expected | {
        "schema_revision": ["SELECT"],
        "audit_log": ["SELECT", "INSERT"],
    }


async def test_fleets_of_the_tests_run_with_it(fleet: Fleet) -> None:
    """So that whatever comes to need DDL is seen by the test of it."""
    settings = Settings(_env_file=None, database_url=fleet.env["DATABASE_URL"])
    connection = await connect(settings)
    try:
        assert await connection.fetchval("SELECT current_user") == postgres.SERVING
        assert await roles.excess(connection) is None
    finally:
        await connection.close()
    assert "database.role" not in "".join(instance.log.read_text() for instance in fleet.instances)
    session = await fleet[0].session()
    assert (await fleet[0].ask(session, "run echo of the role that serves"))["status"] == "succeeded"


async def test_it_owns_nothing_and_cannot_migrate_by_itself(fresh: Settings) -> None:
    """What migrations make is the owner's: the role that serves neither has them nor could have run them."""
    alone = changed(fresh, database_owner_url=None)
    name, password = roles._login(fresh)
    async with administrator(fresh) as admin:
        literal = await admin.fetchval("SELECT quote_literal($1::text)", password)
        await admin.execute(f"CREATE ROLE {roles.quoted(name)} LOGIN PASSWORD {literal}")
        with pytest.raises(ProgrammingError, match="permission denied"):
            await migrate.upgrade(alone)
        await migrate.upgrade(fresh)
        owned = "SELECT count(*) FROM pg_shdepend WHERE refobjid = $1::regrole AND deptype = 'o'"
        assert await admin.fetchval(owned, roles.quoted(name)) == 0
        owners = await admin.fetch(
            "SELECT DISTINCT pg_get_userbyid(o) FROM (SELECT relowner o FROM pg_class WHERE relnamespace ="
            " 'public'::regnamespace UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace) x"
        )
        assert [row[0] for row in owners] == [await admin.fetchval("SELECT current_user")]
        await admin.execute("UPDATE schema_revision SET version_num = '0001'")
        with pytest.raises(ProgrammingError, match=r"must be owner|permission denied"):
            await migrate.upgrade(alone)


# --- how it comes to be --------------------------------------------------------------------------------------------


async def test_a_migration_makes_the_role_and_a_later_table_is_granted(fresh: Settings) -> None:
    await migrate.upgrade(fresh)
    await migrate.upgrade(fresh)
    async with administrator(fresh) as admin:
        await admin.execute("CREATE TABLE later (id serial, note text)")
    assert await migrate.state(fresh) == "current"
    async with Database.open(fresh) as db:
        await db.check_schema()
        assert await roles.excess(db.pool) is None
        assert await db.pool.fetchval("INSERT INTO later (note) VALUES ('x') RETURNING id") == 1
        assert await db.pool.execute("DELETE FROM later") == "DELETE 1"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.pool.execute("DROP TABLE later")


async def test_a_role_that_exists_gets_what_it_needs_and_keeps_its_password(fresh: Settings) -> None:
    name, password = roles._login(fresh)
    async with administrator(fresh) as admin:
        literal = await admin.fetchval("SELECT quote_literal($1::text)", password)
        await admin.execute(f"CREATE ROLE {roles.quoted(name)} LOGIN PASSWORD {literal}")
        kept = await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", name)
        await migrate.upgrade(fresh)
        assert await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", name) == kept
    assert await migrate.state(fresh) == "current"


async def test_an_owner_that_may_make_no_roles_says_what_to_do(servers: Servers, fresh: Settings) -> None:
    """An owner as a managed PostgreSQL has it: neither superuser, nor owner of the schema."""
    owner = f"owner_{uuid4().hex[:8]}"
    name, _ = roles._login(fresh)
    database = fresh.asyncpg_dsn.partition("@")[2]
    given = changed(fresh, database_owner_url=f"postgresql://{owner}:x@{database}")
    async with administrator(fresh) as admin:
        await admin.execute(f"CREATE ROLE {owner} LOGIN PASSWORD 'x'; GRANT CREATE ON SCHEMA public TO {owner}")
        with pytest.raises(roles.RoleUnavailable, match=r"may not make it.*CREATE ROLE"):
            await migrate.upgrade(given)
        await admin.execute(f"CREATE ROLE {roles.quoted(name)} LOGIN PASSWORD 'y'")
        await migrate.upgrade(given)
        query = "SELECT has_table_privilege($1, 'runs', 'UPDATE') AND NOT has_table_privilege($1, 'runs', 'TRUNCATE')"
        assert await admin.fetchval(query, name)
        await admin.execute(f"REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}; DROP ROLE {owner}")


async def test_a_url_without_a_role_is_refused(fresh: Settings) -> None:
    nameless = changed(fresh, database_url=f"postgresql://{fresh.asyncpg_dsn.partition('@')[2]}")
    with pytest.raises(roles.RoleUnavailable, match="DATABASE_URL names no role"):
        await migrate.upgrade(nameless)
    await migrate.upgrade(fresh)


# --- what is told of one that may more -----------------------------------------------------------------------------

MORE = {
    "ALTER ROLE {} CREATEROLE": "may make roles",
    "ALTER ROLE {} CREATEDB": "may make databases",
    "ALTER ROLE {} REPLICATION": "may replicate",
    "GRANT pg_execute_server_program TO {}": "may run programs",
    "GRANT pg_write_server_files TO {}": "may open files",
    "ALTER TABLE catalog OWNER TO {}": "owns tables",
    "GRANT CREATE ON SCHEMA public TO {}": "may make tables",
    "ALTER ROLE {} SUPERUSER": "is a superuser",
}


async def test_a_role_that_may_more_is_told(fresh: Settings) -> None:
    await migrate.upgrade(fresh)
    role = roles.quoted(roles._login(fresh)[0])
    async with administrator(fresh) as admin:
        connection = await connect(fresh)
        for statement, told in MORE.items():
            assert told not in (await roles.excess(connection) or "")
            await admin.execute(statement.format(role))
            assert told in (await roles.excess(connection) or "")
        await connection.close()


async def test_doctor_tells_the_owner_from_the_role_that_serves(servers: Servers, settings: Settings) -> None:
    async def told(given: Settings) -> Any:
        return next(check for check in await examine(given) if check.subject == "Database role")

    assert (await told(settings)).verdict == "ok"
    alone = changed(settings.as_owner, database_owner_url=None)
    found = await told(alone)
    assert (found.verdict, "postgres is a superuser" in found.finding) == ("warn", True)


async def test_a_server_with_the_owners_url_works_and_warns(servers: Servers, start_fleet: StartFleet) -> None:
    database = f"owned_{uuid4().hex[:8]}"
    await servers.create_database(database, TEMPLATE)
    owner = servers.database_owner_url(database)
    fleet = await start_fleet(1, DATABASE_URL=owner, DATABASE_OWNER_URL=owner)
    session = await fleet[0].session()
    assert (await fleet[0].ask(session, "say hello"))["status"] == "succeeded"
    log = fleet[0].log.read_text()
    assert "postgres is a superuser" in log
    assert "DATABASE_OWNER_URL is for `migrate` alone" in log
