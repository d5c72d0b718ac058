"""What a small cluster tells, for tests: events by hand, with times by hand."""

from sps2.cli.top.monitor import Monitor
from sps2.common.bus.telemetry import Heartbeat, RequestEvent
from sps2.common.config import Bus
from sps2.common.messages import (
    ClusterStatus,
    Link,
    Placement,
    RequestStatus,
    ServiceStatus,
    ShardStatus,
)
from sps2.common.spans import Span

BUS = Bus(heartbeat_s=1.0, missed_heartbeats=3)
NAMES = ("gateway", "scheduler", "kvdir", "prefill-0", "prefill-1", "decode-0", "decode-1")
REQUEST = "3fa9c01be2d40000"


def heartbeat(service: str, second: int, pid: int = 1, **more: object) -> Heartbeat:
    """Heartbeat number `second` of a service under steady load."""
    counters: dict[str, dict[str, float]] = {
        "gateway": {
            "sps2_requests_total": 2.0 * second,
            "sps2_generation_tokens_total": 90.0 * second,
            "ttft_p50_s": 0.42,
            "ttft_p99_s": 1.3,
            "tbt_p50_s": 0.0124,
            "tbt_p99_s": 0.031,
        },
        "scheduler": {"requests_waiting": 1.0, "requests_running": 3.0},
        "prefill": {
            "busy_s": 0.5 * second,
            "prefilling": 1.0,
            "prefill_tokens": 400.0 * second,
            "exchange_s": 0.5 * second,
            "hidden_s": 0.4 * second,
            "kv_sent": 2e6 * second,
            "q_sent": 1e6 * second,
            "kv_received": 5e5 * second,
        },
        "decode": {
            "busy_s": 0.25 * second,
            "kv_pages": 100.0,
            "kv_pages_free": 60.0,
            "kv_pages_idle": 30.0,
            "owned": 1.0,
            "held": 2.0,
            "question_sent": 1e3 * second,
            "question_received": 2e3 * second,
        },
    }
    role = service.partition("-")[0]
    links = (Link(service, "decode-0", 3_000_000 * second, second),) if role == "prefill" else ()
    told = {"state": "ready", "links": links} | more
    return Heartbeat(service, pid, 1000.0 + second, 1 << 20, counters.get(role, {}), **told)  # type: ignore[arg-type]


def status(*requests: RequestStatus, ready: bool = True, missing: str = "") -> ClusterStatus:
    return ClusterStatus(
        "tiny",
        "0",
        ready,
        "" if ready else "1 of 2 decode shards",
        tuple(ServiceStatus(name, f"tcp://{name}", "ready", 1) for name in NAMES),
        tuple(
            ShardStatus(name, name.partition("-")[0], "ready", 1, f"tcp://{name}")  # type: ignore[arg-type]
            for name in NAMES[3:]
        ),
        requests,
        (),
        0,
        missing=missing,
    )


def running(stage: str = "decode", age_s: float = 5.0, request: str = REQUEST) -> RequestStatus:
    places = (
        Placement("decode-0", Span(0, 4000), 125),
        Placement("decode-1", Span(4000, 7900), 122),
    )
    return RequestStatus(
        request,
        stage,  # type: ignore[arg-type]
        7900,
        age_s,
        0,
        2,
        "decode-1",
        places,
        512,
        ("prefill-0", "prefill-1"),
        128,
    )


def event(stage: str, request: str = REQUEST, **detail: str | float) -> RequestEvent:
    return RequestEvent(request, stage, 0.0, detail)


def watched(seconds: int = 3) -> Monitor:
    """A monitor that has heard so many heartbeats of everyone; its clock is at `seconds`."""
    monitor = Monitor("test", BUS)
    monitor.take(status(), 0.0)
    for second in range(1, seconds + 1):
        for name in NAMES:
            monitor.hear(heartbeat(name, second), float(second))
    return monitor


def in_prefill(monitor: Monitor, now_s: float = 3.0) -> None:
    """A request goes as far as the middle of its prefill."""
    monitor.hear(event("queued", prompt_tokens=7900, max_tokens=128), now_s - 2.0)
    monitor.hear(
        event(
            "reserving",
            owner="decode-1",
            group="prefill-0 prefill-1",
            holders="decode-0 decode-1",
            method="gather",
            attention="exact",
            cached_tokens=900,
            epoch=0,
        ),
        now_s - 1.5,
    )
    monitor.hear(event("prefill"), now_s - 1.0)
    monitor.hear(event("prefill", processed=3700), now_s)
