"""The composition root: builds every part of one instance and owns its tasks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from uuid import UUID, uuid4

import structlog
from fastapi import FastAPI

from apps.api import keys, roles
from apps.api.core.config import profiles
from apps.api.core.context import Core
from apps.api.core.events.follow import Followers
from apps.api.core.events.relay import Publisher, Subscriptions
from apps.api.core.files.objects import Objects
from apps.api.core.lease import Lease
from apps.api.core.network import default_model
from apps.api.core.network.outbound import Outbound
from apps.api.core.tasks import Loops
from apps.api.core.tenant.deliveries import Deliveries
from apps.api.db import Database
from apps.api.dialects.ag_ui import routes as ag_ui
from apps.api.dialects.ai_sdk import routes as ai_sdk
from apps.api.dialects.compat.chat_server import routes as chat_server
from apps.api.dialects.compat.code_server import routes as code_server
from apps.api.dialects.compat.execute_server import routes as execute_server
from apps.api.dialects.managed import routes as managed
from apps.api.dialects.mcp import routes as mcp
from apps.api.dialects.native.document import NATIVE
from apps.api.dialects.native.routes import routers as native
from apps.api.dialects.openai import routes as openai
from apps.api.limits import PromptLimits
from apps.api.logs import configure_logging, speak_for
from apps.api.measure import Lateness, Queue, measure
from apps.api.redis import Redis, open_redis
from apps.api.runner.guard import cgroups, isolation, trial
from apps.api.runner.guard.launcher import bundled_cli
from apps.api.runner.session.watch import Watch
from apps.api.runner.upkeep import Upkeep
from apps.api.runner.worker import Worker
from apps.api.settings import ENV_FILE, Layer, Settings
from apps.api.shares import descriptors, table
from apps.api.spelling import doubts
from apps.api.web import cors, docs, errors, health, hosts, index, ports
from apps.api.web.console import routes as console
from apps.api.web.document import Description, build
from apps.api.web.entrance import Entrance
from apps.api.web.middleware import BoundedBody, RequestContext
from apps.api.web.opened import Opened
from apps.api.web.route import ErrorShape, Instance, Probe

log = structlog.get_logger(__name__)

DIALECTS = {"chat_server": chat_server, "code_server": code_server, "execute_server": execute_server}
"""The older servers whose clients work here, by what ROOT_DIALECT calls them."""

FRONT_ENDS = (ag_ui, ai_sdk)
"""What front ends speak: pages of ALLOWED_ORIGINS may ask it."""

SURFACES = (*DIALECTS.values(), managed, openai, *FRONT_ENDS)
"""All APIs beside the native one, each with a prefix, a document and errors of its own."""

LAST_REQUESTS = 15.0
"""Seconds for requests that wait for runs of other instances when those of this one have taken all of the grace."""


class _Failed:
    """Which loop has failed for good, if one has."""

    def __init__(self) -> None:
        self.loop: str | None = None

    def give_up(self, loop: str) -> None:
        """Take the process down in order: without this loop it would keep its lease and do half of its work."""
        if self.loop is None:
            self.loop = loop
            log.critical("instance.loop_failed", loop=loop)
            signal.raise_signal(signal.SIGTERM)


def create_app(settings: Settings, found: trial.Found | None = None) -> FastAPI:
    """The ASGI application of one instance. Its lifespan connects, starts the runner, and drains at the end.

    `found`: how agents are isolated here, if that was tried already.
    """
    configure_logging(settings)
    for doubt in doubts(os.environ, ENV_FILE):
        log.warning("settings.doubtful", warning=str(doubt))
    app = FastAPI(
        lifespan=partial(_confining, settings, found),
        openapi_url=None,  # and so no /docs: see `_describe`
        generate_unique_id_function=lambda route: route.name,
        # It would look for somebody to tell at each request, and tell what a client sent that is not valid.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    errors.install(app)
    _mount(app, settings.root_dialect)
    if settings.api_docs:
        _describe(app)
    if settings.web_console:
        app.include_router(console.router)
    if names := hosts.names_of(settings):
        app.add_middleware(hosts.KnownHosts, names=names)
    app.add_middleware(BoundedBody, limit=settings.max_body_bytes, file_limit=settings.max_file_bytes)
    if settings.allowed_origins:
        prefixes = ("/api/", *(f"{surface.PREFIX}/" for surface in FRONT_ENDS))
        app.add_middleware(cors.AllowedOrigins, origins=settings.allowed_origins, prefixes=prefixes)
    app.add_middleware(RequestContext)
    return app


def _mount(app: FastAPI, root_dialect: str | None) -> None:
    if root_dialect is not None:
        # First, for its own /health; the native API's other paths are none of any dialect's.
        app.include_router(DIALECTS[root_dialect].router, include_in_schema=False)
    for router in (health.router, index.router, ports.router, *native, mcp.router):
        app.include_router(router)
    for surface in SURFACES:
        app.include_router(surface.router, prefix=surface.PREFIX)


def descriptions() -> dict[str, Description]:
    """Of all documents, by the path below which they are served."""
    return {"": NATIVE, **{surface.PREFIX: surface.DESCRIPTION for surface in SURFACES}}


def _describe(app: FastAPI) -> None:
    for prefix, description in descriptions().items():
        app.include_router(docs.router(prefix, description.title, partial(build, app, description)))


def _error_shapes(root_dialect: str | None) -> dict[str, ErrorShape]:
    shapes = {surface.PREFIX: surface.error_shape for surface in SURFACES}
    if root_dialect is not None:
        shapes |= {"/api": errors.native, "/preview": errors.native, "": DIALECTS[root_dialect].error_shape}
    return shapes


async def _admit_guests(core: Core) -> str | None:
    tenant = core.settings.anonymous_tenant
    if tenant is None:
        return None
    log.warning(
        "anonymous.admitted",
        tenant=tenant,
        warning="Whoever reaches this port acts for this tenant on the paths of the older servers, without a key.",
    )
    return await keys.ensure_anonymous_key(core.db, tenant)


async def _ensure_first_key(db: Database, settings: Settings) -> None:
    if settings.api_key is not None:
        await keys.ensure_first_key(db, settings.api_key.get_secret_value())


def _entrance(db: Database, redis: Redis, settings: Settings) -> Entrance:
    return Entrance(db, redis, settings.key_failures_per_minute, settings.encryption_keys)


async def _look_at_role(db: Database, settings: Settings) -> None:
    if found := await roles.excess(db.pool):
        log.warning("database.role", warning=found)
    if settings.database_owner_url is not None:
        log.warning("database.role", warning="DATABASE_OWNER_URL is for `migrate` alone: keep it from servers.")


class _Isolation(NamedTuple):
    """How agents are isolated here, in what that falls short, and what makes their control groups, if there are any."""

    layer: Layer
    warnings: list[str]
    groups: cgroups.Groups | None


def _trace(settings: Settings, instance_id: UUID) -> Callable[[], None]:
    """Send spans, if the settings say where; returns what sends the last ones. Raises RuntimeError."""
    if settings.otel_exporter_otlp_endpoint is None:
        return lambda: None
    try:
        from apps.api.spans import Spans
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed: install claude-agent-api[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        raise RuntimeError(missing) from error
    return Spans(settings.otel_exporter_otlp_endpoint, {"service.instance.id": str(instance_id)}).close


@asynccontextmanager
async def _confining(settings: Settings, found: trial.Found | None, app: FastAPI) -> AsyncIterator[None]:
    """The lifespan, with the layer of isolation that works here in place of `auto`. Raises RuntimeError when the
    settings ask for more."""
    found = found or await trial.strongest(settings)
    if refused := isolation.refusal(settings, found.layer, found.lacking):
        raise RuntimeError(refused)
    groups, lacking = await asyncio.to_thread(cgroups.find, settings)
    unlimited = cgroups.warnings(settings, lacking)
    told = _Isolation(found.layer, isolation.warnings(settings, found.layer, found.lacking) + unlimited, groups)
    log.info("agents.isolation", layer=found.layer, lacking=dict(found.lacking))
    # Where there is none to be had, that is not the same as if none was wanted: see `profiles.reach`.
    least = "off" if settings.agent_isolation == "off" else "auto"
    settled = found.layer if found.layer != "off" else least
    instance_id = uuid4()
    speak_for(instance_id)
    stop_tracing = _trace(settings, instance_id)
    try:
        async with _lifespan(settings.model_copy(update={"agent_isolation": settled}), told, instance_id, app):
            yield
    finally:
        await asyncio.to_thread(stop_tracing)


@asynccontextmanager
async def _lifespan(settings: Settings, isolated: _Isolation, instance_id: UUID, app: FastAPI) -> AsyncIterator[None]:
    known = profiles.load(settings.profiles_file, settings.default_profile)
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(Database.open(settings))
        await db.check_schema()
        await _look_at_role(db, settings)
        redis = await stack.enter_async_context(open_redis(settings))
        await redis.check_kind()
        await _ensure_first_key(db, settings)
        publisher, subscriptions = Publisher(redis), Subscriptions(redis)
        followers = Followers(db, redis, subscriptions)
        stack.push_async_callback((outbound := Outbound(settings.outbound_allow)).close)
        parts = db, redis, publisher, subscriptions, followers, outbound, known, Objects.of(settings)
        core = Core(settings, instance_id, *parts)
        deliveries = Deliveries(db.for_webhooks(), settings, outbound, instance_id=core.instance_id)
        lease = Lease(core.instance_id, settings.instance_lease_seconds)
        stack.callback(core.blocking.close)
        runner = replace(core, db=db.for_runner())
        worker = Worker(runner, lease, isolated.groups)
        loops = Loops(settings.instance_lease_seconds, (failed := _Failed()).give_up)
        stack.push_async_callback(loops.stop)
        loops.keep("relay-publisher", publisher.run)
        loops.keep("relay-subscriber", subscriptions.run)
        loops.start("followers", followers.check, followers.until_next_check)
        model = default_model.Watch(settings)
        loops.start("model-watch", model.look, model.until_next_look)
        await worker.start()
        loops.keep("webhook-deliveries", deliveries.run)  # others tell by this instance's lease whether it still sends
        for part in (worker, Upkeep(runner, worker), watch := Watch(runner, worker.executions), Lateness()):
            part.run_in(loops)
        stack.push_async_callback((entrance := _entrance(db, redis, settings)).close)
        opened = Opened(db.for_runner(), shares := table(settings, descriptors()))
        loops.start("opened", opened.check, opened.until_next_check)
        probe = _probe(settings, isolated, worker, lease, model, loops)
        measure(core, worker, watch, lease, opened, deliveries, loops)
        drain = _Drain(core, worker, opened)
        app.state.instance = Instance(
            core,
            probe,
            PromptLimits(settings, redis),
            shares,
            entrance,
            opened,
            databases=health.Dependents(core).states,
            look_at_queue=Queue(runner.db).look,
            anonymous=await _admit_guests(core),
            drain=drain.runs,
            leave=drain.clients,
            failed=lambda: failed.loop,
            error_shapes=_error_shapes(settings.root_dialect),
        )
        _announce(core, probe)
        try:
            yield
        finally:
            await drain.clients()
            await worker.stop()
            await publisher.flushed()
            log.info("instance.stopped", instance_id=str(core.instance_id))


def _announce(core: Core, probe: Probe) -> None:
    for warning in probe.warnings:
        log.warning("agents.not_confined", warning=warning)
    log.info("instance.ready", instance_id=str(core.instance_id), slots=core.settings.runner_slots)


class _Drain:
    """The end of an instance, in two parts, each of which happens once."""

    def __init__(self, core: Core, worker: Worker, opened: Opened) -> None:
        self._core, self._worker, self._opened = core, worker, opened
        self._grace = core.settings.shutdown_grace_seconds
        self._ends: float | None = None
        self._left = False

    async def runs(self) -> None:
        """Give back or end what runs here, and send away who follows whole sessions."""
        if self._ends is None:
            self._ends = asyncio.get_running_loop().time() + self._grace
            log.info("instance.draining", instance_id=str(self._core.instance_id), running=self._worker.running)
            self._opened.drain(only_endless=True)
            await self._worker.drain(self._grace)
            await self._core.publisher.flushed()

    async def clients(self) -> None:
        """Then wait for requests that end with runs, those of other instances among them, and end the rest."""
        await self.runs()
        if not self._left:
            self._left = True
            least = asyncio.get_running_loop().time() + min(self._grace, LAST_REQUESTS)
            await self._opened.until_told(max(self._ends or least, least))
            self._opened.drain(only_endless=False)


def _probe(
    settings: Settings, isolated: _Isolation, worker: Worker, lease: Lease, model: default_model.Watch, loops: Loops
) -> Probe:
    async def address_of(session_id: UUID, port: int) -> str | None:
        execution = worker.executions.get(session_id)
        return await execution.ports.address(execution.agent, port) if execution else None

    return Probe(
        isolation=isolated.layer if settings.runner_slots else None,
        warnings=isolated.warnings,
        cli_present=bundled_cli().is_file,
        draining=lambda: worker.draining,
        lease_is_over=lease.is_over,
        default_model=lambda: model.answer,
        unfit=lambda: worker.host.unfit,
        failing_loops=lambda: loops.failing,
        address_of=address_of,
        live=lambda session_id: found.storing if (found := worker.executions.get(session_id)) else None,
    )
