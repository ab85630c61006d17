"""Migrations: up, down and up again, in agreement with the models."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from apps.api import migrate
from apps.api.db import REVISIONS, SCHEMA_REVISION, Database, SchemaMissing, SchemaUnreleased, create_engine
from apps.api.dev.embedded import Servers
from apps.api.models import Base
from apps.api.settings import Settings
from tests.conftest import settings_for
from tests.world import PATIENCE, administrator, until, waiting_for_locks

ROOT = Path(__file__).parents[1]
INI = ROOT / "alembic.ini"
OURS = set(Base.metadata.tables)


@pytest.fixture
async def empty(servers: Servers) -> Settings:
    """Settings with a database that nobody has migrated, and with its owner's URL alone."""
    name = f"empty_{os.getpid()}_{uuid4().hex[:8]}"
    await servers.create_database(name)
    return settings_for(servers, name, database_url=servers.database_owner_url(name), database_owner_url=None)


async def alembic(settings: Settings, do: Callable[[Config], None]) -> None:
    """Run an Alembic command as a developer would, on this database."""

    def run(connection: Connection) -> None:
        config = Config(INI)
        config.attributes["connection"] = connection
        do(config)
        connection.commit()

    engine = create_engine(settings, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


async def described(settings: Settings) -> list[tuple[str, ...]]:
    """Everything in the database: columns, indexes, constraints, and whatever else a migration may leave behind."""
    connection = await asyncpg.connect(settings.asyncpg_dsn)
    try:
        rows = await connection.fetch(
            """
            SELECT 'column', table_name::text, column_name::text,
              concat_ws(' ', data_type, is_nullable, column_default, is_identity)
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'relation', relname, relkind::text, '' FROM pg_class
            WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT 'function', proname, '', '' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, '' FROM pg_trigger WHERE NOT tgisinternal
            UNION ALL SELECT 'enum', typname, '', '' FROM pg_type
            WHERE typnamespace = 'public'::regnamespace AND typtype = 'e'
            UNION ALL SELECT 'extension', extname, '', '' FROM pg_extension
            """
        )
        return sorted(tuple(str(value) for value in row) for row in rows)
    finally:
        await connection.close()


def tables(description: list[tuple[str, ...]]) -> set[str]:
    return {table for kind, table, *_ in description if kind == "column"}


async def test_an_upgrade_makes_every_table_of_the_models(empty: Settings) -> None:
    assert await migrate.state(empty) == "empty"
    await migrate.upgrade(empty)
    assert tables(await described(empty)) == OURS | {REVISIONS}
    assert await migrate.state(empty) == "current"


async def test_models_and_migrations_agree(empty: Settings) -> None:
    await migrate.upgrade(empty)
    await alembic(empty, command.check)


async def test_a_downgrade_leaves_nothing_and_an_upgrade_makes_the_same_again(empty: Settings) -> None:
    untouched = await described(empty)
    await migrate.upgrade(empty)
    before = await described(empty)
    await alembic(empty, lambda config: command.downgrade(config, "base"))
    left = [row for row in await described(empty) if not row[1].startswith(REVISIONS)]
    assert left == untouched
    assert await migrate.state(empty) == "empty"
    await migrate.upgrade(empty)
    assert await described(empty) == before


async def test_every_single_step_down_can_be_taken_up_again(empty: Settings) -> None:
    revisions = [script.revision for script in ScriptDirectory.from_config(Config(INI)).walk_revisions()]
    await migrate.upgrade(empty)
    for _ in revisions:
        await alembic(empty, lambda config: command.downgrade(config, "-1"))
    for revision in reversed(revisions):
        await alembic(empty, partial(command.upgrade, revision=revision))
    assert await migrate.state(empty) == "current"


async def test_an_upgrade_of_a_current_database_changes_nothing(empty: Settings) -> None:
    await migrate.upgrade(empty)
    before = await described(empty)
    await migrate.upgrade(empty)
    assert await described(empty) == before


async def test_instances_that_start_at_once_migrate_once(empty: Settings) -> None:
    await asyncio.gather(*(migrate.upgrade(empty) for _ in range(5)))
    assert await migrate.state(empty) == "current"
    assert tables(await described(empty)) == OURS | {REVISIONS}


async def test_somebody_elses_migration_is_not_waited_for_for_ever(empty: Settings) -> None:
    other = await asyncpg.connect(empty.asyncpg_dsn)
    try:
        assert await other.fetchval("SELECT pg_try_advisory_lock($1)", migrate.LOCK)
        with pytest.raises(TimeoutError, match="Another migration"):
            await migrate.upgrade(empty, wait=0)
    finally:
        await other.close()
    assert await migrate.state(empty) == "empty"
    await migrate.upgrade(empty)


NEXT = f"""
from alembic import op

revision = "next"
down_revision = "{SCHEMA_REVISION}"


def upgrade():
    op.execute("CREATE TABLE made (id int)")
    for table in ("instances", "sessions", "runs"):
        op.execute(f"ALTER TABLE {{table}} ADD COLUMN more int")
"""


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """The migrations, and one more."""
    scripts = Path(shutil.copytree(migrate.SCRIPTS, tmp_path / "migrations"))
    (scripts / "versions" / "next.py").write_text(NEXT)
    return scripts


async def test_a_migration_that_waits_for_a_table_lets_others_write_to_it(empty: Settings, next_release: Path) -> None:
    """Whoever reads a table for long, a report or a dump, must not hold up heartbeats behind a migration."""
    await migrate.upgrade(empty)
    async with administrator(empty) as reader, administrator(empty) as writer:
        await reader.execute("BEGIN; SELECT * FROM instances")
        migrating = asyncio.create_task(migrate.upgrade(empty, scripts=next_release))
        await until(lambda: waiting_for_locks(writer, 1))
        await asyncio.wait_for(writer.execute("UPDATE instances SET slots = slots"), PATIENCE)
        assert not migrating.done()
        await reader.execute("COMMIT")
        await asyncio.wait_for(migrating, PATIENCE)
        assert await writer.fetchval("SELECT count(more) FROM instances") == 0


async def test_a_table_that_stays_in_use_ends_a_migration_that_did_nothing(empty: Settings, next_release: Path) -> None:
    await migrate.upgrade(empty)
    async with administrator(empty) as reader:
        await reader.execute("BEGIN; SELECT * FROM instances")
        with pytest.raises(TimeoutError, match="in use"):
            await migrate.upgrade(empty, wait=0, scripts=next_release)
        assert await reader.fetchval("SELECT to_regclass('made')") is None
    assert await migrate.state(empty) == "current"


UNINDEXED = """
SELECT c.conrelid::regclass || '.' || c.conname FROM pg_constraint c
WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace AND NOT EXISTS (
  SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = i.indkey[0]
  WHERE i.indrelid = c.conrelid AND i.indisvalid AND i.indkey[0] = ANY (c.conkey)
    AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname)))
"""


async def test_every_foreign_key_has_an_index(settings: Settings) -> None:
    """Whoever deletes a row looks for those that refer to it, in tables that grow for ever."""
    async with administrator(settings) as admin:
        assert [row[0] for row in await admin.fetch(UNINDEXED)] == []


async def test_an_index_that_was_broken_off_is_built_again_and_what_is_queued_may_start(empty: Settings) -> None:
    await migrate.upgrade(empty)
    await alembic(empty, lambda config: command.downgrade(config, "0001"))
    async with administrator(empty) as admin:
        tenant = await admin.fetchval("INSERT INTO tenants (name) VALUES ('ours') RETURNING id")
        await admin.execute("INSERT INTO agents (tenant_id, name) VALUES ($1, 'a'), ($1, 'b')", tenant)
        with pytest.raises(asyncpg.UniqueViolationError):
            await admin.execute("CREATE UNIQUE INDEX CONCURRENTLY agents_tenant_id_idx ON agents (tenant_id)")
        session = await admin.fetchval(
            "INSERT INTO sessions (id, tenant_id, sdk_session_id) SELECT id, $1, id FROM gen_random_uuid() AS id"
            " RETURNING id",
            tenant,
        )
        queue = "INSERT INTO runs (id, tenant_id, session_id, timeout_seconds) VALUES (gen_random_uuid(), $1, $2, 60)"
        for _ in range(2):
            await admin.execute(queue, tenant, session)
        await migrate.upgrade(empty)
        assert await admin.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
        waiting = await admin.fetch("SELECT startable FROM runs ORDER BY position")
        assert [row["startable"] for row in waiting] == [True, False]


# --- the revision that the code names ------------------------------------------------------------------------------


def test_the_code_names_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(Config(INI)).get_heads() == [SCHEMA_REVISION]


def test_revisions_can_be_compared_as_text() -> None:
    """`check_schema` tells older from newer by that."""
    scripts = list(ScriptDirectory.from_config(Config(INI)).walk_revisions())
    revisions = [script.revision for script in reversed(scripts)]
    assert revisions == sorted(revisions)
    assert {len(revision) for revision in revisions} == {4}


async def test_an_empty_database_is_refused(empty: Settings) -> None:
    async with Database.open(empty) as db:
        with pytest.raises(SchemaMissing, match="migrate"):
            await db.check_schema()


async def test_a_database_that_was_downgraded_is_refused(empty: Settings) -> None:
    await migrate.upgrade(empty)
    await alembic(empty, lambda config: command.downgrade(config, "base"))
    async with Database.open(empty) as db:
        with pytest.raises(SchemaMissing, match=f"needs {SCHEMA_REVISION}"):
            await db.check_schema()


async def test_a_current_database_is_taken(db: Database) -> None:
    await db.check_schema()


async def revise(settings: Settings, revision: str) -> None:
    async with administrator(settings) as admin:
        await admin.execute("UPDATE schema_revision SET version_num = $1", revision)


async def test_a_database_that_a_newer_release_has_migrated_is_taken(settings: Settings, db: Database) -> None:
    await revise(settings, "9999")
    await db.check_schema()
    assert await migrate.state(settings) == "ahead"


async def test_an_older_database_is_refused(settings: Settings, db: Database) -> None:
    await revise(settings, "0000")
    with pytest.raises(SchemaMissing, match="0000"):
        await db.check_schema()


@pytest.mark.parametrize("revision", ["0001", "0002"])
async def test_a_database_from_before_the_first_release_is_refused_with_what_to_do(
    empty: Settings, revision: str
) -> None:
    async with administrator(empty) as admin:
        await admin.execute("CREATE TABLE alembic_version (version_num text PRIMARY KEY)")
        await admin.execute("INSERT INTO alembic_version VALUES ($1)", revision)
    before = await described(empty)
    assert await migrate.state(empty) == "unreleased"
    async with Database.open(empty) as db:
        with pytest.raises(SchemaUnreleased, match="new, empty database"):
            await db.check_schema()
    with pytest.raises(migrate.ERRORS, match="throw the data directory away"):
        await migrate.upgrade(empty)
    assert await described(empty) == before


async def test_usage_from_before_its_sums_is_added_up_once(empty: Settings) -> None:
    """Also where the migration is broken off and tried again, and where versions of before go on storing."""
    await alembic(empty, partial(command.upgrade, revision="0019"))
    connection = await asyncpg.connect(empty.asyncpg_dsn)
    runs = [(uuid4(), uuid4()) for _ in range(3)]
    tenant_id = await connection.fetchval("INSERT INTO tenants (name) VALUES ('t') RETURNING id")

    async def use(run_id: UUID, session_id: UUID, *models: str) -> None:
        await connection.execute(
            "INSERT INTO sessions (id, tenant_id, sdk_session_id) VALUES ($2, $1, $2)", tenant_id, session_id
        )
        await connection.execute(
            "INSERT INTO runs (id, tenant_id, session_id, status, timeout_seconds, finished_at)"
            " VALUES ($1, $2, $3, 'succeeded', 60, now())",
            *(run_id, tenant_id, session_id),
        )
        await connection.execute(
            "INSERT INTO usage (run_id, model, tenant_id, session_id, day, input_tokens, output_tokens,"
            " cache_read_input_tokens, cache_creation_input_tokens, web_search_requests, cost_usd)"
            " SELECT $1, model, $2, $3, '2026-01-31', 1, 1, 1, 1, 1, 0.1 FROM unnest($4::text[]) model",
            *(run_id, tenant_id, session_id, models),
        )

    query = (
        "SELECT model, sum(runs)::int, sum(first_runs)::int, sum(cost_usd)::text FROM usage_sums GROUP BY 1 ORDER BY 1"
    )
    try:
        await use(*runs[0], "a", "b")
        await use(*runs[1], "b")
        await alembic(empty, partial(command.upgrade, revision="0020"))
        assert [tuple(row) for row in await connection.fetch(query)] == [("a", 1, 1, "0.1"), ("b", 2, 1, "0.2")]
        await connection.execute(f"UPDATE {REVISIONS} SET version_num = '0019'")  # as if it had been broken off
        await use(*runs[2], "a", "c")
        await alembic(empty, partial(command.upgrade, revision="0020"))
        expected = [("a", 2, 2, "0.2"), ("b", 2, 1, "0.2"), ("c", 1, 0, "0.1")]
        assert [tuple(row) for row in await connection.fetch(query)] == expected
    finally:
        await connection.close()
