"""Fixtures: real PostgreSQL and Valkey, a migrated template database, the demo model, and fleets of servers."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from claude_agent_sdk._cli_version import __cli_version__
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from apps.api import keys, migrate
from apps.api.core.tenant import skills
from apps.api.db import Database
from apps.api.dev.embedded import Servers
from apps.api.redis import Redis, open_redis
from apps.api.runner.agent.catalog import ask
from apps.api.runner.agent.scratch import Scratch
from apps.api.settings import Settings
from apps.demo_model.server import serving
from tests.contract import stored_events_fit
from tests.fleet import API_KEY, Fleet, Shared
from tests.invariants import logs_hold
from tests.mcp_things import COMMAND_LINE, PROGRAM
from tests.recorder import Recorder

# How long an example takes says how busy the machine is.
hypothesis_settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("here")

NewKey = Callable[..., Awaitable[dict[str, str]]]

_numbers = itertools.count(1)
UNRETRIEVED = re.compile(r"Task exception was never retrieved(?:\\n|\s)+future: (?!.*/claude_agent_sdk/).*")
"""What asyncio logs, here or in a server, of a task of ours whose failure nobody has asked for. The SDK has some when
its program has ended."""

TEMPLATE = "template_app"
ENCRYPTION_KEY = "ZW5jcnlwdGlvbi1rZXktb2YtdGhlLXRlc3RzLW5vdC0="


STARTS_PROGRAMS = frozenset({"model_url", "own_servers", "lasting_servers"})
"""Fixtures of tests that start servers of ours, which need a model, or databases of their own."""

NOT_FAST = (
    "tests/dev/",
    "tests/test_examples.py",
    "tests/test_example_programs.py",
    "tests/test_bootstrap.py",
    "tests/demo_model/test_with_cli.py",
)
"""Tests that start whole installations, or agents, by themselves."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out every test that starts a server or an agent")
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "breaks_logs: leaves events that no instance of ours would have stored")
    config.addinivalue_line("markers", "slow: needs long by its nature (storms, fills, freezes); run with --slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected lives as long as the process: nothing looks whether it is garbage, which takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


STORMS = ("tests/acceptance/storms/test_servers_and_agents.py", "tests/acceptance/storms/test_clients_and_stores.py")
LONGEST_FIRST = (
    *("tests/test_examples.py", STORMS[0], "tests/dev/", "tests/acceptance/test_"),
    *("tests/dialects/", STORMS[1], "tests/web/"),
)
"""Files of tests that take long begin before the others, so that no worker is left alone with one in the end; and the
storms apart, each of which takes a machine for itself."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = [*LONGEST_FIRST, ""]
    items.sort(key=lambda item: next(i for i, begins in enumerate(order) if item.nodeid.startswith(begins)))
    kept, left_out = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        if "fleet" in fixtures and not item.get_closest_marker("breaks_logs"):
            fixtures.append("logs_of_fleet")
        starts = item.nodeid.startswith(NOT_FAST) or STARTS_PROGRAMS & set(getattr(item, "fixturenames", ()))
        slow = item.get_closest_marker("slow") and not config.getoption("--slow")
        (left_out if slow or (starts and config.getoption("--fast")) else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("servers"), ephemeral=True) as running:
        yield running


@pytest.fixture(scope="session")
def recorded() -> Recorder:
    """What `model_url` was asked."""
    return Recorder()


@pytest.fixture(scope="session")
def model_url(recorded: Recorder) -> Iterator[str]:
    with serving(recorded.wrap) as url:
        yield url


async def _make_template(servers: Servers) -> str:
    await servers.create_database(TEMPLATE)
    await migrate.upgrade(settings_for(servers, TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="session")
async def template(servers: Servers) -> str:
    """The name of a migrated, empty database."""
    return await _make_template(servers)


@pytest.fixture
async def own_servers(tmp_path: Path) -> AsyncIterator[Servers]:
    """PostgreSQL and Valkey of the test's own, to be restarted."""
    with Servers(tmp_path / "servers", ephemeral=True) as running:
        await _make_template(running)
        yield running


@pytest.fixture(scope="module")
async def lasting_servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """As `own_servers`, for all tests of a module."""
    with Servers(tmp_path_factory.mktemp("servers"), ephemeral=True) as running:
        await _make_template(running)
        yield running


def settings_for(servers: Servers, database: str, **more: object) -> Settings:
    given: dict[str, Any] = {"database_url": servers.database_url(database), "redis_url": servers.redis_url}
    given |= {"database_owner_url": servers.database_owner_url(database)}
    given |= {"encryption_keys": ENCRYPTION_KEY, **more}
    return Settings(_env_file=None, **given)


@pytest.fixture
async def settings(servers: Servers, template: str, tmp_path: Path) -> AsyncIterator[Settings]:
    """Settings with a database and a Redis prefix of the test's own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await servers.create_database(name, template)
    yield settings_for(servers, name, redis_key_prefix=f"{name}:", workspaces_dir=tmp_path / "workspaces")
    # The next one takes its memory and its place on the disk, which is much faster than new ones.
    owner = await asyncpg.connect(servers.database_owner_url("postgres").replace("+asyncpg", ""))
    try:
        await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await owner.close()


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings) as opened:
        yield opened


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
async def catalog(servers: Servers, model_url: str) -> dict[str, Any]:
    """What the CLI says that it offers. An instance whose database does not have it asks a CLI, which costs a core one
    second: all but the shared fleet are given it."""
    scratch, settings = Scratch(), settings_for(servers, "", anthropic_base_url=model_url, anthropic_api_key="none")
    try:
        return await ask(settings, scratch)
    finally:
        scratch.close()


StartFleet = Callable[..., Awaitable[Fleet]]


async def _fleets(
    shared: Servers,
    model_url: str,
    directory: Path,
    catalog: dict[str, Any] | None = None,
    *,
    breaks_logs: bool = False,
) -> AsyncIterator[StartFleet]:
    async with AsyncExitStack() as stack:

        async def start(
            count: int, servers: Servers = shared, *, forked: bool = True, apart: bool = True, **more: str
        ) -> Fleet:
            name = f"fleet_{os.getpid()}_{next(_numbers)}"
            await servers.create_database(name, TEMPLATE)
            # Not in WORKSPACES_DIR, where each instance has a disk of its own; nor do fleets of one module share it.
            (store := directory / f"store_{name}").mkdir()
            env = {
                "DATABASE_URL": servers.database_url(name),
                "REDIS_URL": servers.redis_url,
                "REDIS_KEY_PREFIX": f"{name}:",
                "API_KEY": API_KEY,
                "ENCRYPTION_KEYS": ENCRYPTION_KEY,
                "ANTHROPIC_BASE_URL": model_url,
                "ANTHROPIC_API_KEY": "demo-key-of-the-tests",
                "WORKSPACES_DIR": str(directory / "workspaces"),
                "WORKSPACE_STORE_URL": f"file://{store}",
                "RATE_LIMIT_QUERY_PER_MINUTE": "0",
                "KEY_FAILURES_PER_MINUTE": "0",
                "RUNNER_SLOTS": "4",
                "PREWARM": "0",
                "INSTANCE_LEASE_SECONDS": "5",
                "SHUTDOWN_GRACE_SECONDS": "20",
                "LOG_LEVEL": "INFO",
                "OUTBOUND_ALLOW": "127.0.0.0/8",
                "REPOSITORY_HOSTS": "github.com,127.0.0.1",
                "MCP_STDIO_COMMANDS": COMMAND_LINE,
                "AGENT_READ_PATHS": str(PROGRAM),
                **more,
            }
            fleet = Fleet(env, directory, forked=forked, apart=apart)
            if catalog is not None:
                async with database_of(fleet) as db:
                    await skills.store_catalog(db, __cli_version__, catalog)
            if servers is shared and not breaks_logs:  # a test's own may have gone before
                stack.push_async_callback(_hold, fleet, servers.database_url(name))
            stack.push_async_callback(fleet.stop)
            await fleet.start(count)
            return fleet

        yield start


@pytest.fixture
async def start_fleet(
    request: pytest.FixtureRequest,
    servers: Servers,
    template: str,
    model_url: str,
    catalog: dict[str, Any],
    tmp_path: Path,
) -> AsyncIterator[StartFleet]:
    """Start fleets that end with the test: for tests that kill something."""
    broken = request.node.get_closest_marker("breaks_logs") is not None
    async for start in _fleets(servers, model_url, tmp_path, catalog, breaks_logs=broken):
        yield start


@pytest.fixture(scope="module")
async def start_lasting_fleet(
    servers: Servers, template: str, model_url: str, catalog: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[StartFleet]:
    """Start fleets that end with the module."""
    async for start in _fleets(servers, model_url, tmp_path_factory.mktemp("fleets"), catalog):
        yield start


@pytest.fixture(scope="session")
async def fleet(
    servers: Servers, template: str, model_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    """Three instances that all tests share, the first a program of its own; nobody kills them."""
    async for start in _fleets(servers, model_url, tmp_path_factory.mktemp("fleet")):
        # No test sees its end, and what agents have left in the background there is not waited for. A machine that is
        # busy with other tests does not cost it its leases.
        made = await start(1, forked=False, DEBUG="true", SHUTDOWN_GRACE_SECONDS="0", INSTANCE_LEASE_SECONDS="30")
        made.forked = True
        await made.start(2)
        yield made


class _Unretrieved(logging.Handler):
    """Failures of tasks that nobody has asked for: each hides something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if UNRETRIEVED.match(record.getMessage()):
            self.found.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")


_unretrieved = _Unretrieved()
logging.getLogger("asyncio").addHandler(_unretrieved)


@pytest.fixture(autouse=True)
def _every_failure_is_asked_for() -> Iterator[None]:
    _unretrieved.found.clear()
    yield
    assert _unretrieved.found == []


async def _hold(fleet: Fleet, database_url: str) -> None:
    for instance in fleet.instances:
        assert not UNRETRIEVED.findall(instance.log.read_text(errors="replace")), instance.log
    async with Database.open(Settings(_env_file=None, database_url=database_url)) as db:
        await logs_hold(db)
        await stored_events_fit(db)


@pytest.fixture
async def logs_of_fleet(fleet_db: Database) -> AsyncIterator[None]:
    """After each test of the shared fleet, see `pytest_collection_modifyitems`."""
    began = await fleet_db.pool.fetchval("SELECT now()")
    yield
    await logs_hold(fleet_db, since=began)


@pytest.fixture(scope="module")
def shared(fleet: Fleet) -> Shared:
    """Sessions of the shared fleet that the tests of a module use one after another."""
    return Shared(fleet)


def database_of(fleet: Fleet) -> AbstractAsyncContextManager[Database]:
    """For what has no route."""
    return Database.open(Settings(_env_file=None, database_url=fleet.env["DATABASE_URL"]))


async def make_key(db: Database, tenant: str | None = None, **more: Any) -> dict[str, str]:
    """Headers of a new key; of a new tenant unless one is named."""
    given = {"scopes": keys.USUAL_SCOPES, **more}
    made = await keys.create_key(db, tenant=tenant or f"t{uuid4().hex}", name="k", **given)
    return {"X-API-Key": made.secret}


@pytest.fixture(scope="session")
async def fleet_db(fleet: Fleet) -> AsyncIterator[Database]:
    """The database of the shared fleet."""
    async with database_of(fleet) as db:
        yield db


@pytest.fixture(scope="session")
def new_key(fleet_db: Database) -> NewKey:
    """See `make_key`; of the shared fleet."""
    return partial(make_key, fleet_db)
