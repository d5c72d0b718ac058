"""Traces of requests: what each service did for a request, and when."""

from sps2.common.messages.base import Request, Struct


class TraceSpan(Struct, frozen=True):
    """A piece of work of a service for a request, with its start and end.

    OpenTelemetry calls it a span; `Span` here is a range of tokens. Times are in seconds: on the
    service's clock (`time.monotonic`), or in a `Trace` since the trace began.
    """

    id: str
    """16 hexadecimal digits."""
    parent: str
    """The id of the span that contains it."""
    name: str
    start_s: float
    stop_s: float
    busy_s: float | None = None
    """Seconds of actual work within it; None if it is work from start to end."""
    is_open: bool = False
    """Whether it was still under way at `stop_s`."""
    service: str = ""
    detail: dict[str, str | float] = {}


class Recalled(Struct, frozen=True):
    spans: tuple[TraceSpan, ...]


class Recall(Request[Recalled], frozen=True):
    """Gateway to any service: return the spans of an answer, by its id; none if no longer kept."""

    answer: str


class Clock(Struct, frozen=True):
    """How a service's times were converted to the gateway's clock, to within `error_s`.

    `offset_s` was added; it is 0 for services on the gateway's host, which share its clock.
    """

    service: str
    offset_s: float
    error_s: float


class Trace(Struct, frozen=True):
    """The trace of an answer through all services. Its first span is the whole request."""

    request: str
    trace_id: str
    """32 hexadecimal digits, the caller's if it gave a `traceparent`."""
    at_s: float
    """When it began: seconds since the epoch, on the gateway's clock."""
    spans: tuple[TraceSpan, ...]
    clocks: tuple[Clock, ...]
    missing: tuple[str, ...] = ()
    """Services that did not answer when their spans were collected."""


class ShowTrace(Request[Trace], frozen=True):
    """Anyone to gateway: return a trace by answer id or `x-request-id`. Invalid if not kept."""

    request: str


class TraceSummary(Struct, frozen=True):
    """A line of `spsctl trace`. Times and tokens are None until they are known."""

    request: str
    asked_as: str
    """The caller's own `x-request-id`."""
    age_s: float
    took_s: float
    is_running: bool
    prompt_tokens: int | None = None
    tokens: int | None = None
    ttft_s: float | None = None
    error: str = ""


class Traces(Struct, frozen=True):
    traces: tuple[TraceSummary, ...]


class ListTraces(Request[Traces], frozen=True):
    """Anyone to gateway: list the answers whose traces are kept, latest first."""
