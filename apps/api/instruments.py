"""The metrics of an instance: what `/metrics` tells, by name, type, labels and meaning.

Every room may count here what it does; figures that a part of the instance keeps by itself are read from it when
somebody asks (`measure.py`). Labels never hold a tenant, a session or anything else without a bound: what is not in a
list that is known counts as `other`. To observe costs some 2 µs, and to look a child up by its labels as much again:
what is done for each event or request has its child before (docs/adr/0027-observability.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from http import HTTPStatus
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from apps.api.errors import RUN_FAILURES

disable_created_metrics()  # type: ignore[no-untyped-call] # a time for each series of a counter, which nobody asks for

PREFIX = "claude_agent_api"
REGISTRY = CollectorRegistry()
ProcessCollector(PREFIX, registry=REGISTRY)

_counter = partial(Counter, namespace=PREFIX, registry=REGISTRY)
_histogram = partial(Histogram, namespace=PREFIX, registry=REGISTRY)

OTHER = "other"
"""What a label says in place of a value that is in no list."""

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Seconds, of what takes milliseconds."""

USUAL = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds, of what a client waits for."""

LONG = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Seconds, of what agents do."""

PATIENT = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 14400, 86400, 604800)
"""Seconds, of what persons do."""


class Read(Collector):
    """Figures that a part of the instance keeps, by one label or without any; none until somebody sets `read`.

    Attributes:
        read: tells them now: by the label's values, or one, or None for one that is not known.
    """

    def __init__(self, family: type[CounterMetricFamily | GaugeMetricFamily], name: str, meaning: str, label: str = ""):
        self._family, self.name, self._meaning, self.label = family, f"{PREFIX}_{name}", meaning, label
        self.read: Callable[[], Mapping[str, float] | float | None] = lambda: None
        REGISTRY.register(self)

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        family = self._family(self.name, self._meaning, labels=[self.label] if self.label else [])
        told = self.read()
        for value, figure in ({"": told} if not isinstance(told, Mapping) else told).items():
            if figure is not None:
                family.add_metric([value] if self.label else [], figure)
        return [family]


_total = partial(Read, CounterMetricFamily)
_figure = partial(Read, GaugeMetricFamily)

# --- HTTP ------------------------------------------------------------------------------------------------------------

REQUESTS = _counter("http_requests_total", "Requests by route and status.", ["method", "route", "status"])
REQUEST_SECONDS = _histogram(
    "http_request_duration_seconds",
    "From the request to the head of its answer: how long a stream then lasts is no delay.",
    ["method", "route"],
    buckets=USUAL,
)
KEYS_REFUSED = _counter("keys_refused_total", "Keys that were shown and refused, by code.", ["code"])
STREAMS = _figure("event_streams_open", "Event streams and requests that wait, on this instance.")
SOCKETS = _figure("websockets_open", "WebSocket connections that are open on this instance.")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})
STATUSES = frozenset(map(int, HTTPStatus)) | {0}


class _Request(NamedTuple):
    counter: Counter
    seconds: Histogram


@lru_cache(maxsize=4096)
def request(method: str, route: str, status: int) -> _Request:
    """What counts requests of a kind."""
    method = method if method in METHODS else OTHER
    told = str(status) if status in STATUSES else OTHER
    return _Request(REQUESTS.labels(method, route, told), REQUEST_SECONDS.labels(method, route))


# --- runs ------------------------------------------------------------------------------------------------------------

RUNNING = _figure("runs_running", "Runs that this instance executes now.")
SLOTS = _figure("runner_slots", "Runs that this instance may execute at once.")
QUEUED = _figure("runs_queued", "Runs that wait, of the whole fleet.")
OLDEST = _figure("queue_oldest_seconds", "For how long the oldest of them waits.")
QUEUE_WAIT = _histogram("run_queue_wait_seconds", "From a run's acceptance to its start here.", buckets=USUAL)
FIRST_DELTA = _histogram("run_first_delta_seconds", "From a run's acceptance to its first delta.", buckets=USUAL)
RUN_SECONDS = _histogram(
    "run_duration_seconds", "From a run's start to its end, with what persons took.", ["status"], buckets=LONG
)
RUNS_ENDED = _counter(
    "runs_ended_total", "Runs that this instance ended, by status and error code.", ["status", "code"]
)

STEERED = _counter(
    "steered_total", "Messages for a turn that ran, by what became of them: taken by it, or the next run.", ["state"]
)


class Ended(NamedTuple):
    """The end of a run: `code` of its error, if there is one; seconds since its start, if it had begun."""

    status: str
    code: str | None = None
    seconds: float | None = None


def run_ended(ended: Ended, times: int = 1) -> None:
    """Count a run that has ended, or several that have ended alike."""
    code = "none" if ended.code is None else ended.code if ended.code in RUN_FAILURES else OTHER
    RUNS_ENDED.labels(ended.status, code).inc(times)
    if ended.seconds is not None:
        RUN_SECONDS.labels(ended.status).observe(ended.seconds)


# --- schedules -------------------------------------------------------------------------------------------------------

FIRINGS = _counter(
    "schedule_firings_total", "Times of schedules: sent, skipped, failed when they were due, missed.", ["state"]
)
FIRING_LAG = _histogram("schedule_lag_seconds", "From when a schedule was due until it was fired here.", buckets=LONG)

# --- agents ----------------------------------------------------------------------------------------------------------

