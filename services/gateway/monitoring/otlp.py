"""Sends traces to a collector over OTLP/HTTP with OpenTelemetry's exporter (extra `otel`)."""

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sps2.common.messages import Trace, TraceSpan

TIMEOUT_S = 10.0
PIECES = ("compute", "await", "send")
"""Spans within a layer: only `spsctl trace` shows them; the layer's span has their sums."""


class Exporter:
    """Sends one trace at a time; headers and certificates come from `OTEL_EXPORTER_OTLP_*`.

    Args:
        cluster: its name, an attribute of every span.
        version: of this software.
    """

    def __init__(self, endpoint: str, cluster: str, version: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint, timeout=TIMEOUT_S)
        self._common = {SERVICE_NAME: "sps2", SERVICE_VERSION: version, "sps2.cluster": cluster}
        self._resources: dict[str, Resource] = {}

    def send(self, trace: Trace) -> bool:
        """Send a trace; whether the collector accepted it. Blocks for up to `TIMEOUT_S`."""
        return self._exporter.export(self._spans(trace)) is SpanExportResult.SUCCESS

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _spans(self, trace: Trace) -> Sequence[ReadableSpan]:
        return [
            self._span(trace, span, is_whole=not place)
            for place, span in enumerate(trace.spans)
            if span.name not in PIECES
        ]

    def _span(self, trace: Trace, span: TraceSpan, *, is_whole: bool) -> ReadableSpan:
        attributes = {f"sps2.{name}": value for name, value in span.detail.items()}
        if span.busy_s is not None:
            attributes["sps2.busy_s"] = span.busy_s
        error = span.detail.get("error")
        return ReadableSpan(
            span.name,
            _context(trace, span.id),
            _context(trace, span.parent) if span.parent else None,
            self._resource(span.service),
            attributes,
            kind=SpanKind.SERVER if is_whole else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, str(error)) if error else Status(),
            start_time=_nanoseconds(trace, span.start_s),
            end_time=_nanoseconds(trace, span.stop_s),
        )

    def _resource(self, service: str) -> Resource:
        if service not in self._resources:
            self._resources[service] = Resource(self._common | {SERVICE_INSTANCE_ID: service})
        return self._resources[service]


def _context(trace: Trace, span: str) -> SpanContext:
    sampled = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(int(trace.trace_id, 16), int(span, 16), False, sampled)


def _nanoseconds(trace: Trace, seconds: float) -> int:
    return round(1e9 * (trace.at_s + seconds))
