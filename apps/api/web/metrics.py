"""What `/metrics` tells. Labels never hold a tenant, a session or anything else without a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from apps.api.core.network.calls import KINDS, Calls
from apps.api.core.tasks import Loop
from apps.api.core.tenant.model_calls import Call
from apps.api.core.tenant.usage import TOKENS

disable_created_metrics()  # type: ignore[no-untyped-call] # a time for each series of a counter, which nobody asks for

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
TASKS = Gauge("asyncio_tasks", "Tasks of the event loop.", registry=REGISTRY)
REQUESTS = Counter(
    "http_requests_total", "Requests by route and status.", ["method", "route", "status"], registry=REGISTRY
)
KEYS_REFUSED = Counter("keys_refused_total", "Keys that were shown and refused, by code.", ["code"], registry=REGISTRY)
RUNNING = Gauge("runs_running", "Runs that this instance executes now.", registry=REGISTRY)
SLOTS = Gauge("runner_slots", "Runs that this instance may execute at once.", registry=REGISTRY)
LIVE = Gauge("sessions_live", "Sessions that this instance owns, each with one agent process.", registry=REGISTRY)
AHEAD = Gauge("agents_ahead", "Agents that were started before anybody asked for them, and wait.", registry=REGISTRY)
STREAMS = Gauge("event_streams_open", "Event streams and requests that wait, on this instance.", registry=REGISTRY)
SOCKETS = Gauge("websockets_open", "WebSocket connections that are open on this instance.", registry=REGISTRY)
LEASE = Gauge("instance_lease_remaining_seconds", "Seconds for which this instance may still write.", registry=REGISTRY)
CLOCK = Gauge(
    "clock_offset_seconds", "By which the clock of this machine is ahead of the database's.", registry=REGISTRY
)
UNFIT = Gauge("instance_unfit", "What the host of this instance lacks to run agents, see /health.", registry=REGISTRY)
OUTBOUND = Counter(
    "outbound_calls_total",
    "What this instance did outside for tenants: webhooks, hooks, checks of addresses, names, clones.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
OUTBOUND_OPEN = Gauge("outbound_calls_open", "Those that are under way.", ["kind"], registry=REGISTRY)
MODEL_CALLS = Counter(
    "model_calls_total",
    "Calls of agents to the model by status of the answer, 0 when none came.",
    ["kind", "status"],
    registry=REGISTRY,
)
MODEL_FIRST_BYTE = Histogram(
    "model_call_first_byte_seconds",
    "Seconds until the head of the model's answer.",
    ["kind"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)
MODEL_TOKENS = Counter("model_tokens_total", "Tokens, as the model API counted them.", ["kind"], registry=REGISTRY)
MODEL_COST = Counter("model_cost_usd_total", "USD, by the table of prices.", registry=REGISTRY)
UNPRICED = Counter(
    "model_calls_unpriced_total", "Calls to models that are not in the table of prices.", registry=REGISTRY
)
COST_DIFFERS = Counter(
    "model_cost_differences_total",
    "Runs whose cost the SDK told more than 1 % lower or higher than the gateway has counted.",
    ["sdk"],
    registry=REGISTRY,
)


def model_call(call: Call) -> None:
    """Count a call that has ended."""
    MODEL_CALLS.labels(call.kind, call.status).inc()
    if call.first_byte_seconds is not None:
        MODEL_FIRST_BYTE.labels(call.kind).observe(call.first_byte_seconds)
    for name in TOKENS:
        MODEL_TOKENS.labels(name.removesuffix("_tokens")).inc(getattr(call.used, name))
    MODEL_COST.inc(call.cost_usd)
    if not call.priced:
        UNPRICED.inc()


def cost_differs(direction: str) -> None:
    """Count a run whose cost was told otherwise than the gateway has counted."""
    COST_DIFFERS.labels(direction).inc()


def outbound_calls(calls: Calls) -> None:
    """Tell of these from now on."""
    calls.observe = lambda kind, outcome: OUTBOUND.labels(kind, outcome).inc()
    for kind in KINDS:
        OUTBOUND_OPEN.labels(kind).set_function(partial(calls.open.__getitem__, kind))


class Total(Collector):
    """A counter that another part of the instance keeps."""

    def __init__(self, name: str, meaning: str) -> None:
        self._name, self._meaning = name, meaning
        self.read: Callable[[], int] = int  # which says 0
        REGISTRY.register(self)

    def collect(self) -> list[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, self._meaning, value=self.read())]


class Refusals(Collector):
    """What the proxy of agents has refused, by reason."""

    def __init__(self) -> None:
        self.read: Callable[[], Mapping[str, int]] = dict
        REGISTRY.register(self)

    def collect(self) -> list[CounterMetricFamily]:
        meaning = "Connections that agents' programs asked the proxy for and may not have."
        found = CounterMetricFamily("network_denied", meaning, labels=["reason"])
        for reason, times in self.read().items():
            found.add_metric([reason], times)
        return [found]


class LoopFigures(Collector):
    """Of the loops of the instance, by their names."""

    def __init__(self) -> None:
        self.read: Callable[[], Sequence[Loop]] = tuple
        REGISTRY.register(self)

    def collect(self) -> list[Metric]:
        failing = GaugeMetricFamily("loop_failing", "1 while the last step of the loop has failed.", labels=["loop"])
        steps = CounterMetricFamily("loop_failures", "Steps of the loop that failed.", labels=["loop"])
        items = CounterMetricFamily("loop_item_failures", "Times that one item failed in the loop.", labels=["loop"])
        for loop in self.read():
            failing.add_metric([loop.name], loop.failing_since is not None)
            steps.add_metric([loop.name], loop.failures)
            items.add_metric([loop.name], loop.sick)
        return [failing, steps, items]


LOOPS = LoopFigures()
NETWORK_DENIED = Refusals()
NETWORK_SENT = Total("network_sent_bytes", "Bytes that agents' programs sent through the proxy.")
NETWORK_RECEIVED = Total("network_received_bytes", "Bytes that agents' programs received through the proxy.")
NETWORK_OPEN = Gauge(
    "network_connections_open", "Connections of agents' programs through the proxy.", registry=REGISTRY
)
WEBHOOKS_SENT = Total("webhook_messages_sent", "Webhook messages that this instance delivered.")
WEBHOOKS_FAILED = Total(
    "webhook_attempts_failed", "Attempts of this instance to deliver a webhook message that failed."
)
AHEAD_TAKEN = Total("agents_ahead_taken", "New sessions that found an agent which had been started ahead.")
AHEAD_MISSED = Total("agents_ahead_missed", "New sessions that found none, and might have.")
STARTS_FAILED = Total("agent_starts_failed_by_host", "Starts of agents that failed for the host's reasons.")
DROPPED = Total("relay_frames_dropped", "Live frames not relayed because Redis was away.")