LIVE = _figure("sessions_live", "Sessions that this instance owns.")
AGENTS = _figure("agents_live", "Agent processes of this instance, with those that start.")
MEMORY = _figure("agents_memory_bytes", "Memory of the agents of sessions, what they share counted for each.")
AHEAD = _figure("agents_ahead", "Agents that were started before anybody asked for them, and wait.")
AHEAD_TAKEN = _total("agents_ahead_taken", "New sessions that found an agent which had been started ahead.")
AHEAD_MISSED = _total("agents_ahead_missed", "New sessions that found none, and might have.")
START_SECONDS = _histogram(
    "agent_start_duration_seconds", "Of starts of agent processes that succeeded.", ["ahead"], buckets=USUAL
)
STARTED, STARTED_AHEAD = START_SECONDS.labels("no"), START_SECONDS.labels("yes")
STARTS_FAILED = _total("agent_starts_failed_by_host", "Starts of agents that failed for the host's reasons.")
AGENTS_ENDED = _counter("agents_ended_total", "Agent processes that have ended, by reason.", ["reason"])
RESTORE_SECONDS = _histogram(
    "workspace_restore_duration_seconds", "Of bringing a session's files to this host.", buckets=LONG
)

REASONS = frozenset(
    {
        # Why a session is given back,
        *("idle", "evicted", "yielded", "shutdown", "tenant_suspended", "owner_lost", "parked", "unused"),
        # why its process is replaced,
        *("reset", "reconfigured", "recycled", "not_started"),
        # and how that ended by itself, or was ended.
        *("agent_ended", "killed", "agent_out_of_memory", "agent_too_many_processes", "workspace_full"),
    }
)


def agent_ended(reason: str) -> None:
    """Count an agent process that has ended."""
    AGENTS_ENDED.labels(reason if reason in REASONS else OTHER).inc()


# --- requests to persons ---------------------------------------------------------------------------------------------

DECISION_WAIT = _histogram(
    "decision_wait_seconds", "From what an agent asks to the answer, by kind of request.", ["kind"], buckets=PATIENT
)
DENIED = _counter("permissions_denied_total", "Tool calls that were denied, by whom or what.", ["by"])
DENIED_BY_PERSON, DENIED_BY_HOOK, DENIED_BY_NOBODY, DENIED_BY_RULES = map(
    DENIED.labels, ("person", "hook", "nobody", "rules")
)

# --- events ----------------------------------------------------------------------------------------------------------

APPEND_SECONDS = _histogram("event_append_duration_seconds", "Of storing events that were said at once.", buckets=QUICK)
RELAY_LAG = _histogram(
    "relay_lag_seconds", "From a delta's making, on any instance, until its reader here has written it.", buckets=QUICK
)
DROPPED = _total("relay_frames_dropped", "Live frames not relayed because Redis was away.")

# --- models ----------------------------------------------------------------------------------------------------------

MODEL_CALLS = _counter(
    "model_calls_total", "Calls of agents to the model by status of the answer, 0 when none came.", ["kind", "status"]
)
MODEL_FIRST_BYTE = _histogram(
    "model_call_first_byte_seconds",
    "Seconds until the head of the model's answer.",
    ["kind"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256),
)
MODEL_TOKENS = _counter("model_tokens_total", "Tokens, as the model API counted them.", ["kind"])
MODEL_COST = _counter("model_cost_usd_total", "USD, by the table of prices.")
UNPRICED = _counter("model_calls_unpriced_total", "Calls to models that are not in the table of prices.")
COST_DIFFERS = _counter(
    "model_cost_differences_total",
    "Runs whose cost the SDK told more than 1 % lower or higher than the gateway has counted.",
    ["sdk"],
)

# --- what leaves the instance ----------------------------------------------------------------------------------------

OUTBOUND = _counter(
    "outbound_calls_total",
    "What this instance did outside for tenants: webhooks, hooks, checks of addresses, names, clones.",
    ["kind", "outcome"],
)
OUTBOUND_OPEN = _figure("outbound_calls_open", "Those that are under way.", "kind")
WEBHOOK_ATTEMPTS = _total("webhook_attempts", "Attempts to deliver a webhook message, by outcome.", "outcome")
NETWORK_DENIED = _total("network_denied", "Connections that agents' programs may not have.", "reason")
NETWORK_SENT = _total("network_sent_bytes", "Bytes that agents' programs sent through the proxy.")
NETWORK_RECEIVED = _total("network_received_bytes", "Bytes that agents' programs received through the proxy.")
NETWORK_OPEN = _figure("network_connections_open", "Connections of agents' programs through the proxy.")

# --- the instance ----------------------------------------------------------------------------------------------------

LEASE = _figure("instance_lease_remaining_seconds", "Seconds for which this instance may still write.")
CLOCK = _figure("clock_offset_seconds", "By which the clock of this machine is ahead of the database's.")
UNFIT = _figure("instance_unfit", "What the host of this instance lacks to run agents, see /health.")
TASKS = _figure("asyncio_tasks", "Tasks of the event loop.")
LOOP_LAG = _figure("event_loop_lag_seconds", "By which the event loop came too late at worst, in the last seconds.")
CONNECTIONS = _figure("database_connections_in_use", "Connections to PostgreSQL that somebody has.", "pool")
CONNECTIONS_MAX = _figure("database_connections_max", "As many a pool may have.", "pool")
LOOP_FAILING = _figure("loop_failing", "1 while the last step of the loop has failed.", "loop")
LOOP_FAILURES = _total("loop_failures", "Steps of the loop that failed.", "loop")
LOOP_ITEM_FAILURES = _total("loop_item_failures", "Times that one item failed in the loop.", "loop")
