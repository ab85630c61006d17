"""Health and metrics: the only routes that need no key.

Health is never limited: a load balancer asks for all, and whoever shares its address could take the fleet down. Asking
the databases is bounded instead, however often it is asked.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from apps.api import __version__, instruments
from apps.api.core.context import Core
from apps.api.core.network.default_model import Answer
from apps.api.db import CONNECTION_ERRORS
from apps.api.limits import PUBLIC_LIMIT, public_limiter
from apps.api.redis import REDIS_ERRORS
from apps.api.web.route import State, instance_of

router = APIRouter(tags=["health"])

PROBE_TIMEOUT = 2.0
"""Seconds for each dependency to answer."""

CACHE_SECONDS = 1.0
"""Seconds for which its answer holds."""


class Dependencies(BaseModel):
    postgres: State
    redis: State
    claude_cli: State


class Health(BaseModel):
    """`degraded`: Redis is away, so live deltas are missing and latency is higher, but nothing is lost; or the model
    API does not have DEFAULT_MODEL (`missing`) or refuses the key of the server (`unauthorized`), so that runs fail; or
    a loop of the instance fails, and is repeated; or its host lacks something (`unfit`).
    """

    status: Literal["ok", "degraded", "unhealthy"] = Field(examples=["ok"])
    version: str = Field(examples=[__version__])
    instance_id: UUID
    draining: bool
    dependencies: Dependencies
    default_model: Answer = Field(
        description="Whether the model API has DEFAULT_MODEL; `unknown` as long as it gave no answer."
    )
    failing_loops: list[str] = Field(
        description="What this instance does again and again, and failed at the last time. The log has the reason.",
        examples=[["runner-reap"]],
    )
    unfit: list[str] = Field(
        description="What its host lacks to run agents. It is then not ready, and leaves runs to others.",
        examples=[["WORKSPACES_DIR has no inodes: 0 are free (/var/lib/agents)"]],
    )
    isolation: str | None = Field(
        description="How agents of this instance are isolated from its host: `off`, `landlock` or `namespaces`; null"
        " when it starts none.",
        examples=["namespaces"],
    )
    warnings: list[str] = Field(description="Every way in which this instance does not fully confine its agents.")


async def _postgres(core: Core) -> State:
    try:
        await asyncio.wait_for(core.db.for_runner().pool.fetchval("SELECT 1"), PROBE_TIMEOUT)
    except CONNECTION_ERRORS:
        return "unavailable"
    return "ok"


async def _redis(core: Core) -> State:
    try:
        await asyncio.wait_for(core.redis.client.ping(), PROBE_TIMEOUT)
    except REDIS_ERRORS:
        return "unavailable"
    return "ok"


class Dependents:
    """What the databases answered last, asked at most once in CACHE_SECONDS by all requests together."""

    def __init__(self, core: Core) -> None:
        self._core, self._lock, self._asked_at = core, asyncio.Lock(), -CACHE_SECONDS
        self._answers: tuple[State, State] = "unavailable", "unavailable"

    async def states(self) -> tuple[State, State]:
        """Of PostgreSQL and of Redis."""
        async with self._lock:
            if time.monotonic() - self._asked_at >= CACHE_SECONDS:
                postgres, redis = await asyncio.gather(_postgres(self._core), _redis(self._core))
                self._answers = postgres, redis
                self._asked_at = time.monotonic()
            return self._answers


async def examine(request: Request) -> Health:
    """The state of this instance, and of what it depends on."""
    instance = instance_of(request)
    probe = instance.probe
    postgres, redis = await instance.databases()
    cli: State = "ok" if probe.cli_present() else "unavailable"
    ok = postgres == "ok" and cli == "ok" and not probe.lease_is_over()
    model = probe.default_model()
    failing, unfit = probe.failing_loops(), probe.unfit()
    impaired = redis != "ok" or model in ("missing", "unauthorized") or failing or unfit
    return Health(
        status="unhealthy" if not ok else "degraded" if impaired else "ok",
        version=__version__,
        instance_id=instance.core.instance_id,
        draining=probe.draining(),
        dependencies=Dependencies(postgres=postgres, redis=redis, claude_cli=cli),
        default_model=model,
        failing_loops=failing,
        unfit=unfit,
        isolation=probe.isolation,
        warnings=probe.warnings,
    )


@router.get("/health", summary="State of this instance and what it depends on", responses={503: {"model": Health}})
@router.get(
    "/api/v1/health",
    operation_id="get_api_health",
    summary="State of this instance and what it depends on",
    responses={503: {"model": Health}},
)
async def get_health(request: Request, response: Response) -> Health:
    """200 while this instance works, if only in part; 503 when it is `unhealthy`."""
    state = await examine(request)
    if state.status == "unhealthy":
        response.status_code = 503
    return state


@router.get("/health/live", summary="Whether the process is alive", status_code=200)
async def get_liveness() -> dict[str, str]:
    """Asks nothing but the event loop: a database that is away is no reason to restart this process."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Whether this instance should get traffic", responses={503: {"model": Health}})
async def get_readiness(request: Request, response: Response) -> Health:
    """503 while draining, without PostgreSQL, the agent CLI or a valid lease, or on a host that is `unfit`."""
    state = await examine(request)
    if state.status == "unhealthy" or state.draining or state.unfit:
        response.status_code = 503
    return state


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={429: {"description": "More than 600 requests a minute from this address."}},
)
@public_limiter.limit(PUBLIC_LIMIT)
async def get_metrics(request: Request) -> Response:
    """Metrics of this instance, and of the queue of all, in the Prometheus text format. Keep it off the public
    network."""
    await instance_of(request).look_at_queue()
    return Response(generate_latest(instruments.REGISTRY), media_type=CONTENT_TYPE_LATEST)
