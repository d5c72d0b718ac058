"""Status messages: of a service, of the fleet, of the cluster."""

from typing import Literal

from sps2.common.messages.base import Done, Request, Role, Stream, Struct
from sps2.common.messages.directory import Lease, Placement


class Link(Struct, frozen=True):
    """Bytes and frames that one shard has sent to another over the data plane, headers included."""

    source: str
    target: str
    sent_bytes: int
    frames: int


class Info(Struct, frozen=True):
    """The status of a service."""

    service: str
    pid: int
    version: str
    state: Literal["starting", "ready", "waiting"]
    waiting_for: str = ""
    """What it waits for while not ready, in words."""
    rss_bytes: int = 0
    up_s: float = 0.0
    counters: dict[str, float] = {}
    """Monotonic counts and current gauges, by metric name."""
    links: tuple[Link, ...] = ()


class Describe(Request[Info], frozen=True):
    """Anyone to any service: report your status."""


class Greeted(Struct, frozen=True):
    """The answering service's clocks: `at_s` since the epoch, `monotonic_s` from any origin."""

    at_s: float
    monotonic_s: float


class Greet(Request[Greeted], frozen=True):
    """Any service to one that it works with, before anything else, and to compare clocks. It never
    changes, so that services of all versions understand it. Invalid if the versions do not fit."""

    service: str
    version: str
    schema: str = ""
    """The `schema_hash`: two commits of one version may differ."""


class RequestStatus(Struct, frozen=True):
    """A request in the cluster. `age_s` is the time since it was submitted."""

    request: str
    stage: Literal["queued", "reserving", "prefill", "transfer", "decode"]
    prompt_tokens: int
    age_s: float
    epoch: int
    sp_degree: int = 0
    owner: str = ""
    placements: tuple[Placement, ...] = ()
    cached_tokens: int = 0
    group: tuple[str, ...] = ()
    """Prefill shards of the request."""
    max_tokens: int = 0
    """Maximum length of the answer."""
    waits_for: str = ""
    """What it waits for while it is queued, or is held back in prefill, in words."""


class ShardStatus(Struct, frozen=True):
    """A shard as the scheduler sees it; `state` is "lost" until the shard is back. One that gets no
    new work is "draining", and "drained" once it has none."""

    id: str
    role: Role
    state: Literal["ready", "busy", "draining", "drained", "lost"]
    pid: int = 0
    address: str = ""
    peer: str = ""
    transport: str = ""
    pages: int = 0
    pages_free: int = 0
    requests: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()
    """Control-bus addresses of its other processes."""
    duty: Role | None = None
    """What it is used for: its role, unless it is a mixed shard with another duty."""
    speed: float | None = None
    """How fast it computes prompts, relative to the fastest; None if all are about as fast."""
    link: float | None = None
    """The rate of its link, relative to the best; None if all are about as good."""
    left_out: str = ""
    """Why the last prompt that could have used it did not, in words; empty if it is used."""


class SetDuty(Request[Done], frozen=True):
    """Anyone to gateway or scheduler: use a mixed shard only for prefill, only for decode, or for
    both from now on; what it does already goes on. Invalid if that is not possible."""

    shard: str
    duty: Role


class Rates(Struct, frozen=True):
    """What the scheduler predicts with: configured, measured, or usual where nothing is known yet.

    gflops: GFLOP/s of the fastest shard's matrix products. link_gbit, link_latency_s: Gbit/s each
    way, and seconds one way, of the best link.
    """

    gflops: float
    link_gbit: float
    link_latency_s: float


class FleetStatus(Struct, frozen=True):
    shards: tuple[ShardStatus, ...]
    requests: tuple[RequestStatus, ...]
    waiting_for: str
    """What is missing, in words; empty if every shard is there."""
    serving: bool = False
    """Whether prompts can be prefilled and decoded, even if on fewer shards than configured."""
    rates: Rates | None = None


class ShowFleet(Request[FleetStatus], frozen=True):
    """Anyone to scheduler: report shards and requests."""


class ServiceStatus(Struct, frozen=True):
    service: str
    address: str
    state: Literal["starting", "ready", "waiting", "lost"]
    pid: int = 0
    waiting_for: str = ""
    rss_bytes: int = 0
    up_s: float = 0.0
    counters: dict[str, float] = {}


class ClusterStatus(Struct, frozen=True):
    """The output of `spsctl status --json`."""

    model: str
    version: str
    ready: bool
    """Whether requests are accepted, as in `/ready` and `sps2_ready`."""
    waiting_for: str
    """What is missing for that, in words; empty if requests are accepted."""
    services: tuple[ServiceStatus, ...]
    shards: tuple[ShardStatus, ...]
    requests: tuple[RequestStatus, ...]
    leases: tuple[Lease, ...]
    leaked_pages: int
    links: tuple[Link, ...] = ()
    quantize: str = "none"
    missing: str = ""
    """What is missing although requests are accepted, for example "1 of 2 decode shards"."""
    rates: Rates | None = None


class ShowCluster(Request[ClusterStatus], frozen=True):
    """Anyone to gateway: report the whole cluster."""


class CancelRequest(Request[Done], frozen=True):
    """Anyone to gateway: cancel a request by its id. Invalid if there is none."""

    request: str


class Recorded(Struct, frozen=True):
    """Lines of a recording of the scheduler's events, the first one its header."""

    lines: tuple[bytes, ...]


class Record(Stream[Recorded], frozen=True):
    """Anyone to gateway or scheduler: send the recent events and, with `follow`, later ones."""

    follow: bool = False
