"""Health and metrics: the only routes that need no key."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from apps.api import __version__
from apps.api.core.context import Core
from apps.api.core.default_model import Answer
from apps.api.db import CONNECTION_ERRORS
from apps.api.http import metrics
from apps.api.http.route import Probe, core_of, probe_of
from apps.api.limits import PUBLIC_LIMIT, public_limiter
from apps.api.redis import REDIS_ERRORS

_LIMITED = "More than 600 requests a minute from this address."

router = APIRouter(tags=["health"], responses={429: {"description": _LIMITED}})

PROBE_TIMEOUT = 2.0
"""Seconds for each dependency to answer."""

State = Literal["ok", "unavailable"]


class Dependencies(BaseModel):
    postgres: State
    redis: State
    claude_cli: State


class Health(BaseModel):
    """`degraded`: Redis is away, so live deltas are missing and latency is higher, but nothing is lost; or the model
    API does not have DEFAULT_MODEL (`missing`) or refuses the key of the server (`unauthorized`), so that runs fail.
    """

    status: Literal["ok", "degraded", "unhealthy"] = Field(examples=["ok"])
    version: str = Field(examples=[__version__])
    instance_id: UUID
    draining: bool
    dependencies: Dependencies
    default_model: Answer = Field(
        description="Whether the model API has DEFAULT_MODEL; `unknown` as long as it gave no answer."
    )
    warnings: list[str] = Field(description="Every way in which this instance does not fully confine its agents.")


async def _postgres(core: Core) -> State:
    try:
        await asyncio.wait_for(core.db.pool.fetchval("SELECT 1"), PROBE_TIMEOUT)
    except CONNECTION_ERRORS:
        return "unavailable"
    return "ok"


async def _redis(core: Core) -> State:
    try:
        await asyncio.wait_for(core.redis.client.ping(), PROBE_TIMEOUT)
    except REDIS_ERRORS:
        return "unavailable"
    return "ok"


async def examine(core: Core, probe: Probe) -> Health:
    """The state of this instance, and of what it depends on."""
    postgres, redis = await asyncio.gather(_postgres(core), _redis(core))
    cli: State = "ok" if probe.cli_present() else "unavailable"
    ok = postgres == "ok" and cli == "ok" and not probe.lease_is_over()
    model = probe.default_model()
    impaired = redis != "ok" or model in ("missing", "unauthorized")
    return Health(
        status="unhealthy" if not ok else "degraded" if impaired else "ok",
        version=__version__,
        instance_id=core.instance_id,
        draining=probe.draining(),
        dependencies=Dependencies(postgres=postgres, redis=redis, claude_cli=cli),
        default_model=model,
        warnings=probe.warnings,
    )


CoreOf = Annotated[Core, Depends(core_of)]
ProbeOf = Annotated[Probe, Depends(probe_of)]


@router.get("/health", summary="State of this instance and what it depends on", responses={503: {"model": Health}})
@router.get(
    "/api/v1/health", summary="State of this instance and what it depends on", responses={503: {"model": Health}}
)
@public_limiter.limit(PUBLIC_LIMIT)
async def health(request: Request, response: Response, core: CoreOf, probe: ProbeOf) -> Health:
    """200 while this instance works, if only in part; 503 when it is `unhealthy`."""
    state = await examine(core, probe)
    if state.status == "unhealthy":
        response.status_code = 503
    return state


@router.get("/health/live", summary="Whether the process is alive", status_code=200)
@public_limiter.limit(PUBLIC_LIMIT)
async def live(request: Request) -> dict[str, str]:
    """Asks nothing but the event loop: a database that is away is no reason to restart this process."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Whether this instance should get traffic", responses={503: {"model": Health}})
@public_limiter.limit(PUBLIC_LIMIT)
async def ready(request: Request, response: Response, core: CoreOf, probe: ProbeOf) -> Health:
    """503 while draining, or without PostgreSQL, the agent CLI or a valid lease."""
    state = await examine(core, probe)
    if state.status == "unhealthy" or state.draining:
        response.status_code = 503
    return state


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
@public_limiter.limit(PUBLIC_LIMIT)
async def prometheus(request: Request, probe: ProbeOf) -> Response:
    """Counters and gauges of this instance in the Prometheus text format. Keep it off the public network."""
    probe.measure()
    return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)
