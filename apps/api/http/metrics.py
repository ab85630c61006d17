"""What `/metrics` tells. Labels never hold a tenant, a session or anything else without a bound."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "http_requests_total", "Requests by route and status.", ["method", "route", "status"], registry=REGISTRY
)
RUNNING = Gauge("runs_running", "Runs that this instance executes now.", registry=REGISTRY)
SLOTS = Gauge("runner_slots", "Runs that this instance may execute at once.", registry=REGISTRY)
LIVE = Gauge("sessions_live", "Sessions that this instance owns, each with one agent process.", registry=REGISTRY)
STREAMS = Gauge("event_streams_open", "SSE responses that are open on this instance.", registry=REGISTRY)
WEBHOOKS_SENT = Gauge("webhook_messages_sent", "Webhook messages that this instance delivered.", registry=REGISTRY)
WEBHOOKS_FAILED = Gauge(
    "webhook_attempts_failed", "Attempts of this instance to deliver a webhook message that failed.", registry=REGISTRY
)
SOCKETS = Gauge("websockets_open", "WebSocket connections that are open on this instance.", registry=REGISTRY)
DROPPED = Gauge("relay_frames_dropped", "Live frames not relayed because Redis was away.", registry=REGISTRY)
LEASE = Gauge("instance_lease_remaining_seconds", "Seconds for which this instance may still write.", registry=REGISTRY)
