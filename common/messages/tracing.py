"""Where the time of a request went: what each service did for it, and when."""

from sps2.common.messages.base import Request, Struct


class TraceSpan(Struct, frozen=True):
    """Something that a service did for a request, from one time to another.

    OpenTelemetry calls it a span, which here is a run of tokens. Times are seconds: by the clock of
    the service (`time.monotonic`), in a `Trace` since the trace began.
    """

    id: str
    """16 hexadecimal digits."""
    parent: str
    """The span that it is a part of."""
    name: str
    start_s: float
    stop_s: float
    busy_s: float | None = None
    """What was worked of it, where that is not all of it."""
    is_open: bool = False
    """It was still under way at `stop_s`."""
    service: str = ""
    detail: dict[str, str | float] = {}


class Recalled(Struct, frozen=True):
    spans: tuple[TraceSpan, ...]


class Recall(Request[Recalled], frozen=True):
    """Gateway to any service: what it did for an answer, by its name; nothing if it forgot."""

    answer: str


class Clock(Struct, frozen=True):
    """How the times of a service were told from its clock: they are at most `error_s` off.

    `offset_s` was added; 0 is the gateway's own clock, as on all services of one host.
    """

    service: str
    offset_s: float
    error_s: float


class Trace(Struct, frozen=True):
    """One answer, through all services. The first span is the whole of it."""

    request: str
    trace_id: str
    """32 hexadecimal digits, the caller's if it gave a `traceparent`."""
    at_s: float
    """When it began: seconds since the epoch, by the gateway's clock."""
    spans: tuple[TraceSpan, ...]
    clocks: tuple[Clock, ...]
    missing: tuple[str, ...] = ()
    """Services that were asked and did not answer."""


class ShowTrace(Request[Trace], frozen=True):
    """Anyone to gateway, by the answer's id or the `x-request-id`. Invalid if none is kept."""

    request: str


class TraceSummary(Struct, frozen=True):
    """What `spsctl trace` lists. Times and tokens are absent until they are known."""

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
    """Anyone to gateway: the answers whose traces are kept, the last one first."""
