"""Spans by OpenTelemetry, sent over OTLP/HTTP by a thread of its own. Imported only where traces are sent anywhere."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from apps.api import __version__, clock, tracing
from apps.api.tracing import Attributes, Kind

_KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}


class Spans:
    """Makes them, and sends them. OpenTelemetry reads its other variables (OTEL_TRACES_SAMPLER, …) by itself."""

    def __init__(self, endpoint: str, resource: Mapping[str, str]) -> None:
        """`endpoint`: as OTEL_EXPORTER_OTLP_ENDPOINT. `resource`: whose spans they are."""
        usual, own = Resource({"service.name": "claude-agent-api"}), {"service.version": __version__, **resource}
        self._provider = TracerProvider(
            resource=usual.merge(OTELResourceDetector().detect()).merge(Resource(own)), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("apps.api", __version__)
        tracing.send_by(self.begin)

    def begin(self, name: str, parent: str | None, attributes: Attributes, kind: Kind, at: float) -> tracing.Span:
        """See `tracing.begin`; `at`: in seconds since 1970."""
        context = None
        if parent is not None:
            trace_id, span_id, flags = int(parent[3:35], 16), int(parent[36:52], 16), int(parent[53:55], 16)
            above = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
            context = set_span_in_context(NonRecordingSpan(above))
        span = self._tracer.start_span(name, context, _KINDS[kind], _told(attributes), start_time=_nanoseconds(at))
        return _Sent(span)

    def close(self) -> None:
        """Make no more, and send the last ones. Blocks, for half a minute at most."""
        tracing.send_by(None)
        self._provider.shutdown()


class _Sent(tracing.Span):
    __slots__ = ("_span",)

    def __init__(self, span: OtelSpan) -> None:
        own = span.get_span_context()
        super().__init__(f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}")
        self._span = span

    def set(self, attributes: Attributes) -> None:
        if self._span.is_recording():  # not one that is not sampled, or over
            self._span.set_attributes(_told(attributes))

    def rename(self, name: str) -> None:
        if self._span.is_recording():
            self._span.update_name(name)

    def end(self, error: str | None = None) -> None:
        if self._span.is_recording():
            if error is not None:
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end(_nanoseconds(clock.timestamp()))


def _told(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000) * 1_000
